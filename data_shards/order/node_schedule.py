"""The shards that a node needs next, in order: the cache fetches ahead, keeps and evicts by it.

Pure functions of the plan, the world and a step; no files, no threads. The order of samples is known for all time, so
the cache evicts the shard whose next use is farthest away, which no other rule beats (Belady, A Study of Replacement
Algorithms, 1966). A shard between two uses in one epoch counts as in use: if it were evicted, it would be fetched twice
in that epoch.
"""

import heapq
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from data_shards.order.plan import Plan, ShardUses, World

# Most steps between the ranks of a node, and the batches they prepare ahead.
_SPREAD_STEPS = 8
# Steps within which shards in use are ordered by their next sample.
_LOOK_STEPS = 4
_NEVER = np.iinfo(np.int64).max
_IN_USE = -1


class Needs(NamedTuple):
    """A node's shards at one step, the next needed first."""

    shards: Int64[np.ndarray, " shards"]
    """Indexes into the manifest's shards."""
    next_steps: Int64[np.ndarray, " shards"]
    """Step of each shard's next use: this step if it is in use, _NEVER if that is after the next epoch."""
    step: int
    valid_until: int
    """The first later step at which the needs differ."""

    @property
    def in_use(self) -> int:
        """Number of shards in use; they come first."""
        return int(np.searchsorted(self.next_steps, self.step, side="right"))


