"""The table of test-time augmentation."""

from pipelines.evaluation.coco_metrics import CocoMetrics
from pipelines.evaluation.evaluate import Evaluation
from pipelines.evaluation.keypoint_metrics import KeypointMetrics
from pipelines.evaluation.test_time_table import ModeResult, mode_table

NAN = float("nan")


def result(ap: float, milliseconds: float, keypoints: KeypointMetrics | None = None) -> ModeResult:
    coco = CocoMetrics(ap, ap + 0.2, NAN, *(9 * [NAN]), per_class={}, precision_recall={}, num_images=2)
    return ModeResult(Evaluation(coco, keypoints, {"loss": 1.0}, [], 5.0, 2), milliseconds)


def test_the_rows_are_the_modes_of_the_paper() -> None:
    table = mode_table({"none": result(0.281, 7.0), "flip": result(0.3, 14.0), "multiscale": result(0.332, 81.0)})
    assert table.splitlines() == [
        "             AP     AP50     AP75       ms      FPS",
        "N.A.       28.1     48.1        -      7.0    142.9",
        "F          30.0     50.0        -     14.0     71.4",
        "MS         33.2     53.2        -     81.0     12.3",
    ]


def test_keypoints_have_columns_of_their_own() -> None:
    keypoints = KeypointMetrics(0.589, 0.8, 0.6, *(7 * [NAN]))
    header, row = mode_table({"flip": result(0.3, 44.0, keypoints)}).splitlines()
    assert header.split() == ["AP", "AP50", "AP75", "AP_kp", "AP50_kp", "AP75_kp", "ms", "FPS"]
    assert row.split() == ["F", "30.0", "50.0", "-", "58.9", "80.0", "60.0", "44.0", "22.7"]


def test_metrics_are_named_by_mode_and_losses_left_out() -> None:
    metrics = result(0.3, 44.0, KeypointMetrics(0.5, *(9 * [NAN]))).as_metrics("flip")
    assert metrics == {
        "test_time/flip/AP": 0.3,
        "test_time/flip/AP50": 0.5,
        "test_time/flip/keypoints/AP": 0.5,
        "test_time/flip/milliseconds_per_image": 44.0,
    }
