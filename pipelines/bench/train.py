"""`aweigh bench train`: where the time of a training step goes, on the workers and the data of a recipe."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from cluster.workers import run_workers
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.loop import PHASES, Job, train_worker
from pipelines.recipe import Recipe
from pipelines.train import absolute, check


def bench_train(recipe: Recipe, steps: int, as_json: bool) -> None:
    """Train a few steps through Ray and DeepSpeed as `aweigh train` does, and print rank 0's share of each phase.

    Args:
        recipe: what to train; nothing of it is kept.
        steps: optimizer steps, of which the first three warm up.
        as_json: print the figures as one JSON object.

    Raises:
        ConfigError: there are no steps to measure.
    """
    if steps < 4:
        raise ConfigError(f"--steps is {steps}; at least 4 are needed, 3 of them to warm up.")
    # A step takes as long from any weights.
    recipe = absolute(replace(recipe, detector=replace(recipe.detector, weights=None)))
    check(recipe)
    console.say("bench", f"{recipe.recipe}, {recipe.detector.name} at {list(recipe.data.input_size)}, {steps} steps")
    console.say("batch", f"{recipe.batch.global_size} over {recipe.cluster.workers} workers")
    # Below the runs, which every node sees.
    Path(recipe.run.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=recipe.run.folder) as folder:
        run_workers(
            train_worker,
            Job(recipe=recipe, run="bench", attempt=1, tracking_uri="", tracking_run="", measured_steps=steps),
            run_name="bench",
            folder=Path(folder),
            settings=recipe.cluster,
        )
        measured = json.loads((Path(folder) / "measured.json").read_text())
    if as_json:
        print(json.dumps(measured))
        return
    seconds, phases = measured["seconds"], measured["phases"]
    print(
        f"{measured['images'] / seconds:.1f} images/s over all workers, {measured['device']}, {measured['precision']}"
    )
    print(f"{1000 * seconds / measured['steps']:.0f} ms per step of {recipe.batch.global_size} images; of rank 0:")
    for name in PHASES:
        print(f"  {name:<10}{100 * phases[name] / seconds:5.1f} %  {1000 * phases[name] / measured['steps']:8.1f} ms")
    other = seconds - sum(phases.values())
    print(f"  {'other':<10}{100 * other / seconds:5.1f} %  {1000 * other / measured['steps']:8.1f} ms")
    print(f"peak memory of a worker {measured['peak_bytes'] / 2**20:,.0f} MiB")
