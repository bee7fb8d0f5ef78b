"""Variants of AdelaiDet and mmdetection: assignment, losses and decoding against plain loops with each library's rules.

The loops state each library's rules once more, point by point, in Python's own floating point.
"""

import functools
import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

import detectors
from detectors.fcos.fcos import FCOS, FCOSTargets, grid_sizes
from detectors.fcos.network import EvaluationOutputs, TrainingOutputs

LIBRARIES = ("adelaidet", "mmdetection", "mmdetection_base")
STRIDES = (8, 16, 32, 64, 128)
RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))
Box = tuple[float, float, float, float]
Found = tuple[float, int, Box]
"""Score, class, box."""


@functools.cache
def fcos(variant: str, **settings: float) -> FCOS:
    detector = detectors.build("fcos_resnet50", 3, variant=variant, width=4, channels=64, **settings)
    assert isinstance(detector, FCOS)
    return detector


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


# --- Assignment


def learnt_by_loops(
    library: str, boxes: list[Box], labels: list[int], size: tuple[int, int]
) -> list[tuple[int, Box, float]]:
    """Class, distances in the head's unit, and centerness of every point of one image."""
    rows: list[tuple[int, Box, float]] = []
    for (low, high), stride in zip(RANGES, STRIDES, strict=True):
        for i in range(math.ceil(size[0] / stride)):
            for j in range(math.ceil(size[1] / stride)):
                x, y = (j + 0.5) * stride, (i + 0.5) * stride
                chosen, smallest = None, math.inf
                for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
                    x1, x2 = (min(max(value, 0), size[1]) for value in (x1, x2))
                    y1, y2 = (min(max(value, 0), size[0]) for value in (y1, y2))
                    if label < 0 or x2 <= x1 or y2 <= y1:
                        continue
                    left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y
                    if library == "mmdetection_base":
                        inside = min(left, top, right, bottom) > 0
                    else:
                        # A square around the centre, cut by the box.
                        cx, cy, reach = (x1 + x2) / 2, (y1 + y2) / 2, 1.5 * stride
                        inside = max(x1, cx - reach) < x < min(x2, cx + reach)
                        inside = inside and max(y1, cy - reach) < y < min(y2, cy + reach)
                    area = (x2 - x1) * (y2 - y1)
                    if inside and low <= max(left, top, right, bottom) <= high and area < smallest:
                        chosen, smallest = (label, (left, top, right, bottom)), area
                if chosen is None:
                    rows.append((-1, (0.0, 0.0, 0.0, 0.0), 0.0))
                    continue
                label, (left, top, right, bottom) = chosen
                center = min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
                unit = 1 if library == "mmdetection_base" else stride
                rows.append((label, (left / unit, top / unit, right / unit, bottom / unit), math.sqrt(center)))
    return rows


