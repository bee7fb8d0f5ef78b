"""The order of samples: a pure function of seed, epoch, manifest and global batch size.

Nothing here knows files, threads, or the number of workers. Any batch of any epoch is computed from scratch, in a time
that depends on its size alone. So a run resumes by asking for the next batch, and another number of ranks only cuts the
same global batch at other places.

How the order is made. The shards are dealt once to a fixed number of *streams* of equal length; a stream may begin or
end inside a shard. Each epoch, every stream permutes its pieces of shards, groups a few neighbours into a *window*, and
permutes the samples inside each window. Position `p` of the epoch takes the next sample of stream `p mod streams`, so
every batch takes the same number of samples from every stream, while a node that serves some of the streams reads only
their shards. A set with few shards gets few streams; with one stream and one window the order is a plain permutation.

Where images of different shapes are padded to the largest of a batch, a plan can group them by aspect ratio: portraits
share steps with portraits. Each window then serves its portraits and its other images in an order of their own, and a
key that all streams share draws which of the two a step takes. Samples stay in their stream and their window, so shards
are needed when they are needed without grouping, and every part of a batch is of one group, on any number of ranks.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.format.manifest import Manifest
from data_shards.order.keyed_random import key, keys, mix64

DEFAULT_STREAMS = 48
DEFAULT_WINDOW_SHARDS = 4

# Words in the keys that keep the permutations apart.
_PLACEMENT, _PIECES, _SAMPLES, _GROUPS = 101, 102, 103, 104

_ROUNDS = 6
# Below 256 values a Feistel network of six rounds is measurably uneven, so small windows walk inside 256.
_LEAST_HALF_BITS = 4


class Portraits(Protocol):
    """Knows the portraits of each shard, such as `Shards.portraits`."""

    def __call__(self, shard: int, /) -> Bool[np.ndarray, " samples"]:
        """Return which images of a shard are portraits."""


@dataclass(frozen=True)
class World:
    """The workers of a run: `ranks` of them on `nodes` machines, of which this one is `rank` on `node`."""

    ranks: int
    rank: int
    nodes: int = 1
    node: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.ranks and 0 <= self.node < self.nodes):
            raise ValueError(
                f"rank is {self.rank} and node is {self.node}, but the world has {counted(self.ranks, 'rank')} on "
                f"{counted(self.nodes, 'node')}, both counted from 0"
            )


class _EpochOrder(NamedTuple):
    """One epoch's pieces in reading order, one stream after the other."""

    piece_starts: Int64[np.ndarray, " pieces"]
    """Position of each piece in the concatenated streams."""
    piece_first_samples: Int64[np.ndarray, " pieces"]
    """First sample id of each piece."""
    window_starts: Int64[np.ndarray, " windows+1"]
    """Position of each window, as `piece_starts`, and the end of the last one."""
    window_keys: UInt64[np.ndarray, " windows"]


class ShardUses(NamedTuple):
    """Steps at which an epoch takes samples from shards. A shard that streams cut has two or more uses."""

    shards: Int64[np.ndarray, " uses"]
    """Indexes into the manifest's shards."""
    first_steps: Int64[np.ndarray, " uses"]
    """The first step of the run, counted over all epochs, that may take a sample."""
    last_steps: Int64[np.ndarray, " uses"]
    """The last step that may take one."""


