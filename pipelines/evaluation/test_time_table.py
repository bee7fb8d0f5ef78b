"""The table of test-time augmentation: AP, AP50, AP75, time and frames a second without, with flip, with scales."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.evaluation.evaluate import Evaluation

NAMES = {"none": "N.A.", "flip": "F", "multiscale": "MS"}
"""Abbreviations of the modes in the table of Objects as Points."""


@dataclass(frozen=True)
class ModeResult:
    """Accuracy and time of one mode of test-time augmentation."""

    evaluation: Evaluation
    milliseconds: float
    """For one image, when images are processed one by one."""

    @property
    def frames_per_second(self) -> float:
        """Images a second, when they are processed one by one."""
        return 1000 / self.milliseconds

    def as_metrics(self, mode: str) -> dict[str, float]:
        """Figures by their names in MLflow: `test_time/flip/AP` …"""
        named = {key: value for key, value in self.evaluation.metrics().items() if "loss" not in key}
        named = {key.replace("val/", f"test_time/{mode}/", 1): value for key, value in named.items()}
        return {**named, f"test_time/{mode}/milliseconds_per_image": self.milliseconds}


def mode_table(results: Mapping[str, ModeResult]) -> str:
    """Format the table as plain text, AP in percent, with keypoints if a detector has them.

    Args:
        results: by mode, in the order of the rows.
    """
    columns = ["AP", "AP50", "AP75"]
    has_keypoints = any(result.evaluation.keypoints for result in results.values())
    if has_keypoints:
        columns += ["AP_kp", "AP50_kp", "AP75_kp"]
    lines = [f"{'':<6}" + "".join(f"{name:>9}" for name in (*columns, "ms", "FPS"))]
    for mode, result in results.items():
        found, keypoints = result.evaluation.coco, result.evaluation.keypoints
        values = [found.AP, found.AP50, found.AP75]
        if has_keypoints:
            values += [keypoints.AP, keypoints.AP50, keypoints.AP75] if keypoints else [float("nan")] * 3
        cells = "".join(f"{_percent(value):>9}" for value in values)
        lines.append(f"{NAMES[mode]:<6}{cells}{result.milliseconds:>9.1f}{result.frames_per_second:>9.1f}")
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f}"
