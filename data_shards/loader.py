"""The loaders: batches of one rank, decoded ahead by threads, from exactly the step that is asked for.

What is in a batch depends on the plan and the step alone; how many threads work on it, or which finishes
first, changes nothing. Colour, mirroring and normalisation are left to the device (`augment`).
"""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_shards.augment import Draws, draw
from data_shards.decode import crop_matrix, decode_jpeg, transform_boxes, warp
from data_shards.errors import DataError
from data_shards.manifest import load_manifest
from data_shards.plan import Plan, World, check_divisible
from data_shards.settings import AugmentationSettings
from data_shards.shards import Shards

Int64 = NDArray[np.int64]
Geometry = Literal["fixed", "keep"]


@dataclass
class Batch:
    """Images of one rank, or one microbatch of them, and what is known of them."""

    images: Tensor
    """uint8 `(batch, 3, height, width)`, RGB, in the input frame."""
    boxes: Tensor
    """float32 `(batch, max_objects, 4)`: x1, y1, x2, y2 in the input frame, unclipped; 0 where there is none."""
    labels: Tensor
    """int64 `(batch, max_objects)`: index into the manifest's classes; -1 where there is none."""
    image_ids: Tensor
    """int64 `(batch,)`: COCO's image ids."""
    transforms: Tensor
    """float32 `(batch, 2, 3)`: image frame to input frame."""
    original_sizes: Tensor
    """int64 `(batch, 2)`: height and width of the image."""
    sample_ids: Tensor
    """int64 `(batch,)`: running index over the manifest's shards."""
    epoch: int
    """Counted from 0; -1 in evaluation."""
    step: int
    """The training step over all epochs, counted from 0; in evaluation the batch of this rank."""
    flips: Tensor | None = None
    """bool `(batch,)`: images that `augment` still has to mirror."""
    colour_factors: Tensor | None = None
    """float32 `(batch, 3)`: for brightness, contrast, saturation."""
    colour_order: Tensor | None = None
    """int64 `(batch, 3)`: the order in which they are applied."""
    lighting: Tensor | None = None
    """float32 `(batch, 3)`: weights of the principal colours."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input frame."""
        return self.images.shape[2], self.images.shape[3]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device; from pinned memory where that lets the copy run beside the work."""
        asynchronous = torch.device(device).type == "cuda"

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            source = value.pin_memory() if asynchronous and value.device.type == "cpu" else value
            return source.to(device, non_blocking=asynchronous)

        return replace(self, **{item.name: moved(getattr(self, item.name)) for item in fields(self)})


_Item = TypeVar("_Item")


class _Loader(Generic[_Item]):
    """Batches in order, made ahead by threads: subclasses say which, and how one row is filled."""

    def __init__(self, *, threads: int, prefetch: int) -> None:
        for name, value in [("threads", threads), ("prefetch", prefetch)]:
            if value < 1:
                raise DataError(f"{name} is {value}; set it to 1 or more.")
        self.wait_seconds = 0.0
        """How long the last batch was waited for."""
        self._prefetch = prefetch
        self._pending: deque[tuple[Batch, list[Future[None]]]] = deque()
        self._closed = False
        # OpenCV's own threads would fight with ours for the same cores.
        cv2.setNumThreads(1)
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="aweigh-decode")
        self._items = self._schedule()

    def _schedule(self) -> Iterator[_Item]:
        raise NotImplementedError

    def _start(self, item: _Item) -> tuple[Batch, list[Future[None]]]:
        raise NotImplementedError

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        started = time.perf_counter()
        try:
            self._fill()
            if not self._pending:
                self.close()
                raise StopIteration
            batch, rows = self._pending.popleft()
            for row in rows:
                row.result()
            # The slot that is free now is filled before the trainer goes to work.
            self._fill()
        except BaseException:
            self.close()
            raise
        self.wait_seconds = time.perf_counter() - started
        return batch

    def close(self) -> None:
        """Stop the threads and wait until they are gone. Closing twice is fine."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill(self) -> None:
        while len(self._pending) < self._prefetch:
            item = next(self._items, None)
            if item is None:
                return
            self._pending.append(self._start(item))


