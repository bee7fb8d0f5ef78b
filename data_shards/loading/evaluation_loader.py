"""Evaluation: each image once, in the published test geometry, and the truth to hold results against."""

import math
import os
from collections.abc import Sequence
from typing import Any, get_args

from data_shards.errors import DataError
from data_shards.format.manifest import load_manifest
from data_shards.loading.batch import check_input_size
from data_shards.loading.evaluation_batches import EvaluationSource, Geometry, View
from data_shards.loading.shared_memory import RingLoader
from data_shards.loading.training_batches import Reading
from data_shards.order.plan import World
from data_shards.reading.samples import Undecodable
from data_shards.reading.shards import Shards
from data_shards.settings import BoxRules
from data_shards.storage.open import open_store
from data_shards.storage.store import Store


class EvaluationLoader(RingLoader):
    """This rank's share of a data set's images, each exactly once, in the published test geometry.

    "fixed": the whole image in the middle of `input_size`, its longer side filling the width. "keep": at its own
    resolution in the middle of the next multiple of `size_divisor` that is greater than each side. "width": as
    "fixed", but the image's width fills the input's (KITTI). "shorter_side": resized whole to that shorter side, less
    where the longer one would exceed its limit, and padded on the right and below to multiples of `size_divisor`
    (FCOS). Where inputs differ in size, batches hold only images that share it.

    A `scale` other than 1 resizes the image before it is placed so. As published, "fixed" and "width" then zoom as for
    the image at scale 1, which leaves a border around a smaller image and cuts a larger one; "shorter_side" multiplies
    that side.

    Args:
        location: `LOCATION/SPLIT`.
        world: this rank's place.
        geometry: one of these four.
        input_size: height and width of the input, for "fixed" and "width".
        size_divisor: a power of two, for "keep" and "shorter_side".
        shorter_side, longer_side_limit: in pixels, for "shorter_side".
        boxes: which boxes count, and where they end.
        scale: factor on the size of the image.
        beside: scale and longer_side_limit of each loader that is read beside this one: their batches hold the same
            images, in one order.
        batch_size: at most so many images at a time.
        limit: only the first so many samples of the set, whatever the world.
        max_objects: annotations beyond so many are left out; None keeps all.
        threads, prefetch, cache_folder, cache_bytes, undecodable: as for `TrainingLoader`.

    Raises:
        DataError, LoaderError: as for `TrainingLoader`.
    """

    def __init__(
        self,
        location: str | Store,
        world: World,
        *,
        geometry: Geometry = "fixed",
        input_size: tuple[int, int] = (512, 512),
        size_divisor: int = 32,
        shorter_side: int = 800,
        longer_side_limit: int = 1333,
        boxes: BoxRules | None = None,
        scale: float = 1.0,
        beside: Sequence[tuple[float, int]] = (),
        batch_size: int = 1,
        limit: int | None = None,
        max_objects: int | None = None,
        threads: int = 2,
        prefetch: int = 2,
        cache_folder: str | os.PathLike[str] | None = None,
        cache_bytes: int = 0,
        undecodable: Undecodable = "refuse",
    ) -> None:
        if geometry not in get_args(Geometry):
            known = ", ".join(repr(name) for name in get_args(Geometry)[:-1])
            raise DataError(f"geometry is {geometry!r}; set it to {known} or {get_args(Geometry)[-1]!r}.")
        if not 1 <= shorter_side <= longer_side_limit:
            raise DataError(
                f"shorter_side is {shorter_side} and longer_side_limit {longer_side_limit}; set both to 1 pixel or "
                "more, the limit no smaller than the side."
            )
        if not 0 < scale < math.inf:
            raise DataError(f"scale is {scale:g}; set it above 0.")
        if size_divisor < 1 or size_divisor & (size_divisor - 1):
            raise DataError(f"size_divisor is {size_divisor}; set it to a power of two.")
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; set it to 1 or more.")
        check_input_size(input_size)
        if limit is not None and limit < 1:
            raise DataError(f"limit is {limit}; set it to 1 or more, or leave it out.")
        store = location if isinstance(location, Store) else open_store(location)
        self.manifest = load_manifest(store)
        self.world = world
        self.num_samples = min(limit or self.manifest.num_samples, self.manifest.num_samples)
        """Images over all ranks."""
        own = View(scale, longer_side_limit)
        source = EvaluationSource(
            reading=Reading(
                store=store,
                manifest=self.manifest,
                cache_folder=None if cache_folder is None else os.fspath(cache_folder),
                cache_bytes=cache_bytes,
                undecodable=undecodable,
            ),
            world=world,
            geometry=geometry,
            input_size=input_size,
            size_divisor=size_divisor,
            shorter_side=shorter_side,
            boxes=boxes if boxes is not None else BoxRules(),
            view=own,
            views=tuple(sorted({own, *(View(*view) for view in beside)})),
            batch_size=batch_size,
            num_samples=self.num_samples,
            max_objects=max_objects,
        )
        super().__init__(source, threads=threads, prefetch=prefetch)


def coco_ground_truth(
    location: str | Store,
    *,
    limit: int | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    cache_bytes: int = 0,
) -> dict[str, Any]:
    """COCO's images, annotations and categories, rebuilt from the shards, for pycocotools.

    Annotations are those of the file, but for those that were dropped or left out at building; a missing
    `iscrowd` becomes 0 and a missing `area` that of the box. Boxes of an ignored category come last, as crowds of the
    class they may be taken for, or of every class: what is found there counts neither way.

    Args:
        location: `LOCATION/SPLIT`.
        limit: only the first so many samples, those an `EvaluationLoader` with the same limit gives.
        cache_folder, cache_bytes: as for the loaders.
    """
    manifest = load_manifest(location)
    shards = Shards(location, manifest, cache_folder, cache_bytes=cache_bytes)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    ignored: list[dict[str, Any]] = []
    class_ids = [item.id for item in manifest.classes]
    stands_for = {item.id: class_ids if item.label < 0 else [class_ids[item.label]] for item in manifest.ignored}
    remaining = manifest.num_samples if limit is None else limit
    for number, shard in enumerate(manifest.shards):
        for row in range(min(shard.samples, remaining)):
            sample = shards.read_json(number, row)
            for annotation in sample.pop("annotations"):
                box = annotation["bbox"]
                annotation = {"iscrowd": 0, "area": box[2] * box[3]} | annotation
                if annotation["category_id"] not in stands_for:
                    annotations.append(annotation)
                for category in stands_for.get(annotation["category_id"], ()):
                    ignored.append(annotation | {"category_id": category, "iscrowd": 1})
            images.append({"id": sample.pop("image_id")} | sample)
        remaining -= min(shard.samples, remaining)
    shards.close()
    first_free = 1 + max((annotation["id"] for annotation in annotations), default=0)
    ignored = [annotation | {"id": first_free + number} for number, annotation in enumerate(ignored)]
    joints = {
        item.id: {"keypoints": list(item.keypoints), "skeleton": list(map(list, item.skeleton))}
        for item in manifest.classes
        if item.keypoints
    }
    return {
        "images": images,
        "annotations": [*annotations, *ignored],
        "categories": [{"id": item.id, "name": item.name, **joints.get(item.id, {})} for item in manifest.classes],
    }
