"""What a step ends with: an evaluation, a checkpoint, the end of the attempt; as planned, or as a rank wishes."""

import logging
import time
from dataclasses import dataclass

from cluster.preemption import preemption_notice
from cluster.step_agreement import Agreement
from cluster.workers import WorkerContext
from pipelines.recipes.settings import Recipe

logger = logging.getLogger("aweigh")

WISHES = ("save", "stop", "preempted")


@dataclass(frozen=True)
class Due:
    """What has to be done at the end of one step; the same on every rank."""

    evaluation: bool
    checkpoint: bool
    """As the recipe plans it."""
    wished: bool
    """A checkpoint beyond the plan: the time for one has come, the node goes away, or training is to stop."""
    stop: bool
    """The attempt ends here, before the schedule does."""


class Milestones:
    """Decides at every step's end what is due.

    Args:
        recipe: says what is planned.
        steps_per_epoch: of its order of samples.
        last_step: of the whole training.
        context: this rank, which may have wishes of its own.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int, last_step: int, context: WorkerContext) -> None:
        self._recipe, self._steps_per_epoch, self._last_step = recipe, steps_per_epoch, last_step
        self._context = context
        self._agreement = Agreement(WISHES)
        self._saved_at = time.monotonic()
        self._asked = False
        self._preempted = False

    def reached(self, step: int) -> Due:
        """What the end of this step calls for; every rank asks once a step."""
        agreed = self._agreement.exchange(self._wishes())
        stop = "stop" in agreed and step < self._last_step
        noticed = "preempted" in agreed and not self._preempted
        if noticed:
            # Saved once; training goes on until the node is gone, for to return would end the run as a success.
            self._preempted = True
            if self._context.rank == 0:
                logger.warning(
                    "preempted at step %s: %s; its checkpoint is written, training goes on until then",
                    f"{step:,}",
                    preemption_notice() or "the cluster will take a node away",
                )
        evaluation, checkpoint = self._planned(step)
        return Due(evaluation, checkpoint, stop or noticed or "save" in agreed, stop)

    def saved(self) -> None:
        """A checkpoint was taken just now: the time until the next one begins."""
        self._saved_at, self._asked = time.monotonic(), False

    def close(self) -> None:
        """Receive what the other ranks have sent last."""
        self._agreement.close()

    def _wishes(self) -> list[str]:
        minutes = self._recipe.checkpoint.every_minutes
        wishes = self._context.wishes()
        late = minutes > 0 and time.monotonic() - self._saved_at > 60 * minutes
        if self._context.rank == 0 and late and not self._asked:
            self._asked = True
            wishes.append("save")
        return wishes

    def _planned(self, step: int) -> tuple[bool, bool]:
        recipe = self._recipe
        epoch, inside = divmod(step, self._steps_per_epoch)
        last = step == self._last_step
        # A schedule in steps may end inside an epoch.
        evaluation = last or (inside == 0 and epoch % recipe.evaluation.every_epochs == 0)
        evaluation = evaluation and bool(recipe.data.validation)
        at_epoch = last or (inside == 0 and epoch % recipe.checkpoint.every_epochs == 0)
        at_step = recipe.checkpoint.every_steps > 0 and step % recipe.checkpoint.every_steps == 0
        return evaluation, evaluation or at_epoch or at_step