def random_boxes(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    corner = (torch.rand(count, 2, generator=generator) * 1.2 - 0.1) * tensor([size[1], size[0]])
    sides = torch.rand(count, 2, generator=generator) ** 2 * max(size)
    # Quarters are exact in float32, and so are their areas.
    return (torch.cat((corner, corner + sides), dim=1) * 4).round() / 4


@pytest.mark.parametrize("library", LIBRARIES)
def test_points_learn_the_boxes_of_the_loops(library: str) -> None:
    size, generator = (160, 192), torch.Generator().manual_seed(5)
    boxes = random_boxes(2 * 12, size, generator).view(2, 12, 4)
    labels = torch.randint(0, 3, (2, 12), generator=generator)
    labels[1, 9:] = -1
    targets = fcos(library).encode(boxes, labels, size)
    for image in range(2):
        rows = learnt_by_loops(library, boxes[image].tolist(), labels[image].tolist(), size)
        assert sum(row[0] >= 0 for row in rows) > 30
        assert targets.labels[image].tolist() == [row[0] for row in rows]
        assert_close(targets.distances[image], tensor([row[1] for row in rows]))
        assert_close(targets.centerness[image], tensor([row[2] for row in rows]))


@pytest.mark.parametrize("library", LIBRARIES)
def test_areas_are_edges_without_a_pixel_more(library: str) -> None:
    # 900 and 880; with the pixel of the authors 961 and 999, so that theirs is the first.
    boxes = tensor([[[47.0, 47.0, 77.0, 77.0], [7.0, 57.0, 117.0, 65.0]]])
    assert fcos(library).encode(boxes, tensor([[0, 1]]), (128, 128)).labels[0, 7 * 16 + 7] == 1
    assert fcos("improved").encode(boxes, tensor([[0, 1]]), (128, 128)).labels[0, 7 * 16 + 7] == 0
    # 601 and 600 do not tie, as they do at torchvision: the smaller one wins, though it is the second.
    boxes = tensor([[[10.0, 14.0, 40.0, 34.0334], [10.0, 14.0, 40.0, 34.0]]])
    assert fcos(library).encode(boxes, tensor([[0, 1]]), (64, 64)).labels[0, 2 * 8 + 2] == 1


@pytest.mark.parametrize("library", LIBRARIES)
def test_boxes_are_clipped_to_the_edge_and_both_ends_of_a_range_belong_to_it(library: str) -> None:
    targets = fcos(library).encode(tensor([[[40.0, 40.0, 90.0, 90.0]]]), tensor([[0]]), (64, 64))
    unit = 1 if library == "mmdetection_base" else 8
    assert (targets.distances[0, 6 * 8 + 6] * unit).tolist() == [12.0, 12.0, 12.0, 12.0]  # 52, 52 in 40 .. 64
    # 64 to the left, from a point of P3 and from one of P4.
    for stride, first in ((8, 0), (16, 32 * 32)):
        point = 96 + stride / 2
        box = tensor([[[point - 64, point - 60, point + 60, point + 60]]])
        labels = fcos(library).encode(box, tensor([[0]]), (256, 256)).labels
        cell = int(point // stride)
        assert labels[0, first + cell * (256 // stride) + cell] == 0


# --- Losses


def random_outputs(library: str, size: tuple[int, int], generator: torch.Generator) -> TrainingOutputs:
    """Distances of the order of the targets', in the unit of the head in training."""
    maps = TrainingOutputs([], [], [])
    for grid, stride in zip(grid_sizes(size), STRIDES, strict=True):
        unit = stride if library == "mmdetection_base" else 1
        maps.logits.append(torch.randn(2, 3, *grid, generator=generator) - 2)
        maps.distances.append((torch.rand(2, 4, *grid, generator=generator) * 4 + 0.1) * unit)
        maps.centerness.append(torch.randn(2, 1, *grid, generator=generator))
    return maps


def box_loss(library: str, predicted: list[float], wanted: list[float]) -> float:
    (pl, pt, pr, pb), (wl, wt, wr, wb) = predicted, wanted
    intersection = (min(pl, wl) + min(pr, wr)) * (min(pt, wt) + min(pb, wb))
    union = (pl + pr) * (pt + pb) + (wl + wr) * (wt + wb) - intersection
    enclosing = (max(pl, wl) + max(pr, wr)) * (max(pt, wt) + max(pb, wb))
    if library == "adelaidet":
        return 1 - ((intersection + 1) / (union + 1) - (enclosing - union) / enclosing)
    if library == "mmdetection":
        return 1 - (intersection / union - (enclosing - union) / enclosing)
    return -math.log(max(intersection / union, 1e-6))


def losses_by_loops(library: str, outputs: TrainingOutputs, targets: FCOSTargets) -> dict[str, float]:
    flat = [torch.cat([level.flatten(2) for level in maps], dim=2).double() for maps in outputs]
    classification = boxes = centerness = weights = 0.0
    positives = 0
    for image in range(2):
        for point, label in enumerate(targets.labels[image].tolist()):
            for number in range(3):
                probability = sigmoid(float(flat[0][image, number, point]))
                if number == label:
                    classification -= 0.25 * (1 - probability) ** 2 * math.log(probability)
                else:
                    classification -= 0.75 * probability**2 * math.log(1 - probability)
            if label < 0:
                continue
            positives += 1
            wanted = float(targets.centerness[image, point])
            predicted = flat[1][image, :, point].tolist()
            boxes += wanted * box_loss(library, predicted, targets.distances[image, point].tolist())
            weights += wanted
            guess = sigmoid(float(flat[2][image, 0, point]))
            centerness -= wanted * math.log(guess) + (1 - wanted) * math.log(1 - guess)
    return {
        "classification": classification / max(positives, 1),
        "box": boxes / max(weights, 1e-6),
        "centerness": centerness / max(positives, 1),
    }


@pytest.mark.parametrize("library", LIBRARIES)
def test_losses_are_those_of_the_loops(library: str) -> None:
    size, generator = (96, 128), torch.Generator().manual_seed(11)
    outputs = random_outputs(library, size, generator)
    boxes = random_boxes(2 * 14, size, generator).view(2, 14, 4)
    targets = fcos(library).encode(boxes, torch.randint(0, 3, (2, 14), generator=generator), size)
    assert (targets.labels >= 0).sum() > 20
    losses = fcos(library).train().losses(outputs, targets)
    expected = losses_by_loops(library, outputs, targets)
    for name, value in expected.items():
        assert_close(losses[name], tensor(value, dtype=torch.float32), rtol=1e-5, atol=1e-6)
    assert_close(losses["loss"], losses["classification"] + losses["box"] + losses["centerness"])


def test_box_losses_by_hand() -> None:
    # 2 x 2 and 4 x 2 around one point: intersection 4, union and enclosing box 8.
    predicted, wanted = tensor([[1.0, 1.0, 1.0, 1.0]]), tensor([[1.0, 1.0, 3.0, 1.0]])
    for library, loss in (
        ("adelaidet", 1 - 5 / 9),
        ("mmdetection", 1 - 4 / 8),
        ("mmdetection_base", math.log(2)),
        ("improved", 1 - 5 / 9),
        ("original", math.log(9 / 5)),
    ):
        assert fcos(library).variant.box_loss(predicted, wanted).item() == pytest.approx(loss, abs=2e-7)
    # An IoU of 1e-8: mmdetection's loss ends at -ln 1e-6, without a gradient.
    tiny = tensor([[1e-4, 1e-4, 1e-4, 1e-4]], requires_grad=True)
    loss = fcos("mmdetection_base").variant.box_loss(tiny, tensor([[1.0, 1.0, 1.0, 1.0]]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(-math.log(1e-6), rel=1e-6)
    assert tiny.grad is not None
    assert not tiny.grad.any()


# --- Decoding


def random_maps(library: str, size: tuple[int, int]) -> EvaluationOutputs:
    """Distances in pixels for mmdetection, whose head multiplies in evaluation, and in strides for AdelaiDet."""
    generator = torch.Generator().manual_seed(0)
    maps = EvaluationOutputs([], [], [])
    for grid, stride in zip(grid_sizes(size), STRIDES, strict=True):
        maps.logits.append(torch.randn(2, 3, *grid, generator=generator) * 2 - 1)
        distances = torch.rand(2, 4, *grid, generator=generator) * 3
        maps.distances.append(distances if library == "adelaidet" else distances * stride)
        maps.centerness.append(torch.randn(2, 1, *grid, generator=generator))
    return maps


def clipped(box: Box, size: tuple[int, int]) -> Box:
    x1, y1, x2, y2 = box
    height, width = size
    return (
        min(max(x1, 0), width),
        min(max(y1, 0), height),
        min(max(x2, 0), width),
        min(max(y2, 0), height),
    )


def is_empty(box: Box) -> bool:
    return box[2] <= box[0] or box[3] <= box[1]


def overlap(one: Box, other: Box) -> float:
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def suppressed(found: list[Found], threshold: float) -> list[Found]:
    """Greedy, with each class moved to the right of the one before by the largest coordinate and 1."""
    shift = max(max(box) for _, _, box in found) + 1
    kept: list[tuple[Found, Box]] = []
    for entry in sorted(found, key=lambda entry: -entry[0]):
        x1, y1, x2, y2 = (value + entry[1] * shift for value in entry[2])
        if all(overlap(other, (x1, y1, x2, y2)) <= threshold for _, other in kept):
            kept.append((entry, (x1, y1, x2, y2)))
    return [entry for entry, _ in kept]


def found_by_loops(
    library: str, maps: EvaluationOutputs, image: int, size: tuple[int, int], top: int, limit: int
) -> list[Found]:
    candidates: list[Found] = []
    for stride, logits, distances, centerness in zip(STRIDES, *maps, strict=True):
        of_level: list[tuple[float, float, int, Box]] = []
        for i in range(logits.shape[2]):
            for j in range(logits.shape[3]):
                x, y = (j + 0.5) * stride, (i + 0.5) * stride
                center = sigmoid(float(centerness[image, 0, i, j]))
                factor = stride if library == "adelaidet" else 1
                left, above, right, below = (factor * side for side in distances[image, :, i, j].double().tolist())
                box = (x - left, y - above, x + right, y + below)
                for label in range(3):
                    probability = sigmoid(float(logits[image, label, i, j]))
                    if probability > 0.05:
                        joint = probability * center
                        rank = joint if library == "adelaidet" else probability
                        score = math.sqrt(joint) if library == "adelaidet" else joint
                        of_level.append((rank, score, label, box))
        of_level.sort(key=lambda entry: -entry[0])
        candidates += [entry[1:] for entry in of_level[:top]]
    if library == "adelaidet":
        kept = suppressed(candidates, 0.6)
        if len(kept) > limit:
            worst = sorted((entry[0] for entry in kept), reverse=True)[limit - 1]
            kept = [entry for entry in kept if entry[0] >= worst]
        in_photograph = [(score, label, clipped(box, size)) for score, label, box in kept]
        return [entry for entry in in_photograph if not is_empty(entry[2])]
    in_photograph = [(score, label, clipped(box, size)) for score, label, box in candidates]
    in_photograph = [entry for entry in in_photograph if not is_empty(entry[2])]
    return suppressed(in_photograph, 0.5 if library == "mmdetection_base" else 0.6)[:limit]


@pytest.mark.parametrize("library", LIBRARIES)
def test_decoding_is_that_of_the_loops(library: str) -> None:
    size, maps = (96, 160), random_maps(library, (96, 160))
    for image, given in enumerate(fcos(library, candidates=60).decode(maps, size, limit=40)):
        expected = found_by_loops(library, maps, image, size, top=60, limit=40)
        assert len(expected) > 30
        assert given.labels.tolist() == [entry[1] for entry in expected]
        assert_close(given.scores, tensor([entry[0] for entry in expected]))
        assert_close(given.boxes, tensor([entry[2] for entry in expected]), rtol=1e-5, atol=1e-4)
        assert given.unclipped is None


def silent(size: tuple[int, int], distance: float) -> TrainingOutputs:
    """Maps in which no class is likely, and every box is as far to each side."""
    grids = grid_sizes(size)
    return TrainingOutputs(
        [torch.full((1, 3, *grid), -20.0) for grid in grids],
        [torch.full((1, 4, *grid), distance) for grid in grids],
        [torch.zeros(1, 1, *grid) for grid in grids],
    )


def test_one_box_by_hand() -> None:
    # The point 28, 20 with 16 to each side; class logit 0 and centerness 0.
    for library, distance, score in (
        ("adelaidet", 2.0, 0.5),
        ("mmdetection", 2.0, 0.25),
        ("mmdetection_base", 16.0, 0.25),
    ):
        maps = silent((64, 64), distance)
        maps.logits[0][0, 1, 2, 3] = 0
        (found,) = fcos(library).decode(maps, (64, 64))
        assert found.boxes.tolist() == [[12.0, 4.0, 44.0, 36.0]]
        assert found.scores.tolist() == [score]
        assert found.labels.tolist() == [1]


def test_adelaidet_suppresses_before_it_clips_and_then_drops_what_is_empty() -> None:
    # 88 and 48 wide, and clipped to 64 the same box: IoU 0.55 and 1.
    maps = silent((64, 64), 1.0)
    maps.logits[0][0, 0, 4, 4:6] = tensor([2.0, 1.0])
    maps.distances[0][0, :, 4, 4] = tensor([4.0, 2.0, 7.0, 2.0])  # 4 .. 92
    maps.distances[0][0, :, 4, 5] = tensor([5.0, 2.0, 2.5, 2.0])  # 4 .. 64
    # And a box to the right of the photograph.
    maps.logits[0][0, 0, 0, 7] = 3.0
    maps.distances[0][0, :, 0, 7] = tensor([-1.0, 0.5, 3.0, 2.0])
    (found,) = fcos("adelaidet", nms_threshold=0.7).decode(maps, (64, 64))
    assert found.boxes.tolist() == [[4.0, 20.0, 64.0, 52.0], [4.0, 20.0, 64.0, 52.0]]
    (found,) = fcos("mmdetection", nms_threshold=0.7).decode(maps, (64, 64))
    assert found.boxes.tolist() == [[4.0, 20.0, 64.0, 52.0]]
    # At AdelaiDet an empty box has taken a place.
    assert len(fcos("adelaidet", nms_threshold=0.7).decode(maps, (64, 64), limit=1)[0].scores) == 0
    assert len(fcos("mmdetection").decode(maps, (64, 64), limit=1)[0].scores) == 1


def test_mmdetection_ranks_candidates_by_their_class() -> None:
    # Class 0.9 with centerness 0.1, and class 0.5 with 0.9: joint 0.09 and 0.45.
    maps = silent((64, 64), 1.0)
    for column, (probability, center) in ((1, (0.9, 0.1)), (5, (0.5, 0.9))):
        maps.logits[0][0, column % 3, 2, column] = logit(probability)
        maps.centerness[0][0, 0, 2, column] = logit(center)
    for library, label, score in (("adelaidet", 2, math.sqrt(0.45)), ("mmdetection", 1, 0.09)):
        (found,) = fcos(library, candidates=1).decode(maps, (64, 64))
        assert found.labels.tolist() == [label]
        assert found.scores.tolist() == pytest.approx([score])


def test_suppression_begins_at_the_librarys_own_overlap() -> None:
    # Both 32 x 32, 10.4 apart: IoU 0.51.
    maps = silent((64, 128), 2.0)
    maps.logits[0][0, 0, 4, 4:6] = tensor([2.0, 1.0])
    maps.distances[0][0, :, 4, 5] = tensor([1.7, 2.0, 2.3, 2.0])
    for library, count in (("adelaidet", 2), ("mmdetection", 2), ("mmdetection_base", 1)):
        outputs = maps._replace(distances=[8 * level for level in maps.distances]) if "base" in library else maps
        assert len(fcos(library).decode(outputs, (64, 128))[0].scores) == count
    # A setting of the user's takes precedence.
    assert len(fcos("mmdetection", nms_threshold=0.5).decode(maps, (64, 128))[0].scores) == 1


def test_ties_for_the_last_place_stay_at_adelaidet() -> None:
    maps = silent((64, 256), 0.5)
    maps.logits[0][0, 1, 2, [2, 10, 20]] = tensor([3.0, 2.0, 2.0])
    assert len(fcos("adelaidet").decode(maps, (64, 256), limit=2)[0].scores) == 3
    assert len(fcos("mmdetection").decode(maps, (64, 256), limit=2)[0].scores) == 2


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_mirror_image_finds_the_same_boxes(library: str) -> None:
    size, outputs = (64, 96), random_maps(library, (64, 96))
    mirrored = EvaluationOutputs(
        [level.flip(-1) for level in outputs.logits],
        [level.flip(-1)[:, [2, 1, 0, 3]] for level in outputs.distances],
        [level.flip(-1) for level in outputs.centerness],
    )
    detector = fcos(library)
    # The last cells of P6 and P7 reach beyond the photograph, so that their maps turn about another axis.
    for maps in (outputs, mirrored):
        for level in maps.logits[3:]:
            level.fill_(-20)
    one, both = detector.candidates(outputs, size), detector.candidates(outputs, size, mirrored=mirrored)
    for alone, joint in zip(one, both, strict=True):
        half = len(alone.scores)
        assert len(joint.scores) == 2 * half
        order, turned = alone.scores.argsort(), joint.scores[half:].argsort() + half
        assert_close(joint.boxes[turned], alone.boxes[order])
        kept, merged = detector.merge([alone]), detector.merge([joint])
        assert_close(merged.boxes, kept.boxes)


def test_means_are_each_librarys_own() -> None:
    for library, mean in (
        ("adelaidet", (103.53, 116.28, 123.675)),
        ("mmdetection", (103.53, 116.28, 123.675)),
        ("mmdetection_base", (102.9801, 115.9465, 122.7717)),
    ):
        own = fcos(library).preprocessing
        assert (own.channel_order, own.scale, own.std, own.mean) == ("bgr", 1.0, (1.0, 1.0, 1.0), mean)
        assert {norm.eps for name, norm in fcos(library).named_modules() if name.endswith("bn1")} == {1e-5}
