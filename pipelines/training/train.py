"""The driver's part of a training: check, say what will happen, train, report the result."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.checkpoints.checkpoint import Checkpoint
from cluster.errors import StoppedError
from cluster.local import connected, dashboard_url
from cluster.workers import LogStream, dividing_worlds, exclusive_run, run_workers
from data_shards.counting import counted
from data_shards.format.manifest import Manifest
from data_shards.order.plan import Plan
from data_shards.reading.split import DataSplit
from pipelines import console, tracking
from pipelines.files import read_json, write_json, write_text
from pipelines.recipes.recipe import absolute, flatten, run_name, to_dict, to_yaml
from pipelines.recipes.settings import Recipe
from pipelines.trained.checkpoint_facts import facts_of
from pipelines.training.checkpoints import check_fits, checkpoint_places, link_checkpoints, newest_checkpoint
from pipelines.training.checks import (
    check,
    check_run_folder,
    check_run_folder_stays,
    check_same_settings,
    split_on_most_workers,
    with_earlier_order,
)
from pipelines.training.evaluation_log import EvaluationLog
from pipelines.training.loop import Job, train_worker
from pipelines.training.preflight import before_training, check_gpus_here


@dataclass(frozen=True)
class TrainingResult:
    """A finished run: its folder, its last step and its metrics."""

    run: str
    folder: Path
    step: int
    evaluation: dict[str, Any] | None
    """`evaluation/metrics.json` of the run; None without validation shards."""
    failed_evaluations: dict[int, str] = field(default_factory=dict)
    """Causes of the evaluations that failed, by step."""


def train(recipe: Recipe) -> TrainingResult:
    """Train a recipe, or resume it: the same recipe and run name continue from the newest checkpoint.

    Raises:
        ConfigError, DataError, DetectorError: the recipe or its data cannot be used; no worker was started.
        WorkersFailedError: the workers failed for good.
        StoppedError: Ctrl-C or SIGTERM; a checkpoint was written if there was time.
    """
    recipe = absolute(recipe)
    name = run_name(recipe)
    folder = Path(recipe.run.folder) / name
    check_run_folder_stays(folder)
    has_begun = any((folder / "checkpoints").glob("step-*"))
    splits, plan = check(recipe, fresh=not has_begun)
    manifest = splits[0].manifest
    check_run_folder(folder)
    last_step = recipe.schedule.last_step(plan.steps_per_epoch)
    with exclusive_run(folder):
        recipe, checkpoint = _checkpoint_to_resume(recipe, name, folder, manifest)
        write_text(folder / "recipe.yaml", to_yaml(recipe))
        _say_what_will_happen(recipe, name, manifest, plan)
        if checkpoint is not None and checkpoint.step == last_step and (folder / "result.json").exists():
            console.say("done", f"run {name} ended before, at step {last_step:,}")
            # The server may have been down when the run ended.
            tracking.deliver_spool(folder / "tracking")
        else:
            _train_on_workers(recipe, name, folder, checkpoint, splits)
    return read_result(folder, name, last_step)


def read_result(folder: Path, name: str, step: int) -> TrainingResult:
    """Read the result from a run's folder."""
    evaluation = read_json(folder / "evaluation" / "metrics.json") or None
    return TrainingResult(name, folder, step, evaluation, EvaluationLog(folder).failures())


def _checkpoint_to_resume(
    recipe: Recipe, name: str, folder: Path, manifest: Manifest
) -> tuple[Recipe, Checkpoint | None]:
    """Find the newest checkpoint of the run and refuse settings that do not continue it; None for a fresh run.

    Returns the recipe too, in the order of samples that the checkpoint began.
    """
    # The link comes first: the checkpoints are looked for through it.
    link_checkpoints(recipe, name, folder)
    places = checkpoint_places(recipe, name, folder, warn=lambda line: console.say("warning", line))
    checkpoint = newest_checkpoint(*places)
    if checkpoint:
        check_fits(checkpoint, recipe, manifest)
        earlier = with_earlier_order(recipe, checkpoint)
        if earlier != recipe:
            console.say("order", "not grouped by aspect ratio, because this run was begun by a version without it")
        recipe = earlier
        check_same_settings(recipe, checkpoint, name)
    return recipe, checkpoint


def _train_on_workers(
    recipe: Recipe, name: str, folder: Path, checkpoint: Checkpoint | None, splits: Sequence[DataSplit]
) -> None:
    """Run the training loop on every worker to its end, as one attempt of one MLflow run."""
    # A run folder that was lost, with its checkpoints in a bucket, still finds its MLflow run.
    known_run = facts_of(checkpoint).mlflow_run if checkpoint else ""
    with (
        _on_cluster(recipe, folder / "logs", splits),
        _tracked(recipe, name, folder, known_run) as (uri, mlflow_run),
        ExitStack() as starting,
    ):
        job = Job(recipe=recipe, run=name, attempt=_next_attempt(folder), tracking_uri=uri, tracking_run=mlflow_run)
        starting.enter_context(console.waiting_line("workers", "starting"))
        run_workers(
            train_worker,
            job,
            run_name=name,
            folder=folder,
            settings=recipe.cluster,
            batch_size=recipe.batch.global_size,
            out=RankLog(console.FittedLog(sys.stderr), starting.close),
        )


