"""The test geometries: which input each image becomes in evaluation, and the batches of a rank's share."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.loading.batch_arrays import BatchShape, Int64, Slot, slot_bytes
from data_shards.loading.random_draws import resized
from data_shards.loading.training_batches import FillRow, Reading, Source, Work
from data_shards.order.plan import World
from data_shards.reading.decode import crop_matrix, scaled_size
from data_shards.reading.samples import Samples
from data_shards.reading.shards import Shards
from data_shards.settings import BoxRules

Geometry = Literal["fixed", "width", "keep", "shorter_side"]


class View(NamedTuple):
    """How large images are shown."""

    scale: float
    longer_side_limit: int
    """For shorter_side."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSource(Source):
    """A rank's share of a data set, each image once; the fields are those of `EvaluationLoader`."""

    reading: Reading
    world: World
    geometry: Geometry
    input_size: tuple[int, int]
    size_divisor: int
    shorter_side: int
    boxes: BoxRules
    view: View
    views: tuple[View, ...]
    """This one and those that are read beside it, in order."""
    batch_size: int
    num_samples: int
    max_objects: int | None

    def slot_bytes(self, samples: Samples) -> int:  # noqa: D102
        share = _Share(self, samples.shards)
        return max((slot_bytes(share.shape(batch)) for batch in share.batches), default=0)

    def batches(self, samples: Samples) -> Iterator[Work]:  # noqa: D102
        share = _Share(self, samples.shards)
        for number, batch in enumerate(share.batches):
            yield share.work(samples, number, batch)


class _Share:
    """The samples of a rank, cut into batches that share the size of their input."""

    def __init__(self, source: EvaluationSource, shards: Shards) -> None:
        self._source = source
        self._samples = _SampleTable(shards, source.num_samples)

    @cached_property
    def batches(self) -> list[Int64]:
        """Sample ids of each batch."""
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
            # `share` is sorted by size, so those of the first one's size come first.
            count = min(source.batch_size, int(np.argmin(same)) if not same.all() else len(share))
            found.append(share[:count])
            share = share[count:]
        return found

    def shape(self, batch: Int64) -> BatchShape:
        """Of the batch of these samples."""
        source = self._source
        height, width = self._input_sizes(batch[:1], source.view)[0].tolist()
        objects = source.max_objects
        if objects is None:
            objects = max(1, int(self._samples.num_boxes[batch].max()))
        return BatchShape.of(
            source.reading.manifest,
            len(batch),
            (height, width),
            objects,
            augmented=False,
            whole_images=source.geometry == "shorter_side",
        )

    def work(self, samples: Samples, number: int, batch: Int64) -> Work:
        """How the batch is made."""
        source, shape = self._source, self.shape(batch)
        shards, places = self._samples.shards[batch].tolist(), self._samples.rows[batch].tolist()
        scale = 1.0 if source.geometry == "shorter_side" else source.view.scale

        def prepare(memory: NDArray[np.uint8]) -> tuple[BatchShape, FillRow]:
            slot = Slot.over(memory, shape)
            slot.begin(batch)
            if slot.content_sizes is not None:
                slot.content_sizes[:] = self._content_sizes(batch, source.view)

            def fill(row: int) -> None:
                matrix = self._matrix(int(batch[row]), (shape.height, shape.width))
                slot.fill(row, samples, shards[row], places[row], matrix, source.boxes, scale)

            return shape, fill

        return Work(-1, number, len(batch), prepare)

    def _input_sizes(self, samples: Int64, view: View) -> Int64:
        """Height and width `(samples, 2)` of the input that each sample takes."""
        divisor = self._source.size_divisor
        if self._source.geometry == "keep":
            return (self._content_sizes(samples, view) | (divisor - 1)) + 1
        if self._source.geometry == "shorter_side":
            return -(-self._content_sizes(samples, view) // divisor) * divisor
        return np.tile(np.array(self._source.input_size), (len(samples), 1))

    def _content_sizes(self, samples: Int64, view: View) -> Int64:
        """Height and width `(samples, 2)` of the image before it is placed."""
        sizes = self._samples.sizes[samples]
        if self._source.geometry == "shorter_side":
            return resized(sizes, round(self._source.shorter_side * view.scale), view.longer_side_limit)
        return np.array([scaled_size((height, width), view.scale) for height, width in sizes.tolist()])

    def _matrix(self, sample: int, input_size: tuple[int, int]) -> NDArray[np.float64]:
        """From the image before it is placed to the input; for shorter_side, from the image itself."""
        height, width = (int(side) for side in self._samples.sizes[sample])
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


class _SampleTable:
    """Where the samples of a set lie and how large they are, from the indexes alone."""

    def __init__(self, shards: Shards, limit: int) -> None:
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
            if sum(map(len, tables)) >= limit:
                break
        table = np.concatenate(tables)[:limit]
        self.shards, self.rows = table[:, 0], table[:, 1]
        self.sizes = table[:, 2:4]
        self.num_boxes = table[:, 4]
