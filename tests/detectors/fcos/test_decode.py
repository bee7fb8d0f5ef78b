"""From maps to boxes: against a loop with the published rules, and by hand."""

import functools
import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

import detectors
from detectors import DetectorError
from detectors.fcos.fcos import FCOS
from detectors.fcos.network import EvaluationOutputs, TrainingOutputs
from detectors.layers.feature_pyramid import grid_sizes

VARIANTS = ("original", "improved", "torchvision")
STRIDES = (8, 16, 32, 64, 128)


@functools.cache
def fcos(variant: str, **settings: float) -> FCOS:
    detector = detectors.build("fcos_resnet50", 3, variant=variant, width=4, channels=64, **settings)
    assert isinstance(detector, FCOS)
    return detector


def joined(maps: list[dict[str, Tensor]]) -> TrainingOutputs:
    """What the network gives in training, from maps that stand together by level."""
    return TrainingOutputs(*([level[name] for level in maps] for name in ("logits", "distances", "centerness")))


def silent(size: tuple[int, int], batch: int = 1) -> list[dict[str, Tensor]]:
    """Maps in which no class is likely, and every box is 10 to each side."""
    return [
        {
            "logits": torch.full((batch, 3, *grid), -20.0),
            "distances": torch.full((batch, 4, *grid), 10.0),
            "centerness": torch.zeros(batch, 1, *grid),
        }
        for grid in grid_sizes(size)
    ]


def random_maps(size: tuple[int, int], batch: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "logits": torch.randn(batch, 3, *grid, generator=generator) * 2 - 1,
            "distances": torch.rand(batch, 4, *grid, generator=generator) * 3,
            "centerness": torch.randn(batch, 1, *grid, generator=generator),
        }
        for grid in grid_sizes(size)
    ]


