"""Which cells learn which box: the batched targets against painting one box after the other."""

import functools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

import detectors
from detectors import DetectorError
from detectors.foveabox.foveabox import FoveaBox, FoveaBoxTargets

STRIDES = (8, 16, 32, 64, 128)
RANGES = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))
LENGTHS = (16, 32, 64, 128, 256)


@functools.cache
def foveabox(**settings: object) -> FoveaBox:
    detector = detectors.build("foveabox_resnet50", 5, width=4, channels=8, **settings)
    assert isinstance(detector, FoveaBox)
    return detector


def painted(boxes: Tensor, labels: Tensor, size: tuple[int, int], pixel: int = 1, sigma: float = 0.4) -> list[list]:
    """Labels and sides `(height, width)` of each level for one image, painted box by box in float32."""
    f = np.float32
    kept = []
    for index, (box, label) in enumerate(zip(boxes.numpy().astype(f), labels.tolist(), strict=True)):
        if label < 0:
            continue
        x1, x2 = (min(max(v, f(0)), f(size[1] - pixel)) for v in box[0::2])
        y1, y2 = (min(max(v, f(0)), f(size[0] - pixel)) for v in box[1::2])
        kept.append((np.sqrt((x2 - x1) * (y2 - y1)), index, label, (x1, y1, x2, y2)))
    levels = []
    for stride, (shortest, longest), length in zip(STRIDES, RANGES, LENGTHS, strict=True):
        height, width = math.ceil(size[0] / stride), math.ceil(size[1] / stride)
        of_level = [[(-1, [0.0] * 4) for _ in range(width)] for _ in range(height)]
        # From the largest to the smallest; of equals the first in the list is painted first.
        for _, _, label, (x1, y1, x2, y2) in sorted(kept, key=lambda entry: (-entry[0], entry[1])):
            if not shortest <= np.sqrt((x2 - x1) * (y2 - y1)) <= longest:
                continue
            half_w, half_h = f(0.5) * (x2 / stride - x1 / stride), f(0.5) * (y2 / stride - y1 / stride)
            left = math.ceil(x1 / stride + f(1 - sigma) * half_w - f(0.5))
            right = math.floor(x1 / stride + f(1 + sigma) * half_w - f(0.5))
            top = math.ceil(y1 / stride + f(1 - sigma) * half_h - f(0.5))
            bottom = math.floor(y1 / stride + f(1 + sigma) * half_h - f(0.5))
            left, right = (min(max(v, 0), width - 1) for v in (left, right))
            top, bottom = (min(max(v, 0), height - 1) for v in (top, bottom))
            for i in range(top, bottom + 1):
                for j in range(left, right + 1):
                    x, y = (j + 0.5) * stride, (i + 0.5) * stride
                    sides = [(x - x1) / length, (y - y1) / length, (x2 - x) / length, (y2 - y) / length]
                    of_level[i][j] = (label, [math.log(min(max(float(side), 1 / 16), 16)) for side in sides])
        levels.append(of_level)
    return levels


def assert_painted(targets: FoveaBoxTargets, row: int, expected: list[list]) -> None:
    for labels, log_sides, of_level in zip(targets.labels, targets.log_sides, expected, strict=True):
        assert labels[row].tolist() == [[label for label, _ in line] for line in of_level]
        wanted = tensor([[sides for _, sides in line] for line in of_level]).permute(2, 0, 1)
        assert_close(log_sides[row], wanted, rtol=1e-5, atol=1e-6)


