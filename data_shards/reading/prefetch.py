"""Fetching ahead: threads that bring a node's next shards into its cache before a reader asks for them.

They fetch as many bytes ahead as are in use, within the cache's budget. All ranks of a node follow the same order, and
the locks of the cache divide the shards among them.
"""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from data_shards.format.manifest import Manifest
from data_shards.order.node_schedule import NodeSchedule
from data_shards.order.plan import World
from data_shards.storage.node_cache import NodeCache
from data_shards.storage.store import Stopped

# Most transfers of a node at the same time.
_IN_FLIGHT = 10
# If at most this many shards are missing that are in use, each is fetched in several ranges.
_HURRIED = 4
_FIRST_IN_FLIGHT = 2
# A shard that arrives this fast was fetched by another rank; it tells nothing about bandwidth.
_AT_ONCE_SECONDS = 0.02
_CLOSE_SECONDS = 2.0


class Wanted(NamedTuple):
    """A file to fetch: the index or the shard of this number."""

    is_index: bool
    shard: int


class TransferLimit:
    """Limits the shards that are fetched ahead at the same time: few, unless more of them raise the throughput.

    If transfers only share a bandwidth, each one delays the shard that is needed next.
    """

    def __init__(self) -> None:
        self.limit = _FIRST_IN_FLIGHT
        self._best_rate = 0.0

    def arrived(self, size: int, seconds: float, beside: int) -> None:
        """Note that a shard of `size` bytes arrived, with `beside` others in transfer at the end."""
        if seconds < _AT_ONCE_SECONDS:
            return
        rate = (beside + 1) * size / seconds
        # At least half of what another transfer would add if they shared nothing.
        if rate > self._best_rate * (1 + 0.5 / self.limit):
            self._best_rate = rate
            self.limit += 1


class FetchAhead:
    """Threads that fetch the shards that a schedule needs next, until `close`.

    Args:
        cache: the node's cache.
        manifest: names and sizes of the files.
        schedule: the order in which the node needs them.
        world: this rank's place; the ranks of a node share its ten transfers.
        fetch: brings one file into the cache and returns True if it is there; takes the file, and True to hurry.
        step: the first step.
    """

    def __init__(
        self,
        cache: NodeCache,
        manifest: Manifest,
        schedule: NodeSchedule,
        world: World,
        fetch: Callable[[Wanted, bool], bool],
        step: int,
    ) -> None:
        self._cache, self._manifest, self._schedule, self._fetch = cache, manifest, schedule, fetch
        self._step = step
        self._needs = schedule.needs(step)
        self._queue: list[Wanted] = []
        self._running: set[Wanted] = set()
        self._done_indexes: set[int] = set()
        self._put_off: set[Wanted] = set()
        self._failed: set[Wanted] = set()
        self._urgent: set[Wanted] = set()
        self._transfers = TransferLimit()
        self._closed = False
        self._state = threading.Condition()
        self._claim()
        self._plan_queue()
        ranks_here = max(1, world.ranks // world.nodes)
        self._threads = [
            threading.Thread(target=self._work, name="aweigh-fetch", daemon=True)
            for _ in range(max(2, -(-_IN_FLIGHT // ranks_here)))
        ]
        for thread in self._threads:
            thread.start()

    def reached(self, step: int) -> None:
        """Report that no sample of an earlier step will be read again."""
        with self._state:
            if step <= self._step or self._closed:
                return
            self._step = step
            moved = step >= self._needs.valid_until
            if moved:
                self._needs = self._schedule.needs(step)
                self._claim()
            if moved or self._put_off:
                self._put_off.clear()
                self._plan_queue()
                self._state.notify_all()

    def close(self) -> None:
        """Stop. Threads that wait for a silent server are left to end by themselves."""
        with self._state:
            self._closed = True
            self._queue.clear()
            self._state.notify_all()
        for thread in self._threads:
            thread.join(_CLOSE_SECONDS / len(self._threads))

    def _claim(self) -> None:
        """Declare the shards that this node needs; those no longer named may be evicted."""
        needs = self._needs
        names = [self._manifest.shards[shard].sha256 for shard in needs.shards]
        wanted, in_use = self._schedule.wanted(needs, self._cache.budget), needs.in_use
        self._cache.claim(names[:in_use], names[in_use:wanted], names)

    def _plan_queue(self) -> None:
        needs = self._needs
        wanted = needs.shards[: self._schedule.wanted(needs, self._cache.budget)].tolist()
        here = self._cache.present()
        in_use, ahead = wanted[: needs.in_use], wanted[needs.in_use :]

        def indexes(shards: list[int]) -> list[Wanted]:
            return [Wanted(True, shard) for shard in shards if shard not in self._done_indexes]

        def missing(shards: list[int]) -> list[Wanted]:
            return [Wanted(False, shard) for shard in shards if self._manifest.shards[shard].sha256 not in here]

        self._urgent = set(missing(in_use))
        # The sizes of a batch's images are in the indexes, so a batch needs those of all its shards first.
        queue = [*indexes(in_use), *missing(in_use), *indexes(ahead), *missing(ahead)]
        left_out = self._running | self._put_off | self._failed
        self._queue = [item for item in reversed(queue) if item not in left_out]

    def _work(self) -> None:
        while True:
            with self._state:
                while not self._closed and not self._may_start():
                    self._state.wait()
                if self._closed:
                    return
                item = self._queue.pop()
                self._running.add(item)
                hurry = item in self._urgent and len(self._urgent) <= _HURRIED
            found = failed = False
            began = time.monotonic()
            try:
                found = self._fetch(item, hurry)
            except Stopped:
                pass
            except Exception:
                # The reader that needs the file tries again and reports the error. Without this thread, it would wait
                # for files that nobody fetches ahead.
                failed = True
            with self._state:
                self._running.discard(item)
                if found and not item.is_index and item not in self._urgent:
                    size, seconds = self._manifest.shards[item.shard].bytes, time.monotonic() - began
                    self._transfers.arrived(size, seconds, self._shards_running())
                if found and item.is_index:
                    self._done_indexes.add(item.shard)
                elif failed:
                    self._failed.add(item)
                elif not found:
                    self._put_off.add(item)
                self._urgent.discard(item)
                self._state.notify_all()

    def _may_start(self) -> bool:
        """Return True if the next file may be fetched: files ahead must not take bandwidth from files in use."""
        if not self._queue:
            return False
        item = self._queue[-1]
        if item.is_index or item in self._urgent:
            return True
        return not self._urgent & self._running and self._shards_running() < self._transfers.limit

    def _shards_running(self) -> int:
        return sum(not item.is_index for item in self._running)
