"""Two lists of detections agree up to rounding, ties and the limit; anything else is counted."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from detectors import Detections
from pipelines.exporting.comparison import BOUNDS, Comparison, compare

NAMES = ("cat", "dog")
BOUND = BOUNDS["float32"]


def scene(seed: int = 0, objects: int = 40, images: int = 8) -> list[Detections]:
    """Detections with boxes, joints and boxes in 3D; scores from 0.9 downwards."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(images):
        corner = 200 * torch.rand(objects, 2, generator=draw)
        size = 10 + 50 * torch.rand(objects, 2, generator=draw)
        found.append(
            Detections(
                boxes=torch.cat((corner, corner + size), dim=1),
                scores=torch.linspace(0.9, 0.12, objects),
                labels=torch.randint(0, 2, (objects,), generator=draw),
                keypoints=torch.rand(objects, 3, 3, generator=draw),
                box3d=torch.rand(objects, 7, generator=draw) + torch.tensor([0, 0, 20.0, 0, 0, 0, math.pi - 0.5]),
            )
        )
    return found


def changed(change: Callable[[Detections], Detections]) -> Comparison:
    return compare(scene(), [change(one) for one in scene()], BOUND, 100, NAMES)


def rounded(one: Detections) -> Detections:
    order = torch.randperm(len(one.scores), generator=torch.Generator().manual_seed(1))
    assert one.box3d is not None
    turned = one.box3d + torch.tensor([0, 0, 0, 0, 0, 0, 2 * math.pi])
    return replace(one, boxes=one.boxes + 1e-3, scores=one.scores - 1e-5, box3d=turned).rows(order)


def test_rounding_order_and_whole_turns_do_not_count() -> None:
    result = changed(rounded)
    assert (result.compared, result.unmatched) == (320, 0)
    assert result.passed
    assert result.differences["boxes"].largest == pytest.approx(1e-3, rel=0.05)
    assert result.differences["angles"].largest < 1e-5


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("boxes", lambda one: replace(one, boxes=one.boxes + 0.5)),
        ("boxes", lambda one: replace(one, boxes=one.boxes[:, [1, 0, 3, 2]])),
        ("scores", lambda one: replace(one, scores=one.scores * 0.99)),
        ("labels", lambda one: replace(one, labels=1 - one.labels)),
        ("joints", lambda one: replace(one, keypoints=one.keypoints + torch.tensor([0.2, 0, 0]))),
        ("joint_scores", lambda one: replace(one, keypoints=one.keypoints + torch.tensor([0, 0, 0.01]))),
        ("joints", lambda one: replace(one, keypoints=one.keypoints.flip(1))),
        ("centers_3d", lambda one: replace(one, box3d=one.box3d + torch.tensor([0, 0.2, 0, 0, 0, 0, 0]))),
        ("depths", lambda one: replace(one, box3d=one.box3d + torch.tensor([0, 0, 0.1, 0, 0, 0, 0]))),
        ("angles", lambda one: replace(one, box3d=one.box3d + torch.tensor([0, 0, 0, 0, 0, 0, 0.02]))),
        ("not a number", lambda one: replace(one, boxes=one.boxes * math.nan)),
        ("nothing", lambda one: one.rows(torch.zeros(0, dtype=torch.long))),
        ("half of them", lambda one: one.rows(torch.arange(20))),
        ("double", lambda one: one.rows(torch.arange(40).repeat(2))),
    ],
)
def test_a_file_that_is_wrong_everywhere_fails(kind: str, change: Callable[[Detections], Detections]) -> None:
    result = changed(change)
    assert not result.passed, kind
    assert result.unmatched > 100
    assert result.examples


def test_the_largest_difference_is_that_of_the_worst_pair_and_beyond_the_bound_too() -> None:
    result = changed(lambda one: replace(one, boxes=one.boxes + 0.5))
    assert result.differences["boxes"].largest == pytest.approx(0.5, abs=1e-4)
    assert result.differences["boxes"].mean == pytest.approx(0.5, abs=1e-4)
    assert result.examples[0].startswith("image 1, ")
    assert result.as_dict()["without_counterpart"] == 320


@pytest.mark.parametrize(("lost", "passes"), [(1, True), (2, False)])
def test_one_in_two_hundred_may_be_lost_to_a_tie(lost: int, passes: bool) -> None:
    found = scene()
    for number in range(lost):
        found[number] = found[number].rows(torch.arange(1, 40))
    result = compare(scene(), found, BOUND, 100, NAMES)
    assert (result.unmatched, result.allowed) == (lost, 1)
    assert result.passed is passes


def test_of_few_detections_none_may_be_lost() -> None:
    found = scene(images=1)
    result = compare(found, [found[0].rows(torch.arange(1, 40))], BOUND, 100, NAMES)
    assert not result.passed


def test_the_last_place_of_a_full_list_may_go_to_another() -> None:
    ours, theirs = scene(images=1), scene(images=1)
    theirs[0].boxes[-1] += 100
    for limit, lost, unmatched in ((40, 2, 0), (41, 0, 2)):
        result = compare(ours, theirs, BOUND, limit, NAMES)
        assert (result.at_limit, result.unmatched) == (lost, unmatched)


def test_a_full_list_excuses_only_its_end() -> None:
    ours, theirs = scene(images=1), scene(images=1)
    theirs[0].boxes[5] += 100
    result = compare(ours, theirs, BOUND, 40, NAMES)
    assert (result.at_limit, result.unmatched) == (0, 2)


def test_lists_full_of_ties_prove_nothing() -> None:
    ours, theirs = scene(images=1), scene(images=1)
    for one in (*ours, *theirs):
        one.scores = torch.ones(40)
    theirs[0].boxes[10:] += 100
    result = compare(ours, theirs, BOUND, 40, NAMES)
    assert (result.compared, result.unmatched, result.at_limit) == (10, 0, 60)
    assert not result.passed


def test_scores_near_the_threshold_are_compared_with_all() -> None:
    ours, theirs = scene(), scene()
    for one, scores in ((ours, 0.1), (theirs, 0.09999)):
        for image in one:
            image.scores[-1] = scores
    assert compare(ours, theirs, BOUND, 100, NAMES).unmatched == 0


def test_weak_detectors_are_compared_by_their_best_detections() -> None:
    ours = [replace(one, scores=one.scores / 100) for one in scene()]
    result = compare(ours, ours, BOUND, 100, NAMES)
    assert (result.compared, result.passed) == (40, True)
    moved = [replace(one, boxes=one.boxes + 0.5) for one in ours]
    assert not compare(ours, moved, BOUND, 100, NAMES).passed


def test_nothing_to_compare_is_no_success() -> None:
    nothing = [one.rows(torch.zeros(0, dtype=torch.long)) for one in scene()]
    result = compare(nothing, nothing, BOUND, 100, NAMES)
    assert (result.compared, result.passed) == (0, False)


def test_half_precision_may_differ_by_more() -> None:
    moved = [replace(one, boxes=one.boxes + 0.5) for one in scene()]
    assert compare(scene(), moved, BOUNDS["float16"], 100, NAMES).passed
