"""COCO's average precision of keypoints, computed by pycocotools with object keypoint similarity instead of IoU."""

import contextlib
import io
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.evaluation.coco_metrics import check_results

logger = logging.getLogger("aweigh")


@dataclass(frozen=True)
class KeypointMetrics:
    """COCO's ten figures for keypoints, from 0 to 1; NaN if there was nothing to find.

    AP is the mean over similarities 0.50, 0.55 … 0.95. Medium and large are separated at 96² pixels of `area`; there is
    no small. 20 detections an image count. The order is that of COCOeval's `stats`.
    """

    AP: float
    AP50: float
    AP75: float
    AP_medium: float
    AP_large: float
    AR: float
    AR50: float
    AR75: float
    AR_medium: float
    AR_large: float

    def as_metrics(self, prefix: str = "val") -> dict[str, float]:
        """Name the figures `val/keypoints/AP`, `val/keypoints/AP50` …, without those that are NaN."""
        return {f"{prefix}/keypoints/{name}": value for name, value in asdict(self).items() if not math.isnan(value)}

    def table(self) -> str:
        """Format the ten figures as plain text."""
        values = [(name, "    -" if math.isnan(value) else f"{value:.3f}") for name, value in asdict(self).items()]
        return "\n".join(
            f"{left:<10}{first}    {right:<10}{second}"
            for (left, first), (right, second) in zip(values[:5], values[5:], strict=True)
        )


def evaluate_keypoints(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> KeypointMetrics | None:
    """Evaluate keypoints as COCO does.

    Args:
        ground_truth: contents of a COCO annotation file with `keypoints`; COCO ignores persons without a labelled
            joint. The dictionary is not changed.
        results: COCO results with `keypoints`: x, y, 1 of each joint. May be empty.

    Returns:
        None if the truth or the results have no keypoints; and, with a warning, if they are not COCO's 17, the only
        ones for which tolerances are defined.

    Raises:
        ConfigError: a result belongs to an image or category that the ground truth does not have.

    Source:
        pycocotools.cocoeval.COCOeval with its default parameters, iouType "keypoints".
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labelled = [each for each in ground_truth["annotations"] if each.get("keypoints")]
    if not any("keypoints" in result for result in results) or not labelled:
        return None
    sizes = {len(each["keypoints"]) // 3 for each in [*labelled, *results] if "keypoints" in each}
    if sizes != {17}:
        logger.warning(
            "no AP of keypoints: COCO defines it for 17 joints, but these have %s", ", ".join(map(str, sorted(sizes)))
        )
        return None
    check_results(ground_truth, results)
    annotations = []
    for number, annotation in enumerate(ground_truth["annotations"], start=1):
        # COCOeval ignores objects without a labelled joint, and needs the field on every object.
        joints = annotation.get("keypoints") or [0] * 51
        width, height = annotation["bbox"][2:]
        annotations.append(
            annotation
            | {
                "id": number,
                "iscrowd": annotation.get("iscrowd", 0),
                "area": annotation.get("area", width * height),
                "keypoints": joints,
                "num_keypoints": sum(visible > 0 for visible in joints[2::3]),
            }
        )
    detections = []
    for number, result in enumerate(results, start=1):
        area = result["bbox"][2] * result["bbox"][3]
        detections.append(result | {"id": number, "iscrowd": 0, "area": area})
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        shared = {key: ground_truth[key] for key in ("images", "categories")}
        truth.dataset = shared | {"annotations": annotations}
        found.dataset = shared | {"annotations": detections}
        truth.createIndex()
        found.createIndex()
        judge = COCOeval(truth, found, "keypoints")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return KeypointMetrics(*(math.nan if value < 0 else float(value) for value in judge.stats))
