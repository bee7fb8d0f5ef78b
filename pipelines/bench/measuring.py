"""The workers' part of `aweigh bench train` and `bench checkpoint`: the steps of training, timed, with nothing kept."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed

from cluster.workers import WorkerContext
from data_shards.loading.batch import Batch
from pipelines.files import write_json
from pipelines.recipes.settings import Recipe
from pipelines.training.loop import Job, Training, mistakes_end_the_run

STEPS_BESIDE_WRITING = 8
_WARM_UP = 3


@dataclass(frozen=True)
class MeasuredJob:
    """The task that the driver passes to every worker."""

    recipe: Recipe
    steps: int
    """Steps with timed phases; the first three are for warm-up."""
    checkpoints: int = 0
    """Checkpoints after these steps, each with `STEPS_BESIDE_WRITING` more steps while it is written."""


def measure_worker(context: WorkerContext, job: MeasuredJob) -> None:
    """Train on this worker; rank 0 writes `measured.json` to the run's folder."""
    with mistakes_end_the_run():
        train = Job(recipe=job.recipe, run="bench", attempt=1, tracking_uri="", tracking_run="")
        more = job.checkpoints * STEPS_BESIDE_WRITING
        _measure(Training(context, train, measured_steps=job.steps + more), job)


def _measure(training: Training, job: MeasuredJob) -> None:
    rate = training.recipe.optimizer.learning_rate
    warm_up = min(_WARM_UP, job.steps - 1)
    with training.loader() as batches:
        source = iter(batches)
        for _ in range(warm_up):
            training.optimizer_step(source, rate)
        training.stopwatch.take()
        began = time.perf_counter()
        while training.step < job.steps:
            training.optimizer_step(source, rate)
        seconds, phases = time.perf_counter() - began, training.stopwatch.take()
        checkpoints = [_measure_checkpoint(training, source, rate) for _ in range(job.checkpoints)]
    if training.context.rank == 0:
        write_json(
            training.context.folder / "measured.json",
            {
                "steps": job.steps - warm_up,
                "seconds": seconds,
                "images": (job.steps - warm_up) * training.split.global_size,
                "phases": phases,
                "checkpoints": checkpoints,
                "peak_bytes": _peak_bytes(training.context.device),
                "precision": training.engine.precision,
                "device": str(training.context.device),
            },
        )


def _measure_checkpoint(training: Training, source: Iterator[Batch], rate: float) -> dict[str, float]:
    """Measure how a checkpoint delays training: the copy at the step's end, and the steps while it is written."""
    torch.distributed.barrier()
    began = time.perf_counter()
    training.save()
    copied = time.perf_counter()
    for _ in range(STEPS_BESIDE_WRITING):
        training.optimizer_step(source, rate)
    beside = time.perf_counter() - copied
    training.saver.writer.wait()
    written = time.perf_counter() - copied
    return {"copy_seconds": copied - began, "beside_seconds": beside, "write_seconds": written}


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