class TrainingLoader(_Loader[tuple[int, int]]):
    """The batches of one rank of a training run, from any step on.

    Iterating yields `microbatches` batches for every step from `start_step` (over all epochs) up to, not
    including, `stop_step`; without one it goes on for ever. Which samples they hold and what they look like is
    decided by the plan, the settings and the step, so a loader that starts at step k gives exactly what an
    earlier one would have given from there.

    Args:
        location: `LOCATION/SPLIT`.
        plan: made from the manifest that lies there.
        world: this rank's place.
        input_size: height and width of the input, in pixels.
        max_objects: annotations of an image beyond so many, in the order of the file, are left out.
        augmentation: what is drawn at random.
        start_step: the first step to give.
        stop_step: the step before which to stop.
        threads: how many decode at the same time.
        prefetch: how many batches are worked on ahead of the one that is used.
        cache_folder: where shards from S3 are kept; see `shards.default_cache_folder`.
        microbatches: parts in which the rank's batch of a step is given, one after the other.

    Raises:
        DataError: the ranks and microbatches do not divide the global batch, the plan was made for other
            shards, a shard does not match its manifest, or an image does not decode. Errors of the threads
            are raised by the batch they belong to.
    """

    def __init__(
        self,
        location: str,
        plan: Plan,
        world: World,
        *,
        input_size: tuple[int, int],
        max_objects: int = 128,
        augmentation: AugmentationSettings | None = None,
        start_step: int = 0,
        stop_step: int | None = None,
        threads: int = 2,
        prefetch: int = 2,
        cache_folder: str | os.PathLike[str] | None = None,
        microbatches: int = 1,
    ) -> None:
        if max_objects < 1:
            raise DataError(f"max_objects is {max_objects}; set it to 1 or more.")
        if microbatches < 1:
            raise DataError(f"microbatches is {microbatches}; set it to 1 or more.")
        if start_step < 0:
            raise DataError(f"start_step is {start_step}; steps are counted from 0.")
        check_divisible(plan.global_batch_size, world.ranks)
        check_divisible(
            plan.global_batch_size, world.ranks * microbatches, f"microbatches ({world.ranks} ranks × {microbatches})"
        )
        _check_input_size(input_size)
        manifest = load_manifest(location)
        if plan.manifest_digest != manifest.digest:
            raise DataError(
                f"the plan was made for manifest {plan.manifest_digest[:6]}, {location} holds {manifest.digest[:6]}: "
                "the shards were built anew. Start a new run, or bring the old shards back."
            )
        self.manifest = manifest
        self.plan = plan
        self.world = world
        self._shards = Shards(location, manifest, cache_folder)
        self._input_size = input_size
        self._max_objects = max_objects
        self._augmentation = augmentation if augmentation is not None else AugmentationSettings()
        self._start_step, self._stop_step = start_step, stop_step
        self._microbatches = microbatches
        super().__init__(threads=threads, prefetch=prefetch)

    def _schedule(self) -> Iterator[tuple[int, int]]:
        step = self._start_step
        while self._stop_step is None or step < self._stop_step:
            for microbatch in range(self._microbatches):
                yield step, microbatch
            step += 1

    def _start(self, item: tuple[int, int]) -> tuple[Batch, list[Future[None]]]:
        step, microbatch = item
        epoch, step_in_epoch = divmod(step, self.plan.steps_per_epoch)
        sample_ids = self.plan.rank_batch(epoch, step_in_epoch, self.world)
        size = len(sample_ids) // self._microbatches
        sample_ids = sample_ids[microbatch * size : (microbatch + 1) * size]
        slot = _Slot.empty(sample_ids, self._input_size, self._max_objects, augmented=True)
        shards, rows = self.plan.locate(sample_ids)

        def prepare() -> Draws:
            # Sizes stand in the indexes, which may have to come from S3: not in the trainer's time.
            sizes = np.array([self._shards.size(*place) for place in zip(shards, rows, strict=True)])
            draws = draw(self._augmentation, self.plan.seed, epoch, sample_ids, sizes)
            slot.take(draws)
            return draws

        # Submitted first, so a thread is at it, or done, before any row waits for it.
        prepared = self._pool.submit(prepare)

        def fill(row: int) -> None:
            matrix = prepared.result().matrix(row, self._input_size)
            slot.fill(row, self._shards, int(shards[row]), int(rows[row]), matrix)

        return slot.batch(epoch, step), [self._pool.submit(fill, row) for row in range(len(sample_ids))]


