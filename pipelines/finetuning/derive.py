"""Derive the numbers of a fine-tuning from its data and the machine, each with its arithmetic in words.

A number that the user set stays, and those behind it follow from it.
"""

import math
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Literal

from data_shards.counting import counted
from data_shards.settings import AugmentationSettings
from detectors import Detector
from pipelines.finetuning.data_facts import DataFacts
from pipelines.finetuning.machine import Cost, Machine, images_that_fit
from pipelines.recipes.settings import Recipe

Start = Literal["detector", "imagenet", "random"]
"""Weights that a fine-tuning starts from: of the same detector, of the backbone alone, or none."""

YOURS = "as you set it"

# An object needs a few cells of the finest output in each direction to be told apart.
_CELLS_OF_AN_OBJECT = 4
# By geometry, since a detector does not tell: CenterNet and CornerNet have cells of 4 pixels, FCOS's finest have 8.
_STRIDES = {"shorter_side": 8}
_STRIDE = 4
_LEAST_SIDE, _MOST_SIDE, _MOST_SIDE_ON_CPU = 256, 1024, 512
_LEAST_SHORTER_SIDE, _MOST_SHORTER_SIDE_ON_CPU = 320, 480
_SIDE_STEP = 64

# Smaller batches would have rates at which heads from random weights hardly move in a few thousand steps.
_BATCHES = (8, 16, 32)
_STEPS_AN_EPOCH = 10
# Batch norm needs a few images on each worker.
_LEAST_SHARE = 4

STEPS: dict[Start, int] = {"detector": 2000, "imagenet": 4000, "random": 8000}
"""Optimizer steps that a small set takes to stop gaining, by what the network knows already."""
_LEAST_EPOCHS, _MOST_EPOCHS = 12, 300
# Of the published 140 epochs with drops after 90 and 120.
_DROPS = (90 / 140, 120 / 140)
_EVALUATIONS = 10


@dataclass(frozen=True)
class Line:
    """One line of the plan."""

    topic: str
    text: str


def derive(
    recipe: Recipe,
    chosen: Set[str],
    published: Recipe,
    facts: DataFacts,
    machine: Machine,
    cost: Cost,
    detector: Detector,
    start: Start,
) -> tuple[Recipe, list[Line]]:
    """Derive what the user left open.

    Args:
        recipe: the base recipe with the user's fields.
        chosen: names of the fields that the user set.
        published: the base recipe, with the batch and the rate that belong together.
        facts: of the training split.
        machine: where the workers will run.
        cost: of the detector.
        detector: knows its input sizes and its limit of objects.
        start: the initial weights.

    Returns:
        The whole recipe, and the lines that say how each number came about.
    """
    lines: list[Line] = []
    for step in (_input, _objects):
        recipe, line = step(recipe, chosen, facts, machine, detector)
        lines += [line] if line else []
    recipe, line = _workers(recipe, chosen, facts, machine)
    lines += [line] if line else []
    recipe, line = _batch(recipe, chosen, facts, machine, cost, detector)
    lines.append(line)
    recipe, line = _rate(recipe, chosen, published)
    lines.append(line)
    recipe, of_schedule = _schedule(recipe, chosen, facts, start)
    return recipe, [*lines, *of_schedule]


def largest_input(recipe: Recipe, detector: Detector) -> tuple[int, int]:
    """Return the largest input that training may see, in pixels."""
    return recipe.augmentation.largest_input(recipe.data.input_size, detector.sizes)


def stride(recipe: Recipe) -> int:
    """Return the size of the finest cells, in input pixels."""
    return _STRIDES.get(recipe.augmentation.geometry, _STRIDE)


def _input(
    recipe: Recipe, chosen: Set[str], facts: DataFacts, machine: Machine, detector: Detector
) -> tuple[Recipe, Line | None]:
    augmentation = recipe.augmentation
    if augmentation.geometry == "shorter_side":
        return _shorter_side(recipe, chosen, facts, machine)
    height, width = recipe.data.input_size
    if "data.input_size" in chosen:
        return recipe, Line("input", f"{height} × {width} pixels, {YOURS}")
    if augmentation.geometry not in ("crop", "shift") or augmentation.fit != "longer_side":
        # These crops have a size in image pixels, so another input would not show objects larger.
        return recipe, Line("input", f"{height} × {width} pixels, as published")
    if not facts.objects:
        return recipe, Line("input", f"{height} × {width} pixels, as published, because there are no objects to go by")
    wanted_pixels = _CELLS_OF_AN_OBJECT * stride(recipe)
    wanted = wanted_pixels / max(facts.small_object, 1e-6)
    most = _MOST_SIDE if machine.device == "cuda" else _MOST_SIDE_ON_CPU
    # More pixels than the images have show nothing new.
    limit = max(_LEAST_SIDE, min(most, _rounded_up(facts.longer_side)))
    side = min(limit, max(_LEAST_SIDE, _rounded_up(wanted)))
    size = detector.sizes.nearest(side, side)
    text = (
        f"{size[0]} × {size[1]} pixels: a tenth of all objects measures less than {facts.small_object:.1%} of its "
        f"image's longer side; {wanted_pixels} pixels / {facts.small_object:.1%} = {wanted:,.0f}"
    )
    if side == limit < wanted:
        by = (
            f"the most on a {'GPU' if machine.device == 'cuda' else 'CPU'}" if limit == most else "the images' own size"
        )
        text += f", limited to {limit}, {by}"
    elif wanted < _LEAST_SIDE:
        text += f", at least {_LEAST_SIDE}"
    return replace(recipe, data=replace(recipe.data, input_size=size)), Line("input", text)


