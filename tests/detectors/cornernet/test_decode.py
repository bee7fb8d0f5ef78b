"""Pairs of corners, and what several views of an image become, against the published procedure in plain loops."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from detectors import DetectorError, View
from detectors.cornernet.cornernet import CornerNet, CornerNetSettings
from detectors.cornernet.decoding import pair_corners
from detectors.detector import TestMode
from detectors.shared.network import Outputs
from detectors.shared.suppression import merging_soft_nms
from tests.detectors.cornernet import reference
from tests.detectors.cornernet.stand_in import StandIn, perfect_maps, random_maps

INPUT = (63, 95)
CELLS = (16, 24)


def detector(answer: Callable[[Tensor], Outputs] = lambda images: [], **settings: Any) -> CornerNet:
    return CornerNet(3, StandIn(answer), CornerNetSettings(**settings)).eval()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("border", [False, True])
def test_pairs_are_those_of_the_published_loops(seed: int, border: bool) -> None:
    maps = random_maps(3, CELLS, seed)
    expected = np.array(reference.pairs(maps, corners=30, distance=0.5, limit=1000, border=border))
    given = pair_corners(maps, corners=30, tag_distance=0.5, limit=1000, rejects_border=border)
    kept = given.scores[0] > -1
    assert 5 < int(kept.sum()) == len(expected)
    rows = torch.cat(
        (
            given.boxes[0],
            given.scores[0, :, None],
            given.labels[0, :, None],
            given.corner_scores[0],
        ),
        dim=1,
    )[kept]
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)
    first = pair_corners(maps, corners=30, tag_distance=0.5, limit=3, rejects_border=border)
    assert torch.equal(first.boxes, given.boxes[:, :3])


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


def published_merge(
    rows: list[list[float]], merging: bool, stale: bool, own_corners: bool = False
) -> list[list[float]]:
    """Soft-NMS over single boxes, class by class; rows are x1, y1, x2, y2, score, label, both corner scores."""
    merged = []
    for label in range(3):
        table = [[*row[:5], *row[6:]] for row in rows if row[5] == label]
        end, place = len(table), 0
        columns = 7 if own_corners else 5
        while place < end:
            best = max(range(place, end), key=lambda row: (table[row][4], -row))
            first, second = list(table[place]), list(table[best])
            table[place][:columns], table[best][:columns] = second[:columns], first[:columns]
            me = list(table[place])
            sums = [me[0] * me[5], me[1] * me[5], me[2] * me[6], me[3] * me[6], me[5], me[6]]
            at = place + 1
            while at < end:
                it = table[at]
                wide = min(me[2], it[2]) - max(me[0], it[0]) + 1
                high = min(me[3], it[3]) - max(me[1], it[1]) + 1
                if wide > 0 and high > 0:
                    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (me, it)]
                    overlap = wide * high / (sum(areas) - wide * high)
                    decay = math.exp(-overlap * overlap / 0.5)
                    weight = (1 - decay) ** 10
                    for axis in range(4):
                        sums[axis] += it[axis] * it[5 + axis // 2] * weight
                    sums[4], sums[5] = sums[4] + it[5] * weight, sums[5] + it[6] * weight
                    it[4] *= decay
                    if it[4] < 0.001:
                        it[:columns] = table[end - 1][:columns]
                        end -= 1
                        continue
                at += 1
            if merging:
                table[place][:4] = [sums[axis] / sums[4 + axis // 2] for axis in range(4)]
            place += 1
        merged += [[*row[:5], label] for row in (table if stale else table[:end])]
    return sorted(merged, key=lambda row: -row[4])


@pytest.mark.parametrize("suppression", ["published", "corrected"])
@pytest.mark.parametrize(("mode", "scales"), [("none", (1.0,)), ("flip", (1.0,)), ("multiscale", (0.5, 1.0, 1.5))])
def test_views_are_merged_as_published(mode: TestMode, scales: tuple[float, ...], suppression: str) -> None:
    views = [view(scale) for scale in scales]
    # The smallest map has few peaks; beyond them the published code takes cells that score 0, in no certain order.
    one = detector(answer, corners=14, suppression=suppression)
    (found,) = one.detect(views, mode=mode, limit=10_000)
    rows = published_rows(views, mode != "none", 14)
    published = suppression == "published"
    expected = np.array(published_merge(rows, mode == "multiscale", stale=published, own_corners=not published))
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


@pytest.mark.parametrize("stay", [True, False])
def test_merging_finds_boxes_in_the_place_where_the_loop_meets_them(stay: bool) -> None:
    # Scores so low that most overlapping boxes are dropped, and the list's end moves into the gaps round by round.
    generator = torch.Generator().manual_seed(5)
    for count in (1, 2, 3, 40, 150):
        centers = torch.randint(0, 4, (count, 2), generator=generator) * 20.0
        sides = torch.rand(count, 2, generator=generator) * 20 + 2
        boxes = torch.cat((centers, centers + sides), dim=1)
        scores = torch.rand(count, generator=generator) ** 6 * 0.1
        corners = torch.rand(count, 2, generator=generator)
        rows = [[*b, s, 0, *c] for b, s, c in zip(boxes.tolist(), scores.tolist(), corners.tolist(), strict=True)]
        expected = np.array(published_merge(rows, True, stale=True, own_corners=not stay))
        given = merging_soft_nms(
            boxes, scores, corners, torch.zeros(count, dtype=torch.int64), exponent=10, corners_stay=stay
        )
        order = given.scores.argsort(descending=True, stable=True)
        np.testing.assert_allclose(given.scores[order], expected[:, 4], rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(given.boxes[order], expected[:, :4], rtol=1e-3, atol=1e-3)
        assert count < 40 or given.num_kept < count


def test_merging_by_hand() -> None:
    # The boxes share an IoU of 10 x 8 / 100 = 0.8 (sides are 1 longer): decay exp(-0.64 / 0.5) = 0.278, weight 0.722^10
    # = 0.0385. The right side is the mean of 9 and 7 with the bottom right scores 0.9 and 0.5 x 0.0385.
    boxes, scores = tensor([[0.0, 0, 9, 9], [0, 0, 7, 9]]), tensor([0.9, 0.6])
    corners = tensor([[0.9, 0.9], [0.7, 0.5]])
    merged = merging_soft_nms(boxes, scores, corners, tensor([4, 4]), exponent=10)
    torch.testing.assert_close(merged.boxes[0], tensor([0.0, 0.0, 8.9582, 9.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(merged.scores, tensor([0.9, 0.6 * 0.27804]), atol=1e-4, rtol=0)
    assert merging_soft_nms(boxes[:0], scores[:0], corners[:0], tensor([4])[:0], exponent=10).num_kept == 0


def test_a_corner_that_scores_0_moves_nothing() -> None:
    boxes, corners = tensor([[0.0, 0, 9, 9]]), tensor([[0.0, 0.0]])
    merged = merging_soft_nms(boxes, tensor([0.0]), corners, tensor([0]), exponent=10)
    assert torch.equal(merged.boxes, boxes)