class NodeSchedule:
    """The shards of the places that a node fills in every batch.

    Args:
        plan: the order of samples.
        shard_bytes: size of each shard of the manifest.
        world: a rank on the node. If nodes have different numbers of ranks, this rank's own places count too.
        stop_step: the step before which the run ends; None never ends.
    """

    def __init__(
        self, plan: Plan, shard_bytes: Int64[np.ndarray, " shards"], world: World, stop_step: int | None = None
    ) -> None:
        batch = plan.global_batch_size
        self._first = min(world.node * batch // world.nodes, world.rank * batch // world.ranks)
        last = max((world.node + 1) * batch // world.nodes, (world.rank + 1) * batch // world.ranks)
        self._size = last - self._first
        self.plan = plan
        self.shard_bytes = shard_bytes
        self._stop_step = _NEVER if stop_step is None else stop_step
        self._uses: dict[int, ShardUses] = {}
        self.shards = plan.shards_of_slots(self._first, self._size)
        """All shards of the node, ascending."""
        self.least_bytes = least_bytes(plan, shard_bytes, self._first, self._size)
        """Size of a cache that fetches no shard twice in an epoch."""

    def needs(self, step: int) -> Needs:
        """Return the shards by their next use from a step on, in the rest of its epoch and the next."""
        epoch = step // self.plan.steps_per_epoch
        now, following = self._epoch(epoch), self._epoch(epoch + 1)
        shards = np.concatenate([now.shards, following.shards])
        first_steps = np.concatenate([now.first_steps, following.first_steps])
        last_steps = np.concatenate([now.last_steps, following.last_steps])
        coming = (last_steps >= step) & (first_steps < self._stop_step)
        starts = np.maximum(first_steps, step)

        next_steps = np.full(len(self.shard_bytes), _NEVER)
        np.minimum.at(next_steps, shards[coming], starts[coming])
        begun = now.shards[now.first_steps <= step]
        again = now.shards[(now.last_steps >= step) & (now.first_steps < self._stop_step)]
        next_steps[np.intersect1d(begun, again)] = step

        known = self.shards
        # Reorder only shards in use. Others must keep their places, or they would be fetched and evicted in turn.
        soon = np.where(next_steps == step, self._soon(step), 0)
        order = known[np.lexsort((known, soon[known], next_steps[known]))]
        changes = np.concatenate([first_steps[coming & (first_steps > step)], last_steps[coming] + 1])
        valid_until = int(changes.min()) if len(changes) else _NEVER
        return Needs(order, next_steps[order], step, min(valid_until, (epoch + 1) * self.plan.steps_per_epoch))

    def wanted(self, needs: Needs, budget: int) -> int:
        """Return the number of shards to have in the cache, the first of `needs`: those in use and as many bytes ahead.

        Args:
            needs: the needs at a step.
            budget: most bytes in the cache; 0 for no limit.
        """
        total = np.cumsum(self.shard_bytes[needs.shards])
        used = int(total[needs.in_use - 1]) if needs.in_use else 0
        # The next window of every stream is about as large as the open ones.
        most = max(2 * used, self.least_bytes)
        if budget:
            most = min(most, budget)
        count = int(np.searchsorted(total, most, side="right"))
        return min(count, int(np.searchsorted(needs.next_steps, _NEVER)))

    def spans(
        self, epoch: int
    ) -> tuple[Int64[np.ndarray, " shards"], Int64[np.ndarray, " shards"], Int64[np.ndarray, " shards"]]:
        """Return the shards that an epoch uses, ascending, with the first and the last step of each."""
        uses = self.plan.shard_uses(epoch, self._first, self._size)
        shards, place = np.unique(uses.shards, return_inverse=True)
        first_steps = np.full(len(shards), _NEVER)
        last_steps = np.zeros(len(shards), dtype=np.int64)
        np.minimum.at(first_steps, place, uses.first_steps)
        np.maximum.at(last_steps, place, uses.last_steps)
        return shards, first_steps, last_steps

    def _epoch(self, epoch: int) -> ShardUses:
        if epoch not in self._uses:
            self._uses = {known: uses for known, uses in self._uses.items() if known == epoch - 1}
            self._uses[epoch] = self.plan.shard_uses(epoch, self._first, self._size)
        return self._uses[epoch]

    def _soon(self, step: int) -> Int64[np.ndarray, " shards"]:
        """Return in which of the next few steps each shard's next sample is; the same for all if the plan groups."""
        soon = np.full(len(self.shard_bytes), _LOOK_STEPS)
        if self.plan.grouped:
            # The samples of a grouped step are known from indexes alone, and those are yet to be fetched.
            return soon
        per_epoch = self.plan.steps_per_epoch
        for ahead in reversed(range(_LOOK_STEPS)):
            epoch, step_in_epoch = divmod(step + ahead, per_epoch)
            ids = self.plan.batch(epoch, step_in_epoch)[self._first : self._first + self._size]
            soon[self.plan.locate(ids)[0]] = ahead
        return soon


def least_bytes(plan: Plan, shard_bytes: Int64[np.ndarray, " shards"], first: int, size: int) -> int:
    """Return the most bytes that some places of the batches need at the same time, in any epoch.

    A stream needs two windows while it moves from one to the next. A shard that streams cut stays between the uses of
    its pieces. All shards of the node together are the upper bound.

    Args:
        plan: the order of samples.
        shard_bytes: size of each shard of the manifest.
        first: the first place within the batch.
        size: number of places.
    """
    per_stream = plan.global_batch_size // plan.streams
    counts, shards, stream = plan.pieces
    last = (first + size - 1) // per_stream
    mine = (stream >= first // per_stream) & (stream <= last)
    counts, shards, stream = counts[mine], shards[mine], stream[mine]
    found, pieces_of_shard = np.unique(shards, return_counts=True)
    everything = int(shard_bytes[found].sum())
    needed = int(shard_bytes[found[pieces_of_shard > 1]].sum())
    for number in range(first // per_stream, last + 1):
        here = stream == number
        pieces = int(here.sum())
        windows = max(1, pieces // plan.window_shards)
        fewest, most = pieces // windows, -(-pieces // windows)
        smallest_window = int(np.sort(counts[here])[:fewest].sum())
        held = 2 * most if smallest_window >= per_stream * _SPREAD_STEPS else pieces
        needed += int(np.sort(shard_bytes[shards[here]])[::-1][:held].sum())
        if needed >= everything:
            return everything
    return needed


def fetched_bytes(schedule: NodeSchedule, budget: int, epochs: int) -> list[int]:
    """Return the bytes that a node fetches in each of the first epochs, starting with an empty cache.

    Args:
        schedule: the node's schedule.
        budget: size of the cache in bytes, at least `schedule.least_bytes`; 0 for no limit.
        epochs: number of epochs.
    """
    sizes = schedule.shard_bytes.tolist()
    fetched: list[int] = []
    free = budget
    next_use: dict[int, int] = {}  # of every cached shard; _IN_USE while it is in use
    in_use: list[tuple[int, int]] = []  # last step and shard; the earliest end first
    idle: list[tuple[int, int]] = []  # the farthest next use first; entries may be outdated
    spans = schedule.spans(0)
    for epoch in range(epochs):
        shards, first_steps, last_steps = spans
        spans = schedule.spans(epoch + 1)
        again = dict(zip(spans[0].tolist(), spans[1].tolist(), strict=True))
        fetched.append(0)
        uses = sorted(zip(first_steps.tolist(), shards.tolist(), last_steps.tolist(), strict=True))
        # The last entry only releases the shards that are still in use.
        for first, shard, last in [*uses, (_NEVER, -1, 0)]:
            # Release shards whose last step is past; they stay cached until space is needed.
            while in_use and in_use[0][0] < first:
                _, ended = heapq.heappop(in_use)
                next_use[ended] = again.get(ended, _NEVER)
                heapq.heappush(idle, (-next_use[ended], ended))
            if shard < 0:
                break
            if shard not in next_use:
                fetched[-1] += sizes[shard]
                free -= sizes[shard]
            next_use[shard] = _IN_USE
            heapq.heappush(in_use, (last, shard))
            while budget and free < 0 and idle:
                negative, victim = heapq.heappop(idle)
                # An outdated entry belongs to a shard that was evicted or used again since.
                if next_use.get(victim) == -negative:
                    del next_use[victim]
                    free += sizes[victim]
    return fetched
