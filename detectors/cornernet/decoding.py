"""From maps to boxes: the best corners of an image, in all pairs, less those that cannot be the two of an object."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detectors.cornernet.targets import Grid
from detectors.shapes import Float, Int
from detectors.shared.losses import at_centers
from detectors.shared.peaks import Peaks, top_peaks

REJECTED = -1.0
"""Score of a pair that cannot be an object."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of corners as boxes, best first; of a batch, or without the first dimension of one image."""

    boxes: Float[Tensor, "*batch pairs 4"]
    scores: Float[Tensor, "*batch pairs"]
    """Mean score of the corners; `REJECTED` for pairs that cannot be an object."""
    labels: Int[Tensor, "*batch pairs"]
    corner_scores: Float[Tensor, "*batch pairs 2"]

    def rows(self, index: Tensor) -> "Pairs":
        """The pairs of one image at these rows, or where a mask is True."""
        return Pairs(self.boxes[index], self.scores[index], self.labels[index], self.corner_scores[index])

    def images(self) -> list["Pairs"]:
        """The pairs of each image of a batch, on the CPU."""
        parts = zip(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu(), self.corner_scores.cpu(), strict=True)
        return [Pairs(*rows) for rows in parts]


NO_PAIRS = Pairs(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2))
"""Pairs of an image without any."""


@dataclass(frozen=True)
class Centers:
    """The best centres of a batch, best first; or, without the first dimension, of one image."""

    points: Float[Tensor, "*batch centers 2"]
    """x and y"""
    scores: Float[Tensor, "*batch centers"]
    labels: Int[Tensor, "*batch centers"]

    def images(self) -> list["Centers"]:
        """The centres of each image of a batch, on the CPU."""
        return [Centers(*rows) for rows in zip(self.points.cpu(), self.scores.cpu(), self.labels.cpu(), strict=True)]


def joined_pairs(parts: Sequence[Pairs]) -> Pairs:
    """One list of the pairs of one image, one part after the other."""
    return Pairs(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.corner_scores for part in parts]),
    )


def best_points(maps: Mapping[str, Tensor], name: str, limit: int) -> tuple[Peaks, Float[Tensor, "batch peaks 2"]]:
    """The best peaks of a point's heatmap over all classes, and the points in cells, which offsets place in their cell.

    Args:
        maps: raw, of one stack.
        name: "top_left", "bottom_right" or "center".
        limit: peaks an image.
    """
    peaks = top_peaks(maps[f"{name}_heatmap"].float().sigmoid(), limit)
    return peaks, torch.stack((peaks.x, peaks.y), dim=-1) + at_centers(maps[f"{name}_offset"].float(), peaks.index)


def pair_corners(
    maps: Mapping[str, Tensor], *, corners: int, tag_distance: float, limit: int, rejects_border: bool = False
) -> Pairs:
    """Pair the best top left corners with the best bottom right ones.

    A pair is rejected if its classes differ, if its tags differ too much, or if the bottom right corner is left of or
    above the other.

    Args:
        maps: raw, of one stack.
        corners: the number of each kind, over all classes.
        tag_distance: largest difference between the tags of an object.
        limit: best pairs of an image that are returned.
        rejects_border: also reject pairs with a corner in the first or last row or column that is its side of the map,
            where a crop has cut an object. Cells decide, before offsets.

    Returns:
        Boxes in cells.

    Source:
        princeton-vl/CornerNet, models/py_utils/kp_utils.py, `_decode`; CornerNet-Lite, core/models/py_utils/utils.py.
    """
    first, top_left = best_points(maps, "top_left", corners)
    second, bottom_right = best_points(maps, "bottom_right", corners)
    first_tags = at_centers(maps["top_left_tag"].float(), first.index)[..., 0]
    second_tags = at_centers(maps["bottom_right_tag"].float(), second.index)[..., 0]
    # All pairs: the top left corner is dimension 1, the bottom right one dimension 2.
    shape = (top_left.shape[0], top_left.shape[1], bottom_right.shape[1])
    boxes = torch.cat((top_left[:, :, None].expand(*shape, 2), bottom_right[:, None].expand(*shape, 2)), dim=-1)
    corner_scores = torch.stack((first.scores[:, :, None].expand(shape), second.scores[:, None].expand(shape)), dim=-1)
    rejected = (first.labels[:, :, None] != second.labels[:, None]) | (
        (first_tags[:, :, None] - second_tags[:, None]).abs() > tag_distance
    )
    rejected |= (boxes[..., 2:] < boxes[..., :2]).any(dim=-1)
    if rejects_border:
        height, width = maps["top_left_heatmap"].shape[-2:]
        rejected |= ((first.x == 0) | (first.y == 0))[:, :, None]
        rejected |= ((second.x == width - 1) | (second.y == height - 1))[:, None]
    scores = torch.where(rejected, REJECTED, corner_scores.mean(dim=-1)).flatten(1)
    # Stable, so that pairs that score the same are in the same order on every device.
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :limit]
    labels = first.labels[:, :, None].expand(shape)
    return Pairs(
        boxes=boxes.flatten(1, 2).gather(1, best[..., None].expand(-1, -1, 4)),
        scores=scores.gather(1, best),
        labels=labels.flatten(1).gather(1, best),
        corner_scores=corner_scores.flatten(1, 2).gather(1, best[..., None].expand(-1, -1, 2)),
    )


def find_centers(maps: Mapping[str, Tensor], limit: int) -> Centers:
    """The best centres over all classes, in cells.

    Args:
        maps: raw, of one stack.
        limit: centres an image.
    """
    peaks, points = best_points(maps, "center", limit)
    return Centers(points, peaks.scores, peaks.labels)


def mirrored_pairs(pairs: Pairs, grid: Grid) -> Pairs:
    """Turn pairs of the mirror image, in cells, into the image's.

    As published, x becomes width - x, whereas the flip in training makes it width - 1 - x.
    """
    x1, y1, x2, y2 = pairs.boxes.unbind(dim=-1)
    width = grid.size[1]
    return replace(pairs, boxes=torch.stack((width - x2, y1, width - x1, y2), dim=-1))


def mirrored_centers(centers: Centers, grid: Grid) -> Centers:
    """Turn centres of the mirror image, in cells, into the image's; see `mirrored_pairs`."""
    x, y = centers.points.unbind(dim=-1)
    return replace(centers, points=torch.stack((grid.size[1] - x, y), dim=-1))
