"""The order of samples: a pure function of seed, epoch, manifest and global batch size.

Nothing here knows files, threads, or how many workers there are. Any batch of any epoch is computed from
scratch in a time that depends on its size alone, so resuming is asking for the next batch, and a different
number of ranks only cuts the same global batch at other places.

How the order is made. The shards are dealt once to a fixed number of *streams* of equal length; a stream may
begin or end inside a shard. Each epoch, every stream permutes its pieces of shards, groups a few neighbours
into a *window*, and permutes the samples inside each window. Position `p` of the epoch takes the next sample
of stream `p mod streams`, so every batch draws the same number of samples from every stream, while a node
that serves one part of the streams reads only their shards. A set with few shards gets few streams; with one
stream and one window the order is a plain permutation of everything.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.format.manifest import Manifest
from data_shards.order.keyed_random import UInt64, key, keys, mix64

Int64 = NDArray[np.int64]

DEFAULT_STREAMS = 48
DEFAULT_WINDOW_SHARDS = 4

# What a key is for; the words that keep the three permutations apart.
_PLACEMENT, _PIECES, _SAMPLES = 101, 102, 103

_ROUNDS = 6
# Below 256 values a Feistel network of six rounds is measurably uneven, so small windows walk inside 256.
_LEAST_HALF_BITS = 4


@dataclass(frozen=True)
class World:
    """Who takes part: `ranks` workers on `nodes` machines, of which this one is `rank` on `node`."""

    ranks: int
    rank: int
    nodes: int = 1
    node: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.ranks and 0 <= self.node < self.nodes):
            raise ValueError(
                f"rank {self.rank} of {self.ranks} on node {self.node} of {self.nodes} is no place in a world"
            )


class _EpochOrder(NamedTuple):
    """One epoch's pieces in reading order, all streams one after the other."""

    piece_starts: Int64  # (pieces,) where each piece begins in the concatenated streams
    piece_first_samples: Int64  # (pieces,) the sample id each begins with
    window_starts: Int64  # (windows + 1,) the same frame as piece_starts
    window_keys: UInt64  # (windows,)


class ShardUses(NamedTuple):
    """When an epoch takes samples from shards: int64 arrays `(uses,)`. A shard that is cut stands in two or more."""

    shards: Int64
    """Indexes into the manifest's shards."""
    first_steps: Int64
    """The first step of the run, counted over all epochs, that may take a sample."""
    last_steps: Int64
    """The last one."""


