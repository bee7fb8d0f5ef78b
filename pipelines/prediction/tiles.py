"""Predictions on large images: overlapping tiles, each shown to the detector like an image, and merged across seams.

The whole image is shown, too. Tiles find what is small, because they are not shrunk as much; an object that is larger
than the overlap may be cut in every tile, and the whole image shows it in one piece.

Two tiles that overlap see the same pixels in the area that they share. So two boxes are one object if they coincide
*within that area*, however much of the object lies outside either tile.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_shards.reading.scratch import Image
from pipelines.errors import ConfigError
from pipelines.prediction.prediction import Prediction

SMALLEST_TILE = 32
"""Pixels of a side below which a tile shows nothing that a detector could recognise."""

_SAME_OBJECT = 0.5
"""IoU, within the area that both views see, from which two boxes are one object."""
_INSIDE = 0.7
"""Share of a cut box inside a complete one of its class from which it is a piece of that object."""


class PredictsBatches(Protocol):
    """Predicts on images; `Predictor` does."""

    def predict_batch(self, images: Sequence[Image]) -> list[Prediction]:
        """Find objects in each image."""


@dataclass(frozen=True)
class Tiling:
    """The size of tiles and how far they overlap, in pixels of the image."""

    size: int
    overlap: int

    def __post_init__(self) -> None:
        if self.size < SMALLEST_TILE:
            raise ConfigError(f"--tiles is {self.size}; a tile must be at least {SMALLEST_TILE} pixels wide and high.")
        if not 0 < self.overlap < self.size:
            raise ConfigError(
                f"--overlap is {self.overlap} pixels of tiles of {self.size}; it must be above 0, or objects on a seam "
                f"would be halved, and smaller than the tiles."
            )

    @classmethod
    def of(cls, size: int, overlap: float) -> "Tiling":
        """Return the tiling of an overlap in pixels, or as a fraction of the tile if it is below 1."""
        return cls(size, round(overlap * size) if overlap < 1 else round(overlap))

    @property
    def tolerance(self) -> float:
        """Distance from the border of a tile, in pixels, at which a box counts as cut: boxes are not exact."""
        return max(2.0, self.size / 64)

    def views(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Return the tiles of an image as x1, y1, x2, y2, and the whole image last; the image alone if it is small."""
        rows, columns = self._starts(height), self._starts(width)
        tiles = [(x, y, min(x + self.size, width), min(y + self.size, height)) for y in rows for x in columns]
        whole = (0, 0, width, height)
        return [*tiles, whole] if len(tiles) > 1 else [whole]

    def _starts(self, length: int) -> list[int]:
        """Return where tiles begin along one side: evenly, so that every overlap is at least the one asked for."""
        if length <= self.size:
            return [0]
        number = -(-(length - self.overlap) // (self.size - self.overlap))
        return [round(place) for place in np.linspace(0, length - self.size, number)]


class TiledPredictor:
    """Predicts on images tile by tile.

    Args:
        predictor: sees tiles and whole images.
        tiling: size and overlap of the tiles.
        batch_size: most tiles that are shown at a time; more would only take memory.
        least_score: detections below it are left out before tiles are merged.
    """

    def __init__(
        self,
        predictor: PredictsBatches,
        tiling: Tiling,
        *,
        batch_size: int,
        least_score: NDArray[np.float32] | float = 0.0,
    ) -> None:
        self._predictor = predictor
        self._tiling = tiling
        self._batch_size = batch_size
        self._least_score = least_score

    def predict_batch(self, images: Sequence[Image]) -> list[Prediction]:
        """Find objects in each image, in the image frame."""
        return [self._predict(image) for image in images]

    def _predict(self, image: Image) -> Prediction:
        height, width = image.shape[:2]
        views = self._tiling.views(height, width)
        parts: list[Prediction] = []
        for first in range(0, len(views), self._batch_size):
            batch = views[first : first + self._batch_size]
            parts += self._predictor.predict_batch(
                [np.ascontiguousarray(image[y1:y2, x1:x2]) for x1, y1, x2, y2 in batch]
            )
        parts = [self._without_low_scores(part) for part in parts]
        return merged(parts, views, self._tiling) if len(views) > 1 else parts[0]

    def _without_low_scores(self, part: Prediction) -> Prediction:
        least = self._least_score
        if isinstance(least, np.ndarray):
            least = least[part.labels]
        return part.rows(np.flatnonzero(part.scores >= least))


def merged(parts: Sequence[Prediction], views: Sequence[tuple[int, int, int, int]], tiling: Tiling) -> Prediction:
    """Merge the predictions on the tiles of an image into one.

    Args:
        parts: for each view, in the frame of the view.
        views: from `Tiling.views`; the last one is the whole image.
        tiling: size and overlap of the tiles.

    Returns:
        In the image frame, best score first. An object that a view shows complete has the box of the view that is most
        sure of it; one that is cut in every view has the box around its pieces.
    """
    every = _in_image(parts, views)
    view = np.repeat(np.arange(len(parts)), [len(part.scores) for part in parts])
    # Every object up to the size of the overlap is complete in some tile, which shows it larger than the whole image
    # does. The whole image decides about the others only.
    sides = every.boxes[:, 2:] - every.boxes[:, :2]
    kept = np.flatnonzero((view != len(views) - 1) | (sides.max(axis=1, initial=0) > tiling.overlap))
    every, view = every.rows(kept), view[kept]
    areas = np.array(views, dtype=np.float64)
    cut = _are_cut(every.boxes.astype(np.float64), areas[view], areas[-1], tiling.tolerance)
    chosen: list[int] = []
    boxes, scores = every.boxes.copy(), every.scores.copy()
    keypoints = None if every.keypoints is None else every.keypoints.copy()
    for label in np.unique(every.labels):
        members = np.flatnonzero(every.labels == label)
        for group in _groups(
            every.boxes[members].astype(np.float64),
            every.scores[members],
            areas[view[members]],
            view[members],
            cut[members],
        ):
            own = members[group]
            chosen.append(int(own[0]))
            if cut[own[0]] and len(own) > 1:
                boxes[own[0], :2] = every.boxes[own, :2].min(axis=0)
                boxes[own[0], 2:] = every.boxes[own, 2:].max(axis=0)
                scores[own[0]] = every.scores[own].max()
                if keypoints is not None and every.keypoints is not None:
                    best = every.keypoints[own, :, 2].argmax(axis=0)
                    keypoints[own[0]] = every.keypoints[own[best], np.arange(keypoints.shape[1])]
    places = np.array(sorted(chosen), dtype=np.int64)
    result = replace(every, boxes=boxes, scores=scores, keypoints=keypoints).rows(places)
    return result.rows(np.argsort(-result.scores, kind="stable"))


def _in_image(parts: Sequence[Prediction], views: Sequence[tuple[int, int, int, int]]) -> Prediction:
    """Move the predictions from the frames of their views to the image frame, into one list."""
    shifts = [np.array([x, y], dtype=np.float32) for x, y, _, _ in views]
    keypoints = [
        np.concatenate((part.keypoints[..., :2] + shift, part.keypoints[..., 2:]), axis=-1)
        for part, shift in zip(parts, shifts, strict=True)
        if part.keypoints is not None
    ]
    boxes = [part.boxes + np.tile(shift, 2) for part, shift in zip(parts, shifts, strict=True)]
    _, _, width, height = views[-1]
    return replace(
        parts[-1],
        boxes=np.concatenate(boxes),
        scores=np.concatenate([part.scores for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        class_names=[name for part in parts for name in part.class_names],
        keypoints=np.concatenate(keypoints) if keypoints else None,
        size=(height, width),
    )


def _are_cut(
    boxes: NDArray[np.float64], own_views: NDArray[np.float64], image: NDArray[np.float64], tolerance: float
) -> NDArray[np.bool_]:
    """Return which boxes touch a border of their view that is not a border of the image."""
    begins = (boxes[:, :2] <= own_views[:, :2] + tolerance) & (own_views[:, :2] > image[:2])
    ends = (boxes[:, 2:] >= own_views[:, 2:] - tolerance) & (own_views[:, 2:] < image[2:])
    return np.asarray((begins | ends).any(axis=1))


def _groups(
    boxes: NDArray[np.float64],
    scores: NDArray[np.float32],
    own_views: NDArray[np.float64],
    view: NDArray[np.integer],
    cut: NDArray[np.bool_],
) -> list[list[int]]:
    """Group the boxes of one class by object; the first of each group is the best complete one, if there is one.

    As in non-maximum suppression, the best are decided first. A view has an object once: two boxes of one view never
    get into one group, because the detector has told them apart.
    """
    groups: list[list[int]] = []
    group_of = np.full(len(boxes), -1)
    # Complete boxes first: a piece joins the object that it belongs to, however sure its tile is of it.
    for row in np.lexsort((-scores, cut)).tolist():
        before = np.flatnonzero(group_of >= 0)
        overlaps = _overlap_seen_by_both(boxes[row], own_views[row], boxes[before], own_views[before])
        overlaps[view[before] == view[row]] = 0
        whole, pieces = -1, []
        for at in np.argsort(-overlaps, kind="stable"):
            if overlaps[at] < _SAME_OBJECT:
                break
            number = int(group_of[before[at]])
            if view[row] in view[groups[number]]:
                continue
            if not cut[groups[number][0]]:
                whole = number
                break
            if number not in pieces:
                pieces.append(number)
        if whole < 0 and cut[row]:
            whole = _fuller(boxes[row], boxes[before], cut[before], group_of[before])
        if whole >= 0:
            groups[whole].append(row)
            group_of[row] = whole
        elif pieces:
            # The middle piece of a long object joins those on both sides.
            first, *others = pieces
            for other in others:
                if not {*view[groups[first]].tolist()} & {*view[groups[other]].tolist()}:
                    group_of[groups[other]] = first
                    groups[first] += groups[other]
                    groups[other] = []
            groups[first].append(row)
            group_of[row] = first
        else:
            group_of[row] = len(groups)
            groups.append([row])
    return [group for group in groups if group]


def _overlap_seen_by_both(
    box: NDArray[np.float64], view: NDArray[np.float64], boxes: NDArray[np.float64], views: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the IoU of a box with others, each within the area that both of their views show."""
    starts, ends = np.maximum(view[:2], views[:, :2]), np.minimum(view[2:], views[:, 2:])
    one = np.concatenate((np.maximum(box[:2], starts), np.minimum(box[2:], ends)), axis=1)
    other = np.concatenate((np.maximum(boxes[:, :2], starts), np.minimum(boxes[:, 2:], ends)), axis=1)
    shared = _areas(
        np.concatenate((np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])), axis=1)
    )
    together = _areas(one) + _areas(other) - shared
    return shared / np.maximum(together, np.finfo(np.float64).tiny)


def _fuller(
    box: NDArray[np.float64],
    boxes: NDArray[np.float64],
    cut: NDArray[np.bool_],
    group_of: NDArray[np.integer],
) -> int:
    """Return the group of the complete box that a cut one is a piece of; -1 if there is none."""
    starts, ends = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    inside = _areas(np.concatenate((starts, ends), axis=1)) / max(float((box[2:] - box[:2]).prod()), 1e-9)
    inside[cut] = 0
    return int(group_of[inside.argmax()]) if len(inside) and inside.max() >= _INSIDE else -1


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1))
