"""The training story as the driver tells it: check, say what will happen, train, say what came out."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

import detectors
from cluster.checkpoints.checkpoint import Checkpoint
from cluster.engine.engine import BatchSplit, check_deepspeed, deepspeed_config, split_batch
from cluster.errors import StoppedError
from cluster.local import connected, dashboard_url
from cluster.workers import dividing_worlds, exclusive_run, run_workers
from data_shards.counting import counted
from data_shards.format.manifest import Manifest, load_manifest
from data_shards.loading.batch import Batch
from data_shards.loading.batch_arrays import Slot
from data_shards.order.plan import Plan, make_plan
from data_shards.reading.shards import Shards
from data_shards.storage.store import open_store
from detectors import Detector
from pipelines import console, tracking
from pipelines.errors import ConfigError
from pipelines.files import write_json, write_text
from pipelines.recipes.recipe import differences, flatten, from_dict, run_name, to_dict, to_yaml
from pipelines.recipes.settings import IMAGENET, DataSettings, Recipe
from pipelines.training.checkpoint_facts import facts_of
from pipelines.training.from_recipe import build_detector
from pipelines.training.loop import Job, train_worker
from pipelines.training.preflight import before_training
from pipelines.training.resuming import check_fits, checkpoint_places, link_checkpoints, newest_checkpoint


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
    _check_kept(recipe)
    has_begun = any((folder / "checkpoints").glob("step-*"))
    manifest, plan = check(recipe, fresh=not has_begun)
    _check_writable(folder)
    with exclusive_run(folder):
        link_checkpoints(recipe, name, folder)
        places = checkpoint_places(recipe, name, folder, warn=lambda line: console.say("warning", line))
        checkpoint = newest_checkpoint(*places)
        if checkpoint:
            check_fits(checkpoint, recipe, manifest)
            _agree_with_earlier_attempts(recipe, checkpoint, name)
        write_text(folder / "recipe.yaml", to_yaml(recipe))
        _say_what_will_happen(recipe, name, manifest, plan)
        last_step = recipe.schedule.last_step(plan.steps_per_epoch)
        finished = (folder / "result.json").exists() and checkpoint is not None and checkpoint.step == last_step
        if finished:
            console.say("done", f"run {name} ended before, at step {last_step:,}")
            tracking.deliver_spool(folder / "tracking")  # what a server that was down has not been told
        else:
            known_run = facts_of(checkpoint).mlflow_run if checkpoint else ""
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
        console.say("cluster", f"{recipe.cluster.workers_in_words} on Ray, {where}; their logs in {logs}")
        yield
        return
    with connected(recipe.cluster):
        console.say("cluster", f"{recipe.cluster.workers_in_words} on Ray, {address}; their logs in {logs}")
        if url := dashboard_url():
            console.say("dashboard", url)
        if recipe.cluster.preflight:
            before_training(recipe)
        yield


def read_result(folder: Path, name: str, step: int) -> TrainingResult:
    """The result that a run's folder holds."""
    metrics = folder / "evaluation" / "metrics.json"
    return TrainingResult(name, folder, step, json.loads(metrics.read_text()) if metrics.exists() else None)


def tracking_uri(recipe: Recipe) -> str:
    """Where MLflow is: as the recipe says, else MLFLOW_TRACKING_URI, else SQLite beside the runs."""
    uri = recipe.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    return tracking.absolute_uri(uri or f"sqlite:///{Path(recipe.run.folder).resolve() / 'mlflow.db'}")


def absolute(recipe: Recipe) -> Recipe:
    """Paths as every process finds them; workers do not share the driver's working directory."""

    def path(text: str) -> str:
        return text if not text or "://" in text else str(Path(text).expanduser().resolve())

    data = replace(
        recipe.data,
        train=path(recipe.data.train),
        validation=path(recipe.data.validation),
        cache_folder=path(recipe.data.cache_folder),
    )
    weights = recipe.detector.weights
    detector = replace(recipe.detector, weights=path(weights) if weights and weights != IMAGENET else weights)
    return replace(
        recipe,
        data=data,
        detector=detector,
        checkpoint=replace(recipe.checkpoint, location=path(recipe.checkpoint.location)),
        run=replace(recipe.run, folder=path(recipe.run.folder)),
    )


