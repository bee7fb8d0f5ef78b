"""Work ahead: batches in order, each filled by threads while the trainer is busy with earlier ones."""

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

import cv2

from data_shards.batch import Batch
from data_shards.errors import DataError

_Item = TypeVar("_Item")


class Prefetcher(ABC, Generic[_Item]):
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

    @abstractmethod
    def _schedule(self) -> Iterator[_Item]:
        """What each batch is made from, in order."""

    @abstractmethod
    def _start(self, item: _Item) -> tuple[Batch, list[Future[None]]]:
        """A batch's arrays, and the work that fills them."""

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
