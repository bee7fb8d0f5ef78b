"""Comparison of two detectors on the same inputs: every detection of one needs a counterpart of the other.

Two programs round differently. So scores that nearly tie may change places, suppression may keep the other of two boxes
whose overlap is just its threshold, and the last place of a full list may go to another detection. A small share of
detections may therefore lack a counterpart; a wrong file loses nearly all.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors import Detections

_MOST_LISTED = 5
_LEAST_PER_IMAGE = 5
"""Detections an image that are compared at least, on average, however low their scores are."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Largest differences of a detection and its counterpart."""

    pixels: float
    """Of the corners of boxes, of joints and of centres in 3D, in pixels of the input."""
    score: float
    """Also of the scores of joints."""
    relative: float
    """Of depths and of sizes in 3D; at distances below a metre, in metres."""
    radians: float
    """Of angles."""
    unmatched_share: float
    """Largest share of detections without a counterpart, because of ties."""


BOUNDS = {
    "float32": Bounds(pixels=0.1, score=0.001, relative=0.001, radians=0.01, unmatched_share=0.005),
    "float16": Bounds(pixels=2.0, score=0.02, relative=0.02, radians=0.1, unmatched_share=0.05),
}
"""By the precision of the file's network."""

UNITS = {
    "boxes": "pixels",
    "scores": "score",
    "joints": "pixels",
    "joint_scores": "score",
    "centers_3d": "pixels",
    "depths_and_sizes": "relative",
    "angles": "radians",
}
"""Field of `Bounds` for each kind of number."""


@dataclass
class Difference:
    """The difference of one kind of number, over all pairs."""

    largest: float = 0.0
    total: float = 0.0
    count: int = 0

    @property
    def mean(self) -> float:
        """Mean over the numbers; 0 without any."""
        return self.total / self.count if self.count else 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        """Count absolute differences. One that is not a number counts as infinite."""
        if values.size:
            values = np.where(np.isnan(values), np.inf, np.abs(values))
            self.largest = max(self.largest, float(values.max()))
            self.total += float(values.sum())
            self.count += values.size

    def as_dict(self) -> dict[str, float | None]:
        """Return the figures as JSON values."""
        return {"largest": _json_number(self.largest), "mean": _json_number(self.mean)}


@dataclass
class Comparison:
    """The result for all images."""

    bounds: Bounds
    threshold: float
    """Score from which detections need a counterpart."""
    images: int = 0
    compared: int = 0
    """Detections of the run above the threshold, and those of the file that the run does not have."""
    unmatched: int = 0
    """Those without a counterpart within the bounds."""
    at_limit: int = 0
    """Further ones that the other list may have lost at the end of its places; they are not counted."""
    differences: dict[str, Difference] = field(default_factory=dict)
    """By kind: of every detection and the nearest one of its class whose box overlaps by half, within bounds or not."""
    examples: list[str] = field(default_factory=list)
    """The first of those without a counterpart."""

    @property
    def allowed(self) -> int:
        """Detections that may lack a counterpart."""
        return math.floor(self.compared * self.bounds.unmatched_share)

    @property
    def passed(self) -> bool:
        """True if the two agree."""
        # More lost at the limit than compared: the lists are full of ties, and what was compared says little.
        return self.compared > max(0, self.at_limit - 1) and self.unmatched <= self.allowed

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "bounds": asdict(self.bounds),
            "score_threshold": self.threshold,
            "images": self.images,
            "detections": self.compared,
            "without_counterpart": self.unmatched,
            "allowed_without_counterpart": self.allowed,
            "lost_at_the_limit": self.at_limit,
            "differences": {name: one.as_dict() for name, one in self.differences.items()},
            "examples": self.examples,
        }


def compare(
    wanted: Sequence[Detections], found: Sequence[Detections], bounds: Bounds, limit: int, names: Sequence[str]
) -> Comparison:
    """Compare the detections of two programs.

    Args:
        wanted: the run's, an image each, in the input frame.
        found: the file's, likewise.
        bounds: largest differences.
        limit: places in a list.
        names: of the classes, for examples.
    """
    result = Comparison(bounds, _threshold(wanted))
    for number, (ours, theirs) in enumerate(zip(wanted, found, strict=True)):
        result.images += 1
        _compare_image(result, number, ours, theirs, limit, names)
    return result


def _threshold(wanted: Sequence[Detections]) -> float:
    """Return 0.1, or less if fewer than five detections an image score as much."""
    scores = np.sort(np.concatenate([one.scores.double().numpy() for one in wanted] or [np.zeros(0)]))[::-1]
    if not len(scores):
        return 0.1
    return float(min(0.1, scores[min(len(scores), _LEAST_PER_IMAGE * len(wanted)) - 1]))


