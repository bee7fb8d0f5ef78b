"""What a loader process works on: the batches of a rank in order, and how the rows of each are filled.

A source is made by the trainer, travels to the loader process as it is, and opens the shards there. Nothing here needs
torch, so a loader process starts in a fraction of a second.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_shards.format.manifest import Manifest
from data_shards.loading.batch_arrays import BatchShape, Int64, Slot, slot_bytes
from data_shards.loading.random_draws import draw, padded_size
from data_shards.order.plan import Plan, World
from data_shards.reading.decoded_cache import DecodedImages
from data_shards.reading.samples import Samples, Undecodable
from data_shards.reading.shards import Shards
from data_shards.settings import AugmentationSettings, BoxRules
from data_shards.storage.store import Store

FillRow = Callable[[int], None]

# Sample ids of several steps cost hardly more than those of one.
_PLANNED_STEPS = 16


@dataclass(frozen=True)
class Work:
    """One batch to be made."""

    epoch: int
    step: int
    rows: int
    prepare: Callable[[NDArray[np.uint8]], tuple[BatchShape, FillRow]]
    """Lays the batch out in a slot's memory, and gives what fills a row; called in a decoding thread."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Where samples lie and how they are read."""

    store: Store
    manifest: Manifest
    cache_folder: str | None = None
    cache_bytes: int = 0
    undecodable: Undecodable = "refuse"
    decoded_cache_bytes: int = 0

    def open(self) -> Samples:
        """The samples, for this process."""
        shards = Shards(self.store, self.manifest, self.cache_folder, cache_bytes=self.cache_bytes)
        decoded = None
        if self.decoded_cache_bytes:
            decoded = DecodedImages(shards, shards.cache.folder / "decoded", self.decoded_cache_bytes)
        return Samples(shards, undecodable=self.undecodable, decoded=decoded)


class Source(ABC):
    """The batches of one rank."""

    reading: Reading

    @abstractmethod
    def slot_bytes(self, samples: Samples) -> int:
        """The memory that the largest batch takes."""

    @abstractmethod
    def batches(self, samples: Samples) -> Iterator[Work]:
        """Every batch, in order."""

    def made(self, samples: Samples, step: int) -> None:  # noqa: B027 - only an order that is known ahead cares
        """All batches before this step were made: nothing of them will be read any more."""


@dataclass(frozen=True, kw_only=True)
class TrainingSource(Source):
    """The batches of a rank of a training run; the fields are those of `TrainingLoader`."""

    reading: Reading
    plan: Plan
    world: World
    input_size: tuple[int, int]
    max_objects: int
    augmentation: AugmentationSettings
    boxes: BoxRules
    size_divisor: int
    start_step: int
    stop_step: int | None
    microbatches: int

    def slot_bytes(self, samples: Samples) -> int:  # noqa: D102
        rows = self.plan.global_batch_size // (self.world.ranks * self.microbatches)
        return slot_bytes(self._shape(rows, self.augmentation.largest_input(self.input_size, self.size_divisor)))

    def batches(self, samples: Samples) -> Iterator[Work]:  # noqa: D102
        samples.shards.fetch_ahead(self.plan, self.world, self.start_step, self.stop_step)
        step = self.start_step
        while self.stop_step is None or step < self.stop_step:
            epoch, step_in_epoch = divmod(step, self.plan.steps_per_epoch)
            steps = min(_PLANNED_STEPS, self.plan.steps_per_epoch - step_in_epoch)
            if self.stop_step is not None:
                steps = min(steps, self.stop_step - step)
            for sample_ids in self.plan.rank_batches(epoch, step_in_epoch, steps, self.world):
                for part in np.split(sample_ids, self.microbatches):
                    yield self._work(samples, epoch, step, part)
                step += 1

    def made(self, samples: Samples, step: int) -> None:  # noqa: D102
        samples.shards.reached(step)

    def _work(self, samples: Samples, epoch: int, step: int, sample_ids: Int64) -> Work:
        def prepare(memory: NDArray[np.uint8]) -> tuple[BatchShape, FillRow]:
            shards, places = (column.tolist() for column in self.plan.locate(sample_ids))
            # Sizes stand in the indexes, which may have to come from S3.
            sizes = np.array([samples.shards.size(*at) for at in zip(shards, places, strict=True)])
            draws = draw(self.augmentation, self.plan.seed, epoch, sample_ids, sizes)
            input_size = self.input_size
            if self._whole_images:
                input_size = padded_size(draws.content_sizes, self.size_divisor)
            shape = self._shape(len(sample_ids), input_size)
            slot = Slot.over(memory, shape)
            slot.begin(sample_ids)
            slot.take(draws)
            matrices = [draws.matrix(row, input_size) for row in range(len(sample_ids))]
            for row, matrix in enumerate(matrices):
                slot.describe(row, samples, shards[row], places[row], matrix, self.boxes)

            def fill(row: int) -> None:
                slot.show(row, samples, shards[row], places[row], matrices[row])

            return shape, fill

        return Work(epoch, step, len(sample_ids), prepare)

    @property
    def _whole_images(self) -> bool:
        return self.augmentation.geometry == "shorter_side"

    def _shape(self, rows: int, input_size: tuple[int, int]) -> BatchShape:
        return BatchShape.of(
            self.reading.manifest,
            rows,
            input_size,
            self.max_objects,
            augmented=True,
            whole_images=self._whole_images,
        )
