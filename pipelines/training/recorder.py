"""Record a training while it runs: losses over all ranks and the pace, as a line of the log and in MLflow."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed
from torch import Tensor

from cluster.engine.engine import BatchSplit, Engine
from cluster.workers import UnrecoverableError, WorkerContext
from data_shards.order.plan import Plan, World
from pipelines import console
from pipelines.recipes.settings import Recipe
from pipelines.tracking import Tracker
from pipelines.training.loss_watch import CALMER, LossWatch
from pipelines.training.stopwatch import Stopwatch

logger = logging.getLogger("aweigh")

# fp16 halves its loss scale at each skip, from 2^16 to 1 in 16 steps. This many skips in a row have another cause, and
# the weights will not recover.
_SKIP_LIMIT = 50


@dataclass
class _Interval:
    """Time and steps since the last record."""

    began: float = field(default_factory=time.perf_counter)
    steps: int = 0


class Recorder:
    """Keeps the losses of every step and records them at the steps that the caller chooses; every rank has one.

    Args:
        context: this rank.
        recipe: says what follows a loss that is not finite.
        plan: the order of samples.
        world: this rank's place in it.
        split: its global size turns seconds into images per second.
        stopwatch: of the phases of a step.
        last_step: of the whole training.
        skipped_steps: number of steps that earlier attempts skipped.
        stage_factors: factors on the learning rate, by stage.
    """

    def __init__(
        self,
        context: WorkerContext,
        recipe: Recipe,
        plan: Plan,
        world: World,
        split: BatchSplit,
        stopwatch: Stopwatch,
        last_step: int,
        skipped_steps: int,
        stage_factors: Mapping[str, float],
    ) -> None:
        self._context, self._recipe, self._plan, self._split = context, recipe, plan, split
        self._stopwatch, self._last_step = stopwatch, last_step
        # Without rates of their own, one number says it for all stages.
        self._stage_factors = stage_factors if any(factor != 1 for factor in stage_factors.values()) else {}
        self._watch = LossWatch(plan, world)
        self._interval = _Interval()
        self._skips_in_a_row = 0
        self.skipped_steps = skipped_steps
        """Number of steps of the whole run that were skipped because a gradient was not finite."""
        self.tracker: Tracker | None = None
        """MLflow's, on rank 0; None elsewhere."""

    def add(self, step: int, parts: list[dict[str, Tensor]], *, skipped: bool) -> None:
        """Keep the losses of a step, on the device: reading them would wait for the backward pass.

        Args:
            step: counted from 1.
            parts: for each microbatch, its scalar losses by name.
            skipped: the step changed no weight because a gradient was not finite.

        Raises:
            UnrecoverableError: too many steps in a row were skipped.
        """
        self._interval.steps += 1
        self._watch.add(step, parts)
        self._skips_in_a_row = self._skips_in_a_row + 1 if skipped else 0
        self.skipped_steps += skipped
        if self._skips_in_a_row > _SKIP_LIMIT:
            raise UnrecoverableError(
                f"{self._skips_in_a_row} steps in a row, up to step {step:,}, had gradients that are not finite and "
                f"were skipped. The last checkpoint is from before them; {CALMER}"
            )

    def check_losses(self) -> None:
        """Look for losses that are not finite since the last call. Collective.

        Raises:
            UnrecoverableError: there is one, and `engine.not_finite` is not "skip".
        """
        found = self._watch.ask()
        if found is None:
            return
        if self._recipe.engine.not_finite == "skip":
            if self._context.rank == 0:
                logger.warning("skipped   %s: the loss is not finite", found)
            return
        raise UnrecoverableError(
            f"the loss is not finite at {found}. The last checkpoint is from before it; {CALMER} "
            f"Or skip such steps with engine.not_finite skip."
        )

    def record(self, step: int, parts: list[dict[str, Tensor]], rate: float, engine: Engine) -> None:
        """Record the losses of a step, averaged over ranks, and the pace since the last record. Collective.

        Args:
            step: counted from 1.
            parts: for each microbatch, its scalar losses by name.
            rate: the learning rate of the step.
            engine: knows the gradient's norm and the loss scale.
        """
        losses = self._mean_over_ranks(parts)
        # Before anything is written: a run that ends here has no NaN among its metrics.
        self.check_losses()
        seconds = time.perf_counter() - self._interval.began
        phases, steps = self._stopwatch.take(), self._interval.steps
        self._interval = _Interval()
        if self.tracker is None:
            return
        pace = {
            "train/learning_rate": rate,
            "train/epoch": step / self._plan.steps_per_epoch,
            "time/images_per_second": steps * self._split.global_size / seconds,
            "time/step_seconds": seconds / steps,
            "time/data_seconds": phases["data"] / steps,
            "time/data_fraction": phases["data"] / seconds,
            **{f"train/learning_rate_{stage}": rate * factor for stage, factor in self._stage_factors.items()},
            **self._of_engine(engine),
        }
        named = {f"train/{'loss' if name == 'loss' else f'loss_{name}'}": value for name, value in losses.items()}
        # A skipped step may have a loss of NaN, which a curve cannot show.
        figures = {key: value for key, value in {**named, **pace}.items() if math.isfinite(value)}
        self.tracker.log_metrics(step, figures)
        remaining = (self._last_step - step) * seconds / steps
        logger.info("%s", console.step_line(step, self._last_step, losses, pace, remaining))

    def pause(self) -> None:
        """Restart the pace after an evaluation or a checkpoint, whose time does not count for the step."""
        self._interval = _Interval()
        self._stopwatch.take()

    def _mean_over_ranks(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        names = list(parts[0])
        # One tensor of all losses, so that the ranks exchange once and the device is waited for once.
        values = torch.stack([torch.stack([part[name] for name in names]) for part in parts]).mean(dim=0).double()
        torch.distributed.all_reduce(values)
        return dict(zip(names, (values / self._context.world_size).tolist(), strict=True))

    def _of_engine(self, engine: Engine) -> dict[str, float]:
        found: dict[str, float] = {}
        norm = engine.gradient_norm
        if norm is not None:
            found["train/gradient_norm"] = norm
        if engine.loss_scale:
            found["train/loss_scale"] = engine.loss_scale.value
        if self.skipped_steps:
            found["train/skipped_steps"] = self.skipped_steps
        return found