def _rounded_up(side: float) -> int:
    return _SIDE_STEP * math.ceil(side / _SIDE_STEP)


_SHORTER_SIDES = {
    "augmentation.shorter_sides",
    "augmentation.shorter_side_range",
    "augmentation.longer_side_limit",
    "evaluation.shorter_side",
    "evaluation.longer_side_limit",
}


def _shorter_side(recipe: Recipe, chosen: Set[str], facts: DataFacts, machine: Machine) -> tuple[Recipe, Line]:
    """Scale the published shorter sides, training's and evaluation's alike, if the objects allow less."""
    settings, published = recipe.augmentation, recipe.augmentation.largest_shorter_side
    if chosen & _SHORTER_SIDES:
        return recipe, Line("input", f"shorter side of {published} pixels, {YOURS}")
    wanted_pixels = _CELLS_OF_AN_OBJECT * stride(recipe)
    wanted = wanted_pixels / max(facts.small_object_of_shorter, 1e-6) if facts.objects else published
    most = published if machine.device == "cuda" else min(published, _MOST_SHORTER_SIDE_ON_CPU)
    side = min(most, max(_LEAST_SHORTER_SIDE, 32 * math.ceil(wanted / 32)))
    factor = side / published
    text = (
        f"shorter side of {side} pixels: a tenth of all objects measures less than {facts.small_object_of_shorter:.1%} "
        f"of it; {wanted_pixels} pixels / {facts.small_object_of_shorter:.1%} = {wanted:,.0f}"
    )
    if wanted > most:
        text += f", limited to {most}, " + ("as published" if most == published else "the most on a CPU")
    elif wanted < _LEAST_SHORTER_SIDE:
        text += f", at least {_LEAST_SHORTER_SIDE}"
    spread = settings.shorter_side_range
    augmentation: AugmentationSettings = replace(
        settings,
        shorter_sides=tuple(round(one * factor) for one in settings.shorter_sides),
        shorter_side_range=spread and (round(spread[0] * factor), round(spread[1] * factor)),
        longer_side_limit=round(settings.longer_side_limit * factor),
    )
    evaluation = replace(
        recipe.evaluation,
        shorter_side=round(recipe.evaluation.shorter_side * factor),
        longer_side_limit=round(recipe.evaluation.longer_side_limit * factor),
    )
    return replace(recipe, augmentation=augmentation, evaluation=evaluation), Line("input", text)


def _objects(
    recipe: Recipe, chosen: Set[str], facts: DataFacts, machine: Machine, detector: Detector
) -> tuple[Recipe, Line | None]:
    """Raise the number of objects of an image if the data has more: the rest would not be trained on."""
    places = detector.max_objects
    now = min(recipe.data.max_objects, places or recipe.data.max_objects)
    if facts.most_objects <= now or chosen & {"data.max_objects", "detector.settings.max_objects"}:
        return recipe, None
    settings = recipe.detector.settings
    if places is not None and places < facts.most_objects:
        settings = {**settings, "max_objects": facts.most_objects}
    recipe = replace(
        recipe,
        data=replace(recipe.data, max_objects=max(recipe.data.max_objects, facts.most_objects)),
        detector=replace(recipe.detector, settings=settings),
    )
    return recipe, Line("objects", f"up to {facts.most_objects} an image, because one image has as many")