def random_boxes(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    corner = (torch.rand(count, 2, generator=generator) * 1.2 - 0.1) * tensor([size[1], size[0]])
    sides = torch.rand(count, 2, generator=generator) ** 2 * max(size)
    # Quarters, so that many a middle of a cell is exactly on the border of a fovea.
    return (torch.cat((corner, corner + sides), dim=1) * 4).round() / 4


def positives(targets: FoveaBoxTargets, row: int = 0) -> list[int]:
    return [int((labels[row] >= 0).sum()) for labels in targets.labels]


@pytest.mark.parametrize("box_ends", ["last_pixel", "edge"])
@pytest.mark.parametrize("size", [(128, 96), (320, 256)])
def test_targets_are_those_of_painting(size: tuple[int, int], box_ends: str) -> None:
    generator = torch.Generator().manual_seed(sum(size))
    boxes = random_boxes(3 * 12, size, generator).view(3, 12, 4)
    labels = torch.randint(0, 5, (3, 12), generator=generator)
    labels[1, 7:] = -1
    labels[2] = -1  # no object
    targets = foveabox(box_ends=box_ends).encode(boxes, labels, size)
    for row in range(3):
        expected = painted(boxes[row], labels[row], size, pixel=1 if box_ends == "last_pixel" else 0)
        assert_painted(targets, row, expected)
    assert sum(positives(targets)) > 15
    assert positives(targets, 2) == [0] * 5
    assert not any(sides[2].any() for sides in targets.log_sides)


def test_a_fovea_by_hand() -> None:
    # 40 x 40 fits P3 (1 to 64) and P4 (32 to 128). In cells of P3: 3 .. 8, fovea 5.5 -+ 0.4 × 2.5 = 4.5 .. 6.5, whose
    # middles are 4.5, 5.5 and 6.5: ceil(4.5 - 0.5) = 4 to floor(6.5 - 0.5) = 6. On P4: 2.25 .. 3.25, middle 2.5.
    targets = foveabox().encode(tensor([[[24.0, 24.0, 64.0, 64.0]]]), tensor([[3]]), (128, 128))
    assert [labels.shape for labels in targets.labels] == [(1, 16, 16), (1, 8, 8), (1, 4, 4), (1, 2, 2), (1, 1, 1)]
    assert positives(targets) == [9, 1, 0, 0, 0]
    assert (targets.labels[0][0] == 3).nonzero()[[0, -1]].tolist() == [[4, 4], [6, 6]]
    # The cell in row 4, column 6: the point 52, 36; sides 28, 12, 12, 28 in units of 16.
    expected = [math.log(28 / 16), math.log(12 / 16), math.log(12 / 16), math.log(28 / 16)]
    assert_close(targets.log_sides[0][0, :, 4, 6], tensor(expected))
    assert (targets.labels[1][0] == 3).nonzero().tolist() == [[2, 2]]
    # The point 40, 40; sides 16, 16, 24, 24 in units of 32.
    assert_close(targets.log_sides[1][0, :, 2, 2], tensor([0.5, 0.5, 0.75, 0.75]).log())


@pytest.mark.parametrize(
    ("side", "levels"),
    [
        *[(31.0, [3]), (32.0, [3, 4]), (64.0, [3, 4, 5]), (65.0, [4, 5]), (128.0, [4, 5, 6])],
        *[(256.0, [5, 6, 7]), (257.0, [6, 7]), (512.0, [6, 7]), (513.0, [7])],
    ],
)
def test_levels_overlap_and_their_ends_belong_to_both(side: float, levels: list[int]) -> None:
    # Around a middle of the coarsest level, from which those of the finer ones are not far.
    stride = 2 ** levels[-1]
    center = 576 // stride * stride + stride / 2
    box = center + tensor([-side, -side, side, side]) / 2
    targets = foveabox().encode(box.view(1, 1, 4), tensor([[0]]), (1152, 1152))
    assert [level for level, count in enumerate(positives(targets), start=3) if count] == levels


def test_the_smallest_is_painted_last_and_of_equals_the_last() -> None:
    large, small = [8.0, 8.0, 56.0, 56.0], [20.0, 20.0, 44.0, 44.0]
    for order in ([0, 1], [1, 0]):
        boxes, labels = tensor([large, small])[order], tensor([1, 2])[order]
        targets = foveabox().encode(boxes[None], labels[None], (64, 64))
        assert targets.labels[0][0, 3, 3] == 2
        # The large one keeps the ring around: 32 -+ 0.4 × 24 holds 28 and 36; of the small one 32 -+ 4.8 as well.
        assert positives(targets)[0] == 4
    # 32 × 16 and 16 × 32; both foveas have the point 36, 36 in them.
    wide, tall = [16.0, 28.0, 48.0, 44.0], [28.0, 16.0, 44.0, 48.0]
    for boxes in ([wide, tall], [tall, wide], [wide, wide]):
        targets = foveabox().encode(tensor([boxes]), tensor([[3, 4]]), (64, 64))
        assert targets.labels[0][0, 4, 4] == 4


def test_a_box_without_a_middle_in_its_fovea_is_not_learnt() -> None:
    boxes = tensor(
        [
            [20.0, 20.0, 21.0, 21.0],  # one pixel, exactly around no middle: 20.5 -+ 0.2
            [19.5, 27.5, 20.5, 28.5],  # one pixel around the middle 20, 28
            [16.0, 16.0, 16.5, 60.0],  # shorter than 1 on average? No: sqrt(0.5 × 44) = 4.7, but between two middles
            [40.0, 40.0, 40.9, 40.9],  # length 0.9, below P3's 1
        ]
    )
    targets = foveabox().encode(boxes[None], tensor([[0, 1, 2, 3]]), (64, 64))
    assert positives(targets) == [1, 0, 0, 0, 0]
    assert targets.labels[0][0, 3, 2] == 1
    # Half a pixel to each side, floored at 1/16 of 16 pixels.
    assert_close(targets.log_sides[0][0, :, 3, 2], torch.full((4,), -math.log(16)))


def test_a_fovea_beyond_the_last_middle_moves_onto_the_border() -> None:
    # 61 .. 63 in both axes, fovea 62 -+ 0.4: behind the last middle, 60. Clamped, both its ends are the last cell.
    targets = foveabox().encode(tensor([[[61.0, 61.0, 63.0, 63.0]]]), tensor([[2]]), (64, 64))
    assert positives(targets) == [1, 0, 0, 0, 0]
    assert targets.labels[0][0, 7, 7] == 2
    # Left and top are -1 pixel away, floored; right and bottom 3.
    assert_close(targets.log_sides[0][0, :, 7, 7], tensor([1 / 16, 1 / 16, 3 / 16, 3 / 16]).log())


def test_boxes_outside_or_without_area_are_left_out() -> None:
    boxes = tensor([[-50.0, 0.0, 0.0, 64.0], [64.0, 0.0, 80.0, 9.0], [8.0, 8.0, 8.0, 40.0], [0.0, 0.0, 0.0, 0.0]])
    targets = foveabox().encode(boxes[None], tensor([[0, 1, 2, 3]]), (64, 64))
    assert positives(targets) == [0] * 5


def test_boxes_are_clipped_to_the_last_pixel_or_to_the_edge() -> None:
    box, label = tensor([[[40.0, 40.0, 90.0, 90.0]]]), tensor([[0]])
    last_pixel = foveabox().encode(box, label, (64, 64))
    # 40 .. 63, fovea 51.5 -+ 4.6 has the middle 52; 11 to the right.
    assert_close(last_pixel.log_sides[0][0, :, 6, 6], tensor([12.0, 12.0, 11.0, 11.0]).div(16).log())
    edge = foveabox(box_ends="edge").encode(box, label, (64, 64))
    assert_close(edge.log_sides[0][0, :, 6, 6], tensor([12.0, 12.0, 12.0, 12.0]).div(16).log())


def test_the_width_of_the_fovea_is_a_setting() -> None:
    boxes, labels = tensor([[[24.0, 24.0, 64.0, 64.0]]]), tensor([[3]])
    assert positives(foveabox(fovea=0.1).encode(boxes, labels, (128, 128))) == [1, 0, 0, 0, 0]
    # 44 -+ 18: middles 28 to 60 of P3, and 40 and 56 of P4.
    assert positives(foveabox(fovea=0.9).encode(boxes, labels, (128, 128))) == [25, 4, 0, 0, 0]
    generator = torch.Generator().manual_seed(3)
    boxes, labels = random_boxes(9, (128, 96), generator)[None], torch.randint(0, 5, (1, 9), generator=generator)
    expected = painted(boxes[0], labels[0], (128, 96), sigma=0.7)
    assert_painted(foveabox(fovea=0.7).encode(boxes, labels, (128, 96)), 0, expected)


def test_no_rows_many_rows_and_a_batch_like_its_images() -> None:
    detector, size = foveabox(), (64, 96)
    nothing = detector.encode(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64), size)
    assert positives(nothing) == [0] * 5
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(400, size, generator).view(2, 200, 4)  # more than CenterNet's max_objects
    labels = torch.randint(0, 5, (2, 200), generator=generator)
    together = detector.encode(boxes, labels, size)
    for row in range(2):
        assert_painted(together, row, painted(boxes[row], labels[row], size))
        alone = detector.encode(boxes[row : row + 1], labels[row : row + 1], size)
        for name in ("labels", "log_sides"):
            for one, both in zip(getattr(alone, name), getattr(together, name), strict=True):
                assert torch.equal(one[0], both[row])


def test_pictures_show_the_foveas_by_level() -> None:
    boxes = tensor([[[24.0, 24.0, 64.0, 64.0]], [[0.0] * 4]])
    targets = foveabox().encode(boxes, tensor([[3], [-1]]), (128, 128))
    heatmaps = foveabox().heatmaps(targets)
    assert list(heatmaps) == ["fovea P3", "fovea P4", "fovea P5", "fovea P6", "fovea P7"]
    assert heatmaps["fovea P3"].shape == (2, 5, 16, 16)
    assert heatmaps["fovea P3"].sum(dim=(2, 3)).tolist() == [[0, 0, 0, 9, 0], [0] * 5]
    assert heatmaps["fovea P4"][0, 3, 2, 2] == 1
    assert not heatmaps["fovea P7"].any()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DetectorError, match=r"the input is 60 x 64 pixels; .* multiples of 32. Pad or resize it"):
        foveabox().encode(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.int64), (60, 64))
    with pytest.raises(DetectorError, match=r"label 5, but the detector was built for 5 classes .* num_classes=6"):
        foveabox().encode(torch.zeros(1, 1, 4), torch.full((1, 1), 5), (64, 64))
