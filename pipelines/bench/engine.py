"""`aweigh bench engine`: our step beside a bare DeepSpeed step and plain DDP, with the same detector and batch.

They take turns in the same processes, so that other load on the machine affects each alike.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from cluster.engine.engine import BatchSplit, Engine, deepspeed_config, resolve_precision, split_batch
from cluster.step_agreement import Agreement
from cluster.workers import WorkerContext, run_workers
from data_shards.order.plan import Plan, World
from detectors import Detector
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.files import write_json
from pipelines.recipes.recipe import absolute
from pipelines.recipes.settings import Recipe
from pipelines.training.checks import check
from pipelines.training.due import WISHES
from pipelines.training.from_recipe import build_detector
from pipelines.training.loss_watch import LossWatch
from pipelines.training.stopwatch import Stopwatch

_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class _Question:
    recipe: Recipe
    rounds: int


def bench_engine(recipe: Recipe, rounds: int, as_json: bool) -> None:
    """Print the time of a step in plain DDP, bare DeepSpeed and aweigh, at every ZeRO stage.

    Args:
        recipe: detector, batch, optimizer and workers; of its data only the classes are used.
        rounds: steps of each; the first is for warm-up and does not count.
        as_json: print the figures as one JSON object.
    """
    if rounds < 3:
        raise ConfigError(f"--rounds is {rounds}; it must be 3 or more, the first of them for warm-up.")
    recipe = absolute(recipe)
    check(recipe)
    console.say("bench", f"{recipe.detector.name} at {list(recipe.data.input_size)}, {rounds} rounds of 9 engines")
    Path(recipe.run.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=recipe.run.folder) as folder:
        run_workers(
            _measure,
            _Question(recipe, rounds),
            run_name="bench",
            folder=Path(folder),
            settings=recipe.cluster,
            batch_size=recipe.batch.global_size,
        )
        measured = json.loads((Path(folder) / "engines.json").read_text())
    if as_json:
        print(json.dumps(measured))
        return
    plain = measured["DDP"]
    print(f"{'':<22}{'ms/step':>10}{'vs. DDP':>9}{'CPU ms':>10}{'vs. bare':>9}")
    for name, one in measured.items():
        bare = measured.get(name.replace("aweigh", "bare DeepSpeed"), one)
        ratio = f"{100 * (one['cpu'] / bare['cpu'] - 1):+8.1f}%" if name.startswith("aweigh") else ""
        print(
            f"{name:<22}{1000 * one['wall']:10.1f}{100 * (one['wall'] / plain['wall'] - 1):+8.1f}%"
            f"{1000 * one['cpu']:10.1f}{ratio:>9}"
        )


def _measure(context: WorkerContext, question: _Question) -> None:
    recipe = question.recipe
    splits, plan = check(recipe)
    manifest = splits[0].manifest
    split = split_batch(recipe.batch.global_size, context.world_size, recipe.batch.microbatch_limit)
    height, width = recipe.data.input_size
    generator = torch.Generator().manual_seed(context.rank)
    images = torch.randn(split.microbatch_size, 3, height, width, generator=generator).to(context.device)
    corners = torch.rand(split.microbatch_size, 8, 2, generator=generator) * torch.tensor([width / 2, height / 2])
    boxes = torch.cat([corners, corners + 30], dim=-1).to(context.device)
    labels = torch.zeros(split.microbatch_size, 8, dtype=torch.int64, device=context.device)

    def losses_of(detector: Detector, outputs: Any) -> dict[str, Tensor]:
        return detector.losses(outputs, detector.encode(boxes, labels, (height, width)))

    def detector() -> Detector:
        return build_detector(recipe, manifest, initial=False).to(context.device)

    steps: dict[str, Callable[[], None]] = {"DDP": _plain(recipe, split, detector(), images, losses_of)}
    for stage in _STAGES:
        staged = replace(recipe, engine=replace(recipe.engine, zero_stage=stage))  # type: ignore[arg-type]
        steps[f"bare DeepSpeed {stage}"] = _bare(staged, split, context, detector(), images, losses_of)
        steps[f"aweigh {stage}"] = _ours(staged, split, context, plan, detector(), images, losses_of)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(question.rounds):
        for name, step in steps.items():
            torch.distributed.barrier()
            began, cpu = time.perf_counter(), time.process_time()
            step()
            if context.device.type == "cuda":
                torch.cuda.synchronize()
            # CPU time beside wall time: on a busy machine it is what an engine itself costs.
            taken[name].append((time.perf_counter() - began, time.process_time() - cpu))
    if context.rank == 0:
        medians = {
            name: dict(zip(("wall", "cpu"), map(statistics.median, zip(*pairs[1:], strict=True)), strict=True))
            for name, pairs in taken.items()
        }
        write_json(context.folder / "engines.json", medians)


def _groups(detector: Detector, recipe: Recipe) -> list[dict[str, Any]]:
    return [{"params": list(detector.parameters()), "lr": recipe.optimizer.learning_rate}]


LossesOf = Callable[[Detector, Any], dict[str, Tensor]]


def _plain(
    recipe: Recipe, split: BatchSplit, detector: Detector, images: Tensor, losses_of: LossesOf
) -> Callable[[], None]:
    # Some parameters never get a gradient: DLA-34 has eight.
    model = torch.nn.parallel.DistributedDataParallel(detector, find_unused_parameters=True)
    optimizer = torch.optim.Adam(_groups(detector, recipe))

    def step() -> None:
        optimizer.zero_grad()
        for part in range(split.accumulation_steps):
            # Reduce gradients once per step, in its last microbatch.
            model.require_backward_grad_sync = part == split.accumulation_steps - 1
            loss = losses_of(detector, model(images))["loss"] / split.accumulation_steps
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _bare(
    recipe: Recipe, split: BatchSplit, context: WorkerContext, detector: Detector, images: Tensor, losses_of: LossesOf
) -> Callable[[], None]:
    import deepspeed

    precision = resolve_precision(recipe.engine.precision, context.device)
    optimizer = torch.optim.Adam(_groups(detector, recipe))
    engine, *_ = deepspeed.initialize(
        model=detector,
        optimizer=optimizer,
        config=deepspeed_config(recipe.engine, split, precision),
        dist_init_required=False,
    )

    def step() -> None:
        for _ in range(split.accumulation_steps):
            engine.backward(losses_of(detector, engine(images))["loss"])
            engine.step()

    return step


def _ours(
    recipe: Recipe,
    split: BatchSplit,
    context: WorkerContext,
    plan: Plan,
    detector: Detector,
    images: Tensor,
    losses_of: LossesOf,
) -> Callable[[], None]:
    """Return a step with all that the training loop does besides reading: phases, heartbeat, agreement, loss checks."""
    engine = Engine(detector, torch.optim.Adam, _groups(detector, recipe), recipe.engine, split, context.device)
    stopwatch = Stopwatch(context.device, exact=False, begins=lambda phase: context.heartbeat.begin(phase, 0))
    agreement = Agreement(WISHES)
    watch = LossWatch(plan, World(ranks=context.world_size, rank=context.rank))
    done = 0

    def step() -> None:
        nonlocal done
        engine.set_learning_rate(recipe.optimizer.learning_rate)
        parts = []
        for _ in range(split.accumulation_steps):
            with stopwatch.phase("forward"):
                losses = losses_of(detector, engine.forward(images))
            with stopwatch.phase("backward"):
                engine.backward(losses["loss"])
            with stopwatch.phase("optimizer"):
                engine.step()
            parts.append({name: value.detach() for name, value in losses.items()})
        done += 1
        watch.add(done, parts)
        agreement.exchange(context.wishes())
        if done % recipe.tracking.every_steps == 0:
            watch.ask()

    return step
