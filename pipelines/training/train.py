"""The training story as the driver tells it: check, say what will happen, train, say what came out."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.engine.engine import deepspeed_config
from cluster.errors import StoppedError
from cluster.local import connected, dashboard_url
from cluster.workers import dividing_worlds, exclusive_run, run_workers
from data_shards.counting import counted
from data_shards.format.manifest import Manifest
from data_shards.order.plan import Plan
from pipelines import console, tracking
from pipelines.files import write_json, write_text
from pipelines.recipes.recipe import absolute, flatten, run_name, to_dict, to_yaml
from pipelines.recipes.settings import Recipe
from pipelines.training.checkpoints import check_fits, checkpoint_places, link_checkpoints, newest_checkpoint
from pipelines.training.checks import check, check_run_folder, check_same_settings, split_on_most_workers
from pipelines.training.loop import Job, train_worker
from pipelines.training.preflight import before_training


@dataclass(frozen=True)
class TrainingResult:
    """Where a finished run stands."""

    run: str
    folder: Path
    step: int
    evaluation: dict[str, Any] | None
    """`evaluation/metrics.json` of the run; None where it has no validation shards."""


def train(recipe: Recipe) -> TrainingResult:
    """Train, or go on training, from the recipe alone; the same recipe and name resume.

    Raises:
        ConfigError, DataError, DetectorError: something given cannot be used; nothing has been started.
        ClusterError: the workers failed for good.
    """
    recipe = absolute(recipe)
    name = run_name(recipe)
    folder = Path(recipe.run.folder) / name
    has_begun = any((folder / "checkpoints").glob("step-*"))
    manifest, plan = check(recipe, fresh=not has_begun)
    check_run_folder(folder)
    with exclusive_run(folder):
        link_checkpoints(recipe, name, folder)
        places = checkpoint_places(recipe, name, folder, warn=lambda line: console.say("warning", line))
        checkpoint = newest_checkpoint(*places)
        if checkpoint:
            check_fits(checkpoint, recipe, manifest)
            check_same_settings(recipe, checkpoint, name)
        write_text(folder / "recipe.yaml", to_yaml(recipe))
        _say_what_will_happen(recipe, name, manifest, plan)
        last_step = recipe.schedule.last_step(plan.steps_per_epoch)
        finished = (folder / "result.json").exists() and checkpoint is not None and checkpoint.step == last_step
        if finished:
            console.say("done", f"run {name} ended before, at step {last_step:,}")
            tracking.deliver_spool(folder / "tracking")  # what a server that was down has not been told
        else:
            known_run = str(checkpoint.facts["mlflow_run"]) if checkpoint else ""
            with _on_cluster(recipe), _tracked(recipe, name, folder, known_run) as (uri, mlflow_run):
                run_workers(
                    train_worker,
                    Job(
                        recipe=recipe,
                        run=name,
                        attempt=_next_attempt(folder),
                        tracking_uri=uri,
                        tracking_run=mlflow_run,
                    ),
                    run_name=name,
                    folder=folder,
                    settings=recipe.cluster,
                    batch_size=recipe.batch.global_size,
                )
    return read_result(folder, name, last_step)


@contextmanager
def _on_cluster(recipe: Recipe) -> Iterator[None]:
    """Connect, look at the nodes where workers will stand on several, and say where everything is."""
    logs = Path(recipe.run.folder) / run_name(recipe) / "logs"
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        where = "started on this machine for this run"
        console.say("cluster", f"{recipe.cluster.workers} workers on Ray, {where}; their logs in {logs}")
        yield
        return
    with connected(recipe.cluster):
        console.say("cluster", f"{recipe.cluster.workers} workers on Ray, {address}; their logs in {logs}")
        if url := dashboard_url():
            console.say("dashboard", url)
        if recipe.cluster.preflight:
            before_training(recipe)
        yield


def read_result(folder: Path, name: str, step: int) -> TrainingResult:
    """The result that a run's folder holds."""
    metrics = folder / "evaluation" / "metrics.json"
    return TrainingResult(name, folder, step, json.loads(metrics.read_text()) if metrics.exists() else None)


def _next_attempt(folder: Path) -> int:
    counter = folder / "attempt.json"
    attempt = 1 + (json.loads(counter.read_text()) if counter.exists() else 0)
    write_json(counter, attempt)
    return attempt


@contextmanager
def _tracked(recipe: Recipe, name: str, folder: Path, known_run: str) -> Iterator[tuple[str, str]]:
    """One MLflow run over all attempts, with its status at the end."""
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
    split = split_on_most_workers(recipe)
    console.say("run", f"{name}, recipe {recipe.recipe}, seed {recipe.seed}, in {Path(recipe.run.folder) / name}")
    console.say(
        "data",
        f"{recipe.data.train}, {manifest.num_samples:,} images in {counted(len(manifest.shards), 'shard')}, "
        f"manifest {manifest.digest[:6]}; the last {plan.samples_dropped_per_epoch:,} of each epoch's order sit out",
    )
    console.say("batch", str(split))
    if recipe.cluster.elastic:
        worlds = dividing_worlds(recipe.batch.global_size, recipe.cluster)
        console.say(
            "elastic", f"{', '.join(map(str, worlds))} workers, as the cluster has room; each takes an equal share"
        )
    console.say(
        "schedule",
        f"{recipe.schedule.describe(plan.steps_per_epoch)}; {recipe.optimizer.name}, "
        f"learning rate {recipe.optimizer.learning_rate:g}",
    )
    # What "auto" comes to is known where the workers are; the JSON in MLflow says it.
    precision = "fp32" if recipe.engine.precision == "auto" else recipe.engine.precision
    derived = json.dumps(deepspeed_config(recipe.engine, split, precision))
    console.say("engine", f"ZeRO {recipe.engine.zero_stage}, precision {recipe.engine.precision}, DeepSpeed {derived}")