@dataclass(frozen=True)
class Plan:
    """The samples of every global batch of every epoch; `make_plan` makes one from a manifest."""

    shard_samples: tuple[int, ...] = field(repr=False)
    """Number of samples in each shard, in the order of the manifest."""
    seed: int
    global_batch_size: int
    streams: int
    """Number of streams; divides `global_batch_size`."""
    window_shards: int
    manifest_digest: str = ""
    """Digest of the manifest the plan was made for; empty for a plan made without one."""
    grouped: bool = False
    """True if the images of a step are portraits, or none of them is, wherever possible."""
    portraits: Portraits | None = field(default=None, repr=False, compare=False)
    """The portraits of each shard; a grouped plan asks for those of the windows that it serves from."""
    _epochs: dict[int, _EpochOrder] = field(default_factory=dict, repr=False, compare=False)
    _dealt: dict[int, dict[int, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)
    """Samples of the windows that a grouped plan served from last, by epoch and number; the one used last is last."""

    def with_portraits(self, portraits: Portraits | None) -> "Plan":
        """Return the same order without what was computed so far, for a process that knows portraits from elsewhere."""
        return replace(self, portraits=portraits, _epochs={}, _dealt={})

    @cached_property
    def num_samples(self) -> int:
        """Samples in the whole split."""
        return sum(self.shard_samples)

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in an epoch."""
        return self.num_samples // self.global_batch_size

    @property
    def samples_dropped_per_epoch(self) -> int:
        """Samples at the end of each epoch's order that do not fill a batch; different ones every epoch."""
        return self.num_samples % self.global_batch_size

    def batch(self, epoch: int, step: int) -> Int64[np.ndarray, " global_batch_size"]:
        """Return the sample ids of one global batch.

        Args:
            epoch: counted from 0.
            step: counted from 0 within the epoch.

        Returns:
            Running indexes over the manifest's shards. Samples of a stream are neighbours, so that ranks take equal
            slices.
        """
        return self._slice(epoch, step, 0, self.global_batch_size)[0]

    def rank_batch(self, epoch: int, step: int, world: World) -> Int64[np.ndarray, " rank_batch_size"]:
        """Return the slice of a global batch that one rank works on.

        The slices of ranks 0, 1, … one after the other are `batch(epoch, step)`.

        Raises:
            DataError: the ranks do not divide the global batch size.
        """
        return self.rank_batches(epoch, step, 1, world)[0]

    def rank_batches(
        self, epoch: int, step: int, steps: int, world: World
    ) -> Int64[np.ndarray, "steps rank_batch_size"]:
        """Return the slices of one rank for several steps of an epoch, from `step` on.

        Raises:
            DataError: the ranks do not divide the global batch size.
        """
        check_divisible(self.global_batch_size, world.ranks)
        size = self.global_batch_size // world.ranks
        return self._slice(epoch, step, world.rank * size, size, steps)

    def locate(
        self, sample_ids: Int64[np.ndarray, "*samples"]
    ) -> tuple[Int64[np.ndarray, "*samples"], Int64[np.ndarray, "*samples"]]:
        """Return the shard of each sample, and its row there."""
        shards = np.searchsorted(self._shard_ends, sample_ids, side="right")
        rows = sample_ids - (self._shard_ends[shards] - self._shard_sizes[shards])
        return shards.astype(np.int64), rows

    def shards_of_slots(self, first: int, size: int) -> Int64[np.ndarray, " shards"]:
        """Return the shards that fill some places of every global batch. They are the same in each epoch.

        Args:
            first: the first place within the batch, such as `rank * size` of a rank.
            size: number of places.

        Returns:
            Ascending indexes into the manifest's shards. A batch is cut at places, not at streams, so two nodes that
            share a stream both read it.
        """
        per_stream = self.global_batch_size // self.streams
        _, shards, stream = self.pieces
        mine = (stream >= first // per_stream) & (stream <= (first + size - 1) // per_stream)
        return np.unique(shards[mine])

    def shard_uses(self, epoch: int, first: int, size: int) -> ShardUses:
        """Return when some places of the global batches need which shards: while the window of a piece is open.

        Args:
            epoch: counted from 0.
            first: the first place within the batch, such as `rank * size` of a rank.
            size: number of places.

        Returns:
            A row for each piece of a shard in the streams that fill these places, without pieces whose whole window is
            in the tail that the epoch drops.
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
        """Return two lines to print: the arithmetic of an epoch, and how it is shuffled."""
        dropped = self.samples_dropped_per_epoch
        tail = f"{dropped:,} dropped at the end (drop_last), different ones every epoch" if dropped else "none dropped"
        shards = len(self.shard_samples)
        return (
            f"{self.num_samples:,} samples = {self.steps_per_epoch:,} steps of {self.global_batch_size:,} "
            f"an epoch, {tail}\n"
            f"{counted(shards, 'shard')} in {counted(self.streams, 'stream')}, "
            f"shuffled in windows of {counted(self.window_shards, 'shard')}, seed {self.seed}"
            + (", grouped by aspect ratio" if self.grouped else "")
        )

    @cached_property
    def pieces(
        self,
    ) -> tuple[Int64[np.ndarray, " pieces"], Int64[np.ndarray, " pieces"], Int64[np.ndarray, " pieces"]]:
        """Number of samples, shard and stream of each piece that streams cut from shards."""
        counts, first_samples, stream = self._pieces
        return counts, self.locate(first_samples)[0], stream

    def _slice(self, epoch: int, step: int, first: int, size: int, steps: int = 1) -> Int64[np.ndarray, "steps size"]:
        """Return some places of the global batches of some steps."""
        if epoch < 0 or steps < 1 or not 0 <= step <= self.steps_per_epoch - steps:
            raise IndexError(
                f"there is no step {step + steps - 1} in epoch {epoch}: epochs have steps 0 to "
                f"{self.steps_per_epoch - 1}"
            )
        # Places of a batch are sorted by stream: the first per_stream of them belong to stream 0, and so on.
        per_stream = self.global_batch_size // self.streams
        places = np.tile(np.arange(first, first + size, dtype=np.int64), steps)
        step_of = np.repeat(np.arange(step, step + steps, dtype=np.int64), size)
        stream = places // per_stream
        index_in_stream = step_of * per_stream + places % per_stream
        positions = self._stream_starts[stream] + index_in_stream
        return self._samples_at(epoch, positions).reshape(steps, size)

    def _samples_at(self, epoch: int, positions: Int64[np.ndarray, " places"]) -> Int64[np.ndarray, " places"]:
        """Return the samples at some positions of the concatenated streams."""
        order = self._epoch_order(epoch)
        window = np.searchsorted(order.window_starts, positions, side="right") - 1
        if not self.grouped:
            return _shuffled(order, window, positions)
        numbers = np.unique(window).tolist()
        dealt = self._dealt.setdefault(epoch, {})
        if missing := [number for number in numbers if number not in dealt]:
            dealt.update(zip(missing, self._deal(epoch, missing), strict=True))
        samples = np.empty_like(positions)
        for number in numbers:
            own = dealt[number] = dealt.pop(number)
            here = window == number
            samples[here] = own[positions[here] - order.window_starts[number]]
        # A stream that moves from one window to the next needs both.
        while len(dealt) > 2 * self.streams:
            del dealt[next(iter(dealt))]
        return samples

    def _deal(self, epoch: int, numbers: list[int]) -> list[Int64[np.ndarray, " places"]]:
        """Deal the samples of some windows again, so that all streams take portraits at the same steps.

        Every step has a random number, the same one in all streams, and the portraits of a window go to its steps with
        the lowest numbers. Windows with the same share of portraits agree on every step; where their shares differ by
        a hundredth, they disagree on a hundredth of the steps. Each group stays in the order in which it was shuffled.

        Args:
            epoch: counted from 0.
            numbers: the windows, ascending, at least one.
        """
        order = self._epoch_order(epoch)
        starts = order.window_starts[numbers]
        sizes = order.window_starts[np.add(numbers, 1)] - starts
        ends = np.cumsum(sizes)
        row = np.repeat(np.arange(len(numbers)), sizes)
        place = np.arange(ends[-1]) - (ends - sizes)[row]
        positions = starts[row] + place
        samples = _shuffled(order, np.asarray(numbers)[row], positions)
        portrait = self._portraits_among(samples)

        stream_starts = self._stream_starts[np.searchsorted(self._stream_starts, starts, side="right") - 1]
        steps = (positions - stream_starts[row]) // (self.global_batch_size // self.streams)
        lowest_first = np.lexsort((keys(key(self.seed, epoch, _GROUPS), steps), row))
        takes_portrait = np.empty(len(samples), dtype=np.bool_)
        takes_portrait[lowest_first] = place < np.bincount(row[portrait], minlength=len(numbers))[row]
        # Places and samples are both in the order of the windows, and each window has as many of one as of the other.
        dealt = np.empty_like(samples)
        dealt[takes_portrait] = samples[portrait]
        dealt[~takes_portrait] = samples[~portrait]
        return np.split(dealt, ends[:-1])

    def _portraits_among(self, samples: Int64[np.ndarray, " places"]) -> Bool[np.ndarray, " places"]:
        if self.portraits is None:
            raise ValueError("a grouped plan has to know which images are portraits: use `with_portraits` first")
        shards, rows = self.locate(samples)
        found = np.empty(len(samples), dtype=np.bool_)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            found[here] = self.portraits(shard)[rows[here]]
        return found

    @cached_property
    def _shard_sizes(self) -> Int64[np.ndarray, " shards"]:
        return np.asarray(self.shard_samples, dtype=np.int64)

    @cached_property
    def _shard_ends(self) -> Int64[np.ndarray, " shards"]:
        return np.cumsum(self._shard_sizes)

    @cached_property
    def _stream_starts(self) -> Int64[np.ndarray, " boundaries"]:
        """Position of each stream; stream c serves the positions p of the epoch with p mod streams = c."""
        sizes = (self.num_samples - np.arange(self.streams, dtype=np.int64) + self.streams - 1) // self.streams
        return np.concatenate([[0], np.cumsum(sizes)])

    @cached_property
    def _pieces(
        self,
    ) -> tuple[Int64[np.ndarray, " pieces"], Int64[np.ndarray, " pieces"], Int64[np.ndarray, " pieces"]]:
        """Number of samples, first sample id and stream of each piece that streams cut from shards."""
        sizes = self._shard_sizes
        # Shards are shuffled once, by the seed alone, so that a node reads the same shards in every epoch.
        placed = np.argsort(keys(key(self.seed, _PLACEMENT), np.arange(len(sizes))), kind="stable")
        ends = np.cumsum(sizes[placed])
        # A piece ends where its shard or its stream does.
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
        # Sort by stream first: pieces change places only within their stream.
        order = np.lexsort((shuffled, stream))
        stream, counts = stream[order], counts[order]
        starts = np.cumsum(counts) - counts

        pieces_of_stream = np.bincount(stream, minlength=self.streams)
        rank_in_stream = np.arange(len(stream)) - (np.cumsum(pieces_of_stream) - pieces_of_stream)[stream]
        # Rounded down, so that windows have window_shards pieces or more, and about equally many.
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
        # Ranks that look ahead ask for neighbouring epochs in turn; older orders would only take memory.
        for old in set(self._epochs) - {epoch - 1, epoch + 1}:
            self._epochs.pop(old, None)
            self._dealt.pop(old, None)
        self._epochs[epoch] = made
        return made


def make_plan(
    manifest: Manifest,
    *,
    seed: int,
    global_batch_size: int,
    streams: int = DEFAULT_STREAMS,
    window_shards: int = DEFAULT_WINDOW_SHARDS,
    portraits: Portraits | None = None,
) -> Plan:
    """Make the order of a split's samples for one run.

    Args:
        manifest: the split; only its shards' sample counts and its digest are used.
        seed: the run's seed.
        global_batch_size: samples in one optimizer step, over all ranks.
        streams: most streams. Their number is the largest that divides the global batch size and leaves each stream at
            least one shard, so that every batch takes equally many samples from each.
        window_shards: samples are shuffled across at least this many shards of a stream, or all if it has fewer.
        portraits: groups images by aspect ratio; called when samples are asked for, and never before. None groups
            nothing.

    Raises:
        DataError: there are fewer samples than in one global batch, or a setting is below 1.
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
        grouped=portraits is not None,
        portraits=portraits,
    )


def check_divisible(global_batch_size: int, parts: int, what: str = "ranks") -> None:
    """Refuse a global batch that cannot be divided into equal parts.

    Raises:
        DataError: with the nearest batch sizes that can.
    """
    if global_batch_size % parts:
        below = global_batch_size // parts * parts
        nearest = f"{below:,} or {below + parts:,}" if below else f"{parts:,}"
        raise DataError(
            f"a global batch of {global_batch_size:,} cannot be divided equally among {parts:,} {what}. "
            f"Set it to {nearest}."
        )


def _shuffled(
    order: _EpochOrder, window: Int64[np.ndarray, " places"], positions: Int64[np.ndarray, " places"]
) -> Int64[np.ndarray, " places"]:
    """Return the samples at some positions of the concatenated streams, each in its window, without grouping."""
    # From the place in the shuffled stream to the place in the stream as its pieces are read, and on to the sample.
    start = order.window_starts[window]
    positions = start + permute(positions - start, order.window_starts[window + 1] - start, order.window_keys[window])
    piece = np.searchsorted(order.piece_starts, positions, side="right") - 1
    return order.piece_first_samples[piece] + (positions - order.piece_starts[piece])


def permute(
    indices: Int64[np.ndarray, " n"], sizes: Int64[np.ndarray, " n"], permutation_keys: UInt64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Apply keyed permutations to indices, each index on its own.

    A Feistel network is a bijection on numbers of 2 x h bits. Applied again and again until the result is below `size`
    ("cycle walking"), it is a bijection on 0 … size - 1.

    Args:
        indices: each from 0 to its size - 1.
        sizes: number of elements that each permutation has.
        permutation_keys: equal keys and sizes mean the same permutation.

    Source:
        Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002, section 3 (cycle walking).
    """
    known, which = np.unique(sizes, return_inverse=True)
    half_bits = np.array([max(_LEAST_HALF_BITS, (int(size - 1).bit_length() + 1) // 2) for size in known])
    half_bits = half_bits.astype(np.uint64)[which]
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
