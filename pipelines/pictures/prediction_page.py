"""A page of validation images, truth beside prediction, so that a run is looked at and not only measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.counting import counted
from pipelines.pictures.drawing import (
    Panel,
    class_color,
    heading,
    page_of_rows,
    row_of_panels,
    save_image,
    side_by_side,
)

# In pixels of the page.
_ROW_WIDTH = 1880
_GAP = 24
_PANEL_GAP = 6
_MINIMUM_WIDTH = 720  # the header needs it

# Score from which predictions are drawn and counted.
_LEAST_SCORE = 0.3
# Overlap from which a prediction counts as the true object.
_LEAST_IOU = 0.5
# Predictions of an image that are drawn where none reaches the threshold.
_MOST_FAINT = 5
# Words of the labels, which say more than a colour to those who cannot tell colours apart.
_MISSED, _WRONG = "(missed)", "(wrong)"


@dataclass
class Picture:
    """One validation image with its true and predicted objects; boxes are in pixels of `image`."""

    image: NDArray[np.uint8]
    """(height, width, 3) RGB."""
    truth_boxes: NDArray[np.floating]
    """(objects, 4) x1, y1, x2, y2."""
    truth_labels: NDArray[np.integer]
    """(objects,) indices of classes."""
    truth_crowd: NDArray[Any]
    """(objects,) true for a crowd, which is drawn hatched."""
    predicted_boxes: NDArray[np.floating]
    """(detections, 4) x1, y1, x2, y2."""
    predicted_scores: NDArray[np.floating]
    """(detections,)"""
    predicted_labels: NDArray[np.integer]
    """(detections,)"""
    image_id: int
    file_name: str = ""
    """As the annotations have it; empty if it is unknown."""


def prediction_page(
    samples: Sequence[Picture],
    class_names: Sequence[str],
    path: Path,
    score_threshold: float = _LEAST_SCORE,
    *,
    header: str = "",
    worst: Sequence[Picture] = (),
) -> None:
    """Draw two panels for each picture, true objects and predictions, and write the page as a PNG or JPEG.

    A prediction is correct if it overlaps a true object of its class, which no better prediction has, with an IoU of
    0.5 or more. Where no prediction reaches the threshold, the best ones are drawn faintly.

    Args:
        samples: the pictures, in the order of the page; an image without objects is drawn, too.
        class_names: names by label. A class has the same colour on every page.
        path: the file to write; its suffix decides the format.
        score_threshold: predictions with a lower score are left out.
        header: first line of the page, such as the run, the step and its AP.
        worst: pictures for a section of their own below the others.

    Raises:
        ConfigError: the suffix of `path` is not that of a PNG or JPEG.
        OSError: `path` cannot be written.
    """
    strips = _strips([_pair(sample, class_names, score_threshold) for sample in samples])
    if worst:
        strips.append(heading("Worst of the other images: the most objects missed and predictions wrong"))
        strips += _strips([_pair(sample, class_names, score_threshold) for sample in worst])
    note = (
        f"left: true objects, {_MISSED} if missed, crowds hatched     right: scores of {score_threshold:g} or more, "
        f"dashed and {_WRONG} if wrong (IoU below {_LEAST_IOU:g}); faint if all are lower"
    )
    page = page_of_rows(strips, header or "Predictions", note, gap=_GAP // 2, minimum_width=_MINIMUM_WIDTH)
    save_image(page, path)


def count_mistakes(sample: Picture, score_threshold: float = _LEAST_SCORE) -> tuple[int, int]:
    """Count missed objects and wrong predictions, as they are marked on the page."""
    order = np.argsort(sample.predicted_scores, kind="stable")[::-1]
    shown = order[sample.predicted_scores[order] >= score_threshold]
    correct, found = _matched(sample, shown)
    return int(np.logical_not(sample.truth_crowd).sum()) - len(found), len(shown) - len(correct)


def _strips(pairs: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Fill rows of the page's width with pairs of panels, in their order."""
    rows: list[list[NDArray[np.uint8]]] = []
    free = 0
    for pair in pairs:
        if pair.shape[1] > free:
            rows.append([])
            free = _ROW_WIDTH
        rows[-1].append(pair)
        free -= pair.shape[1] + _GAP
    return [side_by_side(row, _GAP) for row in rows]