def _workers(recipe: Recipe, chosen: Set[str], facts: DataFacts, machine: Machine) -> tuple[Recipe, Line | None]:
    """One worker a GPU, as many as get enough images for batch norm; one worker with all cores on a CPU."""
    text = machine.describe()
    cluster, data = recipe.cluster, recipe.data
    if "cluster.workers" not in chosen:
        batch = recipe.batch.global_size if "batch.global_size" in chosen else _batch_of(facts.images)
        workers = max(
            (n for n in range(1, machine.workers + 1) if batch % n == 0 and batch // n >= _LEAST_SHARE), default=1
        )
        cluster = replace(cluster, workers=workers)
    if machine.device == "cpu" and "cluster.cpus_per_worker" not in chosen:
        # A core decodes the images, if there is one to spare.
        own = max(1, machine.cores // cluster.max_workers - (machine.cores > 2))
        cluster = replace(cluster, cpus_per_worker=float(own))
    if machine.device == "cuda" and "data.threads" not in chosen:
        data = replace(data, threads=max(1, min(8, machine.cores // cluster.max_workers)))
    text += f"; {cluster.workers_in_words}, engine.precision {recipe.engine.precision}"
    return replace(recipe, cluster=cluster, data=data), Line("machine", text)


def _batch_of(images: int) -> int:
    fitting = [size for size in _BATCHES if size * _STEPS_AN_EPOCH <= images]
    return min(fitting[-1] if fitting else _BATCHES[0], max(1, images))


def _batch(
    recipe: Recipe, chosen: Set[str], facts: DataFacts, machine: Machine, cost: Cost, detector: Detector
) -> tuple[Recipe, Line]:
    batch = recipe.batch
    if "batch.global_size" in chosen:
        text = f"{batch.global_size} images a step, {YOURS}"
    else:
        batch = replace(batch, global_size=_batch_of(facts.images))
        text = f"{counted(batch.global_size, 'image')} a step: "
        if facts.images < _STEPS_AN_EPOCH * _BATCHES[0]:
            text += f"at most {_BATCHES[0]}, because there are few images"
        else:
            text += (
                f"the largest of {', '.join(map(str, _BATCHES))} with {_STEPS_AN_EPOCH} steps an epoch; "
                f"{counted(facts.images, 'image')} / {_STEPS_AN_EPOCH} = {facts.images / _STEPS_AN_EPOCH:,.4g}"
            )
    height, width = largest_input(recipe, detector)
    fit = images_that_fit(machine, cost, (height, width))
    share = math.ceil(batch.global_size / recipe.cluster.max_workers)
    text += f"; {counted(fit, 'image')} of {height} × {width} fit the memory by estimate"
    if "batch.microbatch_limit" in chosen:
        text += f"; at once at most {batch.microbatch_limit}, {YOURS}"
    elif fit < share:
        limit = max(size for size in range(1, fit + 1) if share % size == 0)
        batch = replace(batch, microbatch_limit=limit)
        text += f", so {share} are put through in parts of {limit}"
    return replace(recipe, batch=batch), Line("batch", text)


def _rate(recipe: Recipe, chosen: Set[str], published: Recipe) -> tuple[Recipe, Line]:
    optimizer = recipe.optimizer
    if "optimizer.learning_rate" in chosen:
        return recipe, Line("rate", f"{optimizer.learning_rate:.3g}, {YOURS}")
    base, size = published.optimizer.learning_rate, recipe.batch.global_size
    rate = float(f"{base * size / published.batch.global_size:.4g}")
    text = f"{rate:.4g} = {base:g} × {size} / {published.batch.global_size}, the published rate, for this batch"
    return replace(recipe, optimizer=replace(optimizer, learning_rate=rate)), Line("rate", text)


def _schedule(recipe: Recipe, chosen: Set[str], facts: DataFacts, start: Start) -> tuple[Recipe, list[Line]]:
    schedule, lines = recipe.schedule, []
    steps_per_epoch = max(1, facts.images // recipe.batch.global_size)
    if schedule.steps:
        return recipe, [Line("steps", f"{schedule.steps:,}, {YOURS}")]
    if "schedule.epochs" in chosen:
        text = f"{schedule.epochs}, {YOURS}; {counted(steps_per_epoch, 'step')} each"
    else:
        wanted = STEPS[start]
        epochs = min(_MOST_EPOCHS, max(_LEAST_EPOCHS, math.ceil(wanted / steps_per_epoch)))
        schedule = replace(schedule, epochs=epochs)
        text = f"{epochs} = {wanted:,} steps / {steps_per_epoch} an epoch"
        text += f", at least {_LEAST_EPOCHS}" if epochs == _LEAST_EPOCHS else ""
        text += f", at most {_MOST_EPOCHS}" if epochs == _MOST_EPOCHS else ""
    if "schedule.drops_at" not in chosen:
        drops = sorted({round(schedule.epochs * part) for part in _DROPS} - {0, schedule.epochs})
        schedule = replace(schedule, drops_at=tuple(drops))
        places = ", ".join(map(str, drops)) if drops else "none"
        text += (
            f"; the rate drops after epochs {places}, as in the published 90 and 120 of 140" if drops else "; no drop"
        )
    if schedule.warmup_steps and "schedule.warmup_steps" not in chosen:
        tenth = max(1, schedule.epochs * steps_per_epoch // 10)
        schedule = replace(schedule, warmup_steps=min(schedule.warmup_steps, tenth))
        text += f"; warm-up over {counted(schedule.warmup_steps, 'step')}"
    lines.append(Line("epochs", text))
    recipe = replace(recipe, schedule=schedule)
    every = max(1, round(schedule.epochs / _EVALUATIONS))
    if recipe.data.validation and "evaluation.every_epochs" not in chosen:
        recipe = replace(recipe, evaluation=replace(recipe.evaluation, every_epochs=every))
        times = math.ceil(schedule.epochs / every)
        text = "at the end" if times == 1 else f"{times} times, after every {counted(every, 'epoch')}"
        lines.append(Line("evaluate", f"{text}; the best checkpoint is kept"))
    if "checkpoint.every_epochs" not in chosen:
        recipe = replace(recipe, checkpoint=replace(recipe.checkpoint, every_epochs=every))
    return recipe, lines
