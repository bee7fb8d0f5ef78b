"""Batches of evaluation that are made in this process, without a loader process: for pictures, not for epochs."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future

import numpy as np

from data_shards.loading.batch import Batch
from data_shards.loading.batch_arrays import BatchArrays, Int64
from data_shards.loading.evaluation_batches import EvaluationBatches
from data_shards.loading.evaluation_inputs import EvaluationInputs, View, check_view
from data_shards.order.plan import World
from data_shards.reading.samples import Samples

# Batches in the making beside the one in use.
_AHEAD = 1


def batches_of_views(
    samples: Samples,
    inputs: EvaluationInputs,
    views: Sequence[View],
    *,
    batch_size: int,
    threads: Executor | None = None,
) -> Iterator[list[Batch]]:
    """Yield every image once, in batches as `EvaluationLoader` makes them, each as all of its views; without labels.

    Args:
        samples: the images.
        inputs: the geometry.
        views: the sizes at which images are shown.
        batch_size: most images of a batch.
        threads: fill rows, those of the next batch too; None fills them in the caller's thread.

    Raises:
        DataError: an image cannot be read, or a view is impossible.
    """
    for view in views:
        check_view(view, inputs.shorter_side)
    cut = EvaluationBatches(
        samples,
        inputs,
        tuple(sorted(set(views))),
        batch_size=batch_size,
        num_samples=len(samples),
        world=World(ranks=1, rank=0),
        max_objects=1,
    )
    begun: deque[_Making] = deque()
    try:
        for number, batch in enumerate(cut.batches):
            begun.append(_Making(cut, number, batch, views, threads))
            if threads is None or len(begun) > _AHEAD:
                yield begun.popleft().finished()
        while begun:
            yield begun.popleft().finished()
    finally:
        # The caller may stop early, and an image may be unreadable.
        for one in begun:
            one.cancel()


class _Making:
    """All views of one batch, whose rows are filled by threads or, without any, at the end."""

    def __init__(
        self, cut: EvaluationBatches, number: int, batch: Int64, views: Sequence[View], threads: Executor | None
    ) -> None:
        self._number, self._rows = number, len(batch)
        self._arrays: list[BatchArrays] = []
        works = [cut.work(number, batch, view) for view in views]
        prepared = []
        for work, view in zip(works, views, strict=True):
            memory = np.empty(cut.shape(batch, view).num_bytes, dtype=np.uint8)
            shape, fill_row = work.prepare(memory)
            self._arrays.append(BatchArrays.over(memory, shape))
            prepared.append(fill_row)

        def fill(row: int) -> None:
            # One view after the other, so that a picture is decoded once for all of them.
            for fill_row in prepared:
                fill_row(row)

        self._fill = fill
        self._futures: list[Future[None]] = [threads.submit(fill, row) for row in range(len(batch))] if threads else []

    def finished(self) -> list[Batch]:
        """Wait for the rows, or fill them here."""
        if self._futures:
            for future in self._futures:
                future.result()
        else:
            for row in range(self._rows):
                self._fill(row)
        return [Batch.over(arrays, -1, self._number) for arrays in self._arrays]

    def cancel(self) -> None:
        """Leave out the rows that no thread has begun."""
        for future in self._futures:
            future.cancel()
