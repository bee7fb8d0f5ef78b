"""AP of keypoints: pycocotools judges; what it is given, and how its answer is read."""

import copy
import logging
import math
from typing import Any

import numpy as np
import pytest

from pipelines.evaluation.coco_metrics import results_from_detections
from pipelines.evaluation.keypoint_metrics import evaluate_keypoints

# COCO's tolerance of a nose is 0.026 (its sigma in pycocotools), of a hip 0.107.
NOSE, HIP = 0.026, 0.107


def truth(people: int = 3) -> dict[str, Any]:
    annotations = []
    for number in range(people):
        joints = [[20 + 5 * joint + number, 30 + 7 * joint, 2] for joint in range(17)]
        annotations.append(
            {
                "image_id": number,
                "category_id": 1,
                "bbox": [10, 10, 100, 150],
                "area": 10_000.0,
                "keypoints": [value for joint in joints for value in joint],
            }
        )
    return {
        "images": [{"id": number} for number in range(people)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": annotations,
    }


def results(ground_truth: dict[str, Any], rounding: bool = False) -> list[dict[str, Any]]:
    found = []
    for annotation in ground_truth["annotations"]:
        x, y, w, h = annotation["bbox"]
        joints = np.array(annotation["keypoints"], dtype=float).reshape(1, 17, 3)[..., :2]
        found += results_from_detections(
            [annotation["image_id"]], [[x, y, x + w, y + h]], [0.987], [0], [1], rounding, keypoints=joints
        )
    return found


def test_the_truth_has_an_ap_of_one() -> None:
    metrics = evaluate_keypoints(truth(), results(truth()))
    assert metrics is not None
    assert metrics.AP == metrics.AP50 == metrics.AR == pytest.approx(1.0)
    assert metrics.AP_large == pytest.approx(1.0)  # 10,000 px² is above 96²
    assert math.isnan(metrics.AP_medium)
    assert "val/keypoints/AP_medium" not in metrics.as_metrics()
    assert metrics.as_metrics()["val/keypoints/AP"] == pytest.approx(1.0)
    assert metrics.table().splitlines()[0] == "AP        1.000    AR        1.000"


def test_the_similarity_of_a_moved_joint() -> None:
    # One labelled joint, the nose, d = 4 px away: exp(-d² / (2 area (2 sigma)²)) = exp(-16 / 54.1) = 0.744, so it
    # counts at 0.50 … 0.70: 5 of 10 similarities.
    ground_truth = truth(1)
    joints = ground_truth["annotations"][0]["keypoints"]
    joints[2::3] = [2] + [0] * 16
    found = results(ground_truth)
    found[0]["keypoints"][0] += 4.0
    assert math.exp(-16 / (2 * 10_000 * (2 * NOSE) ** 2)) == pytest.approx(0.744, abs=1e-3)
    metrics = evaluate_keypoints(ground_truth, found)
    assert metrics is not None
    assert pytest.approx(0.5) == metrics.AP
    # A hip (joint 11) may be four times as far away.
    joints[2::3] = [0] * 11 + [2] + [0] * 5
    found[0]["keypoints"][0] -= 4.0
    found[0]["keypoints"][33] += 4.0 * HIP / NOSE
    assert pytest.approx(0.5) == evaluate_keypoints(ground_truth, found).AP  # type: ignore[union-attr]


def test_people_without_a_labelled_joint_are_not_missed() -> None:
    ground_truth = truth(3)
    found = results(ground_truth)[:2]
    ground_truth["annotations"][2]["keypoints"] = [0] * 51
    assert pytest.approx(1.0) == evaluate_keypoints(ground_truth, found).AR  # type: ignore[union-attr]
    del ground_truth["annotations"][2]["keypoints"]  # instances and keypoints in one file
    assert pytest.approx(1.0) == evaluate_keypoints(ground_truth, found).AR  # type: ignore[union-attr]
    assert pytest.approx(2 / 3) == evaluate_keypoints(truth(3), found).AR  # type: ignore[union-attr]


def test_results_are_written_as_published() -> None:
    keypoints = np.zeros((2, 17, 2))
    keypoints[0, 3] = (1.005, 2.678)
    keypoints[1] = np.nan
    boxes = [[1.0, 2.0, 4.0, 6.0], [np.nan, 0, 1, 1]]
    with pytest.warns(RuntimeWarning, match="not finite"):
        (one,) = results_from_detections([7, 7], boxes, [0.12345, 0.5], [0, 0], [1], True, keypoints=keypoints)
    # 1.005 is 1.00499… in binary; the score is the box's; every joint is visible.
    assert one["keypoints"][9:12] == [1.0, 2.68, 1.0]
    assert one["keypoints"][2::3] == [1.0] * 17
    assert (one["score"], one["bbox"]) == (0.12, [1.0, 2.0, 3.0, 4.0])


def test_what_has_no_keypoints_has_no_figures(caplog: pytest.LogCaptureFixture) -> None:
    ground_truth = truth()
    boxes_only = [{key: value for key, value in one.items() if key != "keypoints"} for one in results(ground_truth)]
    assert evaluate_keypoints(ground_truth, boxes_only) is None
    no_truth = copy.deepcopy(ground_truth)
    for annotation in no_truth["annotations"]:
        del annotation["keypoints"]
    assert evaluate_keypoints(no_truth, results(ground_truth)) is None
    five = copy.deepcopy(ground_truth)
    for annotation in five["annotations"]:
        annotation["keypoints"] = annotation["keypoints"][:15]
    with caplog.at_level(logging.WARNING, logger="aweigh"):
        assert evaluate_keypoints(five, results(ground_truth)) is None
    assert "COCO defines it for 17 joints, but these have 5, 17" in caplog.text


def test_the_ground_truth_is_not_changed() -> None:
    ground_truth = truth()
    before = copy.deepcopy(ground_truth)
    evaluate_keypoints(ground_truth, results(ground_truth))
    assert ground_truth == before
