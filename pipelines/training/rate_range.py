"""`aweigh lr`: a learning-rate range test, on one device, of which nothing but the table and its plot is kept.

The rate rises by the same factor at every step, and the loss is watched (Smith, Cyclical Learning Rates for Training
Neural Networks, section 3.3, arXiv:1506.01186).
"""

import json
import math
import statistics
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from cluster.engine.engine import split_batch
from data_shards.counting import counted
from data_shards.loading.batch import Batch
from data_shards.order.plan import World
from pipelines import console, tracking
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import flatten, to_dict
from pipelines.recipes.settings import Recipe
from pipelines.tracking import Tracker
from pipelines.training.checks import check
from pipelines.training.from_recipe import training_loader
from pipelines.training.single_process import SingleProcess, without_evaluation

_SMOOTHING = 0.9
"""Weight of earlier losses in the smoothed one."""
_RESTLESS = 10
"""Steps until the smoothed loss is an average of about as many losses as later on."""
_CLEAR = 8.0
"""Least fall of the smoothed loss, in its standard deviations, that is taken for one."""
_DIVERGED = 4.0
"""The test ends when the smoothed loss is this many times its least value."""


@dataclass(frozen=True, kw_only=True)
class RangeStep:
    """One step of the test."""

    rate: float
    loss: float
    smoothed: float
    """Average of the losses so far, in which each earlier step weighs 0.9 of the next one."""


