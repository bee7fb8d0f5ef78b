"""Find losses that are NaN or infinite: their step, part and worker, and the samples they came from."""

from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from data_shards.counting import counted
from data_shards.order.plan import Plan, World

CALMER = "lower optimizer.learning_rate or set engine.clip_norm, under another --run.name."
"""Advice for a training whose numbers are not finite."""


@dataclass(frozen=True)
class NotFinite:
    """The first step of an interval whose loss is not finite; the same on all ranks."""

    step: int
    steps: int
    """Number of steps of the interval that have such a loss."""
    parts: dict[int, dict[str, float]]
    """Values that are not finite, by rank and name."""
    samples: dict[int, list[int]]
    """Sample ids of those ranks in that step."""

    def __str__(self) -> str:
        where = "; ".join(
            f"{', '.join(f'{name} {value:g}' for name, value in parts.items())} on worker {rank}, "
            f"samples {', '.join(map(str, self.samples[rank]))}"
            for rank, parts in self.parts.items()
        )
        more = f", and {counted(self.steps - 1, 'step')} after it" if self.steps > 1 else ""
        return f"step {self.step:,} ({where}){more}"


class LossWatch:
    """Keeps the losses of the steps since the last look, on the device; nothing waits for them until then.

    Args:
        plan: knows the samples of a step.
        world: this rank's place in it.
    """

    def __init__(self, plan: Plan, world: World) -> None:
        self._plan, self._world = plan, world
        self._kept: list[tuple[int, list[dict[str, Tensor]]]] = []

    def add(self, step: int, parts: list[dict[str, Tensor]]) -> None:
        """Keep the losses of a step, counted from 1; `parts` holds those of each microbatch by name."""
        self._kept.append((step, parts))

    def ask(self) -> NotFinite | None:
        """Return the first kept step with a loss that is not finite; None if all are finite. Collective."""
        kept, self._kept = self._kept, []
        if not kept:
            return None
        names = list(kept[0][1][0])
        values = torch.stack([torch.stack([part[name] for part in parts for name in names]) for _, parts in kept])
        bad = ~values.detach().isfinite()
        # One number decides whether the ranks talk at all: almost always everything is finite.
        anywhere = bad.any().to(torch.int32).reshape(1)
        torch.distributed.all_reduce(anywhere, torch.distributed.ReduceOp.MAX)
        if not anywhere.item():
            return None
        found: dict[int, dict[str, float]] = {}
        for row, (step, _) in enumerate(kept):
            for column in bad[row].nonzero().flatten().tolist():
                found.setdefault(step, {})[names[column % len(names)]] = float(values[row, column])
        everyone: list[dict[int, dict[str, float]]] = [{} for _ in range(self._world.ranks)]
        torch.distributed.all_gather_object(everyone, found)
        steps = sorted({step for one in everyone for step in one})
        parts = {rank: one[steps[0]] for rank, one in enumerate(everyone) if steps[0] in one}
        epoch, index = divmod(steps[0] - 1, self._plan.steps_per_epoch)
        # The order is a pure function, so each rank can name the samples of any other.
        samples = {
            rank: self._plan.rank_batch(epoch, index, World(ranks=self._world.ranks, rank=rank)).tolist()
            for rank in parts
        }
        return NotFinite(steps[0], len(steps), parts, samples)
