"""Which shards a node needs next, in order: what the cache fetches ahead, keeps, and lets go of.

Pure functions of the plan, the world and a step; no files, no threads. The order of samples is known for all time, so
the shard to let go of is the one whose next use is farthest away, which no other rule beats (Belady, A Study of
Replacement Algorithms, 1966). A shard between two uses of one epoch counts as in use: let go of, it would be fetched
twice in that epoch.
"""

import heapq
from typing import NamedTuple

import numpy as np

from data_shards.order.plan import Int64, Plan, ShardUses, World

# Steps that ranks and the batches they work on ahead may lie apart.
_SPREAD_STEPS = 8
_LOOK_STEPS = 4
_NEVER = np.iinfo(np.int64).max
_IN_USE = -1


class Needs(NamedTuple):
    """A node's shards at one step, the one that is needed next first."""

    shards: Int64
    """`(shards,)` indexes into the manifest's shards."""
    next_steps: Int64
    """`(shards,)` when each is used next: this step where it is in use, NEVER beyond the next epoch's end."""
    step: int
    valid_until: int
    """The first later step at which this is not so any more."""

    @property
    def in_use(self) -> int:
        """How many shards, of the first, are in use."""
        return int(np.searchsorted(self.next_steps, self.step, side="right"))


class NodeSchedule:
    """The shards of the places that a node fills in every batch.

    Args:
        plan: the order of samples.
        shard_bytes: int64 `(shards,)`, the manifest's.
        world: whose node. Where ranks do not stand equally on nodes, this rank's own places belong to it, too.
        stop_step: the step before which the run ends; None goes on for ever.
    """

    def __init__(self, plan: Plan, shard_bytes: Int64, world: World, stop_step: int | None = None) -> None:
        batch = plan.global_batch_size
        self._first = min(world.node * batch // world.nodes, world.rank * batch // world.ranks)
        last = max((world.node + 1) * batch // world.nodes, (world.rank + 1) * batch // world.ranks)
        self._size = last - self._first
        self.plan = plan
        self.shard_bytes = shard_bytes
        self._stop_step = _NEVER if stop_step is None else stop_step
        self._uses: dict[int, ShardUses] = {}
        self.shards = plan.shards_of_slots(self._first, self._size)
        """All of them, ascending."""
        self.least_bytes = least_bytes(plan, shard_bytes, self._first, self._size)
        """Room in which each shard is fetched once an epoch."""

    def needs(self, step: int) -> Needs:
        """The shards by next use, seen from a step on, over the rest of its epoch and the next."""
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
        # Only among those in use: what is farther away must keep its place, or it would be fetched and dropped in turn.
        soon = np.where(next_steps == step, self._soon(step), 0)
        order = known[np.lexsort((known, soon[known], next_steps[known]))]
        changes = np.concatenate([first_steps[coming & (first_steps > step)], last_steps[coming] + 1])
        valid_until = int(changes.min()) if len(changes) else _NEVER
        return Needs(order, next_steps[order], step, min(valid_until, (epoch + 1) * self.plan.steps_per_epoch))

    def wanted(self, needs: Needs, budget: int) -> int:
        """How many shards, of the first, should be here: those in use, and as many bytes again ahead of them.

        Args:
            needs: of a step.
            budget: bytes that the cache may hold; 0 for no limit.
        """
        total = np.cumsum(self.shard_bytes[needs.shards])
        used = int(total[needs.in_use - 1]) if needs.in_use else 0
        # The next window of every stream is about as large as the open ones.
        most = max(2 * used, self.least_bytes)
        if budget:
            most = min(most, budget)
        count = int(np.searchsorted(total, most, side="right"))
        return min(count, int(np.searchsorted(needs.next_steps, _NEVER)))

    def spans(self, epoch: int) -> tuple[Int64, Int64, Int64]:
        """The shards that an epoch uses, ascending, with the first and the last step of each."""
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

    def _soon(self, step: int) -> Int64:
        """`(shards,)`: in which of the next few steps each shard gives its first sample."""
        soon = np.full(len(self.shard_bytes), _LOOK_STEPS)
        per_epoch = self.plan.steps_per_epoch
        for ahead in reversed(range(_LOOK_STEPS)):
            epoch, step_in_epoch = divmod(step + ahead, per_epoch)
            ids = self.plan.batch(epoch, step_in_epoch)[self._first : self._first + self._size]
            soon[self.plan.locate(ids)[0]] = ahead
        return soon


def least_bytes(plan: Plan, shard_bytes: Int64, first: int, size: int) -> int:
    """Bytes that some places of the batches may need at the same time, in any epoch.

    A stream needs two windows while it goes from one to the next; a shard that is cut stays between its pieces' uses.
    More than the whole of the node's shards is never needed.
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
    """What a node fetches in each of the first epochs, from an empty cache of so many bytes.

    Args:
        schedule: the node's.
        budget: room in bytes, at least `schedule.least_bytes`; 0 for no limit.
        epochs: how many.
    """
    sizes = schedule.shard_bytes.tolist()
    fetched: list[int] = []
    free = budget
    next_use: dict[int, int] = {}  # of every shard that is here; IN_USE while it is
    in_use: list[tuple[int, int]] = []  # the one that ends first is first
    idle: list[tuple[int, int]] = []  # the one that is used again last is first; may hold what is not so any more
    spans = schedule.spans(0)
    for epoch in range(epochs):
        shards, first_steps, last_steps = spans
        spans = schedule.spans(epoch + 1)
        again = dict(zip(spans[0].tolist(), spans[1].tolist(), strict=True))
        fetched.append(0)
        uses = sorted(zip(first_steps.tolist(), shards.tolist(), last_steps.tolist(), strict=True))
        for first, shard, last in [*uses, (_NEVER, -1, 0)]:
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
                if next_use.get(victim) == -negative:
                    del next_use[victim]
                    free += sizes[victim]
    return fetched
