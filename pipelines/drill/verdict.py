"""Compare a disturbed training with the undisturbed one: final state, losses, samples seen, MLflow run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cluster.checkpoints.checkpoint import step_name
from data_shards.counting import counted
from data_shards.order.plan import Plan
from pipelines import tracking
from pipelines.training.sample_ledger import departures, read_ledger

_PARTS = ("weights", "optimizer", "per_rank")
_NONE_AGAIN = "no step trained again"
# Other numbers of workers and other ZeRO stages add the same numbers in another order. In float64 the weights then
# differ by 7e-16 of a tensor's largest value, in float32 by 3e-7, until one value falls on the other side of a ReLU:
# 0.003 at once, more with every step. One microbatch of other samples makes it 0.02 at once.
_SOON_STEPS = 4
_SOON = 0.005
# After that, relative to how far the weights have moved since: up to 0.012 because of such a ReLU, 0.14 because of
# other samples.
_LATER = 0.05


@dataclass(frozen=True)
class Verdict:
    """The result of comparing two runs."""

    equal: bool
    """True if the runs are bitwise equal, or equal to rounding where only that is promised."""
    summary: str
    problems: tuple[str, ...] = ()
    """Broken promises, one line each."""


def compare_runs(whole: Path, disturbed: Path, plan: Plan, steps: int, *, rounding: bool = False) -> Verdict:
    """Compare a disturbed run with the undisturbed one.

    Args:
        whole: folder of the undisturbed run.
        disturbed: folder of the other.
        plan: the order of samples of both.
        steps: steps of the whole training.
        rounding: the number of workers or the ZeRO stage changed at the last start of the workers. Bits must match up
            to there; from there on only the weights are compared, to rounding.
    """
    seen = read_ledger(disturbed)
    problems = [f"samples: {line}" for line in departures(seen, plan, steps)[:3]]
    problems += _tracking_problems(whole, disturbed, steps)
    trace, apart = _first_difference(whole, disturbed, seen.last_start if rounding else steps)
    if trace:
        epoch, index = divmod(trace.step - 1, plan.steps_per_epoch)
        samples = ", ".join(map(str, plan.batch(epoch, index).tolist()))
        problems.insert(0, f"first difference at step {trace.step:,}: {trace.what}; its samples are {samples}")
    again = f"{counted(seen.repeated_steps, 'step')} trained again" if seen.repeated_steps else _NONE_AGAIN
    found = f"same samples, {apart}" if rounding else "bitwise equal"
    return Verdict(not problems, f"{found if not trace else 'DIFFERS'}; {again}", tuple(problems))


@dataclass(frozen=True)
class _Trace:
    step: int
    what: str


def _first_difference(whole: Path, disturbed: Path, bitwise_until: int) -> tuple[_Trace | None, str]:
    """Find the first checkpoint of both runs that differs, and its first tensor; the losses narrow the step down.

    Returns:
        The difference, or None with a phrase that says how far apart the weights are.
    """
    pairs = [
        (path, disturbed / "checkpoints" / path.name)
        for path in sorted((whole / "checkpoints").glob("step-*"))
        if (disturbed / "checkpoints" / path.name).exists()
    ]
    if not pairs or pairs[-1][0] != sorted((whole / "checkpoints").glob("step-*"))[-1]:
        return _Trace(1, "the last checkpoint is missing"), ""
    distances: list[str] = []
    for expected, found in pairs:
        step = int(expected.name.removeprefix("step-"))
        if step <= bitwise_until:
            what = _bits(expected, found)
        else:
            start = disturbed / "checkpoints" / step_name(bitwise_until)
            what, apart = _rounding(expected, found, start, soon=step <= bitwise_until + _SOON_STEPS)
            # The first and the last distance are shown.
            distances = [*distances[:1], f"{apart} after {counted(step - bitwise_until, 'step')}"]
        if what:
            least = 0.0 if step <= bitwise_until else _LATER
            return _Trace(_first_loss(whole, disturbed, step, least), f"{what} in checkpoint {expected.name}"), ""
    return None, "weights apart by " + ", ".join(distances)


def _bits(expected: Path, found: Path) -> str:
    """Name the first tensor whose bits differ; empty if none does."""
    for part in _PARTS:
        before, after = (load_file(path / f"{part}.safetensors") for path in (expected, found))
        if before.keys() != after.keys():
            return f"{part} has different tensors: {sorted(before.keys() ^ after.keys())[0]}"
        for name, value in before.items():
            if not torch.equal(value, after[name]):
                return f"{part} {name}"
    return ""


def _rounding(expected: Path, found: Path, start: Path, *, soon: bool) -> tuple[str, str]:
    """Return the first weights that differ by more than rounding, else "", and a phrase for how far they differ."""
    before, after, origin = (_trained(path) for path in (expected, found, start))
    if before.keys() != after.keys():
        return f"weights have different tensors: {sorted(before.keys() ^ after.keys())[0]}", ""
    if soon:
        largest, name = max(
            (float((value - after[name]).abs().max()) / max(float(value.abs().max()), 1e-6), name)
            for name, value in before.items()
        )
        distance = f"{largest:.1g} of a tensor's largest value"
        # "not <=" so that NaN counts as a difference.
        return (f"weights {name} are apart by {distance}" if not largest <= _SOON else ""), distance
    moved = _length({name: value - origin[name] for name, value in before.items()})
    apart = _length({name: value - after[name] for name, value in before.items()}) / max(moved, 1e-12)
    distance = f"{apart:.1g} of their way"
    return (f"weights are apart by {distance} since {start.name}" if not apart <= _LATER else ""), distance


def _trained(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Load the weights that training moves.

    Running statistics are left out: they are averaged over another number of ranks, and no training step reads them.
    """
    weights = load_file(checkpoint / "weights.safetensors")
    return {name: value for name, value in weights.items() if value.is_floating_point() and "running_" not in name}


