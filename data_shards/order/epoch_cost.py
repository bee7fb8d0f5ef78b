"""The cost of an epoch for each node: steps, shards to fetch, bytes, and the size of the cache."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.format.manifest import Manifest
from data_shards.order.node_schedule import NodeSchedule, fetched_bytes
from data_shards.order.plan import DEFAULT_STREAMS, DEFAULT_WINDOW_SHARDS, Plan, World, check_divisible, make_plan


@dataclass(frozen=True)
class Footprint:
    """An epoch of a split on some nodes. Bytes are those of shards, without their small indexes."""

    plan: Plan
    manifest: Manifest
    nodes: int
    workers: int
    shards_per_node: tuple[int, ...]
    """Number of shards that each node reads in an epoch; the same ones in every epoch."""
    bytes_per_node: tuple[int, ...]
    """Their bytes: a node fetches them in its first epoch, and none later if its cache holds them all."""
    cache_least: int
    """Smallest cache of a node, in bytes: with it, no shard is fetched twice in an epoch."""
    cache_bytes: int | None
    """Size of a node's cache; None if it was not given."""
    later_bytes: int | None
    """Bytes that the node that reads most fetches in its second epoch, and about in each later one, with `cache_bytes`;
    None if that was not given or is less than `cache_least`."""

    @property
    def cache_needed(self) -> int:
        """Bytes that the node that reads most reads."""
        return max(self.bytes_per_node)

    @property
    def share(self) -> float:
        """Bytes that all nodes fetch together, as a multiple of the split; 1.0 if no shard is fetched twice."""
        return sum(self.bytes_per_node) / self.manifest.num_bytes

    def describe(self) -> str:
        """Return the table that `aweigh shards plan` prints."""
        plan, batch = self.plan, self.plan.global_batch_size
        lines = [
            f"data      {self.manifest.split}, {counted(self.manifest.num_samples, 'image')} in "
            f"{counted(len(self.manifest.shards), 'shard')}, {_size(self.manifest.num_bytes)}, manifest "
            f"{self.manifest.digest[:6]}",
            f"batch     {batch:,} = {batch // self.workers:,} per worker × {counted(self.workers, 'worker')} on "
            f"{counted(self.nodes, 'node')}",
            f"epoch     {plan.steps_per_epoch:,} steps = {plan.steps_per_epoch * batch:,} samples; "
            + (
                f"{plan.samples_dropped_per_epoch:,} dropped at the end, different ones every epoch"
                if plan.samples_dropped_per_epoch
                else "none dropped"
            ),
            f"order     {counted(plan.streams, 'stream')}, {batch // plan.streams:,} of each batch from each; "
            f"windows of {counted(plan.window_shards, 'shard')}",
            f"fetch     {_range(self.shards_per_node, '{:,}')} shards, {_range(self.bytes_per_node, size=True)} by "
            f"each node in its first epoch; {self.share:.2f} × the data set over all nodes",
        ]
        lines.append(f"cache     {self._describe_cache()}")
        return "\n".join(lines)

    def _describe_cache(self) -> str:
        needed, least = _size(self.cache_needed), _size(self.cache_least)
        if self.cache_bytes is None:
            text = f"{needed} on a node keeps all it reads: later epochs fetch nothing"
            return text if self.cache_least == self.cache_needed else f"{text}; it works with {least} or more"
        given = _size(self.cache_bytes)
        if self.cache_bytes >= self.cache_needed:
            return f"{given} holds the {needed} a node reads: later epochs fetch nothing"
        if self.later_bytes is None:
            return (
                f"{given} is less than the {least} of shards that a node needs at the same time (it reads {needed}): "
                "use more nodes or a larger disk"
            )
        return (
            f"{given} of the {needed} a node reads (it works with {least} or more): later epochs fetch about "
            f"{_size(self.later_bytes)} each, no shard twice"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the same figures as plain values."""
        plan = self.plan
        return {
            "split": self.manifest.split,
            "manifest": self.manifest.digest,
            "samples": self.manifest.num_samples,
            "shards": len(self.manifest.shards),
            "bytes": self.manifest.num_bytes,
            "global_batch_size": plan.global_batch_size,
            "workers": self.workers,
            "nodes": self.nodes,
            "steps_per_epoch": plan.steps_per_epoch,
            "samples_dropped_per_epoch": plan.samples_dropped_per_epoch,
            "streams": plan.streams,
            "window_shards": plan.window_shards,
            "shards_per_node": list(self.shards_per_node),
            "bytes_per_node": list(self.bytes_per_node),
            "fetched_data_sets": self.share,
            "cache_needed_bytes": self.cache_needed,
            "cache_least_bytes": self.cache_least,
            "cache_bytes": self.cache_bytes,
            "later_epochs_fetch_bytes": self.later_bytes,
            "cache_fits": None if self.cache_bytes is None else self.cache_bytes >= self.cache_needed,
        }


def footprint(
    manifest: Manifest,
    *,
    global_batch_size: int,
    nodes: int = 1,
    workers: int | None = None,
    cache_bytes: int | None = None,
    seed: int = 0,
    streams: int = DEFAULT_STREAMS,
    window_shards: int = DEFAULT_WINDOW_SHARDS,
) -> Footprint:
    """Compute the cost of an epoch for each node, from the manifest alone.

    Args:
        manifest: the data set.
        global_batch_size: samples in one optimizer step, over all workers.
        nodes: machines, each with a cache of its own.
        workers: workers over all nodes, the same number on each; None means one a node.
        cache_bytes: size of the cache on each node, if known.
        seed: the run's seed, which decides the shards of each stream.
        streams: see `make_plan`.
        window_shards: see `make_plan`.

    Raises:
        DataError: the workers do not divide the batch, the nodes do not divide the workers, or a number is below 1.
    """
    workers = nodes if workers is None else workers
    for name, value in (("nodes", nodes), ("workers", workers)):
        if value < 1:
            raise DataError(f"{name} is {value}; set it to 1 or more.")
    if workers % nodes:
        raise DataError(
            f"{counted(workers, 'worker')} cannot be divided equally among {counted(nodes, 'node')}; "
            f"give a multiple of {nodes:,}."
        )
    if cache_bytes is not None and cache_bytes < 0:
        raise DataError(f"the cache is {cache_bytes:,} bytes; set it to 0 or more.")
    plan = make_plan(
        manifest, seed=seed, global_batch_size=global_batch_size, streams=streams, window_shards=window_shards
    )
    check_divisible(global_batch_size, workers, "workers")
    shard_bytes = np.array([shard.bytes for shard in manifest.shards], dtype=np.int64)
    schedules = [
        NodeSchedule(plan, shard_bytes, World(workers, node * (workers // nodes), nodes, node)) for node in range(nodes)
    ]
    read = [schedule.shards for schedule in schedules]
    least = max(schedule.least_bytes for schedule in schedules)
    later = None
    if cache_bytes is not None and cache_bytes >= least:
        busiest = max(schedules, key=lambda schedule: int(shard_bytes[schedule.shards].sum()))
        later = fetched_bytes(busiest, cache_bytes, 2)[1]
    return Footprint(
        plan=plan,
        manifest=manifest,
        nodes=nodes,
        workers=workers,
        shards_per_node=tuple(len(shards) for shards in read),
        bytes_per_node=tuple(int(shard_bytes[shards].sum()) for shards in read),
        cache_least=least,
        cache_bytes=cache_bytes,
        later_bytes=later,
    )


def _size(size_bytes: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:,.1f} {unit}"
    return f"{size_bytes / 1e3:,.1f} kB"


def _range(values: tuple[int, ...], form: str = "", *, size: bool = False) -> str:
    texts = [_size(value) if size else form.format(value) for value in (min(values), max(values))]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)
