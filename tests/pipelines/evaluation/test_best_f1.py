"""Thresholds of the best F1 against matching and counting that are written down independently."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.best_f1 import best_f1
from pipelines.evaluation.coco_metrics import evaluate_boxes

Box = Sequence[float]


def _iou(one: Box, other: Box) -> float:
    wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def _f1(truth: dict[str, Any], results: Sequence[dict[str, Any]], category: int, threshold: float) -> float:
    """Match greedily by score at IoU 0.5, with only the detections that pass the threshold."""
    right = shown = 0
    objects = [one for one in truth["annotations"] if one["category_id"] == category]
    for image in truth["images"]:
        free = [one for one in objects if one["image_id"] == image["id"]]
        found = [
            one
            for one in results
            if (one["image_id"], one["category_id"]) == (image["id"], category) and one["score"] >= threshold
        ]
        for one in sorted(found, key=lambda each: -each["score"]):
            shown += 1
            best = max(free, key=lambda each: _iou(one["bbox"], each["bbox"]), default=None)
            if best is not None and _iou(one["bbox"], best["bbox"]) >= 0.5:
                right += 1
                free.remove(best)
    precision, recall = right / max(shown, 1), right / len(objects)
    return 2 * precision * recall / (precision + recall) if right else 0.0


def _random_set(seed: int, ties: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    random = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [{"id": number, "width": 200, "height": 200} for number in range(1, 7)],
        "categories": [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        for _ in range(random.integers(1, 6)):
            category = int(random.choice([2, 5]))
            box = [*random.uniform(0, 150, 2), *random.uniform(10, 50, 2)]
            truth["annotations"].append({"image_id": image["id"], "category_id": category, "bbox": box})
            for _ in range(random.integers(0, 4)):
                moved = [*(np.array(box[:2]) + random.normal(0, 6, 2)), *box[2:]]
                score = random.integers(1, 6) / 8 if ties else random.uniform()
                which = int(random.choice([2, 5])) if random.uniform() < 0.2 else category
                result = {"image_id": image["id"], "category_id": which, "bbox": moved, "score": float(score)}
                results.append(result)
    return truth, results


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_no_threshold_is_better_than_the_one_found(seed: int, ties: bool) -> None:
    truth, results = _random_set(seed, ties)
    per_class = evaluate_boxes(truth, results).per_class
    for category, name in ((2, "cat"), (5, "dog")):
        # Every way to divide these detections in two.
        tried = {one["score"]: _f1(truth, results, category, one["score"]) for one in results}
        assert pytest.approx(max(tried.values()), abs=1e-12) == per_class[name].F1
        if max(tried.values()) == 0:
            assert math.isnan(per_class[name].threshold)
        else:
            assert tried[per_class[name].threshold] == pytest.approx(max(tried.values()), abs=1e-12)


def test_equal_scores_pass_together_and_the_highest_of_equally_good_thresholds_is_taken() -> None:
    scores = np.array([0.9, 0.5, 0.5, 0.3])
    # From 0.9: 2·1 / (1 + 2) = 2/3. From 0.5: 2·2 / (3 + 2) = 4/5, not the 2·2 / (2 + 2) of one of the two alone.
    found = best_f1(scores, np.array([True, True, False, False]), 2)
    assert (found.F1, found.threshold) == (0.8, 0.5)
    # 2·1 / (1 + 2) and 2·2 / (4 + 2) are equal.
    found = best_f1(np.array([0.9, 0.7, 0.6, 0.4]), np.array([True, False, False, True]), 2)
    assert (found.F1, found.threshold) == (2 / 3, 0.9)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), max_size=30), st.integers(1, 40))
def test_any_order_of_the_detections_gives_the_same(detections: list[tuple[float, bool]], num_objects: int) -> None:
    def of(rows: list[tuple[float, bool]]) -> tuple[float, float]:
        found = best_f1(np.array([row[0] for row in rows]), np.array([row[1] for row in rows], bool), num_objects)
        return found.F1, -1 if math.isnan(found.threshold) else found.threshold

    assert of(detections) == of(detections[::-1]) == of(sorted(detections))


@pytest.mark.parametrize("detections", [[], [0.5, 0.25]])
def test_without_a_right_detection_there_is_no_threshold(detections: list[float]) -> None:
    found = best_f1(np.array(detections), np.zeros(len(detections), bool), 3)
    assert found.F1 == 0
    assert math.isnan(found.threshold)


def test_a_class_without_objects_has_no_threshold_and_a_crowd_is_not_a_mistake() -> None:
    box = [10.0, 10.0, 20.0, 20.0]
    crowd = {"image_id": 1, "category_id": 2, "bbox": [100.0, 100.0, 80.0, 80.0], "iscrowd": 1}
    truth = {
        "images": [{"id": 1, "width": 200, "height": 200}],
        "categories": [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 2, "bbox": box}, crowd],
    }
    in_crowd = {"image_id": 1, "category_id": 2, "bbox": [110.0, 110.0, 20.0, 20.0], "score": 0.9}
    dog = {"image_id": 1, "category_id": 5, "bbox": box, "score": 0.75}
    metrics = evaluate_boxes(truth, [in_crowd, {**in_crowd, "bbox": box, "score": 0.5}, dog])
    assert metrics.thresholds == {"cat": 0.5}
    assert metrics.F1 == metrics.per_class["cat"].F1 == 1.0
    assert metrics.as_metrics()["val/F1"] == 1.0


def test_the_threshold_of_rounded_scores_is_for_scores_as_the_detector_returns_them() -> None:
    truth = {
        "images": [{"id": 1, "width": 200, "height": 200}],
        "categories": [{"id": 2, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 2, "bbox": [10.0, 10.0, 20.0, 20.0]}],
    }
    found = [{"image_id": 1, "category_id": 2, "bbox": [10.0, 10.0, 20.0, 20.0], "score": 0.34}]
    assert evaluate_boxes(truth, found, rounding=True).thresholds["cat"] == pytest.approx(0.335)
