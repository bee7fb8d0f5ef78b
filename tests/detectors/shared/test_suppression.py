"""NMS and soft-NMS against plain loops over boxes, in float64 or in the published order of float32 operations."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from detectors.shared.suppression import merging_soft_nms, nms, shifting_nms, soft_nms
from tests.detectors.cornernet import reference


def iou(a: list[float], b: list[float], one: float) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + one
    height = min(a[3], b[3]) - max(a[1], b[1]) + one
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def greedy(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, one: float) -> list[int]:
    table, numbers, classes = boxes.tolist(), scores.tolist(), labels.tolist()
    kept: list[int] = []
    for row in sorted(range(len(boxes)), key=lambda row: (-numbers[row], row)):
        rivals = [other for other in kept if classes[other] == classes[row]]
        if all(iou(table[other], table[row], one) <= threshold for other in rivals):
            kept.append(row)
    return kept


def scattered(count: int, generator: torch.Generator) -> Tensor:
    corners = torch.randint(0, 100, (count, 2), generator=generator)
    sides = torch.randint(1, 40, (count, 2), generator=generator)
    return torch.cat((corners, corners + sides), dim=1).float()


def clustered(count: int, generator: torch.Generator) -> Tensor:
    centres = scattered(5, generator)[torch.arange(count) % 5]
    return centres + torch.randint(0, 5, (count, 4), generator=generator)


@pytest.mark.parametrize("one", [0.0, 1.0])
@pytest.mark.parametrize("kind", [scattered, clustered])
@pytest.mark.parametrize("ties", [False, True])
def test_nms_is_the_greedy_one(kind: object, ties: bool, one: float) -> None:
    generator = torch.Generator().manual_seed(1)
    boxes = kind(520, generator)  # more than two blocks
    scores = torch.rand(520, generator=generator)
    if ties:
        scores = (scores * 8).floor() / 8
    labels = torch.randint(0, 3, (520,), generator=generator)
    # 0.59999 and not 0.6: quotients of small whole numbers hit 3/5 exactly, where float32 and float64 part.
    expected = greedy(boxes, scores, labels, 0.59999, one)
    given = nms(boxes, scores, labels, threshold=0.59999, plus_one=bool(one))
    assert given.tolist() == expected
    assert 20 < len(expected) < 520
    assert nms(boxes, scores, labels, threshold=0.59999, plus_one=bool(one), limit=20).tolist() == expected[:20]
    alone = greedy(boxes, scores, torch.zeros(520), 0.59999, one)
    assert nms(boxes, scores, threshold=0.59999, plus_one=bool(one)).tolist() == alone


def test_a_chain_in_one_block_is_settled_from_the_front() -> None:
    # Neighbours overlap by 7/13 = 0.54, next but one by 4/16: every second box stays.
    left = torch.arange(200) * 3.0
    boxes = torch.stack((left, torch.zeros(200), left + 10, torch.full((200,), 10.0)), dim=1)
    assert nms(boxes, torch.linspace(1, 0.1, 200), threshold=0.5).tolist() == list(range(0, 200, 2))


def test_an_overlap_of_exactly_the_threshold_stays() -> None:
    boxes = tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])  # 1 / 2
    scores = tensor([0.9, 0.8])
    assert nms(boxes, scores, threshold=0.5).tolist() == [0, 1]
    assert nms(boxes, scores, threshold=0.499).tolist() == [0]
    # With the 1 the sides are 3, 2 and 2, 2: 4 / 6.
    assert nms(boxes, scores, threshold=0.5, plus_one=True).tolist() == [0]


def test_nothing_and_boxes_without_area() -> None:
    assert nms(torch.zeros(0, 4), torch.zeros(0), threshold=0.5).tolist() == []
    points = tensor([[3.0, 3.0, 3.0, 3.0]]).repeat(2, 1)
    assert nms(points, tensor([0.1, 0.2]), threshold=0.5).tolist() == [1, 0]
    assert nms(points, tensor([0.1, 0.2]), threshold=0.5, plus_one=True).tolist() == [1]


def published_soft_nms(boxes: Tensor, scores: Tensor, sigma: float, threshold: float) -> tuple[np.ndarray, int]:
    """The loop over single boxes, scores in float32; rows of the input stand in column 5, those of joints in 6."""
    numbers = [np.float32(score) for score in scores.tolist()]
    table = [[*box, numbers[row], row, row] for row, box in enumerate(boxes.tolist())]
    end = len(table)
    for current in range(len(table)):
        best = max(range(current, end), key=lambda row: (table[row][4], -row), default=current)
        table[current], table[best] = table[best], table[current]
        place = current + 1
        while place < end:
            overlap = iou(table[current][:4], table[place][:4], 1.0)
            if overlap > 0:
                table[place][4] = np.float32(float(table[place][4]) * math.exp(-overlap * overlap / sigma))
                if table[place][4] < threshold:
                    joints = table[place][6]
                    table[place] = list(table[end - 1])
                    table[end - 1][6] = joints
                    end -= 1
                    continue
            place += 1
    return np.array(table, dtype=np.float64), end


@pytest.mark.parametrize("kind", [scattered, clustered])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("threshold", [0.001, 0.05, 0.3])
def test_soft_nms_is_the_published_loop_with_its_stale_rows(kind: object, ties: bool, threshold: float) -> None:
    generator = torch.Generator().manual_seed(2)
    for count in (1, 2, 7, 60):
        boxes = kind(count, generator)
        scores = torch.rand(count, generator=generator) ** 3
        if ties:
            scores = (scores * 4).floor() / 4
        expected, end = published_soft_nms(boxes, scores, 0.5, threshold)
        given = soft_nms(boxes, scores, threshold=threshold)
        assert given.num_kept == end
        np.testing.assert_allclose(given.scores, expected[:, 4], rtol=1e-4, atol=1e-7)
        assert given.rows.tolist() == expected[:, 5].astype(int).tolist()
        assert given.joints.tolist() == expected[:, 6].astype(int).tolist()


def test_soft_nms_by_hand() -> None:
    # IoU with the 1s: 10 x 10 and 5 x 10 in it, 0.5: 0.8 exp(-0.25 / 0.5) = 0.8 × 0.60653 = 0.48522.
    boxes = tensor([[0.0, 0.0, 4.0, 9.0], [50.0, 50.0, 60.0, 60.0], [0.0, 0.0, 9.0, 9.0]])
    given = soft_nms(boxes, tensor([0.8, 0.6, 0.9]))
    assert given.rows.tolist() == [2, 1, 0]
    torch.testing.assert_close(given.scores, tensor([0.9, 0.6, 0.48522]), rtol=1e-4, atol=0)
    assert given.num_kept == 3
    # Above 0.49 the middle one is dropped, the last row takes its place and stays behind as a copy.
    dropped = soft_nms(boxes[[2, 0, 1]], tensor([0.9, 0.8, 0.6]), threshold=0.49)
    assert dropped.rows.tolist() == [0, 2, 2]
    assert dropped.num_kept == 2
    torch.testing.assert_close(dropped.scores, tensor([0.9, 0.6, 0.6]))


def test_soft_nms_keeps_classes_apart() -> None:
    generator = torch.Generator().manual_seed(3)
    boxes, scores = clustered(60, generator), torch.rand(60, generator=generator)
    labels = torch.arange(60) % 3
    given = soft_nms(boxes, scores, labels, threshold=0.1)
    place, stale = 0, given.num_kept
    for label in range(3):
        one = soft_nms(boxes[label::3], scores[label::3], threshold=0.1)
        here = slice(place, place + one.num_kept)
        assert given.rows[here].tolist() == (one.rows[: one.num_kept] * 3 + label).tolist()
        torch.testing.assert_close(given.scores[here], one.scores[: one.num_kept])
        behind = slice(stale, stale + 20 - one.num_kept)
        assert given.rows[behind].tolist() == (one.rows[one.num_kept :] * 3 + label).tolist()
        place, stale = here.stop, behind.stop
    assert place == given.num_kept < 60
    assert soft_nms(boxes[:0], scores[:0], labels[:0]).num_kept == soft_nms(boxes[:0], scores[:0]).num_kept == 0


@pytest.mark.parametrize("limit", [1, 7, 40, 300])
def test_ties_beyond_the_limit_stay_when_asked(limit: int) -> None:
    generator = torch.Generator().manual_seed(2)
    boxes = scattered(1500, generator) * 4  # six blocks
    scores = (torch.rand(1500, generator=generator) * 8).floor() / 8
    every = nms(boxes, scores, threshold=0.5)
    expected = [row for row in every.tolist() if scores[row] >= scores[every[min(limit, len(every)) - 1]]]
    assert nms(boxes, scores, threshold=0.5, limit=limit, keep_ties=True).tolist() == expected


def test_torchvision_moves_classes_apart_in_float32() -> None:
    # 5.996 of 9.9922 wide: 0.60007 in place. 90 * (1333 + 1) = 120,060 pixels further right, coordinates are multiples
    # of 1/128, and 5.996 becomes 5.9922: 0.5997.
    boxes = torch.tensor([[1000.0, 0.0, 1009.9921875, 10.0], [1000.0, 0.0, 1005.996, 10.0], [0.0, 0.0, 1333.0, 1.0]])
    scores, labels = torch.tensor([0.9, 0.8, 0.1]), torch.tensor([90, 90, 0])
    assert nms(boxes, scores, labels, threshold=0.6).tolist() == [0, 2]
    assert shifting_nms(boxes, scores, labels, threshold=0.6).tolist() == [0, 1, 2]
    many = torch.cat((boxes, torch.arange(998.0)[:, None].repeat(1, 4)))  # and boxes without area
    more, others = torch.cat((scores, torch.zeros(998))), torch.cat((labels, torch.full((998,), 5)))
    assert shifting_nms(many, more, others, threshold=0.6)[:2].tolist() == [0, 2]  # 1,001 boxes: class by class
    assert shifting_nms(many[:1000], more[:1000], others[:1000], threshold=0.6)[:3].tolist() == [0, 1, 2]
    # mmcv shifts however many there are.
    assert shifting_nms(many, more, others, threshold=0.6, always=True)[:3].tolist() == [0, 1, 2]
    assert shifting_nms(boxes[:0], scores[:0], labels[:0], threshold=0.6).tolist() == []


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
        expected = np.array(reference.soft_nms(rows, True, stale=True, own_corners=not stay))
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


def test_a_box_below_0_reaches_into_the_place_of_the_class_before_it() -> None:
    # Moved by 101, the second is at 71 .. 121 x 0 .. 50, where the first has 71 .. 100.
    boxes = torch.tensor([[50.0, 50.0, 100.0, 100.0], [-51.0, -51.0, 9.0, 9.0]])
    scores, labels = torch.tensor([0.9, 0.8]), torch.tensor([0, 1])
    assert nms(boxes, scores, labels, threshold=0.3).tolist() == [0, 1]
    assert shifting_nms(boxes, scores, labels, threshold=0.3).tolist() == [0]
