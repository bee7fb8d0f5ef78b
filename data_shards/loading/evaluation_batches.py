"""The test geometries: the input that each image becomes in evaluation, and the batches of a rank's share."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from data_shards.loading.batch_arrays import BatchArrays, BatchShape, Int64
from data_shards.loading.random_draws import resized
from data_shards.loading.row_filling import fill
from data_shards.loading.training_batches import FillRow, Memory, Source, Work
from data_shards.order.plan import World
from data_shards.reading.geometry import crop_matrix, scaled_size
from data_shards.reading.reading import Reading
from data_shards.reading.samples import Samples
from data_shards.settings import InputSizes

Geometry = Literal["fixed", "width", "keep", "shorter_side"]


class View(NamedTuple):
    """The size at which images are shown."""

    scale: float
    """Factor on the image's size."""
    longer_side_limit: int
    """Most pixels of the longer side, for the geometry "shorter_side"."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSource(Source[Samples]):
    """A rank's share of a data set, each image once; the fields are those of `EvaluationLoader`."""

    reading: Reading
    world: World
    geometry: Geometry
    input_size: tuple[int, int]
    sizes: InputSizes | None
    shorter_side: int
    view: View
    views: tuple[View, ...]
    """This view and those that are read beside it, in order."""
    batch_size: int
    num_samples: int

    def open(self) -> Samples:  # noqa: D102
        return self.reading.open()

    def slot_bytes(self, samples: Samples) -> int:  # noqa: D102
        share = _Share(self, samples)
        return max((share.shape(batch).num_bytes for batch in share.batches), default=0)

    def batches(self, samples: Samples) -> Iterator[Work]:  # noqa: D102
        share = _Share(self, samples)
        for number, batch in enumerate(share.batches):
            yield share.work(number, batch)


class _Share:
    """The samples of a rank, cut into batches whose images share the size of their input."""

    def __init__(self, source: EvaluationSource, samples: Samples) -> None:
        self._source = source
        self._samples = samples
        self._sizes = np.array([samples.size(number) for number in range(source.num_samples)]).reshape(-1, 2)

    @cached_property
    def batches(self) -> list[Int64]:
        """The sample ids of each batch."""
        source = self._source
        order = np.arange(source.num_samples)
        sizes = np.concatenate([self._input_sizes(order, view) for view in source.views], axis=1)
        if source.geometry in ("keep", "shorter_side"):
            order = np.lexsort((order, *sizes.T[::-1]))
        first, last = (
            source.num_samples * rank // source.world.ranks for rank in (source.world.rank, source.world.rank + 1)
        )
        share = order[first:last]
        found = []
        while len(share):
            same = (sizes[share] == sizes[share[0]]).all(axis=1)
            # The share is sorted by size, so images of the first one's size come first.
            count = min(source.batch_size, int(np.argmin(same)) if not same.all() else len(share))
            found.append(share[:count])
            share = share[count:]
        return found

    def shape(self, batch: Int64) -> BatchShape:
        """Return the shape of the batch of these samples."""
        source = self._source
        height, width = self._input_sizes(batch[:1], source.view)[0].tolist()
        objects = source.reading.max_objects
        if objects is None:
            objects = max(1, *(len(self._samples.labels(number).labels) for number in batch.tolist()))
        return BatchShape.of(
            source.reading.split.manifest,
            len(batch),
            (height, width),
            objects,
            augmented=False,
            whole_images=source.geometry == "shorter_side",
        )

    def work(self, number: int, batch: Int64) -> Work:
        """Return what makes the batch of these samples, the `number`th of the rank."""
        source, shape, samples = self._source, self.shape(batch), self._samples
        # The geometry "shorter_side" resizes only once, to a side that has the scale in it.
        scale = 1.0 if source.geometry == "shorter_side" else source.view.scale

        def prepare(memory: Memory) -> tuple[BatchShape, FillRow]:
            arrays = BatchArrays.over(memory, shape)
            arrays.begin(batch)
            if arrays.content_sizes is not None:
                arrays.content_sizes[:] = self._content_sizes(batch, source.view)

            def fill_row(row: int) -> None:
                matrix = self._matrix(int(batch[row]), (shape.height, shape.width))
                fill(arrays, row, samples, int(batch[row]), matrix, source.reading.boxes, scale)

            return shape, fill_row

        return Work(-1, number, len(batch), prepare)

    def _input_sizes(self, samples: Int64, view: View) -> Int64:
        """Return height and width `(samples, 2)` of the input that each sample takes."""
        sizes = self._source.sizes
        if sizes is None or self._source.geometry in ("fixed", "width"):
            return np.tile(np.array(self._source.input_size), (len(samples), 1))
        around = sizes.at_own_resolution if self._source.geometry == "keep" else sizes.padded
        content_sizes = self._content_sizes(samples, view).tolist()
        return np.array([around(height, width) for height, width in content_sizes]).reshape(-1, 2)

    def _content_sizes(self, samples: Int64, view: View) -> Int64:
        """Return height and width `(samples, 2)` of the resized images, before they are placed in the input."""
        sizes = self._sizes[samples]
        if self._source.geometry == "shorter_side":
            return resized(sizes, round(self._source.shorter_side * view.scale), view.longer_side_limit)
        return np.array([scaled_size((height, width), view.scale) for height, width in sizes.tolist()])

    def _matrix(self, sample: int, input_size: tuple[int, int]) -> Float64[np.ndarray, "2 3"]:
        """Return resized image to input; for "shorter_side", image to input."""
        height, width = (int(side) for side in self._sizes[sample])
        ((now_height, now_width),) = self._content_sizes(np.array([sample]), self._source.view).tolist()
        if self._source.geometry == "keep":
            return crop_matrix((now_width // 2, now_height // 2), input_size[1], input_size)
        if self._source.geometry == "shorter_side":
            return np.array([[now_width / width, 0.0, 0.0], [0.0, now_height / height, 0.0]])
        return crop_matrix(
            (now_width / 2, now_height / 2),
            width if self._source.geometry == "width" else max(height, width),
            input_size,
        )
