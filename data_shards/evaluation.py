"""Evaluation: each image once, in the published test geometry, and the truth to hold results against."""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from data_shards.batch import Batch, Int64, Slot, check_input_size
from data_shards.decode import crop_matrix, scaled_size
from data_shards.draws import resized
from data_shards.errors import DataError
from data_shards.manifest import load_manifest
from data_shards.plan import World
from data_shards.prefetch import Prefetcher
from data_shards.settings import BoxRules
from data_shards.shards import Shards
from data_shards.store import Store

Geometry = Literal["fixed", "width", "keep", "shorter_side"]


class EvaluationLoader(Prefetcher[Int64]):
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
        threads, prefetch, cache_folder, cache_bytes: as for `TrainingLoader`.

    Raises:
        DataError: as for `TrainingLoader`.
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
        self.manifest = load_manifest(location)
        self.world = world
        self._shards = Shards(location, self.manifest, cache_folder, cache_bytes=cache_bytes)
        self._geometry = geometry
        self._input_size = input_size
        self._size_divisor = size_divisor
        self._boxes = boxes if boxes is not None else BoxRules()
        self._shorter_side = shorter_side
        self._own = _View(scale, longer_side_limit)
        self._views = sorted({self._own, *(_View(*view) for view in beside)})
        self._batch_size = batch_size
        self._max_objects = max_objects
        self._samples = _SampleTable(self._shards, limit)
        self.num_samples = len(self._samples)
        """Images over all ranks."""
        self._next_batch = 0
        super().__init__(threads=threads, prefetch=prefetch)

    def close(self) -> None:
        """Stop the threads and let go of the cache. Closing twice is fine."""
        self._shards.close()
        super().close()

    def _schedule(self) -> Iterator[Int64]:
        order = np.arange(self.num_samples)
        sizes = np.concatenate([self._input_sizes(order, view) for view in self._views], axis=1)
        if self._geometry in ("keep", "shorter_side"):
            order = np.lexsort((order, *sizes.T[::-1]))
        first, last = (self.num_samples * rank // self.world.ranks for rank in (self.world.rank, self.world.rank + 1))
        share = order[first:last]
        while len(share):
            same = (sizes[share] == sizes[share[0]]).all(axis=1)
            # `share` is sorted by size, so those of the first one's size come first.
            count = min(self._batch_size, int(np.argmin(same)) if not same.all() else len(share))
            yield share[:count]
            share = share[count:]

    def _input_sizes(self, samples: Int64, view: "_View") -> Int64:
        """Height and width `(samples, 2)` of the input that each sample takes."""
        divisor = self._size_divisor
        if self._geometry == "keep":
            return (self._content_sizes(samples, view) | (divisor - 1)) + 1
        if self._geometry == "shorter_side":
            return -(-self._content_sizes(samples, view) // divisor) * divisor
        return np.tile(np.array(self._input_size), (len(samples), 1))

    def _content_sizes(self, samples: Int64, view: "_View") -> Int64:
        """Height and width `(samples, 2)` of the image before it is placed."""
        sizes = self._samples.sizes[samples]
        if self._geometry == "shorter_side":
            return resized(sizes, round(self._shorter_side * view.scale), view.longer_side_limit)
        return np.array([scaled_size((height, width), view.scale) for height, width in sizes.tolist()])

    def _matrix(self, sample: int, input_size: tuple[int, int]) -> NDArray[np.float64]:
        """From the image before it is placed to the input; for shorter_side, from the image itself."""
        height, width = (int(side) for side in self._samples.sizes[sample])
        ((now_height, now_width),) = self._content_sizes(np.array([sample]), self._own).tolist()
        if self._geometry == "keep":
            return crop_matrix((now_width // 2, now_height // 2), input_size[1], input_size)
        if self._geometry == "shorter_side":
            return np.array([[now_width / width, 0.0, 0.0], [0.0, now_height / height, 0.0]])
        return crop_matrix(
            (now_width / 2, now_height / 2), width if self._geometry == "width" else max(height, width), input_size
        )

    def _start(self, item: Int64) -> tuple[Batch, list[Future[None]]]:
        height, width = self._input_sizes(item[:1], self._own)[0]
        input_size = (int(height), int(width))
        shards, rows = self._samples.shards[item], self._samples.rows[item]
        most = max(1, int(self._samples.num_boxes[item].max()))
        if self._max_objects is not None:
            most = self._max_objects
        slot = Slot.empty(
            item,
            input_size,
            most,
            augmented=False,
            manifest=self.manifest,
            whole_images=self._geometry == "shorter_side",
        )
        if slot.content_sizes is not None:
            slot.content_sizes[:] = self._content_sizes(item, self._own)
        number = self._next_batch
        self._next_batch += 1

        def fill(row: int) -> None:
            matrix = self._matrix(int(item[row]), input_size)
            scale = 1.0 if self._geometry == "shorter_side" else self._own.scale
            slot.fill(row, self._shards, int(shards[row]), int(rows[row]), matrix, self._boxes, scale)

        return slot.batch(-1, number), [self._pool.submit(fill, row) for row in range(len(item))]


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


class _View(NamedTuple):
    """How large images are shown."""

    scale: float
    longer_side_limit: int
    """For shorter_side."""


class _SampleTable:
    """Where the samples of a set lie and how large they are, from the indexes alone."""

    def __init__(self, shards: Shards, limit: int | None) -> None:
        if limit is not None and limit < 1:
            raise DataError(f"limit is {limit}; set it to 1 or more, or leave it out.")
        tables: list[Int64] = []
        for number in range(len(shards.manifest.shards)):
            index = shards.index(number)
            columns = [
                np.full(len(index), number),
                np.arange(len(index)),
                index.heights,
                index.widths,
                np.diff(index.row_splits),
            ]
            tables.append(np.stack(columns, axis=1))
            if limit is not None and sum(map(len, tables)) >= limit:
                break
        table = np.concatenate(tables)[:limit]
        self.shards, self.rows = table[:, 0], table[:, 1]
        self.sizes = table[:, 2:4]
        self.num_boxes = table[:, 4]

    def __len__(self) -> int:
        return len(self.rows)
