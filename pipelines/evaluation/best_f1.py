"""The score threshold with the best F1 of a class, from the matches that pycocotools has made."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class BestF1(NamedTuple):
    """The best F1 of a class; a threshold of NaN if no detection of the class is right."""

    F1: float
    threshold: float
    """Detections with this score or a higher one count."""


def best_f1(scores: NDArray[np.float64], is_right: NDArray[np.bool_], num_objects: int) -> BestF1:
    """Find the threshold at which 2 · precision · recall / (precision + recall) is largest.

    Every score that occurs is tried, so the maximum is exact. Detections of equal scores pass a threshold together. If
    several thresholds are equally good, the highest is returned, which shows the fewest detections.

    Args:
        scores: of the detections that count, in any order.
        is_right: True for each of them that found an object.
        num_objects: objects to find, of which there is at least one.
    """
    order = np.argsort(-scores, kind="stable")
    descending = scores[order]
    num_right = np.cumsum(is_right[order])
    is_last_of_score = np.append(descending[1:] != descending[:-1], True)[: len(scores)]
    num_shown = np.arange(1, len(scores) + 1)
    # Precision is right / shown, recall right / objects. A quotient of integers: equal values are equal bits.
    f1 = (2 * num_right / (num_shown + num_objects))[is_last_of_score]
    if not f1.size or not f1.max():
        return BestF1(0.0, float("nan"))
    best = int(np.argmax(f1))
    return BestF1(float(f1[best]), float(descending[is_last_of_score][best]))


def best_f1_of_matches(images: Iterable[Mapping[str, Any] | None]) -> BestF1:
    """Find the best threshold of a class at the first IoU of an evaluation.

    A match with a higher score never depends on detections with lower ones, so leaving those out later changes nothing.

    Args:
        images: entries of `COCOeval.evalImgs` of one class and area, one for each image; None where there is nothing.
            At least one object is to be found.
    """
    scores, is_right, num_objects = [np.zeros(0)], [np.zeros(0, dtype=bool)], 0
    for image in images:
        if image is None:
            continue
        # Detections that were matched with a crowd count neither as right nor as wrong.
        counts = ~np.asarray(image["dtIgnore"][0], dtype=bool)
        scores.append(np.asarray(image["dtScores"], dtype=np.float64)[counts])
        is_right.append(np.asarray(image["dtMatches"][0])[counts] > 0)
        num_objects += int(np.count_nonzero(np.asarray(image["gtIgnore"]) == 0))
    return best_f1(np.concatenate(scores), np.concatenate(is_right), num_objects)
