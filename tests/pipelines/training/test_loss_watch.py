"""A loss that is not finite is named with step, part, worker and samples, on every rank alike."""

import torch

from data_shards.order.plan import Plan, World
from pipelines.training.loss_watch import LossWatch
from tests.cluster.processes import run_processes

PLAN = Plan(shard_samples=(16,), seed=1, global_batch_size=4, streams=1, window_shards=1)  # 4 steps an epoch


def _watch(rank: int) -> None:
    watch = LossWatch(PLAN, World(ranks=2, rank=rank))
    assert watch.ask() is None
    for step in (5, 6, 7):
        parts = [{"heatmap": torch.tensor(1.0), "loss": torch.tensor(2.0)} for _ in range(2)]
        if step > 5 and rank == 1:
            parts[1] = {"heatmap": torch.tensor(torch.nan), "loss": torch.tensor(torch.inf)}
        watch.add(step, parts)
    samples = ", ".join(map(str, PLAN.rank_batch(1, 1, World(ranks=2, rank=1)).tolist()))
    expected = f"step 6 (heatmap nan, loss inf on worker 1, samples {samples}), and 1 step after it"
    assert str(watch.ask()) == expected
    watch.add(8, [{"heatmap": torch.tensor(1.0), "loss": torch.tensor(2.0)}])
    assert watch.ask() is None


def test_step_part_worker_and_samples_are_named() -> None:
    run_processes(_watch, 2)