@dataclass(frozen=True)
class Plan:
    """Which samples make up every global batch of every epoch; `make_plan` builds one from a manifest."""

    shard_samples: tuple[int, ...] = field(repr=False)
    """How many samples each shard of the manifest holds, in its order."""
    seed: int
    global_batch_size: int
    streams: int
    """How many streams are in use; divides `global_batch_size`."""
    window_shards: int
    manifest_digest: str = ""
    """Digest of the manifest the plan was made for; empty where a plan was made without one."""
    _epochs: dict[int, _EpochOrder] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def num_samples(self) -> int:
        """Samples in the whole set."""
        return sum(self.shard_samples)

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in an epoch."""
        return self.num_samples // self.global_batch_size

    @property
    def samples_dropped_per_epoch(self) -> int:
        """Samples at the end of each epoch's order that fill no batch; other ones each epoch."""
        return self.num_samples % self.global_batch_size

    def batch(self, epoch: int, step: int) -> Int64:
        """The sample ids of one global batch.

        Args:
            epoch: counted from 0.
            step: counted from 0 within the epoch.

        Returns:
            int64 `(global_batch_size,)`: running index over the manifest's shards, in order. Samples of one
            stream stand together, so that equal slices are what ranks take.
        """
        return self._slice(epoch, step, 0, self.global_batch_size)[0]

    def rank_batch(self, epoch: int, step: int, world: World) -> Int64:
        """The slice of a global batch that one rank works on: int64 `(global_batch_size / ranks,)`.

        The slices of ranks 0, 1, … one after the other are `batch(epoch, step)`.

        Raises:
            DataError: the ranks do not divide the global batch size.
        """
        return self.rank_batches(epoch, step, 1, world)[0]

    def rank_batches(self, epoch: int, step: int, steps: int, world: World) -> Int64:
        """The same for several steps of an epoch, from `step` on: int64 `(steps, global_batch_size / ranks)`."""
        check_divisible(self.global_batch_size, world.ranks)
        size = self.global_batch_size // world.ranks
        return self._slice(epoch, step, world.rank * size, size, steps)

    def locate(self, sample_ids: Int64) -> tuple[Int64, Int64]:
        """Shard index and row within the shard, both int64 and shaped as `sample_ids`."""
        shards = np.searchsorted(self._shard_ends, sample_ids, side="right")
        rows = sample_ids - (self._shard_ends[shards] - self._shard_sizes[shards])
        return shards.astype(np.int64), rows

    def shards_of_slots(self, first: int, size: int) -> Int64:
        """The shards that fill some places of every global batch, the same in each epoch.

        Args:
            first: the first place within the batch, such as `rank * size` of a rank.
            size: how many places.

        Returns:
            int64, ascending indexes into the manifest's shards. A batch is cut at places, not at streams, so a
            stream that two nodes share is read by both.
        """
        per_stream = self.global_batch_size // self.streams
        _, shards, stream = self.pieces
        mine = (stream >= first // per_stream) & (stream <= (first + size - 1) // per_stream)
        return np.unique(shards[mine])

    def shard_uses(self, epoch: int, first: int, size: int) -> ShardUses:
        """When some places of the global batches need which shards: from where a window opens to where it closes.

        Args:
            epoch: counted from 0.
            first: the first place within the batch, such as `rank * size` of a rank.
            size: how many places.

        Returns:
            A row for each piece of a shard in the streams that fill these places, but for those whose whole
            window is in the tail that the epoch leaves out.
        """
        per_stream = self.global_batch_size // self.streams
        order = self._epoch_order(epoch)
        begin = self._stream_starts[first // per_stream]
        end = self._stream_starts[(first + size - 1) // per_stream + 1]
        mine = slice(*np.searchsorted(order.piece_starts, [begin, end]))
        starts = order.piece_starts[mine]
        window = np.searchsorted(order.window_starts, starts, side="right") - 1
        stream_start = self._stream_starts[np.searchsorted(self._stream_starts, starts, side="right") - 1]
        first_steps = (order.window_starts[window] - stream_start) // per_stream
        last_steps = (order.window_starts[window + 1] - 1 - stream_start) // per_stream
        used = first_steps < self.steps_per_epoch
        start = epoch * self.steps_per_epoch
        return ShardUses(
            self.locate(order.piece_first_samples[mine][used])[0],
            start + first_steps[used],
            start + np.minimum(last_steps, self.steps_per_epoch - 1)[used],
        )

    def describe(self) -> str:
        """Two lines for people: the arithmetic of an epoch, and how it is shuffled."""
        dropped = self.samples_dropped_per_epoch
        tail = (
            f"the last {dropped:,} of each epoch's order left out (drop_last), other ones every epoch"
            if dropped
            else "none left out"
        )
        shards = len(self.shard_samples)
        return (
            f"{self.num_samples:,} samples = {self.steps_per_epoch:,} steps of {self.global_batch_size:,} "
            f"an epoch, {tail}\n"
            f"{counted(shards, 'shard')} in {counted(self.streams, 'stream')}, "
            f"shuffled in windows of {self.window_shards} shards, seed {self.seed}"
        )

    @cached_property
    def pieces(self) -> tuple[Int64, Int64, Int64]:
        """Of each piece that streams cut from a shard, int64 `(pieces,)`: its samples, its shard, its stream."""
        counts, first_samples, stream = self._pieces
        return counts, self.locate(first_samples)[0], stream

    def _slice(self, epoch: int, step: int, first: int, size: int, steps: int = 1) -> Int64:
        """Some places of the global batches of some steps, `(steps, size)`."""
        if epoch < 0 or steps < 1 or not 0 <= step <= self.steps_per_epoch - steps:
            raise IndexError(
                f"epoch {epoch} step {step + steps - 1}: epochs have steps 0 to {self.steps_per_epoch - 1}"
            )
        per_stream = self.global_batch_size // self.streams
        places = np.tile(np.arange(first, first + size, dtype=np.int64), steps)
        step_of = np.repeat(np.arange(step, step + steps, dtype=np.int64), size)
        stream = places // per_stream
        index_in_stream = step_of * per_stream + places % per_stream
        order = self._epoch_order(epoch)

        positions = self._stream_starts[stream] + index_in_stream
        window = np.searchsorted(order.window_starts, positions, side="right") - 1
        start = order.window_starts[window]
        positions = start + permute(
            positions - start, order.window_starts[window + 1] - start, order.window_keys[window]
        )
        piece = np.searchsorted(order.piece_starts, positions, side="right") - 1
        return (order.piece_first_samples[piece] + (positions - order.piece_starts[piece])).reshape(steps, size)

    @cached_property
    def _shard_sizes(self) -> Int64:
        return np.asarray(self.shard_samples, dtype=np.int64)

    @cached_property
    def _shard_ends(self) -> Int64:
        return np.cumsum(self._shard_sizes)

    @cached_property
    def _stream_starts(self) -> Int64:
        """`(streams + 1,)`: stream c serves the positions p with p mod streams = c."""
        sizes = (self.num_samples - np.arange(self.streams, dtype=np.int64) + self.streams - 1) // self.streams
        return np.concatenate([[0], np.cumsum(sizes)])

    @cached_property
    def _pieces(self) -> tuple[Int64, Int64, Int64]:
        """Sample counts, first sample ids and streams of the pieces that streams cut shards into."""
        sizes = self._shard_sizes
        placed = np.argsort(keys(key(self.seed, _PLACEMENT), np.arange(len(sizes))), kind="stable")
        ends = np.cumsum(sizes[placed])
        cuts = np.union1d(np.concatenate([[0], ends]), self._stream_starts)
        starts, counts = cuts[:-1], np.diff(cuts)
        place = np.searchsorted(ends, starts, side="right")
        shard = placed[place]
        first_samples = (self._shard_ends - sizes)[shard] + starts - (ends - sizes[placed])[place]
        stream = np.searchsorted(self._stream_starts, starts, side="right") - 1
        return counts, first_samples, stream

    def _epoch_order(self, epoch: int) -> _EpochOrder:
        if (known := self._epochs.get(epoch)) is not None:
            return known
        counts, first_samples, stream = self._pieces
        shuffled = keys(key(self.seed, epoch, _PIECES), np.arange(len(counts)))
        order = np.lexsort((shuffled, stream))
        stream, counts = stream[order], counts[order]
        starts = np.cumsum(counts) - counts

        pieces_of_stream = np.bincount(stream, minlength=self.streams)
        rank_in_stream = np.arange(len(stream)) - (np.cumsum(pieces_of_stream) - pieces_of_stream)[stream]
        windows_of_stream = np.maximum(1, pieces_of_stream // self.window_shards)
        window_in_stream = rank_in_stream * windows_of_stream[stream] // pieces_of_stream[stream]
        opens_window = (np.diff(stream, prepend=-1) != 0) | (np.diff(window_in_stream, prepend=-1) != 0)
        window_starts = starts[opens_window]
        made = _EpochOrder(
            piece_starts=starts,
            piece_first_samples=first_samples[order],
            window_starts=np.append(window_starts, self.num_samples),
            window_keys=keys(key(self.seed, epoch, _SAMPLES), np.arange(len(window_starts))),
        )
        for old in set(self._epochs) - {epoch - 1, epoch + 1}:
            self._epochs.pop(old, None)
        self._epochs[epoch] = made
        return made


def make_plan(
    manifest: Manifest,
    *,
    seed: int,
    global_batch_size: int,
    streams: int = DEFAULT_STREAMS,
    window_shards: int = DEFAULT_WINDOW_SHARDS,
) -> Plan:
    """The order of a data set's samples for one run.

    Args:
        manifest: the data set; only its shards' sample counts and its digest are used.
        seed: the run's seed.
        global_batch_size: samples in one optimizer step, over all ranks.
        streams: at most so many streams. The number used is the largest that divides the global batch size
            and leaves each stream a shard or more, so that every batch takes as many samples from each.
        window_shards: samples are shuffled across at least so many shards of a stream (fewer if it has fewer).

    Raises:
        DataError: fewer samples than one global batch holds, or a setting below 1.
    """
    shard_samples = tuple(shard.samples for shard in manifest.shards)
    for name, value in [
        ("global_batch_size", global_batch_size),
        ("streams", streams),
        ("window_shards", window_shards),
    ]:
        if value < 1:
            raise DataError(f"{name} is {value}; set it to 1 or more.")
    num_samples = sum(shard_samples)
    if global_batch_size > num_samples:
        raise DataError(
            f"one global batch of {global_batch_size:,} needs more than the {num_samples:,} samples of split "
            f"{manifest.split!r}: an epoch would have no step. Set the global batch size to {num_samples:,} "
            "or less."
        )
    most = min(streams, len(shard_samples))
    return Plan(
        shard_samples=shard_samples,
        seed=seed,
        global_batch_size=global_batch_size,
        streams=max(count for count in range(1, most + 1) if global_batch_size % count == 0),
        window_shards=window_shards,
        manifest_digest=manifest.digest,
    )


def check_divisible(global_batch_size: int, parts: int, what: str = "ranks") -> None:
    """Refuse a global batch that cannot be cut into equal parts.

    Raises:
        DataError: naming the nearest batch sizes that can.
    """
    if global_batch_size % parts:
        below = global_batch_size // parts * parts
        nearest = f"{below:,} or {below + parts:,}" if below else f"{parts:,}"
        raise DataError(
            f"a global batch of {global_batch_size:,} cannot be divided equally among {parts:,} {what}. "
            f"Set it to {nearest}."
        )


def permute(indices: Int64, sizes: Int64, permutation_keys: UInt64) -> Int64:
    """Where keyed permutations send indices, each computed on its own.

    A Feistel network is a bijection on numbers of 2 x h bits; applied again and again until the result lies
    below `size` ("cycle walking") it is a bijection on 0 … size - 1.

    Args:
        indices: int64 `(n,)`, each in 0 … its size - 1.
        sizes: int64 `(n,)`, the number of things each permutation is of.
        permutation_keys: uint64 `(n,)`; equal keys and sizes mean the same permutation.

    Returns:
        int64 `(n,)`.

    Source:
        Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002, section 3 (cycle walking).
    """
    half_bits = np.array([max(_LEAST_HALF_BITS, (int(size - 1).bit_length() + 1) // 2) for size in sizes])
    half_bits = half_bits.astype(np.uint64)
    masks = (np.uint64(1) << half_bits) - np.uint64(1)
    round_keys = [keys(np.uint64(turn), permutation_keys) for turn in range(_ROUNDS)]
    limits = sizes.astype(np.uint64)
    results = indices.astype(np.uint64)
    walking = np.arange(len(results))
    while len(walking):
        shift, mask = half_bits[walking], masks[walking]
        left, right = results[walking] >> shift, results[walking] & mask
        for round_key in round_keys:
            left, right = right, left ^ (mix64(right + round_key[walking]) & mask)
        results[walking] = (left << shift) | right
        walking = walking[results[walking] >= limits[walking]]
    return results.astype(np.int64)
