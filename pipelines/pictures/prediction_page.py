"""A page of validation images, truth beside prediction, so that a run is looked at and not only measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.counting import counted
from pipelines.pictures.drawing import Panel, class_color, page_of_rows, row_of_panels, save_image, side_by_side

# In pixels of the page.
_ROW_WIDTH = 1880
_GAP = 24
_PANEL_GAP = 6
_MINIMUM_WIDTH = 720  # the header needs it


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
    score_threshold: float = 0.3,
    *,
    header: str = "",
) -> None:
    """Draw two panels for each picture, true objects and predictions, and write the page as a PNG or JPEG.

    Args:
        samples: the pictures, in the order of the page; an image without objects is drawn, too.
        class_names: names by label. A class has the same colour on every page.
        path: the file to write; its suffix decides the format.
        score_threshold: predictions with a lower score are left out.
        header: first line of the page, such as the run, the step and its AP.

    Raises:
        ConfigError: the suffix of `path` is not that of a PNG or JPEG.
        OSError: `path` cannot be written.
    """
    rows: list[list[NDArray[np.uint8]]] = []
    free = 0
    for pair in (_pair(sample, class_names, score_threshold) for sample in samples):
        if pair.shape[1] > free:
            rows.append([])
            free = _ROW_WIDTH
        rows[-1].append(pair)
        free -= pair.shape[1] + _GAP
    note = f"left: true objects, crowds hatched     right: predictions with a score of {score_threshold:g} or more"
    strips = [side_by_side(row, _GAP) for row in rows]
    page = page_of_rows(strips, header or "Predictions", note, gap=_GAP // 2, minimum_width=_MINIMUM_WIDTH)
    save_image(page, path)


def _pair(sample: Picture, class_names: Sequence[str], score_threshold: float) -> NDArray[np.uint8]:
    """Draw truth and predictions side by side, each over its caption; (height, width of two panels, 3) RGB."""
    shown = sample.predicted_scores >= score_threshold
    order = np.argsort(sample.predicted_scores[shown], kind="stable")  # the highest score is drawn last, on top
    boxes, labels = sample.predicted_boxes[shown][order], sample.predicted_labels[shown][order]
    scores = sample.predicted_scores[shown][order]
    truth = Panel(sample.image)
    for box, label, crowd in zip(sample.truth_boxes, sample.truth_labels, sample.truth_crowd, strict=True):
        truth.add(box, class_names[int(label)], class_color(int(label)), hatched=bool(crowd))
    found = Panel(sample.image)
    for box, label, score in zip(boxes, labels, scores, strict=True):
        found.add(box, f"{class_names[int(label)]} {score:.2f}", class_color(int(label)))
    name = f"{sample.file_name}   image {sample.image_id}".strip()
    captions = f"{name}   {counted(len(sample.truth_labels), 'object')}", counted(len(boxes), "prediction")
    return row_of_panels([(truth.drawn(), captions[0]), (found.drawn(), captions[1])], gap=_PANEL_GAP)
