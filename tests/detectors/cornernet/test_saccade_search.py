"""Locations and crops of CornerNet-Saccade by hand."""

import torch
from torch import tensor

from detectors.cornernet.decoding import Pairs
from detectors.cornernet.saccade_search import (
    attended_locations,
    cut,
    first_locations,
    locations_of,
    without_neighbours,
)

BLANK = torch.zeros(3, 1, 1)


def locations(*rows: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_the_first_look_shows_the_whole_image_at_192_and_255_pixels() -> None:
    found = first_locations(375, 500)
    assert found[:, :2].tolist() == [[187, 250], [187, 250]]
    # float32 of 192 / 500 and 255 / 500; in float64, 255 / 0.51 would be 499.99999999999994 for some sides.
    assert found[:, 2].tolist() == [0.38400000333786011, 0.50999999046325684]
    assert [int(255 / scale) for scale in found[:, 2].tolist()] == [664, 500]


def test_a_location_suppresses_a_cross() -> None:
    # The smaller of the distances counts: 0 in y and 500 in x is near.
    kept = without_neighbours(locations((10, 10, 1, 0.9), (10, 510, 1, 0.8), (510, 10, 1, 0.7), (27, 27, 1, 0.6)))
    assert kept[:, 3].tolist() == [0.9, 0.6]
    # 16 pixels at the better one's scale are 8 in the image at scale 2; at 16 exactly the other goes.
    assert len(without_neighbours(locations((10, 10, 2, 0.9), (18, 18, 2, 0.8)))) == 1
    assert len(without_neighbours(locations((10, 10, 2, 0.9), (18.5, 18.5, 2, 0.8)))) == 2


def test_locations_of_another_scale_stay() -> None:
    kept = without_neighbours(locations((10, 10, 1.0, 0.9), (10, 10, 1.2, 0.8), (10, 10, 1.3, 0.7), (10, 10, 0.8, 0.6)))
    assert kept[:, 2].tolist() == [1.0, 1.3, 0.8]  # 1 / 1.2 = 0.83 is near; 1 / 1.3 = 0.77 and 1 / 0.8 = 1.25 are not


def test_ties_are_in_the_order_of_the_published_sort() -> None:
    kept = without_neighbours(locations((10, 10, 1, 1), (60, 60, 1, 1), (110, 110, 1, 1)))
    assert kept[:, 0].tolist() == [110, 60, 10]
    assert len(without_neighbours(torch.zeros(0, 4, dtype=torch.float64))) == 0


def test_boxes_are_shown_at_the_size_of_their_kind() -> None:
    boxes = tensor([[0.0, 0, 192, 10], [0, 0, 96, 10], [10, 0, 10, 32], [5, 5, 5, 5]])
    found = locations_of(Pairs(boxes, torch.rand(4), torch.zeros(4, dtype=torch.int64), torch.rand(4, 2)))
    assert found.tolist() == [[5, 96, 1, 1], [5, 48, float(tensor(64 / 96)), 1], [16, 10, 0.75, 1]]


def test_attention_is_followed_inside_the_image_and_up_to_four_times_its_size() -> None:
    crop = cut(torch.ones(3, 100, 200), locations((50, 100, 255 / 200, 1))[0], BLANK)
    assert crop is not None
    assert crop.offset.tolist() == [0, -50]
    maps = {f"attention_{stride}": torch.full((1, 1, 256 // stride, 256 // stride), -9.0) for stride in (16, 8, 4)}
    maps["attention_16"][0, 0, 8, 2] = 3
    maps["attention_16"][0, 0, 1, 2] = 3  # above the image
    maps["attention_8"][0, 0, 16, 4] = 2
    maps["attention_8"][0, 0, 16, 5] = 1  # not a peak
    maps["attention_4"][0, 0, 32, 8] = 3  # at scale 5.1
    found = attended_locations(maps, [crop], (100, 200), 0.3)
    scale = 255 / 200
    torch.testing.assert_close(
        found,
        locations(
            (128 / scale - 50, 32 / scale, scale, float(tensor(3.0).sigmoid())),
            (128 / scale - 50, 32 / scale, 2 * scale, float(tensor(2.0).sigmoid())),
        ),
        rtol=1e-6,
        atol=1e-6,
    )


def test_a_crop_has_the_image_in_the_middle_and_blank_around_it() -> None:
    crop = cut(torch.ones(3, 100, 200), locations((50, 100, 1, 1))[0], BLANK - 2)
    assert crop is not None
    inside = (crop.pixels[0] == 1).nonzero()
    assert inside.amin(dim=0).tolist() == [77, 27]
    assert inside.amax(dim=0).tolist() == [176, 226]
    assert (crop.pixels[0] == -2).sum() == 255 * 255 - 100 * 200
    assert crop.offset.tolist() == [-27, -77]
    corner = cut(torch.ones(3, 100, 200), locations((0, 199.7, 2, 1))[0], BLANK)
    assert corner is not None
    assert corner.offset.tolist() == [199 - 63, -63]


def test_a_crop_without_a_pixel_is_left_out() -> None:
    image = torch.ones(3, 100, 200)
    for location in ((50.0, 100, 200, 1), (500, 100, 1, 1), (50, -400, 1, 1)):
        assert cut(image, locations(location)[0], BLANK) is None
