"""The published radius, and Gaussians on heatmaps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from detectors.shared import gaussian
from detectors.shared.gaussian import gaussian_heatmaps, published_radius


@pytest.mark.parametrize(
    ("side", "radius"),
    # Side 10: (-28 + sqrt(28^2 + 336)) / 2 = (-28 + 33.47) / 2 = 2.73.
    [
        (1, 0.27),
        (2, 0.55),
        (3, 0.82),
        (5, 1.37),
        (8, 2.19),
        (10, 2.73),
        (16, 4.37),
        (32, 8.75),
        (64, 17.49),
        (128, 34.98),
    ],
)
def test_radius_of_squares(side: int, radius: float) -> None:
    assert published_radius(torch.tensor(float(side)), torch.tensor(float(side))).item() == pytest.approx(
        radius, abs=0.006
    )


@given(st.integers(1, 128), st.integers(1, 128))
def test_the_third_root_decides(height: int, width: int) -> None:
    total, area = height + width, height * width
    third = (-1.4 * total + math.sqrt((1.4 * total) ** 2 + 3.36 * area)) / 2
    radius = published_radius(torch.tensor(float(height)), torch.tensor(float(width))).item()
    assert radius == pytest.approx(third, abs=1e-9)
    assert (radius < 1) == (area < 1 / 0.84 + total / 0.6)  # third < 1, solved for the area


def test_another_overlap_takes_its_own_roots() -> None:
    # Overlap 0.5, 10 x 10: a = 2, b = -20, c = -50: (-20 + sqrt(400 + 400)) / 2 = 4.142.
    radius = published_radius(torch.tensor(10.0), torch.tensor(10.0), min_overlap=0.5)
    assert radius.item() == pytest.approx((-20 + math.sqrt(800)) / 2)


@pytest.mark.parametrize("overlap", [0.3, 0.7])
def test_roots_that_are_whole_numbers_are_truncated_as_published(overlap: float) -> None:
    # 14 x 95, 15 x 70 and 20 x 35 have 7 exactly at 0.7, and at 0.3 25 x 90 has 21, which floats put below.
    sides = torch.arange(1.0, 101.0)
    given = published_radius(sides[:, None], sides, overlap).long().tolist()
    for height in range(1, 101):
        for width in range(1, 101):
            a, b, c = 4 * overlap, -2 * overlap * (height + width), (overlap - 1) * width * height
            assert given[height - 1][width - 1] == int((b + math.sqrt(b**2 - 4 * a * c)) / 2)


@pytest.mark.parametrize(("height", "width", "whole"), [(1, 128, 0), (2, 13, 0), (2, 14, 1), (3, 3, 0), (4, 4, 1)])
def test_thin_and_tiny_objects_get_a_single_cell(height: int, width: int, whole: int) -> None:
    assert int(published_radius(torch.tensor(float(height)), torch.tensor(float(width)))) == whole


def draw(objects: list[tuple[int, int, int, int]], shape: tuple[int, int, int]) -> torch.Tensor:
    rows = torch.tensor(objects, dtype=torch.int64).reshape(-1, 4)
    return gaussian_heatmaps(rows[:, 0], rows[:, 1:3], rows[:, 3], torch.ones(len(rows), dtype=torch.bool), shape)


def test_a_gaussian_of_radius_1() -> None:
    # Diameter 3, sigma 0.5: exp(-1 / 0.5) = 0.1353 beside the centre, exp(-2 / 0.5) = 0.0183 at the corners.
    heatmap = draw([(0, 2, 1, 1)], (1, 4, 5))[0]
    beside, corner = math.exp(-2), math.exp(-4)
    expected = torch.tensor(
        [
            [0, corner, beside, corner, 0],
            [0, beside, 1, beside, 0],
            [0, corner, beside, corner, 0],
            [0, 0, 0, 0, 0],
        ]
    )
    assert_close(heatmap, expected, rtol=1e-7, atol=0)


def test_the_square_ends_where_the_radius_does() -> None:
    heatmap = draw([(0, 16, 16, 8)], (1, 33, 33))[0]
    assert heatmap[16].nonzero().flatten().tolist() == list(range(8, 25))
    assert heatmap[16, 8].item() == pytest.approx(math.exp(-4.5 * (16 / 17) ** 2))
    assert heatmap[8, 8] > 0
    assert heatmap[7, 8] == 0


def test_where_gaussians_meet_the_larger_value_stays() -> None:
    first, second = draw([(0, 3, 3, 2)], (1, 8, 8)), draw([(0, 5, 4, 3)], (1, 8, 8))
    assert torch.equal(draw([(0, 3, 3, 2), (0, 5, 4, 3)], (1, 8, 8)), torch.maximum(first, second))


def test_planes_do_not_leak_into_one_another() -> None:
    # In the last row of plane 0 and the first of plane 2, half of the Gaussian is outside.
    heatmaps = draw([(0, 0, 7, 3), (2, 7, 0, 3)], (3, 8, 8))
    assert not heatmaps[1].any()
    assert (heatmaps[0] > 0).sum() == 4 * 4
    assert (heatmaps[2] > 0).sum() == 4 * 4
    assert heatmaps[0, 0, 0] == 0


def test_rows_that_are_not_drawn_do_not_matter() -> None:
    planes, centers = torch.tensor([0, 77, 0]), torch.tensor([[1, 1], [-5, 900], [3, 0]])
    radii, drawn = torch.tensor([1, 1000, 0]), torch.tensor([True, False, True])
    heatmap = gaussian_heatmaps(planes, centers, radii, drawn, (1, 4, 4))
    assert torch.equal(heatmap, draw([(0, 1, 1, 1), (0, 3, 0, 0)], (1, 4, 4)))


def test_no_objects_leave_zeros() -> None:
    assert torch.equal(draw([], (2, 4, 4)), torch.zeros(2, 4, 4))


def test_pieces_make_the_same_heatmap(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = [(index % 3, 5 * index % 16, 7 * index % 16, index % 6) for index in range(20)]
    whole = draw(objects, (3, 16, 16))
    monkeypatch.setattr(gaussian, "_CELLS_AT_ONCE", 17)  # cuts through the middle of objects
    assert torch.equal(draw(objects, (3, 16, 16)), whole)