def by_loops(
    variant: str, maps: list[dict[str, Tensor]], image: int, size: tuple[int, int], top: int
) -> list[tuple[float, int, list[float]]]:
    one = 0 if variant == "torchvision" else 1
    found: list[tuple[float, int, list[float]]] = []
    for level, stride in zip(maps, STRIDES, strict=True):
        height, width = level["logits"].shape[-2:]
        of_level: list[tuple[float, int, list[float]]] = []
        for i in range(height):
            for j in range(width):
                x, y = j * stride + stride // 2, i * stride + stride // 2
                if variant == "torchvision":
                    x, y = j * (size[1] // width), i * (size[0] // height)
                center = 1 / (1 + math.exp(-float(level["centerness"][image, 0, i, j])))
                sides = level["distances"][image, :, i, j].double().tolist()
                left, top_, right, bottom = (side * (1 if variant == "original" else stride) for side in sides)
                box = [x - left, y - top_, x + right, y + bottom]
                box = [min(max(v, 0), size[1 - k % 2] - one) for k, v in enumerate(box)]
                for label in range(3):
                    probability = 1 / (1 + math.exp(-float(level["logits"][image, label, i, j])))
                    score = math.sqrt(probability * center)
                    if (score > 0.2) if variant == "torchvision" else (probability > 0.05):
                        of_level.append((score, label, box))
        found += sorted(of_level, key=lambda entry: -entry[0])[:top]
    kept: list[tuple[float, int, list[float]]] = []
    for entry in sorted(found, key=lambda entry: -entry[0]):
        if all(other[1] != entry[1] or overlap(other[2], entry[2], one) <= 0.6 for other in kept):
            kept.append(entry)
    return kept


def overlap(a: list[float], b: list[float], one: float) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + one
    height = min(a[3], b[3]) - max(a[1], b[1]) + one
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_is_that_of_the_loops(variant: str) -> None:
    size, maps = (96, 160), random_maps((96, 160), 2)
    if variant == "original":
        for level, stride in zip(maps, STRIDES, strict=True):
            level["distances"] *= stride
    detections = fcos(variant, candidates=60).decode(joined(maps), size, limit=40)
    for image, given in enumerate(detections):
        expected = by_loops(variant, maps, image, size, top=60)
        assert len(expected) > 40
        assert given.labels.tolist() == [entry[1] for entry in expected[:40]]
        assert_close(given.scores, tensor([entry[0] for entry in expected[:40]]))
        assert_close(given.boxes, tensor([entry[2] for entry in expected[:40]]), rtol=1e-5, atol=1e-4)


def test_one_box_by_hand() -> None:
    # Class logit 0 and centerness 0: sqrt(1/2 × 1/2) = 1/2. Row 2, column 3 of P3: the point 28, 20 (24, 16).
    for variant, box in (
        ("original", [18.0, 10.0, 38.0, 30.0]),
        ("improved", [12.0, 4.0, 44.0, 36.0]),
        ("torchvision", [8.0, 0.0, 40.0, 32.0]),
    ):
        maps = silent((64, 64))
        maps[0]["logits"][0, 1, 2, 3] = 0
        if variant != "original":
            maps[0]["distances"].fill_(2)
        (found,) = fcos(variant).decode(joined(maps), (64, 64))
        assert found.boxes.tolist() == [box]
        assert found.scores.tolist() == [0.5]
        assert found.labels.tolist() == [1]


def test_the_authors_threshold_is_on_the_class_torchvisions_on_the_joint_score() -> None:
    maps = silent((64, 64))
    # Class 0.06 with centerness 0.1: joint sqrt(0.006) = 0.077; class 0.045 with 0.99: 0.211.
    for column, (probability, center) in enumerate(((0.06, 0.1), (0.045, 0.99))):
        maps[0]["logits"][0, column, 2, 4 * column] = math.log(probability / (1 - probability))
        maps[0]["centerness"][0, 0, 2, 4 * column] = math.log(center / (1 - center))
    assert fcos("original").decode(joined(maps), (64, 64))[0].labels.tolist() == [0]
    assert fcos("torchvision").decode(joined(maps), (64, 64))[0].labels.tolist() == [1]
    assert fcos("original", score_threshold=0.07).decode(joined(maps), (64, 64))[0].labels.tolist() == []
    assert fcos("original", score_threshold=0.01).decode(joined(maps), (64, 64))[0].labels.tolist() == [1, 0]


def test_the_pixel_decides_about_an_overlap() -> None:
    # Boxes 2 × 2 and 2 × 1, IoU 1/2; with the pixel 3 × 3 and 3 × 2, 2/3 > 0.6: the authors drop the second.
    maps = silent((64, 64))
    maps[0]["logits"][0, 0, 2, 2:4] = tensor([1.0, 0.5])
    maps[0]["distances"][0, :, 2, 2] = tensor([-2.0, 1.0, 4.0, 1.0])  # 22 .. 24, 19 .. 21
    maps[0]["distances"][0, :, 2, 3] = tensor([6.0, 1.0, -4.0, 0.0])  # 22 .. 24, 19 .. 20
    assert fcos("original").decode(joined(maps), (64, 64))[0].boxes.tolist() == [[22, 19, 24, 21]]
    for level in maps:
        level["distances"] = level["distances"] / 8
    assert len(fcos("torchvision").decode(joined(maps), (64, 64))[0].scores) == 2


def test_boxes_end_at_the_last_pixel_at_the_authors() -> None:
    maps = silent((64, 64))
    maps[4]["logits"][0, 0] = 0
    maps[4]["distances"].fill_(500)
    assert fcos("original").decode(joined(maps), (64, 64))[0].boxes.tolist() == [[0, 0, 63, 63]]
    assert fcos("torchvision").decode(joined(maps), (64, 64))[0].boxes.tolist() == [[0, 0, 64, 64]]


def test_targets_decode_to_their_boxes() -> None:
    boxes = tensor([[[10.0, 12.0, 50.0, 40.0], [5.0, 8.0, 120.0, 90.0]]])
    for variant in VARIANTS:
        detector = fcos(variant)
        targets = detector.encode(boxes, tensor([[2, 1]]), (128, 128))
        maps, start = silent((128, 128)), 0
        for level, grid in zip(maps, grid_sizes((128, 128)), strict=True):
            here = slice(start, start + grid[0] * grid[1])
            start = here.stop
            level["distances"] = targets.distances[:, here].transpose(1, 2).reshape(1, 4, *grid)
            level["centerness"] = torch.logit(targets.centerness[:, here], eps=1e-6).reshape(1, 1, *grid)
            own = targets.labels[:, None, here] == torch.arange(3)[:, None]
            level["logits"] = torch.where(own, 5.0, -20.0).reshape(1, 3, *grid)
        (found,) = detector.decode(joined(maps), (128, 128))
        assert found.labels.sort().values.tolist() == [1, 2]
        assert_close(found.boxes[found.labels.argsort()], boxes[0, [1, 0]])


def test_no_detection_and_a_batch_like_its_images() -> None:
    (found,) = fcos("original").decode(joined(silent((64, 64))), (64, 64))
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)
    assert found.labels.dtype == torch.int64
    maps = random_maps((64, 64), 3)
    together = fcos("improved").decode(joined(maps), (64, 64))
    for image in range(3):
        alone = fcos("improved").decode(
            joined([{k: v[image : image + 1] for k, v in m.items()} for m in maps]), (64, 64)
        )
        assert torch.equal(alone[0].boxes, together[image].boxes)
        assert torch.equal(alone[0].scores, together[image].scores)


