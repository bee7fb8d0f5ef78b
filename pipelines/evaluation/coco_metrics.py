"""COCO's average precision, computed by pycocotools; this module prepares its input and reads its results.

Annotation ids are renumbered from 1, because COCOeval treats a match with an object whose id is 0 (some exporters
write it) as no match.
"""

import contextlib
import io
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.errors import ConfigError
from pipelines.evaluation.best_f1 import best_f1_of_matches
from pipelines.tracking import class_metric_name

FIGURES = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
"""COCO's twelve figures, in the order of COCOeval's `stats`."""

RECALLS: NDArray[np.float64] = np.linspace(0.0, 1.0, 101)
"""Recalls at which a precision-recall curve is sampled."""


class ClassMetrics(NamedTuple):
    """Average precision and best F1 of one class; NaN if it has no object to find."""

    AP: float
    AP50: float
    num_objects: int
    """Objects that are not crowds; only these count."""
    F1: float = math.nan
    """At IoU 0.5, with the detections whose score is `threshold` or higher: the best that any threshold reaches."""
    threshold: float = math.nan
    """NaN also if no detection of the class is right."""


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's figures for boxes, from 0 to 1; NaN if there was nothing to find.

    AP is the mean over IoU 0.50, 0.55 … 0.95. Small, medium and large are separated at 32² and 96² pixels of `area`.
    AR_1, AR_10 and AR_100 allow that many detections an image, all other figures 100.
    """

    AP: float
    AP50: float
    AP75: float
    AP_small: float
    AP_medium: float
    AP_large: float
    AR_1: float
    AR_10: float
    AR_100: float
    AR_small: float
    AR_medium: float
    AR_large: float
    per_class: dict[str, ClassMetrics]
    """By class name, in the order of the category ids."""
    precision_recall: dict[str, NDArray[np.float64]]
    """Precision at IoU 0.5 for each of `RECALLS`, by class, for classes that have objects."""
    num_images: int

    @property
    def F1(self) -> float:  # noqa: N802 - the name of the figure
        """Mean of the best F1 of the classes that have objects; NaN if none has."""
        values = [each.F1 for each in self.per_class.values() if not math.isnan(each.F1)]
        return sum(values) / len(values) if values else math.nan

    @property
    def thresholds(self) -> dict[str, float]:
        """Threshold of the best F1 of each class that has one, by class name."""
        return {name: each.threshold for name, each in self.per_class.items() if not math.isnan(each.threshold)}

    def as_metrics(self, prefix: str = "val") -> dict[str, float]:
        """Name the figures `val/AP`, `val/AP_small`, `val/F1`, `val/AP/person` …, without those that are NaN."""
        named = {f"{prefix}/{figure}": getattr(self, figure) for figure in (*FIGURES, "F1")}
        for name, each in self.per_class.items():
            key = unique = class_metric_name(f"{prefix}/AP", name)
            count = 1
            while unique in named:
                count += 1
                unique = f"{key}_{count}"
            named[unique] = each.AP
        return {key: value for key, value in named.items() if not math.isnan(value)}

    def table(self) -> str:
        """Format the figures as plain text: the twelve, then one row for each class."""
        by_column = zip(FIGURES[:6], FIGURES[6:], strict=True)
        lines = [
            f"{left:<10}{_number(getattr(self, left))}    {right:<10}{_number(getattr(self, right))}"
            for left, right in by_column
        ]
        width = max([len("class"), *map(len, self.per_class)])
        lines += ["", f"{'class':<{width}}  objects     AP   AP50  best F1  at score"]
        lines += [
            f"{name:<{width}}  {each.num_objects:>7,}  {_number(each.AP)}  {_number(each.AP50)}"
            f"  {_number(each.F1):>7}  {_number(each.threshold):>8}"
            for name, each in self.per_class.items()
        ]
        return "\n".join(lines)


def evaluate_boxes(
    ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], *, rounding: bool = False
) -> CocoMetrics:
    """Evaluate detections as COCO does.

    Args:
        ground_truth: contents of a COCO annotation file: `images`, `annotations`, `categories`. An annotation
            without `area` gets its box's, one without `iscrowd` is not a crowd. The dictionary is not changed.
        results: COCO results: `image_id`, `category_id`, `bbox` as x, y, width, height, `score`. May be empty.
        rounding: the scores were rounded to two decimals, as by `results_from_detections`; thresholds are for scores
            that were not.

    Raises:
        ConfigError: a result belongs to an image or category that the ground truth does not have.

    Source:
        pycocotools.cocoeval.COCOeval with its default parameters, iouType "bbox".
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    check_results(ground_truth, results)
    annotations = []
    for number, annotation in enumerate(ground_truth["annotations"], start=1):
        width, height = annotation["bbox"][2:]
        area = annotation.get("area", width * height)
        annotations.append(annotation | {"id": number, "iscrowd": annotation.get("iscrowd", 0), "area": area})
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
        judge = COCOeval(truth, found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    # Axes: IoU thresholds, recalls, classes, areas (0: all), numbers of detections (2: 100); -1 if nothing counts.
    precision = np.where(judge.eval["precision"] < 0, np.nan, judge.eval["precision"])[:, :, :, 0, 2]
    per_class, curves = {}, {}
    for index, (category_id, name) in enumerate(_class_names(ground_truth, judge.params.catIds).items()):
        objects = [each for each in annotations if each["category_id"] == category_id and not each["iscrowd"]]
        if np.isnan(precision[0, 0, index]):
            per_class[name] = ClassMetrics(math.nan, math.nan, len(objects))
            continue
        best = best_f1_of_matches(_matches(judge, index))
        per_class[name] = ClassMetrics(
            float(precision[:, :, index].mean()),
            float(precision[0, :, index].mean()),
            len(objects),
            best.F1,
            # Scores from 0.335 on were rounded to 0.34.
            max(0.0, best.threshold - 0.005) if rounding and not math.isnan(best.threshold) else best.threshold,
        )
        curves[name] = precision[0, :, index]
    figures = {
        figure: math.nan if value < 0 else float(value) for figure, value in zip(FIGURES, judge.stats, strict=True)
    }
    return CocoMetrics(**figures, per_class=per_class, precision_recall=curves, num_images=len(ground_truth["images"]))


def results_from_detections(
    image_ids: ArrayLike,
    boxes_in_image: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    class_ids: Sequence[int],
    rounding: bool = False,
    keypoints: ArrayLike | None = None,
    further: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Convert detections to COCO results.

    Args:
        image_ids: (detections,) the image of each detection.
        boxes_in_image: (detections, 4) x1, y1, x2, y2 in pixels of the image.
        scores: (detections,)
        labels: (detections,) indices into `class_ids`.
        class_ids: COCO's category id of each class.
        rounding: round boxes, keypoints and scores to two decimals, as the published evaluations of CornerNet and
            CenterNet do (princeton-vl/CornerNet, db/coco.py; xingyizhou/CenterNet, src/lib/datasets/dataset/coco.py,
            `_to_float`).
        keypoints: (detections, joints, 2) x, y in pixels of the image. Their score is the box's, and all are marked
            as visible, as published (coco_hp.py).
        further: entries to add to the result of each detection.

    Returns:
        One dictionary for each detection. Detections that are not finite cannot be ranked; they are left out with a
        warning.
    """
    corners = np.asarray(boxes_in_image).reshape(-1, 4)  # width and height in their own precision, as published
    confidence = np.asarray(scores, dtype=np.float64).reshape(-1)
    finite = np.isfinite(corners).all(axis=1) & np.isfinite(confidence)
    if keypoints is not None:
        finite &= np.isfinite(np.asarray(keypoints)).all(axis=(1, 2))
    if not finite.all():
        # Called for every image: the text is the same each time, so that Python shows it once.
        warnings.warn("detections that are not finite are left out of the evaluation", RuntimeWarning, stacklevel=2)
    corners, confidence = corners[finite], confidence[finite]
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).astype(np.float64)
    if rounding:
        boxes, confidence = _two_decimals(boxes), _two_decimals(confidence)
    categories = np.asarray(class_ids, dtype=np.int64)[np.asarray(labels, dtype=np.int64).reshape(-1)[finite]]
    images = np.asarray(image_ids, dtype=np.int64).reshape(-1)[finite]
    rows = zip(images.tolist(), categories.tolist(), boxes.tolist(), confidence.tolist(), strict=True)
    results = [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for image_id, category_id, box, score in rows
    ]
    if keypoints is not None:
        places = np.asarray(keypoints, dtype=np.float64)[finite]
        triples = np.concatenate((places, np.ones((*places.shape[:2], 1))), axis=2)
        triples = triples.reshape(len(places), 3 * places.shape[1])
        triples = _two_decimals(triples) if rounding else triples
        for result, triple in zip(results, triples.tolist(), strict=True):
            result["keypoints"] = triple
    for result, entries in zip(results, itertools.compress(further, finite), strict=bool(further)):
        result.update(entries)
    return results


def precision_recall_figure(metrics: CocoMetrics, path: Path) -> None:
    """Draw precision over recall at IoU 0.5 as a PNG: each class, and the mean over classes.

    The ten classes with the most objects are named; others are drawn pale.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    curves = metrics.precision_recall
    # By number of objects, not by AP: a class keeps its colour from epoch to epoch.
    named = sorted(curves, key=lambda name: -metrics.per_class[name].num_objects)[:10]
    for name in named:
        axes.plot(RECALLS, curves[name], linewidth=1.4, label=f"{name}  {metrics.per_class[name].AP50:.3f}")
    for name in curves.keys() - set(named):
        axes.plot(RECALLS, curves[name], color="0.88", linewidth=0.7, zorder=1)
    if curves:
        mean = np.mean(list(curves.values()), axis=0)
        axes.plot(RECALLS, mean, color="black", linewidth=2.6, label=f"mean of {len(curves)}  {mean.mean():.3f}")
        axes.legend(title="AP50", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    else:
        axes.text(0.5, 0.5, "no objects to find", ha="center", va="center")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title="Precision and recall at IoU 0.5")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, format="png")


def check_results(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> None:
    """Refuse results that do not belong to the ground truth.

    Raises:
        ConfigError: with the first result whose image or category the ground truth does not have.
    """
    images = {image["id"] for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    for number, result in enumerate(results):
        if result["image_id"] not in images:
            raise ConfigError(
                f"result {number} belongs to image {result['image_id']}, which is not among the ground truth's "
                f"{len(images):,} images. Evaluate against the split that was predicted."
            )
        if result["category_id"] not in categories:
            raise ConfigError(
                f"result {number}, image {result['image_id']}: category {result['category_id']} is not among the "
                f"ground truth's {len(categories)} categories. Evaluate with the classes the detector was trained on."
            )


def _matches(judge: Any, index: int) -> list[dict[str, Any] | None]:
    """Return the matches of a class, image by image, in all areas together."""
    images, areas = len(judge.params.imgIds), len(judge.params.areaRng)
    # COCOeval lists them by class, area (the first is all areas) and image.
    first = index * areas * images
    return judge.evalImgs[first : first + images]


def _class_names(ground_truth: dict[str, Any], category_ids: Sequence[int]) -> dict[int, str]:
    """Name of each category, with its id if two have the same name."""
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    all_names = list(names.values())
    return {
        each: names[each] if all_names.count(names[each]) == 1 else f"{names[each]} ({each})" for each in category_ids
    }


def _two_decimals(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # By text, as published: float("%.2f") rounds the exact binary value, numpy's round scales it first.
    return np.array([float(f"{value:.2f}") for value in values.flat], dtype=np.float64).reshape(values.shape)


def _number(value: float) -> str:
    return "    -" if math.isnan(value) else f"{value:.3f}"
