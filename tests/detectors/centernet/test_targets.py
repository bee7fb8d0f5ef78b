"""CenterNet's targets against the published procedure, one object after the other, in numpy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import detectors
from detectors.centernet.centernet import CenterNet, CenterNetTargets

INPUT = (96, 128)
"""Height and width of the input; the maps are 24 x 32."""


def detector(**settings: object) -> CenterNet:
    with torch.device("meta"):
        built = detectors.build("centernet_resnet18", 3, **settings)
    assert isinstance(built, CenterNet)
    return built


def one_by_one(boxes: np.ndarray, labels: np.ndarray, num_classes: int, slots: int) -> dict[str, np.ndarray]:
    """Targets of one image, object by object: section "Target encoding" of the fact sheet, steps 1 to 6."""
    height, width = INPUT[0] // 4, INPUT[1] // 4
    heatmap = np.zeros((num_classes, height, width), np.float32)
    size, offset = np.zeros((slots, 2), np.float32), np.zeros((slots, 2), np.float32)
    index, mask = np.zeros(slots, np.int64), np.zeros(slots, bool)
    for slot, (label, corners) in enumerate(zip(labels[:slots], boxes[:slots], strict=True)):
        if label < 0:
            continue
        x1, y1, x2, y2 = corners.astype(np.float32) / np.float32(4)
        x1, x2 = np.clip([x1, x2], 0, width - 1).astype(np.float32)
        y1, y2 = np.clip([y1, y2], 0, height - 1).astype(np.float32)
        w, h = x2 - x1, y2 - y1
        if not (h > 0 and w > 0):
            continue
        total, area = math.ceil(h) + math.ceil(w), math.ceil(h) * math.ceil(w)
        roots = [
            (total + math.sqrt(total**2 - 4 * area * 0.3 / 1.7)) / 2,
            (2 * total + math.sqrt(4 * total**2 - 16 * 0.3 * area)) / 2,
            (-1.4 * total + math.sqrt((1.4 * total) ** 2 + 4 * 2.8 * 0.3 * area)) / 2,
        ]
        radius = max(0, int(min(roots)))
        center = np.array([(x1 + x2) / 2, (y1 + y2) / 2], np.float32)
        column, row = int(center[0]), int(center[1])
        sigma = (2 * radius + 1) / 6
        for y in range(max(0, row - radius), min(height, row + radius + 1)):
            for x in range(max(0, column - radius), min(width, column + radius + 1)):
                value = math.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * sigma * sigma))
                heatmap[label, y, x] = max(heatmap[label, y, x], np.float32(value))
        size[slot], offset[slot] = (w, h), center - (column, row)
        index[slot], mask[slot] = row * width + column, True
    return {
        "heatmap": heatmap,
        "size": size,
        "offset": offset,
        "center_index": index,
        "object_mask": mask,
    }


def random_boxes(seed: int, batch: int, objects: int) -> tuple[Tensor, Tensor]:
    """Boxes of all kinds: inside, over the border, outside, thin, without area, padding between real ones."""
    random = np.random.default_rng(seed)
    center = random.uniform(-30, 160, (batch, objects, 2))
    half = np.exp(random.uniform(np.log(0.3), np.log(90), (batch, objects, 2))) / 2
    half[random.random((batch, objects)) < 0.1] = 0
    boxes = np.concatenate((center - half, center + half), axis=-1)
    rounded = random.random((batch, objects)) < 0.3
    boxes[rounded] = np.round(boxes[rounded] / 4) * 4
    labels = random.integers(-1, 3, (batch, objects))
    return torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels)


@pytest.mark.parametrize("seed", range(6))
def test_targets_are_those_of_the_published_procedure(seed: int) -> None:
    boxes, labels = random_boxes(seed, batch=3, objects=20)
    targets = detector(max_objects=16).encode(boxes, labels, INPUT)
    dropped = 0
    for image in range(3):
        expected = one_by_one(boxes[image].numpy(), labels[image].numpy(), num_classes=3, slots=16)
        # One unit in the last place: numpy, C and torch round the exponential differently.
        np.testing.assert_allclose(targets.heatmap[image], expected.pop("heatmap"), rtol=1.2e-7, atol=0)
        for name, value in expected.items():
            np.testing.assert_array_equal(getattr(targets, name)[image], value, err_msg=name)
        dropped += int(((labels[image, :16] >= 0).numpy() & ~expected["object_mask"]).sum())
    assert dropped > 0
    assert targets.heatmap.dtype == targets.size.dtype == targets.offset.dtype == torch.float32
    assert (targets.center_index.dtype, targets.object_mask.dtype) == (torch.int64, torch.bool)


def encode(boxes: list[list[float]], labels: list[int], **settings: object) -> CenterNetTargets:
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4)
    return detector(**settings).encode(rows, torch.tensor(labels, dtype=torch.int64).reshape(1, -1), INPUT)


def test_an_object_by_hand() -> None:
    # In cells 2.5 .. 12.5 by 4 .. 9.75: centre (7.5, 6.875), cell (7, 6), 10 wide and 6 high (rounded up), so the
    # radius is (-1.4 × 16 + sqrt(22.4^2 + 3.36 × 60)) / 2 = 2.05.
    targets = encode([[10, 16, 50, 39]], [2])
    assert targets.size[0, 0].tolist() == [10, 5.75]
    assert targets.offset[0, 0].tolist() == [0.5, 0.875]
    assert targets.center_index[0, 0] == 6 * 32 + 7
    assert targets.heatmap[0, 2, 6, 7] == 1
    assert targets.heatmap[0, 2, 6].nonzero().flatten().tolist() == [5, 6, 7, 8, 9]
    assert targets.heatmap[0, 2].nonzero()[:, 0].unique().tolist() == [4, 5, 6, 7, 8]
    assert not targets.heatmap[0, :2].any()
    assert targets.object_mask[0].nonzero().flatten().tolist() == [0]


def test_the_frame_ends_at_the_last_cell_not_behind_it() -> None:
    # The map is 32 x 24 cells; a box over everything is clipped to 0 .. 31 by 0 .. 23.
    targets = encode([[-50, -50, 500, 500]], [0])
    assert targets.size[0, 0].tolist() == [31, 23]
    assert targets.offset[0, 0].tolist() == [0.5, 0.5]
    assert targets.center_index[0, 0] == 11 * 32 + 15


def test_two_centres_in_one_cell_keep_two_slots_and_one_peak() -> None:
    targets = encode([[8, 8, 24, 24], [4, 4, 29, 29]], [1, 1])
    assert targets.center_index[0, :2].tolist() == [4 * 32 + 4, 4 * 32 + 4]
    assert targets.object_mask[0].sum() == 2
    assert targets.size[0, :2].tolist() == [[4, 4], [6.25, 6.25]]
    assert (targets.heatmap == 1).sum() == 1


def test_a_box_of_one_pixel_is_a_single_cell() -> None:
    targets = encode([[21, 42, 22, 43]], [0])
    assert targets.size[0, 0].tolist() == [0.25, 0.25]
    assert targets.heatmap.nonzero().tolist() == [[0, 0, 10, 5]]


@pytest.mark.parametrize(
    "corners",
    [
        [200, 10, 260, 40],  # right of the input
        [-40, 10, -4, 40],  # left of it
        [125, 10, 128, 40],  # wholly in the last cell, beyond 31
        [40, 40, 40, 60],  # no width
        [40, 60, 60, 40],  # upside down
        [math.nan, 10, 50, 40],
    ],
)
def test_a_box_without_area_in_the_frame_leaves_its_slot_empty(corners: list[float]) -> None:
    targets = encode([corners, [8, 8, 24, 24]], [0, 1])
    assert targets.object_mask[0].nonzero().flatten().tolist() == [1]
    assert targets.size[0, 0].tolist() == targets.offset[0, 0].tolist() == [0, 0]
    assert targets.center_index[0, 0] == 0
    assert not targets.heatmap[0, 0].any()
    assert targets.size[0, 1].tolist() == [4, 4]


@pytest.mark.parametrize("labels", [[], [-1, -1]])
def test_an_image_without_objects_is_empty(labels: list[int]) -> None:
    targets = encode([[8, 8, 24, 24]] * len(labels), labels)
    assert targets.heatmap.shape == (1, 3, 24, 32)
    assert targets.size.shape == targets.offset.shape == (1, 128, 2)
    for tensor in (targets.heatmap, targets.size, targets.offset, targets.center_index, targets.object_mask):
        assert not tensor.any()


def test_only_the_first_objects_in_file_order_are_used() -> None:
    boxes = [[8.0 * slot, 8, 8.0 * slot + 8, 24] for slot in range(6)]
    targets = encode(boxes, [0] * 6, max_objects=4)
    assert targets.size.shape == (1, 4, 2)
    assert targets.center_index[0].tolist() == [4 * 32 + column for column in (1, 3, 5, 7)]
    assert (targets.heatmap == 1).sum() == 4


def test_padding_between_objects_keeps_the_slots() -> None:
    targets = encode([[8, 8, 24, 24], [0, 0, 0, 0], [40, 8, 56, 24]], [0, -1, 0])
    assert targets.object_mask[0, :4].tolist() == [True, False, True, False]


def test_min_overlap_changes_the_reach() -> None:
    wide = encode([[0, 0, 80, 80]], [0], min_overlap=0.5).heatmap
    narrow = encode([[0, 0, 80, 80]], [0], min_overlap=0.9).heatmap
    # 20 x 20 cells: (-1 × 40 + sqrt(40^2 + 4 × 2 × 0.5 × 400)) / 2 = 8.28 and
    # (-1.8 × 40 + sqrt(72^2 + 4 × 3.6 × 0.1 × 400)) / 2 = 1.95.
    assert (wide > 0).sum() == 17 * 17
    assert (narrow > 0).sum() == 3 * 3


def test_autocast_and_gradients_stay_out() -> None:
    boxes, labels = random_boxes(0, batch=2, objects=8)
    exact = detector().encode(boxes, labels, INPUT)
    with torch.autocast("cpu", torch.bfloat16):
        targets = detector().encode(boxes.requires_grad_(), labels, INPUT)
    for name in ("heatmap", "size", "offset", "center_index", "object_mask"):
        assert torch.equal(getattr(targets, name), getattr(exact, name))
        assert not getattr(targets, name).requires_grad


def test_a_label_beyond_the_classes_is_refused() -> None:
    message = r"an object has label 3, but the detector was built for 3 classes \(labels 0 to 2\).*num_classes=4"
    with pytest.raises(detectors.DetectorError, match=message):
        encode([[8, 8, 24, 24]], [3])


def test_an_input_that_cannot_be_halved_five_times_is_refused() -> None:
    boxes, labels = torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64)
    message = "the input is 96 x 100 pixels; height and width have to be multiples of 32"
    with pytest.raises(detectors.DetectorError, match=message):
        detector().encode(boxes, labels, (96, 100))