def _pair(sample: Picture, class_names: Sequence[str], score_threshold: float) -> NDArray[np.uint8]:
    """Draw truth and predictions side by side, each over its caption; (height, width of two panels, 3) RGB."""
    order = np.argsort(sample.predicted_scores, kind="stable")  # the highest score is drawn last, on top
    shown = order[sample.predicted_scores[order] >= score_threshold]
    correct, found = _matched(sample, shown[::-1])
    truth = Panel(sample.image)
    for row, (box, label) in enumerate(zip(sample.truth_boxes, sample.truth_labels, strict=True)):
        crowd = bool(sample.truth_crowd[row])
        name = class_names[int(label)] + ("" if crowd or row in found else f" {_MISSED}")
        truth.add(box, name, class_color(int(label)), hatched=crowd)
    faint = not len(shown)
    predicted = Panel(sample.image)
    for row in order[-_MOST_FAINT:] if faint else shown:
        label, score = int(sample.predicted_labels[row]), float(sample.predicted_scores[row])
        text = f"{class_names[label]} {score:.2f}" + ("" if faint or row in correct else f" {_WRONG}")
        dashed = not faint and row not in correct
        predicted.add(sample.predicted_boxes[row], text, class_color(label), dashed=dashed, faint=faint)
    name = f"{sample.file_name}   image {sample.image_id}".strip()
    objects = counted(len(sample.truth_labels), "object")
    best = f", best {sample.predicted_scores.max():.2f}" if faint and len(order) else ""
    missed, wrong = count_mistakes(sample, score_threshold)
    captions = (
        f"{name}   {objects}" + (f", {missed} missed" if missed else ""),
        counted(len(shown), "prediction") + (f", {wrong} wrong" if wrong else "") + best,
    )
    return row_of_panels([(truth.drawn(), captions[0]), (predicted.drawn(), captions[1])], gap=_PANEL_GAP)


def _matched(sample: Picture, by_score: NDArray[np.integer]) -> tuple[set[int], set[int]]:
    """Match predictions with true objects of their class, the best first, as COCO does at one IoU.

    Args:
        sample: the picture.
        by_score: rows of the predictions that count, by falling score.

    Returns:
        The rows of the correct predictions, and of the true objects that they found. A prediction in a crowd is
        correct, but finds nothing.
    """
    correct: set[int] = set()
    found: set[int] = set()
    for row in by_score.tolist():
        overlaps = _overlaps(sample.predicted_boxes[row], sample)
        overlaps[sample.truth_labels != sample.predicted_labels[row]] = 0
        free = np.where(sample.truth_crowd, 0, overlaps)
        free[list(found)] = 0
        if len(free) and free.max() >= _LEAST_IOU:
            correct.add(row)
            found.add(int(free.argmax()))
        elif (overlaps[np.asarray(sample.truth_crowd, dtype=bool)] >= _LEAST_IOU).any():
            correct.add(row)
    return correct, found


def _overlaps(box: NDArray[np.floating], sample: Picture) -> NDArray[np.float64]:
    """Return the IoU of a box with each true object, or with a crowd the share of the box inside it, as COCO does."""
    truth = np.asarray(sample.truth_boxes, dtype=np.float64).reshape(-1, 4)
    sides = np.minimum(box[2:], truth[:, 2:]) - np.maximum(box[:2], truth[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    own = float(np.maximum(box[2:] - box[:2], 0).prod())
    areas = np.maximum(truth[:, 2:] - truth[:, :2], 0).prod(axis=1)
    together = np.where(sample.truth_crowd, own, own + areas - shared)
    return shared / np.maximum(together, np.finfo(np.float64).tiny)