def find_rate(recipe: Recipe, device: torch.device, rates: tuple[float, float], steps: int, as_json: bool) -> None:
    """Run the test, print its table and the suggested rate, and log its plot to MLflow as a run of its own.

    Args:
        recipe: what would be trained; its checkpoints and its run are left alone.
        device: where the steps are computed.
        rates: the first and the last learning rate.
        steps: optimizer steps between them.
        as_json: print the steps and the suggestion as one JSON object.

    Raises:
        ConfigError: the range is empty, too few steps are asked for, or the loss is not finite from the start.
    """
    first, last = rates
    if not 0 < first < last < math.inf:
        raise ConfigError(f"--from is {first:g} and --to {last:g}; the rates must be above 0 and rise.")
    if steps < 10:
        raise ConfigError(f"--steps is {steps}; at least 10 are needed to see a slope.")
    # One process computes the whole batch.
    recipe = without_evaluation(replace(recipe, cluster=replace(recipe.cluster, workers=1)))
    done = measure(recipe, device, rates, steps)
    suggestion = suggest(done)
    folder = Path(recipe.run.folder) / f"lr-{recipe.recipe}-{uuid.uuid4().hex[:6]}"
    folder.mkdir(parents=True)
    picture = draw(done, suggestion, folder / "learning-rate.png")
    _track(recipe, done, suggestion, folder, picture)
    if as_json:
        print(json.dumps({"suggestion": suggestion, "steps": [asdict(one) for one in done], "plot": str(picture)}))
        return
    print(f"{'step':>5}  {'rate':>9}  {'loss':>9}  {'smoothed':>9}")
    shown = max(1, len(done) // 20)
    for number, one in enumerate(done):
        if number % shown == 0 or number == len(done) - 1:
            print(f"{number + 1:>5}  {one.rate:>9.2e}  {one.loss:>9.4g}  {one.smoothed:>9.4g}")
    if suggestion is None:
        console.say(
            "rate",
            f"the loss did not fall by more than it varies from step to step between {first:g} and {last:g}; try "
            "another range, more --steps, or a larger batch",
        )
    else:
        console.say(
            "rate",
            f"the smoothed loss falls most steeply at {suggestion:.2e}; {recipe.recipe} has "
            f"{recipe.optimizer.learning_rate:g}",
        )
        print(f"--optimizer.learning_rate {suggestion:.2g}")
    console.say("plot", str(picture))


def measure(recipe: Recipe, device: torch.device, rates: tuple[float, float], steps: int) -> list[RangeStep]:
    """Train with rising rates; ends early where the loss diverges.

    Raises:
        ConfigError: the first loss is not finite.
    """
    (split, *_), plan = check(recipe)
    training = SingleProcess(recipe, split.manifest, device, initial=True)
    parts = split_batch(recipe.batch.global_size, 1, recipe.batch.microbatch_limit)
    first, last = rates
    done: list[RangeStep] = []
    average = 0.0
    with training_loader(
        recipe,
        split,
        plan,
        World(ranks=1, rank=0),
        sizes=training.detector.sizes,
        corners=training.detector.box_corners,
        microbatches=parts.accumulation_steps,
        steps=(0, steps),
    ) as batches:
        for number, microbatches in enumerate(_in_steps(iter(batches), parts.accumulation_steps)):
            rate = first * (last / first) ** (number / (steps - 1))
            loss = training.step(microbatches, rate)
            if not math.isfinite(loss):
                break
            average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
            # Without the division, the average would begin near 0, and its first slope would be a rise.
            smoothed = average / (1 - _SMOOTHING ** (number + 1))
            done.append(RangeStep(rate=rate, loss=loss, smoothed=smoothed))
            console.progress_line("rate", number + 1, steps, f"steps, rate {rate:.1e}, loss {loss:.4g}")
            if smoothed > _DIVERGED * min(one.smoothed for one in done):
                break
    if not done:
        raise ConfigError(f"the loss is not finite in the first step, at a rate of {first:g}; check the data.")
    return done


def suggest(steps: Sequence[RangeStep]) -> float | None:
    """Return the rate at which the smoothed loss falls most steeply, over the logarithm of the rate.

    The slope is that of a line through a fifth of the steps. Only rates up to that of the least loss count: beyond it
    training is about to diverge. The first steps are left out, because the average of few losses is as restless as the
    losses. None if the loss never falls by more than its own restlessness would explain.
    """
    half = max(1, len(steps) // 10)
    settled = min(_RESTLESS, len(steps) // 4)
    least = min(range(len(steps)), key=lambda number: steps[number].smoothed)
    if least <= settled or steps[settled].smoothed - steps[least].smoothed < _CLEAR * _restlessness(
        steps[: max(least, len(steps) // 2)]
    ):
        return None
    slopes = {}
    for middle in range(settled + half, min(least + 1, len(steps) - half)):
        window = steps[middle - half : middle + half + 1]
        logarithms, losses = [math.log(one.rate) for one in window], [one.smoothed for one in window]
        slopes[middle] = statistics.linear_regression(logarithms, losses).slope
    steepest = min(slopes, key=slopes.__getitem__, default=None)
    return None if steepest is None or slopes[steepest] >= 0 else steps[steepest].rate


def _restlessness(steps: Sequence[RangeStep]) -> float:
    """Return the standard deviation that the smoothed loss would have if only chance moved the losses."""
    around = [one.loss - one.smoothed for one in steps]
    # The variance of an average whose weights fall by a constant factor, over that of one value.
    return statistics.pstdev(around) * math.sqrt((1 - _SMOOTHING) / (1 + _SMOOTHING))


def draw(steps: Sequence[RangeStep], suggestion: float | None, path: Path) -> Path:
    """Draw loss over rate as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rates = [one.rate for one in steps]
    axes.plot(rates, [one.loss for one in steps], color="0.75", linewidth=1, label="loss")
    axes.plot(rates, [one.smoothed for one in steps], linewidth=2, label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion, color="C1", linestyle="--", label=f"steepest descent, {suggestion:.2g}")
    axes.set_xscale("log")
    # A loss that diverges would flatten everything before it.
    axes.set_ylim(0, 1.1 * _DIVERGED / 2 * max(one.smoothed for one in steps[: max(1, len(steps) // 2)]))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.legend()
    figure.savefig(path, dpi=120)
    return path


def _in_steps(batches: Iterator[Batch], count: int) -> Iterator[list[Batch]]:
    while microbatches := list(islice(batches, count)):
        yield microbatches


def _track(recipe: Recipe, steps: Sequence[RangeStep], suggestion: float | None, folder: Path, picture: Path) -> None:
    uri = tracking.tracking_uri(recipe)
    run = tracking.start_run(
        uri,
        recipe.tracking.experiment,
        folder.name,
        params={key: str(value) for key, value in flatten(to_dict(recipe)).items()},
        tags={"recipe": recipe.recipe, "detector": recipe.detector.name, "study": "learning-rate range test"},
        folder=folder / "tracking",
    )
    with Tracker(folder / "tracking", uri, run) as tracker:
        for number, one in enumerate(steps, start=1):
            tracker.log_metrics(number, {"lr/rate": one.rate, "lr/loss": one.loss, "lr/smoothed_loss": one.smoothed})
        tracker.log_artifact(picture)
        if suggestion is not None:
            tracker.set_tags({"lr.suggestion": f"{suggestion:.3g}"})
    tracking.end_run(uri, run, "FINISHED", folder / "tracking")
    console.say("tracked", f"{counted(len(steps), 'step')} as run {folder.name} in MLflow")
