"""Whether a disturbed training left a trace: its last state, its losses, the samples it saw, its MLflow run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_shards.plan import Plan
from pipelines import tracking
from pipelines.ledger import departures, read_ledger

_PARTS = ("weights", "optimizer", "per_rank")


@dataclass(frozen=True)
class Verdict:
    """What the comparison of two runs found."""

    equal: bool
    """Bitwise, or to float tolerance where that is all that was promised."""
    summary: str
    problems: tuple[str, ...] = ()
    """What is not as it was promised, one line each."""


def compare_runs(whole: Path, disturbed: Path, plan: Plan, steps: int, *, tolerance: float = 0.0) -> Verdict:
    """Hold a disturbed run against the one that nothing disturbed.

    Args:
        whole: folder of the undisturbed run.
        disturbed: folder of the other.
        plan: the order of samples of both.
        steps: of the whole training.
        tolerance: 0 asks for the same bits; else the largest difference, relative to the largest value of the tensor,
            of weights alone, for runs on other numbers of workers.
    """
    problems = [f"samples: {line}" for line in departures(read_ledger(disturbed), plan, steps)[:3]]
    problems += _tracking_problems(disturbed, steps)
    trace = _first_difference(whole, disturbed, tolerance)
    if trace:
        epoch, index = divmod(trace.step - 1, plan.steps_per_epoch)
        samples = ", ".join(map(str, plan.batch(epoch, index).tolist()))
        problems.insert(0, f"first difference at step {trace.step:,}: {trace.what}; its samples are {samples}")
    seen = read_ledger(disturbed)
    again = f"{seen.repeated_steps} steps trained again" if seen.repeated_steps else "no step trained again"
    told = "bitwise equal" if not tolerance else f"equal to {tolerance:g}, same samples"
    return Verdict(not problems, f"{told if not trace else 'DIFFERS'}; {again}", tuple(problems))


@dataclass(frozen=True)
class _Trace:
    step: int
    what: str


def _first_difference(whole: Path, disturbed: Path, tolerance: float) -> _Trace | None:
    """The first checkpoint that both kept and that differs, with its first tensor; the losses narrow the step down."""
    pairs = [
        (path, disturbed / "checkpoints" / path.name)
        for path in sorted((whole / "checkpoints").glob("step-*"))
        if (disturbed / "checkpoints" / path.name).exists()
    ]
    if not pairs or pairs[-1][0] != sorted((whole / "checkpoints").glob("step-*"))[-1]:
        return _Trace(1, "the last checkpoint is missing")
    for expected, found in pairs:
        if what := _tensor_difference(expected, found, tolerance):
            step = int(expected.name.removeprefix("step-"))
            return _Trace(_first_loss(whole, disturbed, step, tolerance), f"{what} in checkpoint {expected.name}")
    return None


def _tensor_difference(expected: Path, found: Path, tolerance: float) -> str:
    from safetensors.torch import load_file

    for part in ("weights",) if tolerance else _PARTS:
        before, after = (load_file(path / f"{part}.safetensors") for path in (expected, found))
        if before.keys() != after.keys():
            return f"{part} has other tensors: {sorted(before.keys() ^ after.keys())[0]}"
        for name, value in before.items():
            if tolerance:
                # Running statistics are merged over another number of ranks; they do not enter training.
                if "running_" in name or not value.is_floating_point():
                    continue
                apart = float((value - after[name]).abs().max()) / max(float(value.abs().max()), 1e-6)
                if not apart <= tolerance:
                    return f"{part} {name} is apart by {apart:.2g}"
            elif not torch.equal(value, after[name]):
                return f"{part} {name}"
    return ""


def _first_loss(whole: Path, disturbed: Path, step: int, tolerance: float) -> int:
    """The first step whose recorded loss differs, if that is before `step`."""
    before, after = (_spooled(path, "train/loss") for path in (whole, disturbed))
    for index in sorted(before.keys() & after.keys()):
        if abs(before[index] - after[index]) > tolerance * abs(before[index]):
            return min(index, step)
    return step


def _spooled(folder: Path, key: str) -> dict[int, float]:
    found: dict[int, float] = {}
    for line in (folder / "tracking" / "metrics.jsonl").read_text().splitlines():
        record: dict[str, Any] = json.loads(line)
        if key in record["metrics"]:
            found[int(record["step"])] = float(record["metrics"][key])
    return found


def _tracking_problems(folder: Path, steps: int) -> list[str]:
    """Whether MLflow has one run, with the loss of each step once."""
    record = tracking.RunRecord.load(folder / "tracking")
    found = tracking.logged_steps(record.uri, record.experiment_id, record.run_name, "train/loss")
    if len(found) != 1:
        return [f"MLflow: {len(found)} runs of this name, not one"]
    return _step_problems(next(iter(found.values())), steps)


def _step_problems(found: Sequence[int], steps: int) -> list[str]:
    expected = list(range(1, steps + 1))
    if list(found) == expected:
        return []
    doubled = sorted({step for step in found if list(found).count(step) > 1})
    missing = sorted(set(expected) - set(found))
    return [f"MLflow: steps missing {missing[:5]}, doubled {doubled[:5]}"]
