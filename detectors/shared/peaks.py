"""Peaks of heatmaps, which take the place of non-maximum suppression."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from detectors.shapes import Float, Int


@dataclass(frozen=True)
class Peaks:
    """The best cells of each image, best first."""

    scores: Float[Tensor, "batch peaks"]
    labels: Int[Tensor, "batch peaks"]
    index: Int[Tensor, "batch peaks"]
    """y * width + x"""
    x: Float[Tensor, "batch peaks"]
    """Column of the cell, in the dtype of the scores."""
    y: Float[Tensor, "batch peaks"]
    """Row of the cell, likewise."""


def suppress_neighbours(
    probabilities: Float[Tensor, "batch classes height width"],
) -> Float[Tensor, "batch classes height width"]:
    """Keep cells that equal the maximum of the 3x3 cells around them, and set the rest to 0; plateaus stay whole.

    Args:
        probabilities: >= 0.

    Source:
        Objects as Points, section 4 (arXiv:1904.07850); xingyizhou/CenterNet, src/lib/models/decode.py, `_nms`.
    """
    # On a CPU, four passes over shifted views take a quarter of the time of max_pool2d.
    wide = functional.pad(probabilities, (1, 1, 0, 0))
    rows = torch.maximum(torch.maximum(wide[..., :-2], wide[..., 2:]), probabilities)
    high = functional.pad(rows, (0, 0, 1, 1))
    maxima = torch.maximum(torch.maximum(high[..., :-2, :], high[..., 2:, :]), rows)
    return probabilities * (maxima == probabilities)


def top_peaks(probabilities: Float[Tensor, "batch classes height width"], limit: int) -> Peaks:
    """The `limit` best peaks of each image over all classes, chosen from the `limit` best of each class.

    There is no threshold: an image with fewer peaks also gets cells that score 0, as in the published code.

    Args:
        probabilities: after the sigmoid.
        limit: peaks an image; fewer are returned if there are fewer cells.

    Source:
        xingyizhou/CenterNet, src/lib/models/decode.py, `_topk`.
    """
    _, _, height, width = probabilities.shape
    # Decided here, because torch.export would carry min() of an unknown size through all shapes that follow.
    per_class = limit if limit <= height * width else height * width
    class_scores, class_cells = suppress_neighbours(probabilities).flatten(2).topk(per_class)
    scores, places = class_scores.flatten(1).topk(min(limit, class_scores[0].numel()))
    index = class_cells.flatten(1).gather(1, places)
    column, row = column_and_row(index, width)
    x, y = column.to(scores.dtype), row.to(scores.dtype)
    return Peaks(scores, labels=places // per_class, index=index, x=x, y=y)


def column_and_row(index: Int[Tensor, "*any"], width: int) -> tuple[Int[Tensor, "*any"], Int[Tensor, "*any"]]:
    """Column and row of a cell from y * width + x."""
    row = index // width
    # The exporter to ONNX has no remainder by a width that is known only when the file is run.
    return index - row * width, row