def check(recipe: Recipe, *, fresh: bool = True) -> tuple[Manifest, Plan]:
    """Everything that can be known to be wrong before a worker is started.

    A `fresh` run starts from the recipe's initial weights, which are fetched and loaded here first.
    """
    _check_settings(recipe)
    if "://" in recipe.checkpoint.location:
        open_store(recipe.checkpoint.location).check_writable()
    manifest = load_manifest(recipe.data.train)
    plan = make_plan(manifest, seed=recipe.seed, global_batch_size=recipe.batch.global_size)
    for location, found in _locations(recipe, manifest):
        if found.classes != manifest.classes:
            raise ConfigError(
                f"{location} has other classes than {recipe.data.train}: "
                f"{_shown(found.class_names)} instead of {_shown(manifest.class_names)}. "
                f"Build both from one class list."
            )
        _check_shards(location, found)
    detector = build_detector(recipe, manifest, initial=fresh)
    check_input_size(recipe, detector)
    _check_max_objects(recipe, detector)
    detector.check_test_mode(recipe.evaluation.tta, recipe.evaluation.soft_nms)
    _check_labels(recipe, detector, manifest)
    return manifest, plan


def _check_settings(recipe: Recipe) -> None:
    """What the recipe alone tells."""
    if not recipe.data.train:
        raise ConfigError(
            "data.train is empty: give --data.train LOCATION/SPLIT, the shards that `aweigh shards build` made."
        )
    hang, deadline = recipe.cluster.hang_seconds, recipe.data.read_deadline_seconds
    if "://" in recipe.data.train and 0 < hang < deadline:
        raise ConfigError(
            f"data.read_deadline_seconds is {deadline:g} and cluster.hang_seconds {hang:g}: waiting for S3 would be "
            f"taken for a standstill. Raise cluster.hang_seconds to {deadline:g} or more."
        )
    _most_workers(recipe)
    check_deepspeed(recipe.engine)


def check_before_submission(recipe: Recipe) -> None:
    """Everything that can be known to be wrong on this machine, for a training on another one.

    Raises:
        ConfigError, DataError, DetectorError: something given cannot be used there.
    """
    _check_settings(recipe)
    check_places(recipe)
    if Path(recipe.data.train).is_dir():
        # The cluster's file system is mounted here, too; ImageNet's weights are fetched by who trains.
        check(recipe, fresh=recipe.detector.weights != IMAGENET)
    else:
        detector = detectors.build(recipe.detector.name, 80, **recipe.detector.settings)
        check_input_size(recipe, detector)
        _check_max_objects(recipe, detector)


def check_places(recipe: Recipe) -> None:
    """Refuse what means a place on this machine, where the training is on another one."""
    for field, location in (
        ("run.folder", recipe.run.folder),
        ("data.train", recipe.data.train),
        ("data.validation", recipe.data.validation),
        ("detector.weights", "" if recipe.detector.weights == IMAGENET else recipe.detector.weights or ""),
        ("data.cache_folder", recipe.data.cache_folder),
        ("checkpoint.location", recipe.checkpoint.location),
    ):
        if location and "://" not in location and not Path(location).is_absolute():
            raise ConfigError(
                f"{field} {location!r} means a place on this machine, which the cluster does not see: give s3://… or "
                f"the absolute path of a file system that every node mounts."
            )


def _most_workers(recipe: Recipe) -> BatchSplit:
    """How the batch falls on the workers, the most of them where their number is elastic; refused where it cannot."""
    cluster, batch = recipe.cluster, recipe.batch
    workers = max(dividing_worlds(batch.global_size, cluster)) if cluster.elastic else cluster.max_workers
    return split_batch(batch.global_size, workers, batch.microbatch_limit)


