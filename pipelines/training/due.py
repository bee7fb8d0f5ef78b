"""Decide what is due at the end of a step: an evaluation, a checkpoint, a stop; as planned, or as a rank asks."""

import logging
import time
from dataclasses import dataclass

from cluster.preemption import preemption_notice
from cluster.step_agreement import Agreement
from cluster.workers import WorkerContext
from pipelines.recipes.settings import Recipe

logger = logging.getLogger("aweigh")

WISHES = ("save", "stop", "preempted")
"""Requests that any rank may make: a checkpoint, the end of the attempt, a checkpoint before its node disappears."""


@dataclass(frozen=True)
class Due:
    """Work that is due at the end of one step; the same on every rank."""

    evaluation: bool
    checkpoint: bool
    """Planned by the recipe."""
    wished: bool
    """A checkpoint beyond the plan: enough minutes have passed, a node will be taken away, or training stops."""
    stop: bool
    """The attempt ends here, before the schedule does."""


class Milestones:
    """Decides what is due at the end of every step; each rank has one and asks it once a step.

    A plan is the same on all ranks, but a signal, a notice or a clock reaches one rank first. Ranks that acted alone
    would wait for each other for ever inside a collective, so requests become decisions only when all have them.

    Args:
        recipe: its evaluations and checkpoints are the plan.
        steps_per_epoch: length of an epoch in steps.
        last_step: of the whole training.
        context: this rank, with its requests.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int, last_step: int, context: WorkerContext) -> None:
        self._recipe, self._steps_per_epoch, self._last_step = recipe, steps_per_epoch, last_step
        self._context = context
        self._agreement = Agreement(WISHES)
        self._saved_at = time.monotonic()
        self._asked = False
        self._preempted = False

    def reached(self, step: int) -> Due:
        """Return what is due after a step. Collective: every rank calls it once a step."""
        agreed = self._agreement.exchange(self._wishes())
        # At the last step there is nothing left to stop: the run ends as finished, not as stopped.
        stop = "stop" in agreed and step < self._last_step
        noticed = "preempted" in agreed and not self._preempted
        if noticed:
            # One checkpoint, then training continues until the node disappears: returning here would mark the run as
            # finished. The notice stays, so it is acted on once.
            self._preempted = True
            if self._context.rank == 0:
                logger.warning(
                    "preempted at step %s: %s; a checkpoint is being written, and training continues until then",
                    f"{step:,}",
                    preemption_notice() or "the cluster will take a node away",
                )
        evaluation, checkpoint = self._planned(step)
        return Due(evaluation, checkpoint, stop or noticed or "save" in agreed, stop)

    def saved(self) -> None:
        """Start counting the minutes until the next checkpoint."""
        self._saved_at, self._asked = time.monotonic(), False

    def close(self) -> None:
        """Receive the last exchange, so that no rank ends while another still sends."""
        self._agreement.close()

    def _wishes(self) -> list[str]:
        minutes = self._recipe.checkpoint.every_minutes
        wishes = self._context.wishes()
        late = minutes > 0 and time.monotonic() - self._saved_at > 60 * minutes
        # Clocks differ: only rank 0 measures, and it asks once, since the answer comes a step later.
        if self._context.rank == 0 and late and not self._asked:
            self._asked = True
            wishes.append("save")
        return wishes

    def _planned(self, step: int) -> tuple[bool, bool]:
        recipe = self._recipe
        epoch, inside = divmod(step, self._steps_per_epoch)
        last = step == self._last_step
        # A schedule in steps may end inside an epoch; its last weights are evaluated, too.
        evaluation = last or (inside == 0 and epoch % recipe.evaluation.every_epochs == 0)
        evaluation = evaluation and bool(recipe.data.validation)
        at_epoch = last or (inside == 0 and epoch % recipe.checkpoint.every_epochs == 0)
        at_step = recipe.checkpoint.every_steps > 0 and step % recipe.checkpoint.every_steps == 0
        # An evaluation is always saved: its score decides which checkpoint is the best.
        return evaluation, evaluation or at_epoch or at_step