class RankLog:
    """The log of rank 0; its first text ends the wait for the workers.

    Both happen in the thread that writes, so that the waiting line ends before the text and never in the middle of it.

    Args:
        stream: receives the log.
        started: called once, before the first text.
    """

    def __init__(self, stream: LogStream, started: Callable[[], None]) -> None:
        self._stream = stream
        self._started: Callable[[], None] | None = started

    def write(self, text: str) -> None:
        """Write some text."""
        if self._started is not None:
            self._started()
            self._started = None
        self._stream.write(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()


@contextmanager
def _on_cluster(recipe: Recipe, logs: Path, splits: Sequence[DataSplit]) -> Iterator[None]:
    """Say where the workers run; check their GPUs, and the nodes of a cluster if the workers need several."""
    address = os.environ.get("RAY_ADDRESS")
    workers = recipe.cluster.workers_in_words
    if not address:
        console.say("cluster", f"{workers} on Ray, started on this machine for this run; their logs in {logs}")
        if recipe.cluster.preflight:
            check_gpus_here(recipe)
        yield
        return
    with connected(recipe.cluster):
        console.say("cluster", f"{workers} on Ray, {address}; their logs in {logs}")
        if url := dashboard_url():
            console.say("dashboard", url)
        if recipe.cluster.preflight:
            before_training(recipe, splits)
        yield


def _next_attempt(folder: Path) -> int:
    counter = folder / "attempt.json"
    try:
        attempt = 1 + int(json.loads(counter.read_text()))
    except FileNotFoundError:
        attempt = 1
    except (OSError, ValueError, TypeError):
        # Damaged by the disk. MLflow counts, too.
        attempt = 1 + tracking.RunRecord.load(folder / "tracking").attempt
        console.say("warning", f"{counter} is damaged; this attempt is counted as number {attempt}")
    write_json(counter, attempt)
    return attempt


@contextmanager
def _tracked(recipe: Recipe, name: str, folder: Path, known_run: str) -> Iterator[tuple[str, str]]:
    """Open the one MLflow run of all attempts, and set its status at the end; yields its address and id."""
    uri = tracking.tracking_uri(recipe)
    params = {key: str(value) for key, value in flatten(to_dict(recipe)).items()}
    run_id = tracking.start_run(
        uri,
        recipe.tracking.experiment,
        name,
        params=params,
        tags={"recipe": recipe.recipe, "detector": recipe.detector.name},
        folder=folder / "tracking",
        known_run_id=known_run,
    )
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        yield uri, run_id
        status = "FINISHED"
    except (KeyboardInterrupt, StoppedError):
        status = "KILLED"
        raise
    finally:
        tracking.end_run(uri, run_id, status, folder / "tracking")


def _say_what_will_happen(recipe: Recipe, name: str, manifest: Manifest, plan: Plan) -> None:
    console.say("run", f"{name}, recipe {recipe.recipe}, seed {recipe.seed}, in {Path(recipe.run.folder) / name}")
    console.say("data", _data_in_words(recipe, manifest, plan))
    console.say("batch", str(split_on_most_workers(recipe)))
    if recipe.cluster.elastic:
        worlds = dividing_worlds(recipe.batch.global_size, recipe.cluster)
        console.say(
            "elastic",
            f"{', '.join(map(str, worlds))} workers, as many as fit; each takes an equal share",
        )
    console.say(
        "schedule",
        f"{recipe.schedule.describe(plan.steps_per_epoch)}; {recipe.optimizer.name}, "
        f"learning rate {recipe.optimizer.learning_rate:g}",
    )
    # DeepSpeed's own settings depend on the workers' devices: rank 0 writes them to logs/deepspeed.json and to MLflow.
    console.say("engine", f"ZeRO {recipe.engine.zero_stage}, precision {recipe.engine.precision}")


def _data_in_words(recipe: Recipe, manifest: Manifest, plan: Plan) -> str:
    shards = counted(len(manifest.shards), "shard")
    text = f"{recipe.data.train}, {counted(manifest.num_samples, 'image')} in {shards}, manifest {manifest.digest[:6]}"
    if dropped := plan.samples_dropped_per_epoch:
        text += f"; each epoch drops {counted(dropped, 'sample')}, different ones every time"
    if plan.grouped:
        text += "; grouped by aspect ratio"
    return text