class EvaluationLoader(_Loader[Int64]):
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
        threads, prefetch, cache_folder: as for `TrainingLoader`.

    Raises:
        DataError: as for `TrainingLoader`.
    """

    def __init__(
        self,
        location: str,
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
    ) -> None:
        if geometry not in ("fixed", "keep"):
            raise DataError(f"geometry is {geometry!r}; set it to 'fixed' or 'keep'.")
        if size_divisor < 1 or size_divisor & (size_divisor - 1):
            raise DataError(f"size_divisor is {size_divisor}; set it to a power of two.")
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; set it to 1 or more.")
        _check_input_size(input_size)
        self.manifest = load_manifest(location)
        self.world = world
        self._shards = Shards(location, self.manifest, cache_folder)
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
        slot = _Slot.empty(item, input_size, most, augmented=False)
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
    location: str, *, limit: int | None = None, cache_folder: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """COCO's images, annotations and categories, rebuilt from the shards, for pycocotools.

    Annotations are those of the file, but for degenerate boxes that were dropped at building; a missing
    `iscrowd` becomes 0 and a missing `area` that of the box.

    Args:
        location: `LOCATION/SPLIT`.
        limit: only the first so many samples, those an `EvaluationLoader` with the same limit gives.
        cache_folder: as for the loaders.
    """
    manifest = load_manifest(location)
    shards = Shards(location, manifest, cache_folder)
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


@dataclass(frozen=True)
class _Slot:
    """The arrays behind one batch; each row is filled by one thread."""

    images: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: Int64
    image_ids: Int64
    transforms: NDArray[np.float32]
    original_sizes: Int64
    sample_ids: Int64
    flips: NDArray[np.bool_] | None = None
    colour_factors: NDArray[np.float32] | None = None
    colour_order: Int64 | None = None
    lighting: NDArray[np.float32] | None = None

    @classmethod
    def empty(cls, sample_ids: Int64, input_size: tuple[int, int], max_objects: int, *, augmented: bool) -> "_Slot":
        count = len(sample_ids)
        slot = cls(
            images=np.empty((count, 3, *input_size), dtype=np.uint8),
            boxes=np.zeros((count, max_objects, 4), dtype=np.float32),
            labels=np.full((count, max_objects), -1, dtype=np.int64),
            image_ids=np.zeros(count, dtype=np.int64),
            transforms=np.zeros((count, 2, 3), dtype=np.float32),
            original_sizes=np.zeros((count, 2), dtype=np.int64),
            sample_ids=np.array(sample_ids, dtype=np.int64),
        )
        if not augmented:
            return slot
        return replace(
            slot,
            flips=np.zeros(count, dtype=np.bool_),
            colour_factors=np.ones((count, 3), dtype=np.float32),
            colour_order=np.zeros((count, 3), dtype=np.int64),
            lighting=np.zeros((count, 3), dtype=np.float32),
        )

    def batch(self, epoch: int, step: int) -> Batch:
        """Tensors over these very arrays: what the threads still write appears in them."""
        arrays = {item.name: getattr(self, item.name) for item in fields(self)}
        tensors = {name: None if array is None else torch.from_numpy(array) for name, array in arrays.items()}
        return Batch(epoch=epoch, step=step, **tensors)  # type: ignore[arg-type]

    def take(self, draws: Draws) -> None:
        """Note what the device will need of the draws."""
        for name in ("flips", "colour_factors", "colour_order", "lighting"):
            getattr(self, name)[:] = getattr(draws, name)

    def fill(self, row: int, shards: Shards, shard: int, place: int, matrix: NDArray[np.float64]) -> None:
        """Read, decode and resample one sample into one row."""
        index = shards.index(shard)
        data = shards.read_image(shard, place)
        try:
            image = decode_jpeg(data)
        except ValueError as error:
            raise DataError(
                f"shard {shards.manifest.shards[shard].name}, image {index.image_ids[place]} does not decode "
                f"({error}). Build the shards again."
            ) from error
        planes = self.images[row]
        cv2.split(warp(image, matrix, planes.shape[1:]), list(planes))
        first, last = index.row_splits[place : place + 2]
        count = min(last - first, self.labels.shape[1])
        self.boxes[row, :count] = transform_boxes(index.boxes[first : first + count], matrix)
        self.labels[row, :count] = index.labels[first : first + count]
        self.image_ids[row] = index.image_ids[place]
        self.transforms[row] = matrix
        self.original_sizes[row] = image.shape[:2]


def _check_input_size(input_size: Sequence[int]) -> None:
    if len(input_size) != 2 or min(input_size) < 1:
        raise DataError(f"input_size is {tuple(input_size)}; give height and width, 1 or more pixels each.")
