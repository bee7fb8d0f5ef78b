"""Whether a disturbed training left a trace: its last state, its losses, the samples it saw, its MLflow run."""

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
# Other numbers of workers and other ZeRO stages add the same numbers in another order. In float64 that leaves 7e-16. In
# float32 weights are apart by 3e-7 of a tensor's largest value, until one value falls on the other side of a ReLU:
# 0.003 at once, more with every step. A microbatch of other samples makes it 0.02 at once.
_SOON_STEPS = 4
_SOON = 0.005
# From there on as a share of the way that weights have gone since: up to 0.012 by such a ReLU, 0.14 by other samples.
_LATER = 0.05


@dataclass(frozen=True)
class Verdict:
    """What the comparison of two runs found."""

    equal: bool
    """Bitwise, or to rounding where that is all that was promised."""
    summary: str
    problems: tuple[str, ...] = ()
    """What is not as it was promised, one line each."""


def compare_runs(whole: Path, disturbed: Path, plan: Plan, steps: int, *, rounding: bool = False) -> Verdict:
    """Hold a disturbed run against the one that nothing disturbed.

    Args:
        whole: folder of the undisturbed run.
        disturbed: folder of the other.
        plan: the order of samples of both.
        steps: of the whole training.
        rounding: the same bits are asked for only up to the last start of its workers, which were more or fewer or
            shared out other things; weights alone, equal to rounding, from there on.
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
    told = f"same samples, {apart}" if rounding else "bitwise equal"
    return Verdict(not problems, f"{told if not trace else 'DIFFERS'}; {again}", tuple(problems))


@dataclass(frozen=True)
class _Trace:
    step: int
    what: str


def _first_difference(whole: Path, disturbed: Path, bitwise_until: int) -> tuple[_Trace | None, str]:
    """The first checkpoint that both kept and that differs, with its first tensor; the losses narrow the step down.

    Beside it, in words, how far apart the others are.
    """
    pairs = [
        (path, disturbed / "checkpoints" / path.name)
        for path in sorted((whole / "checkpoints").glob("step-*"))
        if (disturbed / "checkpoints" / path.name).exists()
    ]
    if not pairs or pairs[-1][0] != sorted((whole / "checkpoints").glob("step-*"))[-1]:
        return _Trace(1, "the last checkpoint is missing"), ""
    told: list[str] = []
    for expected, found in pairs:
        step = int(expected.name.removeprefix("step-"))
        if step <= bitwise_until:
            what = _bits(expected, found)
        else:
            start = disturbed / "checkpoints" / step_name(bitwise_until)
            what, apart = _rounding(expected, found, start, soon=step <= bitwise_until + _SOON_STEPS)
            told = [*told[:1], f"{apart} after {counted(step - bitwise_until, 'step')}"]
        if what:
            least = 0.0 if step <= bitwise_until else _LATER
            return _Trace(_first_loss(whole, disturbed, step, least), f"{what} in checkpoint {expected.name}"), ""
    return None, "weights apart by " + ", ".join(told)


def _bits(expected: Path, found: Path) -> str:
    """The first tensor that is not the same, bit for bit; empty where all are."""
    for part in _PARTS:
        before, after = (load_file(path / f"{part}.safetensors") for path in (expected, found))
        if before.keys() != after.keys():
            return f"{part} has other tensors: {sorted(before.keys() ^ after.keys())[0]}"
        for name, value in before.items():
            if not torch.equal(value, after[name]):
                return f"{part} {name}"
    return ""


def _rounding(expected: Path, found: Path, start: Path, *, soon: bool) -> tuple[str, str]:
    """What is apart by more than rounding, empty where nothing is; and how far weights are apart at all, in words."""
    before, after, origin = (_trained(path) for path in (expected, found, start))
    if before.keys() != after.keys():
        return f"weights have other tensors: {sorted(before.keys() ^ after.keys())[0]}", ""
    if soon:
        largest, name = max(
            (float((value - after[name]).abs().max()) / max(float(value.abs().max()), 1e-6), name)
            for name, value in before.items()
        )
        told = f"{largest:.1g} of a tensor's largest value"
        return (f"weights {name} are apart by {told}" if not largest <= _SOON else ""), told
    moved = _length({name: value - origin[name] for name, value in before.items()})
    apart = _length({name: value - after[name] for name, value in before.items()}) / max(moved, 1e-12)
    told = f"{apart:.1g} of their way"
    return (f"weights are apart by {told} since step {start.name}" if not apart <= _LATER else ""), told


def _trained(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights that training moves: running statistics are merged over another number of ranks and enter no step."""
    weights = load_file(checkpoint / "weights.safetensors")
    return {name: value for name, value in weights.items() if value.is_floating_point() and "running_" not in name}


def _length(tensors: dict[str, torch.Tensor]) -> float:
    return sum(float((value.double() ** 2).sum()) for value in tensors.values()) ** 0.5


def _first_loss(whole: Path, disturbed: Path, step: int, least: float) -> int:
    """The first step whose recorded loss differs, if that is before `step`."""
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
    """Whether MLflow has one run, with the loss of each step once and each AP of the undisturbed run once."""
    found = _logged(folder, "train/loss")
    if len(found) != 1:
        return [f"MLflow: {len(found)} runs of this name, not one"]
    problems = _step_problems("train/loss", found[0], range(1, steps + 1))
    for expected in _logged(whole, "val/AP")[:1]:
        problems += _step_problems("val/AP", _logged(folder, "val/AP")[0], expected)
    return problems


def _logged(folder: Path, key: str) -> list[list[int]]:
    """Steps of a metric in every MLflow run of this name."""
    record = tracking.RunRecord.load(folder / "tracking")
    return [
        list(found) for found in tracking.logged_steps(record.uri, record.experiment_id, record.run_name, key).values()
    ]


def _step_problems(key: str, found: Sequence[int], expected: Sequence[int]) -> list[str]:
    if list(found) == list(expected):
        return []
    doubled = sorted({step for step in found if list(found).count(step) > 1})
    missing = sorted(set(expected) - set(found))
    return [f"MLflow: {key} of steps missing {missing[:5]}, doubled {doubled[:5]}"]