def _compare_image(
    result: Comparison, number: int, ours: Detections, theirs: Detections, limit: int, names: Sequence[str]
) -> None:
    bounds, threshold = result.bounds, result.threshold
    our_scores, their_scores = ours.scores.double().numpy(), theirs.scores.double().numpy()
    costs, differences = _costs(ours, theirs, bounds)
    free = np.ones(len(their_scores), dtype=bool)
    for row in np.argsort(-our_scores, kind="stable").tolist():
        nearest = -1
        if free.any():
            candidates = np.where(free, costs[row], np.inf)
            nearest = int(candidates.argmin())
            if not np.isfinite(candidates[nearest]):
                nearest = -1
        score = our_scores[row]
        if nearest < 0:
            if score >= threshold:
                _count_lost(result, number, "the run", ours, row, their_scores, limit, names)
            continue
        free[nearest] = False
        if max(score, their_scores[nearest]) < threshold:
            continue
        result.compared += 1
        for name, values in differences.items():
            result.differences.setdefault(name, Difference()).add(values[row, nearest])
        if costs[row, nearest] > 1:
            result.unmatched += 1
            _give_example(result, number, "the run", ours, row, names, f"differs {costs[row, nearest]:.3g} bounds")
    for row in np.flatnonzero(free & (their_scores >= threshold)).tolist():
        _count_lost(result, number, "the file", theirs, row, our_scores, limit, names)


def _count_lost(
    result: Comparison,
    number: int,
    owner: str,
    detections: Detections,
    row: int,
    other_scores: NDArray[np.float64],
    limit: int,
    names: Sequence[str],
) -> None:
    """Count a detection that the other list does not have at all."""
    score, are_full = float(detections.scores[row]), min(len(other_scores), len(detections.scores)) >= limit
    # At the end of both lists: a file whose scores are all higher has another end.
    if are_full and score <= min(other_scores.min(), float(detections.scores.min())) + result.bounds.score:
        result.at_limit += 1
        return
    result.compared += 1
    result.unmatched += 1
    _give_example(result, number, owner, detections, row, names, "has no counterpart")


def _give_example(
    result: Comparison, number: int, owner: str, detections: Detections, row: int, names: Sequence[str], what: str
) -> None:
    if len(result.examples) < _MOST_LISTED:
        name, score = names[int(detections.labels[row])], float(detections.scores[row])
        box = ", ".join(f"{side:.1f}" for side in detections.boxes[row].tolist())
        result.examples.append(f"image {number + 1}, {name} {score:.3f} of {owner} at {box}: {what}")


def _costs(
    ours: Detections, theirs: Detections, bounds: Bounds
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Measure every pair: its largest difference in bounds, infinite if the two are not the same object; and each kind.

    Returns:
        (ours, theirs), and by kind (ours, theirs, numbers).
    """
    with np.errstate(invalid="ignore"):
        differences = {
            "boxes": _pairs(ours.boxes, theirs.boxes),
            "scores": _pairs(ours.scores[:, None], theirs.scores[:, None]),
        }
        if ours.keypoints is not None and theirs.keypoints is not None:
            differences["joints"] = _pairs(ours.keypoints[..., :2].flatten(1), theirs.keypoints[..., :2].flatten(1))
            differences["joint_scores"] = _pairs(ours.keypoints[..., 2], theirs.keypoints[..., 2])
        if ours.box3d is not None and theirs.box3d is not None:
            differences["centers_3d"] = _pairs(ours.box3d[:, :2], theirs.box3d[:, :2])
            unit = np.maximum(1, np.abs(ours.box3d[:, None, 2:6].double().numpy()))
            differences["depths_and_sizes"] = _pairs(ours.box3d[:, 2:6], theirs.box3d[:, 2:6]) / unit
            turns = _pairs(ours.box3d[:, 6:], theirs.box3d[:, 6:])
            differences["angles"] = np.abs(np.remainder(turns + math.pi, 2 * math.pi) - math.pi)
        costs = np.zeros((len(ours.scores), len(theirs.scores)))
        for name, values in differences.items():
            worst = np.where(np.isnan(values), np.inf, np.abs(values)).max(axis=-1, initial=0.0)
            costs = np.maximum(costs, worst / getattr(bounds, UNITS[name]))
    same_class = ours.labels.numpy()[:, None] == theirs.labels.numpy()
    is_near = (costs <= 1) | (_overlaps(ours, theirs) >= 0.5)
    return np.where(same_class & is_near, costs, np.inf), differences


def _pairs(ours: Any, theirs: Any) -> NDArray[np.float64]:
    return np.asarray(ours.double().numpy()[:, None] - theirs.double().numpy())


def _overlaps(ours: Detections, theirs: Detections) -> NDArray[np.float64]:
    first, second = ours.boxes.double().numpy()[:, None], theirs.boxes.double().numpy()[None]
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(axis=-1) for boxes in (first, second)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None