def _length(tensors: dict[str, torch.Tensor]) -> float:
    return sum(float((value.double() ** 2).sum()) for value in tensors.values()) ** 0.5


def _first_loss(whole: Path, disturbed: Path, step: int, least: float) -> int:
    """Return the first step whose logged loss differs, at most `step`."""
    before, after = (_spooled(path, "train/loss") for path in (whole, disturbed))
    for index in sorted(before.keys() & after.keys()):
        if abs(before[index] - after[index]) > least * abs(before[index]):
            return min(index, step)
    return step


def _spooled(folder: Path, key: str) -> dict[int, float]:
    found: dict[int, float] = {}
    for line in (folder / "tracking" / "metrics.jsonl").read_text().splitlines():
        record: dict[str, Any] = json.loads(line)
        if key in record["metrics"]:
            found[int(record["step"])] = float(record["metrics"][key])
    return found


def _tracking_problems(whole: Path, folder: Path, steps: int) -> list[str]:
    """Check that MLflow has one run, with the loss of each step once and each AP of the undisturbed run once."""
    found = _logged(folder, "train/loss")
    if len(found) != 1:
        return [f"MLflow: {counted(len(found), 'run')} of this name instead of 1"]
    problems = _step_problems("train/loss", found[0], range(1, steps + 1))
    for expected in _logged(whole, "val/AP")[:1]:
        problems += _step_problems("val/AP", _logged(folder, "val/AP")[0], expected)
    return problems


def _logged(folder: Path, key: str) -> list[list[int]]:
    """Return the steps of a metric in every MLflow run of this name."""
    record = tracking.RunRecord.load(folder / "tracking")
    return [
        list(found) for found in tracking.logged_steps(record.uri, record.experiment_id, record.run_name, key).values()
    ]


def _step_problems(key: str, found: Sequence[int], expected: Sequence[int]) -> list[str]:
    if list(found) == list(expected):
        return []
    doubled = sorted({step for step in found if list(found).count(step) > 1})
    missing = sorted(set(expected) - set(found))
    return [f"MLflow: {key} is missing at steps {missing[:5]} and logged twice at steps {doubled[:5]}"]
