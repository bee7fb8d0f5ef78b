"""Memory of two ranks' loaders over many epochs, which must not grow."""

import gc
from collections.abc import Sequence
from pathlib import Path

from data_shards.loading.training_loader import TrainingLoader
from data_shards.order.plan import Plan, World
from data_shards.reading.reading import Reading
from data_shards.reading.split import open_split
from pipelines import console


def memory_growth(location: str, plan: Plan, side: int, epochs: int) -> tuple[int, int]:
    """Read epochs as two ranks do; returns the bytes in memory after the second and after the last epoch.

    This process and both loader processes count; memory that they share counts once (PSS).
    """
    with (
        _loader(location, plan, side, epochs, 0) as first,
        _loader(location, plan, side, epochs, 1) as second,
    ):
        processes = ["self", str(first.process_id), str(second.process_id)]
        measured = []
        for epoch in range(epochs):
            for _ in range(plan.steps_per_epoch):
                next(first)
                next(second)
            gc.collect()
            measured.append(proportional_bytes(processes))
            console.progress_line("memory", epoch + 1, epochs, f"epochs, {measured[-1] / 1e6:,.0f} MB")
    return measured[1], measured[-1]


def proportional_bytes(processes: Sequence[str]) -> int:
    """Return the memory of several processes together; a page that several use counts once."""
    total = 0
    for process in processes:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def _loader(location: str, plan: Plan, side: int, epochs: int, rank: int) -> TrainingLoader:
    return TrainingLoader(
        Reading(split=open_split(location)),
        plan,
        World(2, rank),
        input_size=(side, side),
        stop_step=plan.steps_per_epoch * epochs + 1,
    )
