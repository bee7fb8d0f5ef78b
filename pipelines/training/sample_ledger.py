"""The ledger of seen samples: the ids that each rank trained on at each step, and a comparison with the plan.

    ledger/1763990000000000000-rank-0.jsonl     {"start": 8, "world_size": 2, "attempt": 2}
                                                [9, [17, 3, 30, 12]]
                                                …

One file for each rank of each start of the workers. Of a step that was repeated after an interruption the last training
counts, since the weights came from that one.
"""

import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from data_shards.counting import counted
from data_shards.order.plan import Plan

logger = logging.getLogger("aweigh")


class Ledger:
    """One rank's record of one start; a step is handed to the operating system when it ends.

    Args:
        folder: the run's folder.
        life: number of this start of the workers, larger at each start; the same on every rank.
        rank: this rank.
        start: steps done before it.
        world_size: number of ranks.
        attempt: number of the driver's attempt.
    """

    def __init__(self, folder: Path, life: int, rank: int, *, start: int, world_size: int, attempt: int) -> None:
        (folder / "ledger").mkdir(parents=True, exist_ok=True)
        self._file = (folder / "ledger" / f"{life}-rank-{rank}.jsonl").open("w")
        self._failed = False
        self._write({"start": start, "world_size": world_size, "attempt": attempt})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what the full disk did not take is flushed again here
            self._file.close()

    def add(self, step: int, sample_ids: list[int]) -> None:
        """Note the samples of a step, counted from 1, in the order in which this rank trained on them."""
        self._write([step, sample_ids])

    def _write(self, line: object) -> None:
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            # A record of a training must not end it: the disk may have space again at the next checkpoint.
            if not self._failed:
                logger.warning("ledger: steps are missing in %s (%s)", self._file.name, error.strerror or error)
            self._failed = True


@dataclass(frozen=True)
class Seen:
    """All ledgers of a run together."""

    steps: dict[int, list[int]]
    """Sample ids of each step's global batch, rank after rank."""
    repeated_steps: int
    """Number of steps that were trained again after interruptions."""
    lives: int
    """Number of times that the workers were started."""
    last_start: int
    """Steps done at their last start."""


def next_life(folder: Path, now_ns: int) -> int:
    """Return a number for a new start of the workers: the time, or more if the clock was set back since the last one.

    Args:
        folder: the run's folder.
        now_ns: nanoseconds since 1970.
    """
    earlier = (int(path.stem.split("-rank-")[0]) for path in (folder / "ledger").glob("*-rank-*.jsonl"))
    return max(now_ns, 1 + max(earlier, default=0))


def read_ledger(folder: Path) -> Seen:
    """Read the ledgers of a run; a line that a killed worker left unfinished is dropped."""
    lives: dict[int, dict[int, list[tuple[int, list[int]]]]] = {}
    starts: dict[int, int] = {}
    attempts: dict[int, int] = {}
    for path in sorted((folder / "ledger").glob("*-rank-*.jsonl")):
        life, rank = map(int, path.stem.split("-rank-"))
        lines: list[Any] = []
        for line in path.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
        if lines:
            starts[life], attempts[life] = lines[0]["start"], lines[0]["attempt"]
            lives.setdefault(life, {})[rank] = [(step, ids) for step, ids in lines[1:]]
    steps: dict[int, list[int]] = {}
    trained = 0
    # By attempt first: the number of a start is a time, and the clock may have been set back between two attempts.
    in_order = sorted(lives, key=lambda life: (attempts[life], life))
    for life in in_order:
        # This start resumed from a checkpoint: later steps of earlier starts are not in the weights.
        for gone in [step for step in steps if step > starts[life]]:
            del steps[gone]
        mine: dict[int, list[int]] = {}
        for rank in sorted(lives[life]):
            for step, ids in lives[life][rank]:
                mine.setdefault(step, []).extend(ids)
        trained += len(mine)
        steps |= mine
    last_start = starts[in_order[-1]] if in_order else 0
    return Seen(dict(sorted(steps.items())), trained - len(steps), len(lives), last_start)


def departures(seen: Seen, plan: Plan, last_step: int) -> list[str]:
    """Compare the samples that were seen with the plan.

    Args:
        seen: ledgers of a finished run.
        plan: the order of samples of its recipe.
        last_step: steps of the whole run.

    Returns:
        A line for each difference; empty if every sample was seen once, in order.
    """
    found = []
    for step in range(1, last_step + 1):
        epoch, index = divmod(step - 1, plan.steps_per_epoch)
        expected, got = plan.batch(epoch, index).tolist(), seen.steps.get(step)
        if got is None:
            found.append(f"step {step:,} was never trained")
        elif got != expected:
            place = next((i for i, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1]), len(got))
            found.append(
                f"step {step:,}, place {place}: sample {got[place] if place < len(got) else 'none'}, but the plan has "
                f"{expected[place] if place < len(expected) else 'none'}"
            )
    for epoch in range(last_step // plan.steps_per_epoch):
        first = epoch * plan.steps_per_epoch
        ids = [one for step in range(first + 1, first + plan.steps_per_epoch + 1) for one in seen.steps.get(step, [])]
        if len(set(ids)) != len(ids):
            found.append(f"epoch {epoch}: {counted(len(ids) - len(set(ids)), 'sample')} seen more than once")
    if extra := [step for step in seen.steps if step > last_step]:
        found.append(f"step {extra[0]:,} was trained after the end")
    return found