def test_maps_of_another_size_are_refused() -> None:
    with pytest.raises(
        DetectorError, match=r"a level has 8 x 8 cells, but an input of 64 x 96 has 8 x 12. Pass the size"
    ):
        fcos("original").decode(joined(silent((64, 64))), (64, 96))


def test_improved_gives_pixels_in_evaluation_and_takes_either() -> None:
    size, maps = (64, 96), random_maps((64, 96), 2)
    training = joined(maps)
    pixels = [level * stride for level, stride in zip(training.distances, STRIDES, strict=True)]
    evaluation = EvaluationOutputs(training.logits, pixels, training.centerness)
    boxes = tensor([[[8.0, 8.0, 40.0, 44.0]], [[4.0, 20.0, 24.0, 60.0]]])
    detector = fcos("improved")
    targets = detector.encode(boxes, tensor([[0], [2]]), size)
    # A plain tuple is the authors': to `decode` what their head gives in evaluation, to `losses` in training.
    expected, losses = detector.decode(tuple(evaluation), size), detector.losses(tuple(training), targets)
    assert len(expected[0].scores) > 10
    for mode in (True, False):
        for outputs in (training, evaluation):
            for ours, theirs in zip(detector.train(mode).decode(outputs, size), expected, strict=True):
                assert torch.equal(ours.boxes, theirs.boxes)
                assert torch.equal(ours.scores, theirs.scores)
            assert_close(detector.losses(outputs, targets), losses)
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        in_strides, in_pixels = detector.train()(images), detector.eval()(images)
    assert in_pixels.distances[4].max() > 0
    assert torch.equal(in_pixels.distances[4], in_strides.distances[4] * 128)
    for variant in ("original", "torchvision"):
        in_training, in_evaluation = fcos(variant).train()(images), fcos(variant).eval()(images)
        assert_close(in_training.distances, in_evaluation.distances)


def test_ties_for_the_last_place_stay_at_the_authors() -> None:
    for variant, places in (("original", [0, 1, 2, 3]), ("torchvision", [0, 1])):
        maps = silent((64, 1280))
        level = maps[0]
        level["distances"].fill_(2 if variant == "original" else 0.25)
        level["logits"][0, 1, 2, [5, 40, 90, 150]] = tensor([3.0, 2.0, 2.0, 2.0])
        level["logits"][0, 1, 2, 20] = 1.0
        found = fcos(variant).decode(joined(maps), (64, 1280), limit=2)[0]
        offset = 4 if variant == "original" else 0
        centers = ((found.boxes[:, 0] + found.boxes[:, 2]) / 2).sort().values
        assert centers.tolist() == [(5, 40, 90, 150)[place] * 8 + offset for place in places]
        assert len(fcos(variant).decode(joined(maps), (64, 1280), limit=1)[0].scores) == 1
