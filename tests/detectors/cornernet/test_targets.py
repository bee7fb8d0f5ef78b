"""Targets of corners against the published procedure, one object after the other."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from detectors import DetectorError
from detectors.cornernet.cornernet import CornerNet, CornerNetSettings
from detectors.cornernet.targets import CornerTargets
from detectors.shared.gaussian import corrected_radius, published_radius
from tests.detectors.cornernet import reference
from tests.detectors.cornernet.stand_in import StandIn

INPUT = (95, 127)
"""Height and width of the input; the maps are 24 x 32."""


def detector(stride: int = 4, **settings: Any) -> CornerNet:
    return CornerNet(3, StandIn(stride=stride), CornerNetSettings(**settings))


def encode(boxes: list[list[float]], labels: list[int], **settings: Any) -> CornerTargets:
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4)
    return detector(**settings).encode(rows, torch.tensor(labels, dtype=torch.int64).reshape(1, -1), INPUT)


def random_boxes(seed: int, batch: int, objects: int) -> tuple[Tensor, Tensor]:
    """Boxes of all kinds: inside, over the border, outside, thin, without area, padding between real ones."""
    random = np.random.default_rng(seed)
    center = random.uniform(-30, 160, (batch, objects, 2))
    half = np.exp(random.uniform(np.log(0.3), np.log(90), (batch, objects, 2))) / 2
    half[random.random((batch, objects)) < 0.1] = 0
    boxes = np.concatenate((center - half, center + half), axis=-1)
    labels = random.integers(-1, 3, (batch, objects))
    return torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels)


@pytest.mark.parametrize(
    ("formula", "overlap", "expected"), [("original", 0.7, 8.75), ("corrected", 0.3, 7.24), ("corrected", 0.5, 4.69)]
)
def test_radius_of_a_square_of_32_cells(formula: str, overlap: float, expected: float) -> None:
    function = published_radius if formula == "original" else corrected_radius
    assert function(tensor(32.0), tensor(32.0), overlap).item() == pytest.approx(expected, abs=5e-3)


def test_the_corrected_radius_keeps_the_overlap() -> None:
    # Corners moved outwards or inwards by the radius in both directions.
    for overlap in (0.3, 0.5, 0.7):
        for height, width in ((20.0, 20.0), (10.0, 50.0), (3.0, 7.0)):
            r = corrected_radius(tensor(height), tensor(width), overlap).item()
            area = height * width
            shrunk = (height - 2 * r) * (width - 2 * r) / area
            grown = area / ((height + 2 * r) * (width + 2 * r))
            moved = (height - r) * (width - r) / (2 * area - (height - r) * (width - r))
            assert min(shrunk, grown, moved) == pytest.approx(overlap, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("formula", "overlap", "stride"), [("corrected", 0.3, 4), ("original", 0.7, 4), ("corrected", 0.3, 8)]
)
def test_targets_are_those_of_the_published_procedure(seed: int, formula: str, overlap: float, stride: int) -> None:
    boxes, labels = random_boxes(seed, batch=3, objects=20)
    settings = {"max_objects": 16, "gaussian_radius": formula, "min_overlap": overlap}
    targets = detector(stride, **settings).encode(boxes, labels, INPUT)
    rows, columns = (INPUT[0] + 1) // stride, (INPUT[1] + 1) // stride
    ratio_x, ratio_y = columns / INPUT[1], rows / INPUT[0]
    dropped = 0
    for image in range(3):
        heat = {name: np.zeros((3, rows, columns), np.float32) for name in targets.points}
        for slot in range(16):
            label = int(labels[image, slot])
            corners = reference.clipped(boxes[image, slot].tolist(), INPUT)
            assert bool(targets.object_mask[image, slot]) == (label >= 0 and corners is not None)
            dropped += label >= 0 and corners is None
            if label < 0 or corners is None:
                for point in targets.points.values():
                    assert point.offset[image, slot].tolist() == [0, 0]
                    assert point.index[image, slot] == 0
                continue
            x1, y1, x2, y2 = corners
            reach = reference.radius(math.ceil((y2 - y1) * ratio_y), math.ceil((x2 - x1) * ratio_x), overlap, formula)
            for name, (x, y) in {"top_left": (x1, y1), "bottom_right": (x2, y2)}.items():
                column, row = int(x * ratio_x), int(y * ratio_y)
                reference.draw(heat[name][label], column, row, reach)
                point = targets.points[name]
                assert point.index[image, slot] == row * columns + column
                np.testing.assert_allclose(
                    point.offset[image, slot], [x * ratio_x - column, y * ratio_y - row], atol=1e-6
                )
        for name, expected in heat.items():
            np.testing.assert_allclose(targets.points[name].heatmap[image], expected, rtol=1.2e-7, atol=0)
    assert dropped > 0


def test_an_object_by_hand() -> None:
    # A cell is 127 / 32 = 3.97 pixels wide and 95 / 24 = 3.96 high: x 10 and 50 are at 2.52 and 12.60 cells, y 16
    # and 39 at 4.04 and 9.85. It is 11 cells wide and 6 high: a radius of (34 - sqrt(34^2 - 16 x 0.7 x 66)) / 8 = 1.70.
    targets = encode([[10, 16, 50, 39]], [2])
    top_left, bottom_right = targets.points["top_left"], targets.points["bottom_right"]
    assert top_left.index[0, 0] == 4 * 32 + 2
    assert bottom_right.index[0, 0] == 9 * 32 + 12
    torch.testing.assert_close(top_left.offset[0, 0], tensor([320 / 127 - 2, 384 / 95 - 4]))
    assert (top_left.heatmap == 1).nonzero().tolist() == [[0, 2, 4, 2]]
    assert (bottom_right.heatmap == 1).nonzero().tolist() == [[0, 2, 9, 12]]
    assert top_left.heatmap[0, 2, 4].nonzero().flatten().tolist() == [1, 2, 3]


def test_a_box_over_everything_has_its_corners_in_the_first_and_last_cell() -> None:
    targets = encode([[-50, -50, 500, 500]], [0])
    assert targets.points["top_left"].index[0, 0] == 0
    assert targets.points["bottom_right"].index[0, 0] == 23 * 32 + 31


def test_a_box_of_one_pixel_and_coinciding_corners() -> None:
    targets = encode([[21, 42, 22, 43], [21.5, 42, 90, 80]], [0, 0])
    assert targets.object_mask[0, :2].tolist() == [True, True]
    assert targets.points["top_left"].index[0, 0] == targets.points["top_left"].index[0, 1]
    # Two objects share a corner, which is one peak.
    assert (targets.points["top_left"].heatmap == 1).sum() == 1
    assert (targets.points["bottom_right"].heatmap == 1).sum() == 2


@pytest.mark.parametrize("labels", [[], [-1, -1], [-2, -5]])
def test_an_image_without_objects_is_empty(labels: list[int]) -> None:
    targets = encode([[8, 8, 24, 24]] * len(labels), labels)
    assert not targets.object_mask.any()
    for point in targets.points.values():
        assert point.heatmap.shape == (1, 3, 24, 32)
        assert point.offset.shape == (1, 128, 2)
        assert not point.heatmap.any()
        assert not point.index.any()


def test_only_the_first_objects_in_file_order_are_used() -> None:
    targets = encode([[8.0 * slot, 8, 8.0 * slot + 8, 24] for slot in range(6)], [0] * 6, max_objects=4)
    assert targets.object_mask.shape == (1, 4)
    assert (targets.points["top_left"].heatmap == 1).sum() == 4


def test_a_crowd_of_more_objects_than_slots() -> None:
    targets = encode([[10, 10, 60, 60]] * 200, [1] * 200)
    assert targets.object_mask.sum() == 128
    assert (targets.points["top_left"].heatmap == 1).sum() == 1


@pytest.mark.parametrize("corners", [[200, 10, 260, 40], [126, 10, 140, 40], [40, 60, 60, 40], [math.nan, 10, 50, 40]])
def test_a_box_without_area_in_the_input_leaves_its_slot_empty(corners: list[float]) -> None:
    targets = encode([corners, [8, 8, 24, 24]], [0, 1])
    assert targets.object_mask[0].nonzero().flatten().tolist() == [1]
    assert not targets.points["top_left"].heatmap[0, 0].any()


def test_autocast_and_gradients_stay_out() -> None:
    boxes, labels = random_boxes(0, batch=2, objects=8)
    exact = detector().encode(boxes, labels, INPUT)
    with torch.autocast("cpu", torch.bfloat16):
        targets = detector().encode(boxes.requires_grad_(), labels, INPUT)
    for name, point in targets.points.items():
        assert torch.equal(point.heatmap, exact.points[name].heatmap)
        assert torch.equal(point.offset, exact.points[name].offset)
        assert not point.offset.requires_grad


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(DetectorError, match="an object has label 3, but the detector was built for 3 classes"):
        encode([[8, 8, 24, 24]], [3])
    with pytest.raises(DetectorError, match="the input is 96 x 128 pixels; height and width have to be one less than"):
        detector().encode(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64), (96, 128))


def test_heatmaps_for_pictures() -> None:
    pictures = detector().heatmaps(encode([[8, 8, 24, 24]], [1]))
    assert list(pictures) == ["top-left", "bottom-right"]
    assert pictures["top-left"].shape == (1, 3, 24, 32)
