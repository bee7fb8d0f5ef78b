"""Which point answers for which box: the batched targets against a loop over images, points and boxes."""

import functools
import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

import detectors
from detectors import DetectorError
from detectors.fcos.fcos import FCOS, FCOSTargets
from detectors.layers.feature_pyramid import grid_sizes

VARIANTS = ("original", "improved", "torchvision")
RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))


@functools.cache
def fcos(variant: str, **settings: float) -> FCOS:
    detector = detectors.build("fcos_resnet50", 5, variant=variant, width=4, channels=64, **settings)
    assert isinstance(detector, FCOS)
    return detector


def by_loops(variant: str, boxes: Tensor, labels: Tensor, size: tuple[int, int]) -> FCOSTargets:
    one = 0 if variant == "torchvision" else 1
    all_labels, all_distances, all_centerness = [], [], []
    for image, image_labels in zip(boxes.tolist(), labels.tolist(), strict=True):
        rows: list[tuple[int, list[float], float]] = []
        for level, stride in enumerate((8, 16, 32, 64, 128)):
            height, width = math.ceil(size[0] / stride), math.ceil(size[1] / stride)
            for i in range(height):
                for j in range(width):
                    x, y = j * stride + stride // 2, i * stride + stride // 2
                    if variant == "torchvision":
                        x, y = j * (size[1] // width), i * (size[0] // height)
                    best: tuple[float, int, list[float]] | None = None
                    for number, box in enumerate(image):
                        x1, y1 = (min(max(v, 0), side - one) for v, side in zip(box[:2], size[::-1], strict=True))
                        x2, y2 = (min(max(v, 0), side - one) for v, side in zip(box[2:], size[::-1], strict=True))
                        if image_labels[number] < 0 or x2 <= x1 or y2 <= y1:
                            continue
                        sides = [x - x1, y - y1, x2 - x, y2 - y]
                        if min(sides) <= 0:
                            continue
                        low, high = RANGES[level]
                        if variant == "torchvision":
                            if not low < max(sides) < high:
                                continue
                            area = -float(torch.tensor(1e8 - (x2 - x1) * (y2 - y1), dtype=torch.float32))
                        else:
                            if not low <= max(sides) <= high:
                                continue
                            area = (x2 - x1 + 1) * (y2 - y1 + 1)
                        off = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
                        if variant != "original" and off >= 1.5 * stride:
                            continue
                        if best is None or area < best[0]:
                            best = (area, number, sides)
                    if best is None:
                        rows.append((-1, [0.0] * 4, 0.0))
                        continue
                    left, top, right, bottom = best[2]
                    centerness = math.sqrt(min(left, right) / max(left, right) * (min(top, bottom) / max(top, bottom)))
                    unit = 1 if variant == "original" else stride
                    rows.append((image_labels[best[1]], [side / unit for side in best[2]], centerness))
        all_labels.append([row[0] for row in rows])
        all_distances.append([row[1] for row in rows])
        all_centerness.append([row[2] for row in rows])
    return FCOSTargets(tensor(all_labels), tensor(all_distances), tensor(all_centerness))


def assert_same(given: FCOSTargets, expected: FCOSTargets) -> None:
    assert torch.equal(given.labels, expected.labels)
    assert_close(given.distances, expected.distances)
    assert_close(given.centerness, expected.centerness)


def random_boxes(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    corner = (torch.rand(count, 2, generator=generator) * 1.2 - 0.1) * tensor([size[1], size[0]])
    sides = torch.rand(count, 2, generator=generator) ** 2 * max(size)
    # Eighths are exact in float32, so that ties and borders are ties and borders in both arithmetics.
    return (torch.cat((corner, corner + sides), dim=1) * 8).round() / 8


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(128, 96), (192, 160)])
def test_targets_are_those_of_the_loops(variant: str, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(sum(size))
    boxes = random_boxes(3 * 9, size, generator).view(3, 9, 4)
    labels = torch.randint(0, 5, (3, 9), generator=generator)
    labels[1, 5:] = -1
    labels[2] = -1  # no object
    given = fcos(variant).encode(boxes, labels, size)
    expected = by_loops(variant, boxes, labels, size)
    assert (expected.labels[:2] >= 0).sum() > 20
    assert_same(given, expected)
    assert (given.labels[2] == -1).all()
    assert not given.distances[2].any()


def test_original_assigns_by_hand() -> None:
    # 64 x 64: P3 has 8 x 8 points at 4, 12, 20 ...; the box 8 .. 28 holds 12 and 20 in both axes.
    targets = fcos("original").encode(tensor([[[8.0, 8.0, 28.0, 28.0]]]), tensor([[3]]), (64, 64))
    assert targets.labels.shape == (1, 64 + 16 + 4 + 1 + 1)
    assert targets.labels[0].nonzero().numel() == 86  # background is -1, not 0
    assert (targets.labels[0] == 3).nonzero().flatten().tolist() == [9, 10, 17, 18]
    assert targets.distances[0, 10].tolist() == [12.0, 4.0, 8.0, 16.0]  # the point 20, 12
    assert targets.centerness[0, 10].item() == pytest.approx(math.sqrt(8 / 12 * 4 / 16))


def test_improved_divides_by_the_stride_and_torchvision_starts_at_the_corner() -> None:
    box, label = tensor([[[8.0, 8.0, 28.0, 28.0]]]), tensor([[3]])
    improved = fcos("improved").encode(box, label, (64, 64))
    assert improved.distances[0, 10].tolist() == [1.5, 0.5, 1.0, 2.0]
    corner = fcos("torchvision").encode(box, label, (64, 64))
    # Points at 8, 16, 24: 8 is on the side, 16 and 24 are inside.
    assert (corner.labels[0] == 3).nonzero().flatten().tolist() == [18, 19, 26, 27]
    assert corner.distances[0, 18].tolist() == [1.0, 1.0, 1.5, 1.5]


@pytest.mark.parametrize(("variant", "levels"), [("original", [0, 1]), ("improved", [0, 1]), ("torchvision", [])])
def test_the_ends_of_a_range_belong_to_both_levels_or_to_none(variant: str, levels: list[int]) -> None:
    # 64 to the left and 60 elsewhere, from a point of P3 and from one of P4.
    answering = []
    for level, (stride, first) in enumerate(((8, 0), (16, 32 * 32))):
        point = 104.0 if variant == "torchvision" else 96 + stride / 2
        point += 8 if level and variant == "torchvision" else 0
        box = tensor([[[point - 64, point - 60, point + 60, point + 60]]])
        labels = fcos(variant).encode(box, tensor([[0]]), (256, 256)).labels
        cell = int(point // stride)
        if labels[0, first + cell * (256 // stride) + cell] == 0:
            answering.append(level)
    assert answering == levels


def test_the_smallest_area_wins_and_of_equals_the_first() -> None:
    small, large = [16.0, 16.0, 40.0, 40.0], [8.0, 8.0, 56.0, 56.0]
    for variant in VARIANTS:
        targets = fcos(variant).encode(tensor([[large, small, small]]), tensor([[1, 2, 3]]), (64, 64))
        assert 2 in targets.labels
        assert 3 not in targets.labels
        assert targets.labels[0, 3 * 8 + 3] == 2


def test_areas_have_a_pixel_more_at_the_authors() -> None:
    # 30 × 30 = 900 and 110 × 8 = 880; with the pixel 31 × 31 = 961 and 111 × 9 = 999. The point 60, 60 (at
    # torchvision 64, 64) is in both.
    boxes = tensor([[[47.0, 47.0, 77.0, 77.0], [7.0, 57.0, 117.0, 65.0]]])
    for variant, cell, label in (("original", 7, 0), ("improved", 7, 0), ("torchvision", 8, 1)):
        targets = fcos(variant).encode(boxes, tensor([[0, 1]]), (128, 128))
        assert targets.labels[0, cell * 16 + cell] == label


def test_nearly_equal_areas_tie_at_torchvision() -> None:
    # float32 of 1e8 - area moves in steps of 8 (below 1e8 > 2^26): 601 and 600 square pixels are one.
    boxes = tensor([[[10.0, 14.0, 40.0, 34.0334], [10.0, 14.0, 40.0, 34.0]]])
    assert fcos("torchvision").encode(boxes, tensor([[0, 1]]), (64, 64)).labels[0, 3 * 8 + 3] == 0
    assert fcos("improved").encode(boxes, tensor([[0, 1]]), (64, 64)).labels[0, 2 * 8 + 2] == 1


def test_one_pixel_boxes_and_boxes_outside() -> None:
    boxes = tensor([[[12.0, 12.0, 13.0, 13.0], [11.5, 11.5, 12.5, 12.5], [-50.0, 0.0, 0.0, 64.0], [64, 0, 80, 9]]])
    for variant in VARIANTS[:2]:
        targets = fcos(variant).encode(boxes, tensor([[0, 1, 2, 3]]), (64, 64))
        # The first has the point 12, 12 on its side, the second around it; the others are outside.
        assert (targets.labels[0] >= 0).nonzero().flatten().tolist() == [9]
        assert targets.labels[0, 9] == 1
        assert targets.centerness[0, 9] == 1


def test_boxes_are_clipped_to_the_last_pixel_or_to_the_edge() -> None:
    box, label = tensor([[[40.0, 40.0, 90.0, 90.0]]]), tensor([[0]])
    original = fcos("original").encode(box, label, (64, 64))
    assert original.distances[0, 6 * 8 + 6].tolist() == [12.0, 12.0, 11.0, 11.0]  # 52, 52 in 40 .. 63
    torchvision = fcos("torchvision").encode(box, label, (64, 64))
    assert torchvision.distances[0, 6 * 8 + 6].tolist() == [1.0, 1.0, 2.0, 2.0]  # 48, 48 in 40 .. 64


def test_torchvisions_points_follow_the_number_of_cells() -> None:
    # 96 / 64 gives 2 cells, 48 pixels apart; 160 / 128 gives 2, 80 apart.
    points = fcos("torchvision").points(3, (64, 96), torch.device("cpu"))
    assert points.tolist() == [[0.0, 0.0], [48.0, 0.0]]
    assert fcos("torchvision").points(4, (64, 160), torch.device("cpu")).tolist() == [[0.0, 0.0], [80.0, 0.0]]
    assert fcos("original").points(3, (64, 96), torch.device("cpu")).tolist() == [[32.0, 32.0], [96.0, 32.0]]
    assert grid_sizes((64, 160)) == [(8, 20), (4, 10), (2, 5), (1, 3), (1, 2)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_rows_many_rows_and_a_batch_like_its_images(variant: str) -> None:
    detector, size = fcos(variant), (64, 96)
    nothing = detector.encode(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64), size)
    assert (nothing.labels == -1).all()
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(400, size, generator).view(2, 200, 4)  # more than CenterNet's max_objects
    labels = torch.randint(0, 5, (2, 200), generator=generator)
    together = detector.encode(boxes, labels, size)
    assert_same(together, by_loops(variant, boxes, labels, size))
    for row in range(2):
        alone = detector.encode(boxes[row : row + 1], labels[row : row + 1], size)
        assert torch.equal(alone.labels[0], together.labels[row])
        assert torch.equal(alone.distances[0], together.distances[row])


def test_what_does_not_fit_is_refused() -> None:
    detector = fcos("original")
    with pytest.raises(DetectorError, match=r"the input is 60 x 64 pixels; .* multiples of 32. Pad or resize it"):
        detector.encode(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.int64), (60, 64))
    with pytest.raises(DetectorError, match=r"label 5, but the detector was built for 5 classes .* num_classes=6"):
        detector.encode(torch.zeros(1, 1, 4), torch.full((1, 1), 5), (64, 64))
