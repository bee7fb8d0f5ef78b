"""COCO's figures: the published check of the COCO API, and small cases counted by hand."""

import copy
import gzip
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from pipelines.evaluation.coco_metrics import (
    FIGURES,
    CocoMetrics,
    evaluate_boxes,
    precision_recall_figure,
    results_from_detections,
)

DATA = Path(__file__).parents[1] / "data"


def read(name: str) -> Any:
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


def ground_truth(*annotations: dict[str, Any], classes: tuple[str, ...] = ("cat", "dog")) -> dict[str, Any]:
    """Two images of 100 × 100; categories 3, 7, 11 …; ids of annotations from 0, as some exporters write."""
    return {
        "images": [{"id": image_id, "width": 100, "height": 100} for image_id in (1, 2)],
        "categories": [{"id": 3 + 4 * index, "name": name} for index, name in enumerate(classes)],
        "annotations": [
            {"id": index, "image_id": 1, "category_id": 3} | annotation for index, annotation in enumerate(annotations)
        ],
    }


def result(box: list[float], score: float, category_id: int = 3, image_id: int = 1) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


@pytest.fixture(scope="module")
def published() -> CocoMetrics:
    return evaluate_boxes(read("instances_val2014_100"), read("instances_val2014_fakebbox100_results"))


def test_the_published_figures_of_the_coco_api(published: CocoMetrics) -> None:
    # cocoapi, results/val2014_fake_eval_res.txt
    figures = [round(getattr(published, figure), 3) for figure in FIGURES]
    assert figures == [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]
    stats = json.loads((DATA / "expected_bbox.json").read_text())["stats"]
    np.testing.assert_allclose([getattr(published, figure) for figure in FIGURES], list(stats.values()), rtol=1e-12)
    assert published.num_images == 100


def test_each_class_has_the_figures_of_pycocotools(published: CocoMetrics) -> None:
    expected = json.loads((DATA / "expected_bbox.json").read_text())["per_category"]
    assert list(published.per_class) == list(expected)
    for name, each in published.per_class.items():
        wanted = [math.nan if expected[name][key] is None else expected[name][key] for key in ("AP", "AP50")]
        np.testing.assert_allclose([each.AP, each.AP50], wanted, rtol=1e-12)
    assert sum(each.num_objects for each in published.per_class.values()) == 839 - 9  # 9 crowds do not count
    assert published.per_class["fire hydrant"].num_objects == 0


def test_metrics_leave_out_what_does_not_exist(published: CocoMetrics) -> None:
    metrics = published.as_metrics()
    assert metrics["val/AP"] == published.AP
    assert metrics["val/AR_100"] == published.AR_100
    assert metrics["val/AP/person"] == published.per_class["person"].AP
    assert "val/AP/fire hydrant" not in metrics
    assert all(0 <= value <= 1 for value in metrics.values())
    assert metrics["val/F1"] == published.F1
    assert len(metrics) == 13 + sum(each.num_objects > 0 for each in published.per_class.values())
    assert set(published.as_metrics("test/flip")) == {f"test/flip{key.removeprefix('val')}" for key in metrics}


def test_half_the_objects_found_is_fifty_one_of_the_101_recalls() -> None:
    truth = ground_truth({"bbox": [10, 10, 20, 20]}, {"bbox": [60, 60, 20, 20]})
    metrics = evaluate_boxes(truth, [result([10, 10, 20, 20], 0.9), result([0, 60, 20, 20], 0.8)])
    # One true, then one false: precision 1 up to recall 0.5, at recalls 0, 0.01 … 0.50, then 0. 51 / 101.
    assert pytest.approx(51 / 101) == metrics.AP
    assert metrics.per_class["cat"] == pytest.approx((51 / 101, 51 / 101, 2, 2 / 3, 0.9))
    assert metrics.precision_recall["cat"].tolist() == pytest.approx([1.0] * 51 + [0.0] * 50)
    assert metrics.AR_100 == 0.5
    assert metrics.AP_small == pytest.approx(51 / 101)  # 20 × 20 = 400 < 32²
    assert math.isnan(metrics.AP_large)
    assert "dog" not in metrics.precision_recall


