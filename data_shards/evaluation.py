"""Evaluation: each image once, in the published test geometry, and the truth to hold results against."""

import os
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, Literal

import numpy as np

from data_shards.batch import Batch, Int64, Slot, check_input_size
from data_shards.decode import crop_matrix
from data_shards.errors import DataError
from data_shards.manifest import load_manifest
from data_shards.plan import World
from data_shards.prefetch import Prefetcher
from data_shards.shards import Shards
from data_shards.store import Store

Geometry = Literal["fixed", "keep"]


class EvaluationLoader(Prefetcher[Int64]):
    """This rank's share of a data set's images, each exactly once, in the published test geometry.

    "fixed": the whole image in the middle of `input_size`, its longer side filling the width. "keep": at its own
    resolution in the middle of the next multiple of `size_divisor` that is greater than each side; batches
    then hold only images that share that size.

    Args:
        location: `LOCATION/SPLIT`.
        world: this rank's place.
        geometry: "fixed" or "keep".
        input_size: height and width of the input, for "fixed".
        size_divisor: a power of two, for "keep".
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
        batch_size: int = 1,
        limit: int | None = None,
        max_objects: int | None = None,
        threads: int = 2,
        prefetch: int = 2,
        cache_folder: str | os.PathLike[str] | None = None,
        cache_bytes: int = 0,
    ) -> None:
        if geometry not in ("fixed", "keep"):
            raise DataError(f"geometry is {geometry!r}; set it to 'fixed' or 'keep'.")
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
        sizes = self._padded_sizes()
        order = np.arange(self.num_samples)
        if self._geometry == "keep":
            order = np.lexsort((order, sizes[:, 1], sizes[:, 0]))
        first, last = (self.num_samples * rank // self.world.ranks for rank in (self.world.rank, self.world.rank + 1))
        share = order[first:last]
        while len(share):
            same = (sizes[share] == sizes[share[0]]).all(axis=1)
            # `share` is sorted by size, so those of the first one's size come first.
            count = min(self._batch_size, int(np.argmin(same)) if not same.all() else len(share))
            yield share[:count]
            share = share[count:]

    def _padded_sizes(self) -> Int64:
        if self._geometry == "fixed":
            return np.tile(np.array(self._input_size), (self.num_samples, 1))
        return (self._samples.sizes | (self._size_divisor - 1)) + 1

    def _start(self, item: Int64) -> tuple[Batch, list[Future[None]]]:
        input_size = self._input_size
        if self._geometry == "keep":
            height, width = (self._samples.sizes[item[0]] | (self._size_divisor - 1)) + 1
            input_size = (int(height), int(width))
        shards, rows = self._samples.shards[item], self._samples.rows[item]
        most = max(1, int(self._samples.num_boxes[item].max()))
        if self._max_objects is not None:
            most = self._max_objects
        slot = Slot.empty(item, input_size, most, augmented=False)
        number = self._next_batch
        self._next_batch += 1

        def fill(row: int) -> None:
            height, width = self._samples.sizes[item[row]]
            if self._geometry == "keep":
                matrix = crop_matrix((width // 2, height // 2), input_size[1], input_size)
            else:
                matrix = crop_matrix((width / 2, height / 2), max(height, width), input_size)
            slot.fill(row, self._shards, int(shards[row]), int(rows[row]), matrix)

        return slot.batch(-1, number), [self._pool.submit(fill, row) for row in range(len(item))]


def coco_ground_truth(
    location: str | Store,
    *,
    limit: int | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    cache_bytes: int = 0,
) -> dict[str, Any]:
    """COCO's images, annotations and categories, rebuilt from the shards, for pycocotools.

    Annotations are those of the file, but for degenerate boxes that were dropped at building; a missing
    `iscrowd` becomes 0 and a missing `area` that of the box.

    Args:
        location: `LOCATION/SPLIT`.
        limit: only the first so many samples, those an `EvaluationLoader` with the same limit gives.
        cache_folder, cache_bytes: as for the loaders.
    """
    manifest = load_manifest(location)
    shards = Shards(location, manifest, cache_folder, cache_bytes=cache_bytes)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    remaining = manifest.num_samples if limit is None else limit
    for number, shard in enumerate(manifest.shards):
        for row in range(min(shard.samples, remaining)):
            sample = shards.read_json(number, row)
            for annotation in sample.pop("annotations"):
                box = annotation["bbox"]
                annotations.append({"iscrowd": 0, "area": box[2] * box[3]} | annotation)
            images.append({"id": sample.pop("image_id")} | sample)
        remaining -= min(shard.samples, remaining)
    shards.close()
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": item.id, "name": item.name} for item in manifest.classes],
    }


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
