"""The batches of evaluation: each image once, with images whose inputs have the same size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_shards.format.manifest import Manifest
from data_shards.loading.batch_arrays import BatchArrays, BatchShape, Int64
from data_shards.loading.evaluation_inputs import EvaluationInputs, View
from data_shards.loading.training_batches import FillRow, Memory, Source, Work
from data_shards.order.plan import World
from data_shards.reading.reading import Reading
from data_shards.reading.samples import Samples


@dataclass(frozen=True, kw_only=True)
class EvaluationSource(Source[Samples]):
    """A rank's share of a data set, each image once; the fields are those of `EvaluationLoader`."""

    reading: Reading
    world: World
    inputs: EvaluationInputs
    view: View
    views: tuple[View, ...]
    """This view and those that are read beside it, in order."""
    batch_size: int
    num_samples: int

    def open(self) -> Samples:  # noqa: D102
        return self.reading.open()

    def slot_bytes(self, samples: Samples) -> int:  # noqa: D102
        share = self._share(samples)
        return max((share.shape(batch, self.view).num_bytes for batch in share.batches), default=0)

    def batches(self, samples: Samples) -> Iterator[Work]:  # noqa: D102
        share = self._share(samples)
        for number, batch in enumerate(share.batches):
            yield share.work(number, batch, self.view)

    def _share(self, samples: Samples) -> "EvaluationBatches":
        return EvaluationBatches(
            samples,
            self.inputs,
            self.views,
            batch_size=self.batch_size,
            num_samples=self.num_samples,
            world=self.world,
            manifest=self.reading.split.manifest,
            max_objects=self.reading.max_objects,
        )


class EvaluationBatches:
    """The samples of a rank, cut into batches whose images share the size of their input in every view.

    Args:
        samples: the images.
        inputs: the geometry.
        views: all views that are read of an image, in order.
        batch_size: most images of a batch.
        num_samples: use only the first samples, this many.
        world: this rank's place.
        manifest: says which labels exist beside boxes; None for boxes only.
        max_objects: most annotations of an image in a batch; None keeps all.
    """

    def __init__(
        self,
        samples: Samples,
        inputs: EvaluationInputs,
        views: Sequence[View],
        *,
        batch_size: int,
        num_samples: int,
        world: World,
        manifest: Manifest | None = None,
        max_objects: int | None = None,
    ) -> None:
        self._samples, self._inputs, self._views = samples, inputs, views
        self._batch_size, self._num_samples, self._world = batch_size, num_samples, world
        self._manifest, self._max_objects = manifest, max_objects
        self._sizes = np.array([samples.size(number) for number in range(num_samples)], dtype=np.int64).reshape(-1, 2)

    @cached_property
    def batches(self) -> list[Int64]:
        """The sample ids of each batch."""
        count, world = self._num_samples, self._world
        order = np.arange(count)
        sizes = np.concatenate([self._inputs.input_sizes(self._sizes, view) for view in self._views], axis=1)
        if self._inputs.vary:
            order = np.lexsort((order, *sizes.T[::-1]))
        first, last = (count * rank // world.ranks for rank in (world.rank, world.rank + 1))
        share = order[first:last]
        found = []
        while len(share):
            same = (sizes[share] == sizes[share[0]]).all(axis=1)
            # The share is sorted by size, so images of the first one's size come first.
            size = min(self._batch_size, int(np.argmin(same)) if not same.all() else len(share))
            found.append(share[:size])
            share = share[size:]
        return found

    def shape(self, batch: Int64, view: View) -> BatchShape:
        """Return the shape of the batch of these samples."""
        height, width = self._inputs.input_sizes(self._sizes[batch[:1]], view)[0].tolist()
        objects = self._max_objects
        if objects is None:
            objects = max(1, *(len(self._samples.labels(number).labels) for number in batch.tolist()))
        return BatchShape.of(
            self._manifest,
            len(batch),
            (height, width),
            objects,
            augmented=False,
            whole_images=self._inputs.whole_images,
        )

    def work(self, number: int, batch: Int64, view: View) -> Work:
        """Return what makes the batch of these samples, the `number`th of the rank."""
        inputs, samples, shape = self._inputs, self._samples, self.shape(batch, view)

        def prepare(memory: Memory) -> tuple[BatchShape, FillRow]:
            arrays = BatchArrays.over(memory, shape)
            arrays.begin(batch)
            if arrays.content_sizes is not None:
                arrays.content_sizes[:] = inputs.content_sizes(self._sizes[batch], view)
            return shape, lambda row: inputs.fill(arrays, row, samples, int(batch[row]), view)

        return Work(-1, number, len(batch), prepare)
