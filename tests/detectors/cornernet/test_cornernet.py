"""Decoding of CornerNet, and views of an image merged, against the published procedure in plain loops."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from detectors import DetectorError, View
from detectors.cornernet.cornernet import CornerNet, CornerNetSettings
from detectors.detector import TestMode
from detectors.shared.network import Outputs
from tests.detectors.cornernet import reference
from tests.detectors.cornernet.stand_in import StandIn, perfect_maps, random_maps

INPUT = (63, 95)
CELLS = (16, 24)


def detector(answer: Callable[[Tensor], Outputs] = lambda images: [], **settings: Any) -> CornerNet:
    return CornerNet(3, StandIn(answer), CornerNetSettings(**settings)).eval()


def test_a_batch_is_its_images_one_by_one() -> None:
    maps = random_maps(3, CELLS, 0, batch=3)
    both = detector().decode([maps], INPUT)
    for image in range(3):
        (alone,) = detector().decode([{name: values[image : image + 1] for name, values in maps.items()}], INPUT)
        assert torch.equal(alone.boxes, both[image].boxes)
        assert torch.equal(alone.scores, both[image].scores)


@pytest.mark.parametrize("stride", [4, 8])
def test_decoding_the_targets_yields_the_boxes(stride: int) -> None:
    boxes = tensor([[[3.0, 5, 40, 33], [50, 4, 92, 60], [12, 30, 13, 31], [-9, 20, 30, 90]], [[8, 8, 60, 60]] * 4])
    labels = tensor([[0, 1, 2, 1], [-1, 2, -1, -1]])
    one = CornerNet(3, StandIn(stride=stride), CornerNetSettings())
    found = one.decode([perfect_maps(one.encode(boxes, labels, INPUT))], INPUT)
    expected = [boxes[0].clamp_min(0).clamp_max(tensor([94.0, 62, 94, 62])), boxes[1, :1]]
    for image, detections in enumerate(found):
        sure = detections.scores > 0.9
        assert int(sure.sum()) == len(expected[image])
        wanted = {tuple(row) for row in expected[image].round(decimals=2).tolist()}
        assert {tuple(row) for row in detections.boxes[sure].round(decimals=2).tolist()} == wanted
    assert sorted(found[0].labels[found[0].scores > 0.9].tolist()) == [0, 1, 1, 2]


def test_tags_that_differ_too_much_are_not_paired() -> None:
    one = detector()
    maps = perfect_maps(one.encode(tensor([[[8.0, 8, 40, 40]]]), tensor([[1]]), INPUT))
    for distance, count in ((0.5, 1), (0.51, 0)):
        maps["bottom_right_tag"] = maps["top_left_tag"] + distance
        (found,) = one.decode([maps], INPUT)
        assert int((found.scores > 0.9).sum()) == count
    (found,) = detector(tag_distance=0.6).decode([maps], INPUT)
    assert int((found.scores > 0.9).sum()) == 1


def test_maps_of_another_input_are_refused() -> None:
    with pytest.raises(DetectorError, match="the maps are 16 x 24 cells, but an input of 127 x 127 has 32 x 32"):
        detector().decode([random_maps(3, CELLS, 0)], (127, 127))


def test_fewer_cells_than_corners() -> None:
    (found,) = detector(candidates=5000).decode([random_maps(3, (2, 2), 0)], (7, 7))
    assert len(found.scores) <= 3 * 16


# Several views


def view(scale: float, image_size: tuple[int, int] = (40, 61)) -> View:
    """An image of noise in the middle of an input, as the published test places it."""
    height, width = int(image_size[0] * scale), int(image_size[1] * scale)
    rows, columns = (-(-(side + 1) // 32) * 32 - 1 for side in (height, width))
    border = (rows // 2 - height // 2, columns // 2 - width // 2)
    return View(
        torch.zeros(1, 3, rows, columns),
        tensor([[[scale, 0.0, border[1]], [0.0, scale, border[0]]]]),
        image_sizes=tensor([list(image_size)]),
        scale=scale,
    )


def answer(images: Tensor) -> Outputs:
    """Noise that depends on the size of the input and the number of the image."""
    height, width = ((side + 1) // 4 for side in images.shape[-2:])
    maps = [random_maps(3, (height, width), 1000 * number + width) for number in range(len(images))]
    return [{name: torch.cat([one[name] for one in maps]) for name in maps[0]}]


def published_rows(views: list[View], flip: bool, corners: int) -> list[list[float]]:
    rows = []
    for one in views:
        (input_height, input_width), scale = one.input_size, one.scale
        out_height, out_width = (input_height + 1) // 4, (input_width + 1) // 4
        border_y, border_x = (int(one.transforms[0, axis, 2]) for axis in (1, 0))
        height, width = int(40 * scale), int(61 * scale)
        for mirrored in range(1 + flip):
            maps = {
                name: values[mirrored : mirrored + 1]
                for name, values in answer(torch.zeros(2, 3, *one.input_size))[0].items()
            }
            for x1, y1, x2, y2, *rest in reference.pairs(maps, corners=corners, distance=0.5, limit=1000):
                if mirrored:
                    x1, x2 = out_width - x2, out_width - x1
                xs = [min(max(x / (out_width / input_width) - border_x, 0), width) / scale for x in (x1, x2)]
                ys = [min(max(y / (out_height / input_height) - border_y, 0), height) / scale for y in (y1, y2)]
                rows.append([xs[0], ys[0], xs[1], ys[1], *rest])
    return rows


@pytest.mark.parametrize("suppression", ["published", "corrected"])
@pytest.mark.parametrize(("mode", "scales"), [("none", (1.0,)), ("flip", (1.0,)), ("multiscale", (0.5, 1.0, 1.5))])
def test_views_are_merged_as_published(mode: TestMode, scales: tuple[float, ...], suppression: str) -> None:
    views = [view(scale) for scale in scales]
    # The smallest map has few peaks; beyond them the published code takes cells that score 0, in no certain order.
    one = detector(answer, corners=14, suppression=suppression)
    (found,) = one.detect(views, mode=mode, limit=10_000)
    rows = published_rows(views, mode != "none", 14)
    published = suppression == "published"
    expected = np.array(reference.soft_nms(rows, mode == "multiscale", stale=published, own_corners=not published))
    assert len(found.scores) == len(expected)
    np.testing.assert_allclose(found.scores, expected[:, 4], rtol=2e-3, atol=1e-6)
    # Rows of nearly equal scores may be in another order.
    given = torch.cat((found.boxes, found.scores[:, None], found.labels[:, None]), dim=1).numpy()
    for row in given:
        assert np.abs(expected - row).max(axis=1).min() < 0.02
    assert given[:, :4].min() >= 0
    assert (given[:, 2] <= 61).all()
    assert (given[:, 3] <= 40).all()
    assert (given[:, :2] == 0).any()


def test_all_that_tie_for_the_last_place_are_returned() -> None:
    views = [view(1.0)]
    one = detector(answer, corners=30)
    (every,) = one.detect(views, mode="flip", limit=10_000)
    (some,) = one.detect(views, mode="flip", limit=7)
    assert torch.equal(some.scores, every.scores[: len(some.scores)])
    assert len(some.scores) == int((every.scores >= every.scores[6]).sum())


def test_without_the_size_of_the_image_boxes_are_clipped_to_the_input() -> None:
    one = view(1.0)
    (found,) = detector(answer).detect([View(one.images, one.transforms)], limit=10_000)
    first, last = -one.transforms[0, :, 2], tensor(one.input_size[::-1]) - one.transforms[0, :, 2]
    corners = found.boxes.view(-1, 2)
    assert (corners >= first).all()
    assert (corners <= last).all()
    assert (corners < 0).any()


def test_watch_sees_the_outputs_of_the_images() -> None:
    seen = []
    detector(answer).detect([view(1.0)], mode="flip", watch=lambda number, outputs: seen.append((number, outputs)))
    ((number, outputs),) = seen
    assert number == 0
    assert torch.equal(outputs[0]["top_left_tag"], answer(torch.zeros(1, 3, 63, 63))[0]["top_left_tag"])