def test_a_box_a_tenth_too_wide_counts_up_to_iou_0_90() -> None:
    # IoU 20 × 20 / (22 × 20) = 0.909: found at 0.50 … 0.90, nine of the ten thresholds.
    metrics = evaluate_boxes(ground_truth({"bbox": [10, 10, 20, 20]}), [result([10, 10, 22, 20], 0.5)])
    assert pytest.approx(0.9) == metrics.AP
    assert pytest.approx(1.0) == metrics.AP50


def test_an_object_with_id_0_can_be_found() -> None:
    truth = ground_truth({"bbox": [10, 10, 20, 20], "area": 300, "iscrowd": 0})
    assert truth["annotations"][0]["id"] == 0
    assert pytest.approx(1.0) == evaluate_boxes(truth, [result([10, 10, 20, 20], 0.9)]).AP


def test_nothing_detected_is_zero_not_an_error() -> None:
    metrics = evaluate_boxes(ground_truth({"bbox": [10, 10, 20, 20]}), [])
    assert (metrics.AP, metrics.AP50, metrics.AR_100) == (0, 0, 0)
    assert metrics.as_metrics()["val/AP/cat"] == 0
    assert not metrics.precision_recall["cat"].any()


def test_without_objects_no_figure_is_given() -> None:
    metrics = evaluate_boxes(ground_truth(), [result([10, 10, 20, 20], 0.9)])
    assert all(math.isnan(getattr(metrics, figure)) for figure in FIGURES)
    assert metrics.as_metrics() == {}
    assert metrics.precision_recall == {}
    assert metrics.table().splitlines()[-1].split() == ["dog", "0", "-", "-", "-", "-"]


def test_a_detection_in_a_crowd_is_neither_right_nor_wrong() -> None:
    object_box, in_crowd = [10, 10, 20, 20], [60, 60, 10, 10]
    crowd = {"bbox": [50, 50, 50, 50], "iscrowd": 1}
    results = [result(in_crowd, 0.99), result(object_box, 0.5)]
    metrics = evaluate_boxes(ground_truth({"bbox": object_box}, crowd), results)
    assert pytest.approx(1.0) == metrics.AP
    assert metrics.per_class["cat"].num_objects == 1
    # The same detection beside no crowd is a false one above the true one: precision 1/2 everywhere.
    assert pytest.approx(0.5) == evaluate_boxes(ground_truth({"bbox": object_box}), results).AP


def test_the_ground_truth_and_results_stay_as_they_were_and_nothing_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    truth, results = ground_truth({"bbox": [10, 10, 20, 20]}), [result([10, 10, 20, 20], 0.9)]
    before = copy.deepcopy((truth, results))
    evaluate_boxes(truth, results)
    assert (truth, results) == before
    assert capsys.readouterr() == ("", "")


def test_class_names_become_metric_names_that_stay_apart() -> None:
    truth = ground_truth(
        *({"bbox": [10, 10, 20, 20], "category_id": 3 + 4 * index} for index in range(4)),
        classes=("cat (big)", "cat [big]", "人", "人"),
    )
    metrics = evaluate_boxes(truth, [result([10, 10, 20, 20], 0.9, category_id=7)])
    by_class = {key: value for key, value in metrics.as_metrics().items() if key.startswith("val/AP/")}
    assert by_class == pytest.approx(
        {"val/AP/cat _big_": 0.0, "val/AP/cat _big__2": 1.0, "val/AP/人 _11_": 0.0, "val/AP/人 _15_": 0.0}
    )


def test_the_table_names_every_figure_and_class() -> None:
    truth = ground_truth({"bbox": [10, 10, 20, 20]}, {"bbox": [60, 60, 20, 20]}, classes=("cat", "hot dog"))
    metrics = evaluate_boxes(truth, [result([10, 10, 20, 20], 0.9)])
    assert metrics.table() == (
        "AP        0.505    AR_1      0.500\n"
        "AP50      0.505    AR_10     0.500\n"
        "AP75      0.505    AR_100    0.500\n"
        "AP_small  0.505    AR_small  0.500\n"
        "AP_medium     -    AR_medium     -\n"
        "AP_large      -    AR_large      -\n"
        "\n"
        "class    objects     AP   AP50  best F1  at score\n"
        "cat            2  0.505  0.505    0.667     0.900\n"  # right 1 of 1 and of 2: 2 × 1 / (1 + 2)
        "hot dog        0      -      -        -         -"
    )


