"""The checkpoints of one training: which one it starts from, and those that it leaves."""

import dataclasses
import logging
import math
import time
from typing import Any

import torch
import torch.distributed

from cluster.checkpoints.checkpoint import Checkpoint, open_checkpoint
from cluster.checkpoints.writer import CheckpointWriter
from cluster.engine.engine import Engine
from cluster.workers import UnrecoverableError, WorkerContext
from data_shards.format.manifest import Manifest
from data_shards.order.plan import Plan
from pipelines.evaluation.evaluate import Evaluation
from pipelines.recipes.recipe import to_dict
from pipelines.recipes.settings import Recipe
from pipelines.training.checkpoint_facts import CheckpointFacts, unknown_facts
from pipelines.training.loss_watch import CALMER
from pipelines.training.resuming import check_fits, checkpoint_places, newest_checkpoint

logger = logging.getLogger("aweigh")


class Saver:
    """Reads and writes a run's checkpoints; every rank has one and calls it at the same steps.

    Args:
        context: this rank.
        recipe: what is trained.
        run: its name.
        manifest: of the training shards.
    """

    def __init__(self, context: WorkerContext, recipe: Recipe, run: str, manifest: Manifest) -> None:
        self._context, self._recipe, self._manifest = context, recipe, manifest
        self._folder, self._remote = checkpoint_places(
            recipe, run, context.folder, warn=lambda line: logger.warning("%s", line)
        )
        progress = context.heartbeat.progress
        self.writer = CheckpointWriter(self._folder, self._remote, waiting=progress)
        if self._remote:
            self._remote.progress = progress
        self.life = 0
        """Tells this start of the workers from earlier ones, and grows; the same on every rank."""

    def start(self) -> Checkpoint | None:
        """The checkpoint to go on from: rank 0 chooses and verifies, the others follow.

        Raises:
            ConfigError: it is of another detector, class list or data set.
        """
        chosen: list[Any] = [None, time.time_ns()]
        if self._context.rank == 0:
            newest = newest_checkpoint(self._folder, self._remote)
            chosen[0] = newest.path.name if newest else None
        torch.distributed.broadcast_object_list(chosen)
        name, self.life = chosen
        if name is None:
            return None
        path = self._folder.folder / name
        if self._remote and not path.exists():  # a node whose run folder is its own
            self._remote.fetch(name, self._folder.folder)
        checkpoint = open_checkpoint(path, verify=False)
        check_fits(checkpoint, self._recipe, self._manifest)
        if self._context.rank == 0 and (unknown := unknown_facts(checkpoint)):
            logger.warning("%s", unknown)
        return checkpoint

    def save(self, engine: Engine, plan: Plan, step: int, evaluation: Evaluation | None, **facts: Any) -> None:
        """Copy the state, on every rank; rank 0 writes it while training goes on.

        Args:
            engine: whose state is copied.
            plan: the order of samples.
            step: steps done.
            evaluation: of these weights, where there was one.
            facts: more of what `state.json` says.

        Raises:
            UnrecoverableError: a weight is not finite.
        """
        state = engine.state()
        if state is None:
            return
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
    """AP of the weights as they are; None where they were not evaluated, or nothing was there to be found."""
    return None if evaluation is None or math.isnan(evaluation.score) else evaluation.score
