"""The checkpoints of a run: where they are, which one fits, what was lost since, and writing new ones."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointFolder, open_checkpoint
from cluster.checkpoints.remote import RemoteCheckpoints
from cluster.checkpoints.writer import CheckpointWriter
from cluster.engine.engine import Engine, TrainingState
from cluster.heartbeat import Standing
from cluster.workers import UnrecoverableError, WorkerContext
from data_shards.counting import counted
from data_shards.format.manifest import Manifest, coco_class
from data_shards.order.plan import Plan
from data_shards.storage.open import open_store
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.evaluation.evaluate import Evaluation
from pipelines.recipes.recipe import to_dict
from pipelines.recipes.settings import Recipe
from pipelines.trained.checkpoint_facts import CheckpointFacts, facts_of, unknown_facts
from pipelines.trained.trained import check_classes
from pipelines.training.loss_watch import CALMER
from pipelines.training.sample_ledger import next_life

logger = logging.getLogger("aweigh")


def checkpoint_places(
    recipe: Recipe, run: str, folder: Path, warn: Callable[[str], None]
) -> tuple[CheckpointFolder, RemoteCheckpoints | None]:
    """Open the folder in which a run's checkpoints become current, and the bucket that receives a copy of each.

    Args:
        recipe: says where checkpoints are kept, and how many.
        run: the run's name, a folder below `checkpoint.location`.
        folder: the run's folder.
        warn: receives a line about each checkpoint that is passed over.

    Returns:
        The folder, and the bucket; None without a bucket.
    """
    settings = recipe.checkpoint
    local = CheckpointFolder(folder / "checkpoints", settings.keep, warn=warn)
    if "://" not in settings.location:
        return local, None
    return local, RemoteCheckpoints(open_store(f"{settings.location.rstrip('/')}/{run}"), settings.keep, warn=warn)


def newest_checkpoint(local: CheckpointFolder, remote: RemoteCheckpoints | None) -> Checkpoint | None:
    """Find the newest whole checkpoint of a run; one that only the bucket has is fetched into the folder."""
    return remote.newest(local) if remote else local.latest()


def link_checkpoints(recipe: Recipe, run: str, folder: Path) -> None:
    """Make a run's `checkpoints` a link to the folder that `checkpoint.location` names.

    Raises:
        ConfigError: the run has checkpoints elsewhere already, or the folder cannot be created.
    """
    location, link = recipe.checkpoint.location, folder / "checkpoints"
    if not location or "://" in location:
        if link.is_symlink() and not location:
            raise ConfigError(
                f"run {run} keeps its checkpoints in {link.resolve()}; give --checkpoint.location "
                f"{link.resolve().parent}."
            )
        return
    target = Path(location) / run
    try:
        target.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() or not link.exists():
            # An older link follows the setting: its folder may have been moved.
            link.unlink(missing_ok=True)
            link.symlink_to(target.resolve())
    except OSError as error:
        raise ConfigError(
            f"checkpoint.location {location} cannot be used: {error.strerror or error}. Set checkpoint.location to a "
            f"folder that you can write, or to s3://BUCKET/PREFIX."
        ) from error
    if link.resolve() != target.resolve():
        raise ConfigError(
            f"run {run} has checkpoints in {link} already, but checkpoint.location says {target}. Move them there, or "
            f"leave checkpoint.location as it was."
        )


def check_fits(checkpoint: Checkpoint, recipe: Recipe, manifest: Manifest) -> None:
    """Refuse a checkpoint of another detector, class list or data set.

    Raises:
        ConfigError: names what differs.
    """
    facts = facts_of(checkpoint)
    if facts.detector != recipe.detector.name:
        raise ConfigError(
            f"{checkpoint.path} holds detector {facts.detector}, but the recipe says {recipe.detector.name}; "
            f"set detector.name to it, or choose another --run.name."
        )
    classes = [coco_class(item) for item in facts_of(checkpoint).classes]
    check_classes(str(checkpoint.path), classes, manifest)
    if facts.manifest != manifest.digest:
        # The order of samples is a function of the manifest: other shards would repeat some samples and skip others.
        raise ConfigError(
            f"{checkpoint.path} was trained on shards {facts.manifest[:12]}, but data.train is "
            f"{manifest.digest[:12]}; the order of samples would change. Use the same shards, or choose another "
            f"--run.name."
        )


def lost_line(standing: Standing | None, step: int, batch_size: int, saved_at: float) -> str:
    """Say how many samples, and how much time, have to be trained again.

    Args:
        standing: step and time that rank 0 of the last attempt wrote last; None if it left no trace.
        step: steps done at the checkpoint.
        batch_size: samples of a step.
        saved_at: Unix time, in seconds, at which the checkpoint was taken; 0 if it is unknown.
    """
    if standing is None:
        return "lost      unknown: the last attempt left no trace in this folder"
    steps = max(0, standing.step - step)
    if steps == 0 and standing.last:
        return "lost      nothing: the last attempt ended with this checkpoint"
    if steps == 0:
        # The heartbeat is written twice a second, so a step may have ended after its last line.
        return "lost      less than a second of training: the last attempt was killed just after this checkpoint"
    spent = f" and {console.duration(standing.written - saved_at)}" if saved_at else ""
    return f"lost      {counted(steps, 'step')}: {steps * batch_size:,} samples{spent} of training are repeated"


class Saver:
    """Reads and writes a run's checkpoints; every rank has one and calls it at the same steps.

    Args:
        context: this rank.
        recipe: what is trained.
        run: the run's name.
        manifest: of the training shards.
    """

    def __init__(self, context: WorkerContext, recipe: Recipe, run: str, manifest: Manifest) -> None:
        self._context, self._recipe, self._manifest = context, recipe, manifest
        self._folder, self._remote = checkpoint_places(
            recipe, run, context.folder, warn=lambda line: logger.warning("%s", line)
        )
        # A slow bucket is not a hang: whoever waits for it reports progress to the heartbeat.
        progress = context.heartbeat.progress
        self.writer = CheckpointWriter(self._folder, self._remote, waiting=progress)
        if self._remote:
            self._remote.progress = progress
        self.life = 0
        """Number of this start of the workers, in nanoseconds since 1970: larger at each start, equal on all ranks."""

    def start(self) -> Checkpoint | None:
        """Choose the checkpoint to resume from. Collective: rank 0 chooses and verifies, the others follow.

        Raises:
            ConfigError: it belongs to another detector, class list or data set.
        """
        chosen: list[Any] = [None, next_life(self._context.folder, time.time_ns())]
        if self._context.rank == 0:
            newest = newest_checkpoint(self._folder, self._remote)
            chosen[0] = newest.path.name if newest else None
        # Each rank looking for itself could find another one: a checkpoint may become current in between.
        torch.distributed.broadcast_object_list(chosen)
        name, self.life = chosen
        if name is None:
            return None
        path = self._folder.folder / name
        if self._remote and not path.exists():  # on a node that does not share rank 0's folder
            self._remote.fetch(name, self._folder.folder)
        checkpoint = open_checkpoint(path, verify=False)
        check_fits(checkpoint, self._recipe, self._manifest)
        if self._context.rank == 0 and (unknown := unknown_facts(checkpoint)):
            logger.warning("%s", unknown)
        return checkpoint

    def save(self, engine: Engine, plan: Plan, step: int, evaluation: Evaluation | None, **facts: Any) -> None:
        """Copy the state. Collective; rank 0 writes the copy while training continues.

        Args:
            engine: its state is copied.
            plan: the order of samples.
            step: steps done.
            evaluation: of these weights, if there was one.
            facts: more entries of `state.json`.

        Raises:
            UnrecoverableError: a weight is not finite.
        """
        state = engine.state()
        if state is not None:
            self._write(state, engine, plan, step, evaluation, **facts)
        # Rank 0 may wait for a slow upload of the checkpoint before; the others must not do so inside a step.
        self._context.wait_for_all()

    def _write(
        self, state: TrainingState, engine: Engine, plan: Plan, step: int, evaluation: Evaluation | None, **facts: Any
    ) -> None:
        # A checkpoint with NaN in it would be the newest, and every later attempt would resume from it.
        if broken := [name for name, value in state.weights.items() if not torch.isfinite(value).all()]:
            raise UnrecoverableError(
                f"{broken[0]} is not finite after step {step:,}, so no checkpoint of it is kept; {CALMER}"
            )
        all_facts = CheckpointFacts(
            epoch=step // plan.steps_per_epoch,
            samples_seen=step * plan.global_batch_size,
            steps_per_epoch=plan.steps_per_epoch,
            seed=self._recipe.seed,
            detector=self._recipe.detector.name,
            classes=[dataclasses.asdict(item) for item in self._manifest.classes],
            manifest=self._manifest.digest,
            recipe=to_dict(self._recipe),
            world_size=self._context.world_size,
            zero_stage=self._recipe.engine.zero_stage,
            precision=engine.precision,
            saved_at=time.time(),
            **facts,
        )
        self.writer.save(state, {"step": step, **all_facts.as_dict()}, score=_score(evaluation))


def _score(evaluation: Evaluation | None) -> float | None:
    """Return the AP of the weights; None if they were not evaluated, or the data has no objects to find."""
    return None if evaluation is None or math.isnan(evaluation.score) else evaluation.score