def test_results_of_another_split_or_class_list_are_refused() -> None:
    truth = ground_truth({"bbox": [10, 10, 20, 20]})
    with pytest.raises(
        ConfigError, match=r"result 0 belongs to image 9, which is not among the ground truth's 2 images"
    ):
        evaluate_boxes(truth, [result([0, 0, 1, 1], 0.5, image_id=9)])
    with pytest.raises(ConfigError, match=r"result 1, image 2: category 4 is not among the ground truth's 2 cat"):
        evaluate_boxes(truth, [result([0, 0, 1, 1], 0.5), result([0, 0, 1, 1], 0.5, category_id=4, image_id=2)])


def test_detections_become_coco_results() -> None:
    boxes = np.array([[1.25, 2.5, 11.25, 22.5], [0.0, 0.0, 1.0, 1.0]], dtype=np.float32)
    assert results_from_detections([5, 6], boxes, np.float32([0.5, 0.25]), [1, 0], [3, 7]) == [
        {"image_id": 5, "category_id": 7, "bbox": [1.25, 2.5, 10.0, 20.0], "score": 0.5},
        {"image_id": 6, "category_id": 3, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.25},
    ]
    assert results_from_detections([], np.zeros((0, 4)), [], [], [3]) == []


def test_rounding_is_to_two_decimals_of_width_and_height() -> None:
    (rounded,) = results_from_detections([1], [[0.333, 0.125, 1.0, 2.0]], [0.98765], [0], [3], rounding=True)
    # Width 1 - 0.333 = 0.667; height 2 - 0.125 = 1.875, a tie that goes to the even digit; 0.125 likewise.
    assert rounded == {"image_id": 1, "category_id": 3, "bbox": [0.33, 0.12, 0.67, 1.88], "score": 0.99}


@settings(deadline=None)
@given(st.floats(0, 1000, width=32), st.floats(0, 1000, width=32), st.floats(0, 1, width=32))
def test_rounding_is_that_of_the_published_code(low: float, size: float, score: float) -> None:
    box = np.float32([low, low, np.float32(low) + np.float32(size), np.float32(low) + np.float32(size)])
    (rounded,) = results_from_detections([1], box[None], np.float32([score]), [0], [3], rounding=True)
    side = float(f"{box[2] - box[0]:.2f}")  # CenterNet: float("{:.2f}".format(x)) of float32 width and height
    assert rounded["bbox"] == [float(f"{box[0]:.2f}")] * 2 + [side] * 2
    assert rounded["score"] == float(f"{np.float32(score):.2f}")


def test_detections_that_are_not_finite_are_left_out_with_a_warning() -> None:
    boxes = [[0, 0, 1, 1], [0, 0, math.inf, 1], [0, 0, 2, 2]]
    with pytest.warns(RuntimeWarning, match="detections that are not finite are left out"):
        kept = results_from_detections([1, 2, 3], boxes, [0.5, 0.5, math.nan], [0, 0, 1], [3, 7])
    assert [each["image_id"] for each in kept] == [1]


@pytest.mark.parametrize("case", ["eighty classes", "two classes", "no objects"])
def test_precision_recall_figure_is_a_picture(case: str, published: CocoMetrics, tmp_path: Path) -> None:
    box = {"bbox": [10, 10, 20, 20]}
    metrics = {
        "eighty classes": published,
        "two classes": evaluate_boxes(ground_truth(box, box | {"category_id": 7}), [result(box["bbox"], 0.5)]),
        "no objects": evaluate_boxes(ground_truth(), []),
    }[case]
    precision_recall_figure(metrics, tmp_path / "curves.png")
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture.shape == (624, 960, 3)  # 8.0 × 5.2 inches at 120 dots
    blue = (picture == (180, 119, 31)).all(axis=2).any()  # #1f77b4, the first named class
    assert blue == (case != "no objects")
