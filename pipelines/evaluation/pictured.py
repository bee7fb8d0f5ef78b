"""The validation images that are drawn: some are the same in every evaluation of a run, others are its worst."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from statistics import median_low
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.loading.batch import Batch
from data_shards.settings import BoxRules
from detectors import Detections
from pipelines.pictures.prediction_page import Picture, count_mistakes

# Worst images for each image that is always drawn.
_WORST_SHARE = 1 / 3


@dataclass
class Drawn:
    """Pictures of an evaluation."""

    fixed: list[Picture] = field(default_factory=list)
    """The same images in every evaluation of these shards; see `images_to_draw`."""
    worst: list[Picture] = field(default_factory=list)
    """Of the other images, those with the most mistakes, the worst first; images without mistakes are left out."""


def images_to_draw(ground_truth: dict[str, Any], count: int) -> list[int]:
    """Choose images from the ground truth alone, so that every evaluation, world and attempt draws the same ones.

    First come images that together show every class, each adding as many new classes as possible, then images whose
    number of objects is nearest to the median. Ties go to the image that comes first in the shards.

    Args:
        ground_truth: of `coco_ground_truth`.
        count: images to choose; if more are needed to show every class, the rarest classes are left out.

    Returns:
        Image ids, in the order in which they were chosen.
    """
    ids = [image["id"] for image in ground_truth["images"]]
    classes: dict[int, set[int]] = {image_id: set() for image_id in ids}
    objects = dict.fromkeys(ids, 0)
    for annotation in ground_truth["annotations"]:
        if not annotation["iscrowd"]:
            classes[annotation["image_id"]].add(annotation["category_id"])
            objects[annotation["image_id"]] += 1
    chosen = _cover([classes[image_id] for image_id in ids], count)
    usual = median_low(objects.values()) if objects else 0
    by_distance = sorted(range(len(ids)), key=lambda place: (abs(objects[ids[place]] - usual), place))
    taken = set(chosen)
    typical = [place for place in by_distance if place not in taken]
    return [ids[place] for place in [*chosen, *typical][:count]]


def _cover(sets: Sequence[set[int]], count: int) -> list[int]:
    """Return the places of at most `count` sets that together hold as many elements as a greedy choice finds."""
    missing = set().union(*sets)
    chosen: list[int] = []
    # What a set adds only shrinks, so an old figure is an upper bound: only the first of the heap is counted again.
    heap = [(-len(each), place) for place, each in enumerate(sets)]
    heapq.heapify(heap)
    while missing and len(chosen) < count:
        bound, place = heapq.heappop(heap)
        adds = len(sets[place] & missing)
        if adds == -bound:
            chosen.append(place)
            missing -= sets[place]
        else:
            heapq.heappush(heap, (-adds, place))
    return chosen


class DrawnImages:
    """Keeps the pictures of one rank while it evaluates: the fixed ones, and the worst so far.

    Args:
        ground_truth: of all ranks.
        count: fixed images in all ranks together; 0 draws none.
        rules: which annotations the batches hold.
    """

    def __init__(self, ground_truth: dict[str, Any], count: int, rules: BoxRules) -> None:
        self.drawn = Drawn()
        self._fixed = set(images_to_draw(ground_truth, count))
        self._num_worst = _num_worst(count)
        self._crowds = _crowds(ground_truth, rules) if count else {}
        self._ranked: list[tuple[tuple[int, int], Picture]] = []

    def add(self, batch: Batch, row: int, found: Detections) -> None:
        """Keep the picture of an image that will be drawn, as far as is known by now."""
        image_id = int(batch.image_ids[row])
        if image_id not in self._crowds:
            return
        picture = _without_pixels(batch, row, found, self._crowds[image_id])
        if image_id in self._fixed:
            self.drawn.fixed.append(replace(picture, image=_pixels(batch, row)))
            return
        rank = _rank(picture)
        if not rank[0] or (len(self._ranked) == self._num_worst and rank > self._ranked[-1][0]):
            return
        # Pixels are copied late: few images are among the worst, and copying from a GPU takes longer than counting.
        self._ranked.append((rank, replace(picture, image=_pixels(batch, row))))
        self._ranked = sorted(self._ranked, key=itemgetter(0))[: self._num_worst]
        self.drawn.worst = [picture for _, picture in self._ranked]


def joined(shares: Iterable[Drawn], ground_truth: dict[str, Any], count: int) -> Drawn:
    """Join the pictures of all ranks, each with the file name of its image.

    Args:
        shares: `DrawnImages.drawn` of every rank.
        ground_truth: of all ranks.
        count: fixed images in all ranks together.
    """
    shares = list(shares)
    names = {image["id"]: image.get("file_name", "") for image in ground_truth["images"]}
    place = {image_id: number for number, image_id in enumerate(images_to_draw(ground_truth, count))}
    fixed = sorted((each for one in shares for each in one.fixed), key=lambda picture: place[picture.image_id])
    worst = sorted((each for one in shares for each in one.worst), key=_rank)[: _num_worst(count)]
    return Drawn(*([replace(each, file_name=names[each.image_id]) for each in some] for some in (fixed, worst)))


def _num_worst(count: int) -> int:
    return max(1, round(_WORST_SHARE * count)) if count else 0


def _rank(picture: Picture) -> tuple[int, int]:
    """Sort key by falling number of mistakes; the image id breaks ties, so that the shares of ranks do not matter."""
    return -sum(count_mistakes(picture)), picture.image_id


def _crowds(ground_truth: dict[str, Any], rules: BoxRules) -> dict[int, list[bool]]:
    """For each image, whether each box of its batch is a crowd, in the order of its file."""
    crowds: dict[int, list[bool]] = {image["id"]: [] for image in ground_truth["images"]}
    for annotation in ground_truth["annotations"]:
        if annotation["iscrowd"] and rules.crowd == "drop":
            continue
        crowds[annotation["image_id"]].append(bool(annotation["iscrowd"]))
    return crowds


def _without_pixels(batch: Batch, row: int, found: Detections, crowd: list[bool]) -> Picture:
    real = batch.labels[row] >= 0
    left, top, _, _ = _photograph(batch, row)
    shift = torch.tensor([left, top, left, top], dtype=torch.float32)
    transform = batch.transforms[row].cpu()
    predicted = (found.boxes.reshape(-1, 2, 2) @ transform[:, :2].T + transform[:, 2]).reshape(-1, 4)
    return Picture(
        image=np.zeros((0, 0, 3), dtype=np.uint8),
        truth_boxes=(batch.boxes[row][real].cpu() - shift).numpy(),
        truth_labels=batch.labels[row][real].cpu().numpy(),
        truth_crowd=np.array(crowd[: int(real.sum())], dtype=bool),
        predicted_boxes=(predicted - shift).numpy(),
        predicted_scores=found.scores.numpy(),
        predicted_labels=found.labels.numpy(),
        image_id=int(batch.image_ids[row]),
    )


def _pixels(batch: Batch, row: int) -> NDArray[np.uint8]:
    left, top, right, bottom = _photograph(batch, row)
    return np.ascontiguousarray(batch.images[row, :, top:bottom, left:right].permute(1, 2, 0).cpu().numpy())


def _photograph(batch: Batch, row: int) -> tuple[int, int, int, int]:
    """Return the edges of the photograph in the input, without the border of the letterbox: x1, y1, x2, y2."""
    height, width = (int(value) for value in batch.original_sizes[row])
    corners = batch.transforms[row].cpu().double() @ torch.tensor(
        [[0.0, width], [0.0, height], [1.0, 1.0]], dtype=torch.float64
    )
    left, top = (max(0, round(float(value))) for value in corners[:, 0])
    right, bottom = (round(float(value)) for value in corners[:, 1])
    return left, top, right, bottom
