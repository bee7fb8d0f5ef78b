"""The work of a loader process: the batches of a rank in order, and the functions that fill their rows.

A source is made by the trainer and pickled to the loader process, which opens the shards there. Nothing here imports
torch, so a loader process starts in a fraction of a second.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import UInt8

from data_shards.loading.batch_arrays import BatchArrays, BatchShape, Int64
from data_shards.loading.random_draws import draw
from data_shards.loading.row_filling import describe, show
from data_shards.order.plan import Plan, World
from data_shards.reading.reading import Reading
from data_shards.reading.samples import Samples, ShardSamples
from data_shards.settings import AugmentationSettings, InputSizes

FillRow = Callable[[int], None]
Memory = UInt8[np.ndarray, " bytes"]

# Planning several steps at once costs hardly more than planning one.
_PLANNED_STEPS = 16

_Samples = TypeVar("_Samples", bound=Samples)


@dataclass(frozen=True)
class Work:
    """One batch to make."""

    epoch: int
    step: int
    rows: int
    prepare: Callable[[Memory], tuple[BatchShape, FillRow]]
    """Lays the batch out in a slot's memory and returns the function that fills a row; a decoding thread calls it."""


class Source(ABC, Generic[_Samples]):
    """The batches of one rank."""

    @abstractmethod
    def open(self) -> _Samples:
        """Open the samples in this process; the other methods take them."""

    @abstractmethod
    def slot_bytes(self, samples: _Samples) -> int:
        """Return the memory that the largest batch takes."""

    @abstractmethod
    def batches(self, samples: _Samples) -> Iterator[Work]:
        """Yield every batch, in order."""

    def made(self, samples: _Samples, step: int) -> None:
        """Note that all batches before this step are made: nobody will read their samples again."""


@dataclass(frozen=True, kw_only=True)
class TrainingSource(Source[ShardSamples]):
    """The batches of a rank of a training run; the fields are those of `TrainingLoader`."""

    reading: Reading
    plan: Plan
    world: World
    input_size: tuple[int, int]
    augmentation: AugmentationSettings
    sizes: InputSizes | None
    start_step: int
    stop_step: int | None
    microbatches: int

    def open(self) -> ShardSamples:  # noqa: D102
        return self.reading.open()

    def slot_bytes(self, samples: ShardSamples) -> int:  # noqa: D102
        rows = self.plan.global_batch_size // (self.world.ranks * self.microbatches)
        return self._shape(rows, self.augmentation.largest_input(self.input_size, self.sizes)).num_bytes

    def batches(self, samples: ShardSamples) -> Iterator[Work]:  # noqa: D102
        samples.fetch_ahead(self.plan, self.world, self.start_step, self.stop_step)
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

    def made(self, samples: ShardSamples, step: int) -> None:  # noqa: D102
        samples.reached(step)

    def _work(self, samples: ShardSamples, epoch: int, step: int, sample_ids: Int64) -> Work:
        numbers = sample_ids.tolist()

        def prepare(memory: Memory) -> tuple[BatchShape, FillRow]:
            # Sizes are in the indexes, which may have to come from S3: so a decoding thread does this, not the one
            # that decides what is next.
            sizes = np.array([samples.size(number) for number in numbers])
            draws = draw(self.augmentation, self.plan.seed, epoch, sample_ids, sizes)
            input_size = self.input_size
            if self._whole_images:
                assert self.sizes is not None
                input_size = self.sizes.padded(*draws.content_sizes.max(axis=0).tolist())
            shape = self._shape(len(numbers), input_size)
            arrays = BatchArrays.over(memory, shape)
            arrays.begin(sample_ids)
            # Before describe, which mirrors joints by the flips.
            arrays.take(draws)
            matrices = [draws.matrix(row, input_size) for row in range(len(numbers))]
            for row, matrix in enumerate(matrices):
                describe(arrays, row, samples, numbers[row], matrix, self.reading.boxes)

            def fill_row(row: int) -> None:
                show(arrays, row, samples, numbers[row], matrices[row])

            return shape, fill_row

        return Work(epoch, step, len(numbers), prepare)

    @property
    def _whole_images(self) -> bool:
        return self.augmentation.geometry == "shorter_side"

    def _shape(self, rows: int, input_size: tuple[int, int]) -> BatchShape:
        assert self.reading.max_objects is not None
        return BatchShape.of(
            self.reading.split.manifest,
            rows,
            input_size,
            self.reading.max_objects,
            augmented=True,
            whole_images=self._whole_images,
        )
