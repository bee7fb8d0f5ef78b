"""`aweigh bench train` and `bench checkpoint`: the time of each phase of a step, and the delay by a checkpoint."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.workers import run_workers
from data_shards.counting import counted
from pipelines import console
from pipelines.bench.measuring import STEPS_BESIDE_WRITING, MeasuredJob, measure_worker
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import absolute
from pipelines.recipes.settings import Recipe
from pipelines.training.checks import check
from pipelines.training.stopwatch import PHASES


def bench_train(recipe: Recipe, steps: int, as_json: bool) -> None:
    """Train a few steps through Ray and DeepSpeed as `aweigh train` does, and print rank 0's share of each phase.

    Args:
        recipe: the training, of which nothing is kept.
        steps: optimizer steps; the first three are for warm-up.
        as_json: print the figures as one JSON object.

    Raises:
        ConfigError: there are no steps to measure.
    """
    if steps < 4:
        raise ConfigError(f"--steps is {steps}; at least 4 are needed, the first 3 of them for warm-up.")
    measured = _measured(recipe, steps)
    if as_json:
        print(json.dumps(measured))
        return
    seconds, phases = measured["seconds"], measured["phases"]
    print(
        f"{measured['images'] / seconds:.1f} images/s over all workers, {measured['device']}, {measured['precision']}"
    )
    print(f"{1000 * seconds / measured['steps']:.0f} ms per step of {recipe.batch.global_size} images; on rank 0:")
    for name in PHASES:
        print(f"  {name:<10}{100 * phases[name] / seconds:5.1f} %  {1000 * phases[name] / measured['steps']:8.1f} ms")
    other = seconds - sum(phases.values())
    print(f"  {'other':<10}{100 * other / seconds:5.1f} %  {1000 * other / measured['steps']:8.1f} ms")
    print(f"peak memory of a worker {measured['peak_bytes'] / 2**20:,.0f} MiB")


def bench_checkpoint(recipe: Recipe, checkpoints: int, as_json: bool) -> None:
    """Train a few steps, with and without a checkpoint being written, and print the cost of one.

    Args:
        recipe: the training, of which nothing is kept.
        checkpoints: number of checkpoints.
        as_json: print the figures as one JSON object.

    Raises:
        ConfigError: there is nothing to measure.
    """
    if checkpoints < 1:
        raise ConfigError(f"--checkpoints is {checkpoints}; it must be 1 or more.")
    measured = _measured(recipe, 13, checkpoints)
    step = measured["seconds"] / measured["steps"]
    taken = measured["checkpoints"]
    copy = sum(one["copy_seconds"] for one in taken) / len(taken)
    slowdown = sum(max(0.0, one["beside_seconds"] - STEPS_BESIDE_WRITING * step) for one in taken) / len(taken)
    interval = 60 * (recipe.checkpoint.every_minutes or 15.0)
    figures = {
        "step_seconds": step,
        "copy_seconds": copy,
        "slowdown_seconds": slowdown,
        "write_seconds": sum(one["write_seconds"] for one in taken) / len(taken),
        "interval_seconds": interval,
        "stall_fraction": (copy + slowdown) / interval,
    }
    if as_json:
        print(json.dumps(figures))
        return
    print(f"{1000 * step:8.1f} ms per step")
    print(f"{1000 * copy:8.1f} ms of waiting while the state is copied, mean of {counted(len(taken), 'checkpoint')}")
    print(f"{1000 * slowdown:8.1f} ms more for the {STEPS_BESIDE_WRITING} steps while it is written")
    print(f"{1000 * figures['write_seconds']:8.1f} ms until it is written, flushed, compared and current")
    print(f"{100 * figures['stall_fraction']:8.3f} % of the {interval / 60:g} minutes between checkpoints are lost")


def _measured(recipe: Recipe, steps: int, checkpoints: int = 0) -> dict[str, Any]:
    # The weights do not change a step's time, so do not fetch any.
    recipe = absolute(replace(recipe, detector=replace(recipe.detector, weights=None)))
    check(recipe)
    console.say("bench", f"{recipe.recipe}, {recipe.detector.name} at {list(recipe.data.input_size)}, {steps} steps")
    console.say("batch", f"{recipe.batch.global_size} over {recipe.cluster.workers_in_words}")
    # In the folder of the runs, which every node can reach.
    Path(recipe.run.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=recipe.run.folder) as folder:
        run_workers(
            measure_worker,
            MeasuredJob(recipe, steps, checkpoints),
            run_name="bench",
            folder=Path(folder),
            settings=recipe.cluster,
            batch_size=recipe.batch.global_size,
        )
        return dict(json.loads((Path(folder) / "measured.json").read_text()))
