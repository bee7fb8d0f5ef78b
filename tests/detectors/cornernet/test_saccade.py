"""CornerNet-Saccade: targets, losses, and the two looks, against the published procedure in plain loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from detectors import View
from detectors.cornernet.saccade import CornerNetSaccade, SaccadeSettings, SaccadeTargets, cornernet_saccade
from detectors.shared.losses import penalty_reduced_focal_loss
from detectors.shared.network import Outputs
from tests.detectors.cornernet import reference
from tests.detectors.cornernet.stand_in import StandIn, perfect_maps, random_maps
from tests.detectors.cornernet.test_targets import random_boxes

INPUT = (255, 255)


def detector(answer: Any = lambda images: [], *, stacks: int = 1, **settings: Any) -> CornerNetSaccade:
    return CornerNetSaccade(3, StandIn(answer, stacks=stacks), SaccadeSettings(**settings)).eval()


def encode(boxes: list[list[float]], labels: list[int], **settings: Any) -> SaccadeTargets:
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4)
    return detector(**settings).encode(rows, torch.tensor(labels, dtype=torch.int64).reshape(1, -1), INPUT)


def test_the_published_settings() -> None:
    with torch.device("meta"):
        settings = cornernet_saccade().settings
    assert (settings.gaussian_radius, settings.min_overlap) == ("corrected", 0.5)
    assert (settings.corners, settings.candidates, settings.tag_distance, settings.max_crops) == (12, 12, 0.3, 30)


@pytest.mark.parametrize("seed", range(3))
def test_targets_are_those_of_the_published_procedure(seed: int) -> None:
    boxes, labels = random_boxes(seed, batch=2, objects=20)
    boxes = boxes * 1.8
    targets = detector(max_objects=20).encode(boxes, labels, INPUT)
    ratio = 64 / 255
    kinds = set()
    for image in range(2):
        heat = {name: np.zeros((3, 64, 64), np.float32) for name in targets.points}
        invalid = {name: np.zeros((3, 64, 64), np.float32) for name in targets.points}
        attention = {stride: np.zeros((256 // stride, 256 // stride), np.float32) for stride in (16, 8, 4)}
        for slot in range(20):
            label, before = int(labels[image, slot]), boxes[image, slot].tolist()
            corners = reference.clipped(before, INPUT)
            if label < 0 or corners is None:
                assert not targets.object_mask[image, slot]
                continue
            x1, y1, x2, y2 = corners
            for stride, least, most in ((16, 96, 256), (8, 32, 96), (4, 0, 32)):
                if least <= max(x2 - x1, y2 - y1) <= most:
                    attention[stride][int((y1 + y2) / 2 / stride), int((x1 + x2) / 2 / stride)] = 1
            share = (x2 - x1) * (y2 - y1) / ((before[2] - before[0]) * (before[3] - before[1]))
            positive = share > 0.5 and max(int(x2) - int(x1), int(y2) - int(y1)) >= 16
            kinds.add((share > 0.5, positive))
            assert bool(targets.object_mask[image, slot]) == positive
            reach = reference.radius(math.ceil((y2 - y1) * ratio), math.ceil((x2 - x1) * ratio), 0.5, "corrected")
            for name, (x, y) in {"top_left": (x1, y1), "bottom_right": (x2, y2)}.items():
                column, row = int(x * ratio), int(y * ratio)
                reference.draw((heat if positive else invalid)[name][label], column, row, reach)
                point = targets.points[name]
                assert point.index[image, slot] == (row * 64 + column if positive else 0)
        for name in heat:
            np.testing.assert_allclose(targets.points[name].heatmap[image], heat[name], rtol=1.2e-7, atol=0)
            np.testing.assert_array_equal(targets.counted[name][image], invalid[name] == 0)
        for stride, plane in attention.items():
            np.testing.assert_array_equal(targets.attention[stride][image, 0], plane)
    assert kinds > {(True, True)}


def test_sides_of_32_and_96_are_in_two_attention_maps() -> None:
    for side, strides in ((31, [4]), (32, [8, 4]), (33, [8]), (96, [16, 8]), (97, [16])):
        targets = encode([[20, 30, 20 + side, 40]], [0])
        assert [stride for stride, plane in targets.attention.items() if plane.any()] == strides
    # Attention is also for objects that are too small to be positive.
    targets = encode([[20, 30, 30, 40]], [0])
    assert not targets.object_mask.any()
    assert targets.attention[4].nonzero().tolist() == [[0, 0, 8, 6]]


def test_the_longer_side_is_measured_between_whole_pixels() -> None:
    assert encode([[10.0, 10, 26, 20]], [0]).object_mask.any()
    assert encode([[10.9, 10, 26.0, 20]], [0]).object_mask[0, 0]  # 15.1 wide, but 26 - 10 = 16


def test_boxes_are_clipped_to_the_part_of_the_crop_that_shows_the_image() -> None:
    boxes, labels = (
        tensor([[[10.0, 10, 200, 200]], [[10.0, 10, 200, 200]], [[10.0, 10, 40, 40]]]),
        torch.zeros(3, 1).long(),
    )
    limits = tensor([[0.0, 0, 254, 254], [51, 20, 199, 180], [51, 20, 199, 180]])
    targets = detector().encode(boxes, labels, INPUT, clip_boxes=limits)
    # Half of the second box is left, and nothing of the third.
    assert targets.object_mask[:, 0].tolist() == [True, True, False]
    assert targets.attention[16][1, 0].nonzero().tolist() == [[6, 7]]  # 100 / 16 and 125 / 16
    cell = int(20 * 64 / 255) * 64 + int(51 * 64 / 255)
    assert targets.points["top_left"].index[:, 0].tolist() == [2 * 64 + 2, cell, 0]
    assert all(cells[2].all() for cells in targets.counted.values())


def test_without_objects_everything_counts() -> None:
    targets = encode([], [])
    assert all(cells.all() for cells in targets.counted.values())
    assert not any(plane.any() for plane in targets.attention.values())
    assert targets.attention[16].shape == (1, 1, 16, 16)


def saccade_maps(batch: int, seed: int, quiet: float = 0.0) -> dict[str, Tensor]:
    maps = random_maps(3, (64, 64), seed, batch)
    generator = torch.Generator().manual_seed(seed + 7)
    for stride in (16, 8, 4):
        size = 256 // stride
        maps[f"attention_{stride}"] = torch.randn(batch, 1, size, size, generator=generator) * 2 - 4 - quiet
    return maps


def test_losses_are_the_published_ones() -> None:
    targets = encode([[10, 10, 90, 90], [10, 10, 18, 18], [-60, 100, 50, 200]], [0, 0, 1])
    stacks = [saccade_maps(1, seed) for seed in (0, 1, 2)]
    given = detector(stacks=3).losses(stacks, targets)
    heatmap = attention = 0.0
    for maps in stacks:
        for name, point in targets.points.items():
            p = maps[f"{name}_heatmap"].double().sigmoid().clamp(1e-4, 1 - 1e-4)
            wanted, counts = point.heatmap.double(), targets.counted[name].double()
            sums = torch.where(wanted == 1, (1 - p) ** 2 * p.log(), (1 - wanted) ** 4 * p**2 * (1 - p).log())
            # Divided by all peaks, also by those that do not count.
            heatmap -= float((sums * counts).sum() / (wanted == 1).sum()) / 3
        for stride in (16, 8, 4):
            loss = penalty_reduced_focal_loss(maps[f"attention_{stride}"], targets.attention[stride])
            attention += float(loss) / 3
    assert given["heatmap"].item() == pytest.approx(heatmap, rel=1e-4)
    assert given["attention"].item() == pytest.approx(attention, rel=1e-4)
    others = heatmap + 0.1 * given["pull"].item() + 0.1 * given["push"].item() + given["offset"].item()
    # Three stacks: attention has a third of its weight.
    assert given["loss"].item() == pytest.approx(others + attention / 3, rel=1e-4)


def test_an_invalid_region_divides_but_does_not_add() -> None:
    # The same corner, once of a positive object and once of one that is too small.
    targets = encode([[10, 10, 90, 90], [10, 10, 18, 18]], [0, 0])
    maps = saccade_maps(1, 0)
    cell = targets.points["top_left"].index[0, 0]
    before = detector().losses([maps], targets)["heatmap"]
    maps["top_left_heatmap"].flatten(1)[0, cell] += 3
    assert detector().losses([maps], targets)["heatmap"] == before


def test_pictures_have_attention_by_stride() -> None:
    pictures = detector().heatmaps(encode([[10, 10, 50, 50]], [1]))
    assert list(pictures) == ["top-left", "bottom-right", "attention 16", "attention 8", "attention 4"]
    assert pictures["attention 8"].shape == (1, 1, 32, 32)


def test_decoding_the_targets_yields_the_boxes() -> None:
    boxes = tensor([[[13.0, 15, 140, 133], [150, 14, 220, 160], [-5, 30, 40, 70]]])
    one = detector()
    (found,) = one.decode([perfect_maps(one.encode(boxes, tensor([[0, 1, 2]]), INPUT))], INPUT)
    sure = found.scores > 0.9
    # The third one touches the border of the crop.
    assert sorted(found.boxes[sure].round(decimals=2).tolist()) == boxes[0, :2].tolist()


# Two looks


class Recorder:
    """Answers the first look with one set of maps and the second with others, and keeps what it saw."""

    def __init__(self, seed: int, quiet: float = 0.0) -> None:
        self.seed, self.quiet = seed, quiet
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> Outputs:
        self.seen.append(images)
        return [saccade_maps(len(images), self.seed + len(self.seen), self.quiet)]


def published(image: np.ndarray, answer: Recorder) -> tuple[list[list[float]], list[list[float]], list[np.ndarray]]:
    """Boxes before suppression, locations of the second look, and the crops of both, from the published steps."""
    _, height, width = image.shape

    def cut(y: float, x: float, scale: float) -> tuple[np.ndarray, tuple[int, int]]:
        side, cy, cx = int(255 / scale), int(y), int(x)
        factor = 255 / side
        x0, x1 = max(0, cx - side // 2), min(cx + side // 2, width)
        y0, y1 = max(0, cy - side // 2), min(cy + side // 2, height)
        rows = (127 - int((cy - y0) * factor), 127 + int((y1 - cy) * factor))
        columns = (127 - int((cx - x0) * factor), 127 + int((x1 - cx) * factor))
        part = image[:, y0:y1, x0:x1]

        def taps(count: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            at = np.maximum((np.arange(count) + 0.5) * length / count - 0.5, 0)
            before = at.astype(int)
            return before, np.minimum(before + 1, length - 1), at - before

        out = np.zeros((3, 255, 255))
        top, bottom, down = taps(rows[1] - rows[0], y1 - y0)
        first, last, right = taps(columns[1] - columns[0], x1 - x0)
        lines = part[:, top] * (1 - down)[:, None] + part[:, bottom] * down[:, None]
        here = (slice(None), slice(*rows), slice(*columns))
        out[here] = lines[..., first] * (1 - right) + lines[..., last] * right
        return out, (cy - side // 2, cx - side // 2)

    def boxes(maps: dict[str, Tensor], number: int, scale: float, offset: tuple[int, int]) -> list[list[float]]:
        one = {name: values[number : number + 1] for name, values in maps.items()}
        rows = reference.pairs(one, corners=12, distance=0.3, limit=12, border=True)
        return [
            [*(v / (64 / 255) / scale + offset[1 - axis % 2] for axis, v in enumerate(row[:4])), row[4], row[5]]
            for row in rows
        ]

    crops, found, locations = [], [], []
    scales = [float(np.float32(side / max(height, width))) for side in (192, 255)]
    first = [cut(height // 2, width // 2, scale) for scale in scales]
    maps = answer(torch.zeros(2, 3, 255, 255))[0]
    for number, ((pixels, offset), scale) in enumerate(zip(first, scales, strict=True)):
        crops.append(pixels)
        for stride, zoom in ((16, 1), (8, 2), (4, 4)):
            plane = maps[f"attention_{stride}"][number, 0].sigmoid().numpy()
            for y in range(len(plane)):
                for x in range(len(plane)):
                    if plane[y, x] <= 0.3 or plane[y, x] < plane[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max():
                        continue
                    at = (y * stride / scale + offset[0], x * stride / scale + offset[1])
                    if 0 <= at[0] < height and 0 <= at[1] < width and scale <= 2 and scale * zoom <= 4:
                        locations.append([*at, scale * zoom, float(plane[y, x])])
    for number, ((_, offset), scale) in enumerate(zip(first, scales, strict=True)):
        found += [row for row in boxes(maps, number, scale, offset) if row[4] > 0.3]
    for x1, y1, x2, y2, score, _ in found:
        if score > 0.5:
            longer = max(x2 - x1, y2 - y1)
            goal = 192 if longer > 96 else 64 if longer > 32 else 24
            locations.append([(y1 + y2) / 2, (x1 + x2) / 2, goal / longer, 1.0])
    # Worst first, and of equals the first in the list; then turned round.
    rest = sorted(locations, key=lambda row: row[3])[::-1]
    kept = []
    while rest:
        best = rest[0]
        kept.append(best)
        rest = [
            row
            for row in rest
            if min(abs(row[0] - best[0]), abs(row[1] - best[1])) > 16 / best[2]
            or best[2] / row[2] > 1.2
            or best[2] / row[2] < 0.8
        ]
    kept = kept[:30]
    second = [cut(y, x, scale) for y, x, scale, _ in kept]
    if kept:
        maps = answer(torch.zeros(len(kept), 3, 255, 255))[0]
    for number, ((pixels, offset), (_, _, scale, _)) in enumerate(zip(second, kept, strict=True)):
        crops.append(pixels)
        found += boxes(maps, number, scale, offset)
    return found, kept, crops


@pytest.mark.parametrize(("size", "seed"), [((120, 200), 0), ((301, 173), 10)])
def test_two_looks_find_what_the_published_steps_find(size: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(3, *size, generator=generator, dtype=torch.float64)
    expected, locations, crops = published(pixels.numpy(), Recorder(seed))
    record = Recorder(seed)
    one = detector(record)
    mean, std = (tensor(values)[:, None, None] for values in (one.preprocessing.mean, one.preprocessing.std))
    pairs = one.look((pixels.float() - mean) / std)
    assert 3 <= len(locations) <= 30
    seen = torch.cat(record.seen) * std + mean
    assert len(seen) == len(crops) == 2 + len(locations)
    np.testing.assert_allclose(seen, np.stack(crops), atol=1e-4)
    given = torch.cat((pairs.boxes, pairs.scores[:, None], pairs.labels[:, None]), dim=1)
    np.testing.assert_allclose(given, np.array(expected), rtol=1e-3, atol=1e-3)


def test_a_quiet_image_is_looked_at_once() -> None:
    record = Recorder(0, quiet=20.0)
    one = detector(lambda images: [{name: v - 20 * ("heat" in name) for name, v in record(images)[0].items()}])
    pairs = one.look(torch.zeros(3, 60, 90))
    assert (len(record.seen), len(pairs.scores)) == (1, 0)


def test_at_most_as_many_crops_as_the_setting() -> None:
    record = Recorder(0, quiet=-8.0)
    detector(record, max_crops=5).look(torch.zeros(3, 300, 400))
    assert [len(images) for images in record.seen] == [2, 5]


def test_detections_are_in_the_image_frame_and_apart_by_soft_nms() -> None:
    image = torch.randn(3, 120, 200)
    alone = detector(Recorder(0)).look(image)
    padded = torch.zeros(1, 3, 127, 255)
    padded[0, :, 3:123, 27:227] = image
    # A photograph of 240 x 400, shown at half its size.
    view = View(padded, tensor([[[0.5, 0, 27], [0, 0.5, 3]]]), image_sizes=tensor([[240, 400]]))
    calls: list[int] = []
    (found,) = detector(Recorder(0)).detect([view], watch=lambda number, outputs: calls.append(number), limit=5)
    assert calls == []
    assert len(found.scores) == 5
    assert (found.scores.diff() <= 0).all()
    distances = (found.boxes[:, None] - 2 * alone.boxes).abs().amax(dim=-1)
    assert (distances.amin(dim=1) < 1e-3).all()
    assert found.scores[0] == alone.scores.max()


def test_an_image_of_a_few_pixels() -> None:
    for size in ((1, 1), (2, 300), (1000, 3)):
        found = detector(Recorder(0)).look(torch.zeros(3, *size))
        assert found.boxes.isfinite().all()