def check_input_size(recipe: Recipe, detector: Detector) -> None:
    """Refuse an input that the network cannot halve as often as it does.

    Raises:
        ConfigError: with the nearest size that it can.
    """
    divisor = detector.stride_divisor
    for name, size in (("data", recipe.data.input_size), ("evaluation", recipe.evaluation.input_size or ())):
        if any(side % divisor for side in size):
            height, width = (max(divisor, round(side / divisor) * divisor) for side in size)
            raise ConfigError(
                f"{name}.input_size is {list(size)}; {recipe.detector.name} needs multiples of {divisor}, such as "
                f"{height} {width}."
            )


def _check_max_objects(recipe: Recipe, detector: Detector) -> None:
    """Refuse a number of boxes that was raised in vain: the detector would leave the rest out without a word."""
    places = getattr(getattr(detector, "settings", None), "max_objects", None)
    if places is not None and recipe.data.max_objects > max(places, DataSettings.max_objects):
        raise ConfigError(
            f"data.max_objects is {recipe.data.max_objects}, but {recipe.detector.name} trains on the first {places} "
            f"boxes of an image: set data.max_objects to {places}, or detector.settings.max_objects to "
            f"{recipe.data.max_objects}."
        )


def _check_labels(recipe: Recipe, detector: Detector, manifest: Manifest) -> None:
    """Let the detector refuse data that lacks what it learns, such as joints, by encoding an image without objects."""
    empty = Slot.empty(np.zeros(1, dtype=np.int64), recipe.data.input_size, 1, augmented=True, manifest=manifest)
    batch = Batch.over(empty, 0, 0)
    detector.encode(batch.boxes, batch.labels, batch.input_size, **batch.extra)
    if recipe.augmentation.rotation_probability and not hasattr(getattr(detector, "settings", None), "joints"):
        raise ConfigError(
            f"augmentation.rotation_probability is {recipe.augmentation.rotation_probability:g}, which is for pose: "
            f"{recipe.detector.name} would learn boxes of the unturned image. Set it to 0."
        )


def _locations(recipe: Recipe, manifest: Manifest) -> list[tuple[str, Manifest]]:
    validation = recipe.data.validation
    return [(recipe.data.train, manifest), *([(validation, load_manifest(validation))] if validation else [])]


def _check_shards(location: str, manifest: Manifest) -> None:
    """Compare shards in a folder with their manifest; those of S3 are compared when a node fetches them."""
    if open_store(location).local_path("manifest.json") is None:
        return
    Shards(location, manifest).verify()


def _check_kept(recipe: Recipe) -> None:
    """Refuse to write a run where Ray unpacks a job: it deletes that folder."""
    unpacked = "runtime_resources/working_dir_files/"
    if unpacked in recipe.run.folder:
        raise ConfigError(
            "run.folder is relative, and the working directory of a submitted job is deleted with it: give "
            "--run.folder the absolute path of a file system that every node mounts."
        )


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"run folder {folder} cannot be written: {error.strerror}; set --run.folder.") from error


def _agree_with_earlier_attempts(recipe: Recipe, checkpoint: Checkpoint, name: str) -> None:
    """Refuse to go on from a checkpoint with settings that would train something else."""
    # Read as a recipe first: a field that came with a later aweigh takes its default.
    changed = differences(to_dict(from_dict(facts_of(checkpoint).recipe)), to_dict(recipe))
    if changed:
        raise ConfigError(
            f"run {name} was started with other settings ({'; '.join(changed)}). Give the earlier ones, or another "
            f"--run.name."
        )


def _next_attempt(folder: Path) -> int:
    counter = folder / "attempt.json"
    attempt = 1 + (json.loads(counter.read_text()) if counter.exists() else 0)
    write_json(counter, attempt)
    return attempt


@contextmanager
def _tracked(recipe: Recipe, name: str, folder: Path, known_run: str) -> Iterator[tuple[str, str]]:
    """One MLflow run over all attempts, with its status at the end."""
    uri = tracking_uri(recipe)
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
    split = _most_workers(recipe)
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


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (f", … ({len(names)} in all)" if len(names) > 6 else "")
