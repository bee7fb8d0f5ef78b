"""Counts and histograms of a split, from its indexes alone."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from data_shards.format.manifest import Manifest
from data_shards.format.shard_index import ShardIndex


@dataclass
class Numbers:
    """Counts of a split. Objects are boxes that are neither crowds nor ignored."""

    images: int = 0
    objects: int = 0
    crowds: int = 0
    objects_of_class: dict[str, int] = field(default_factory=dict)
    images_of_class: dict[str, int] = field(default_factory=dict)
    image_sizes: dict[str, int] = field(default_factory=dict)
    """Images by `width x height`, the most frequent first."""
    object_sizes: dict[str, int] = field(default_factory=dict)
    """Objects by the square root of their area, in image pixels, in octaves."""
    coco_sizes: dict[str, int] = field(default_factory=dict)
    """Small, medium and large objects as COCO defines them: box area below 32², below 96², and above."""
    objects_per_image: dict[str, int] = field(default_factory=dict)
    same_cell: dict[int, int] = field(default_factory=dict)
    """Objects that share their cell with another of their class, by stride, in the input frame."""
    joints: int = 0
    """Labelled joints of objects."""
    objects_without_joints: int = 0
    """Objects without a labelled joint, in data with joints."""


def count_split(manifest: Manifest, indexes: Sequence[ShardIndex], same_cell: dict[int, int]) -> Numbers:
    """Count the objects of a split.

    Args:
        manifest: of the split.
        indexes: of all its shards.
        same_cell: objects that share a cell, by stride; counted elsewhere, as it depends on the input size.
    """
    titles = class_titles(manifest)
    sizes: Counter[str] = Counter()
    objects = np.zeros(len(titles), dtype=np.int64)
    images = np.zeros(len(titles), dtype=np.int64)
    for index in indexes:
        sizes.update(f"{width} x {height}" for width, height in zip(index.widths, index.heights, strict=True))
        labels = index.labels[_is_object(index)]
        objects += np.bincount(labels, minlength=len(titles))
        # Several objects of one class in one image count that image once.
        pairs = np.unique(np.stack([_image_rows(index)[_is_object(index)], labels]), axis=1)
        images += np.bincount(pairs[1], minlength=len(titles))
    sides = np.concatenate([_object_sides(index) for index in indexes])
    per_image = np.concatenate(
        [np.bincount(_image_rows(index)[_is_object(index)], minlength=len(index)) for index in indexes]
    )
    labelled = np.concatenate([_labelled_joints(index) for index in indexes])
    return Numbers(
        images=manifest.num_samples,
        objects=int(objects.sum()),
        crowds=sum(int(index.iscrowd.sum()) for index in indexes),
        objects_of_class=dict(zip(titles, objects.tolist(), strict=True)),
        images_of_class=dict(zip(titles, images.tolist(), strict=True)),
        image_sizes=dict(sizes.most_common()),
        object_sizes=_octaves(sides, 4),
        coco_sizes={
            "small": int((sides < 32).sum()),
            "medium": int(((sides >= 32) & (sides < 96)).sum()),
            "large": int((sides >= 96).sum()),
        },
        objects_per_image=_octaves(per_image.astype(np.float64), 1, whole=True),
        same_cell=same_cell,
        joints=int(labelled.sum()),
        objects_without_joints=int((labelled == 0).sum()),
    )


def class_titles(manifest: Manifest) -> list[str]:
    """Return the names of the classes, with the id behind a name that several share."""
    times = Counter(manifest.class_names)
    return [item.name if times[item.name] == 1 else f"{item.name} (id {item.id})" for item in manifest.classes]


def _is_object(index: ShardIndex) -> NDArray[np.bool_]:
    return ~index.iscrowd & (index.labels >= 0)


def _image_rows(index: ShardIndex) -> NDArray[np.int64]:
    """Return the row of the image of every box."""
    return np.repeat(np.arange(len(index)), np.diff(index.row_splits))


def _object_sides(index: ShardIndex) -> Float64[NDArray[np.float64], " objects"]:
    """Return the square root of every object's area, in image pixels."""
    boxes = index.boxes[_is_object(index)]
    # In double precision: COCO's limits 32² and 96² are exact, and areas of boxes often are.
    spans = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).astype(np.float64)
    return np.sqrt(spans.prod(axis=1))


def _labelled_joints(index: ShardIndex) -> Int64[NDArray[np.int64], " objects"]:
    """Return the number of labelled joints of every object; nothing for data without joints."""
    if index.keypoints is None:
        return np.zeros(0, dtype=np.int64)
    return (index.keypoints[_is_object(index), :, 2] > 0).sum(axis=1)


def _octaves(values: NDArray[np.float64], first: int, *, whole: bool = False) -> dict[str, int]:
    """Count values below `first`, from there to below its double, and so on up to the largest."""
    if not len(values):
        return {}
    edges = [0, first]
    while edges[-1] <= values.max():
        edges.append(2 * edges[-1])
    # np.histogram closes its last bin; the largest float below the edge keeps it open like the others.
    counts = np.histogram(values, bins=[*edges[:-1], np.nextafter(edges[-1], 0)])[0]
    spans = [(low, high - 1 if whole else high) for low, high in itertools.pairwise(edges)]
    names = [f"{low} to {high}" if high > low else f"{low}" for low, high in spans]
    return dict(zip(names, counts.tolist(), strict=True))
