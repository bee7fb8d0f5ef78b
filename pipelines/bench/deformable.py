"""`aweigh bench deformable`: our deformable convolution, a plain one of the same size, and torchvision's.

torchvision, if it is installed, runs in a process of its own: a build for another torch may crash the process that
imports it.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from detectors.layers.deformable_convolution import deformable_convolution
from pipelines import console
from pipelines.bench.device import chosen_device, clock_name, clock_of, device_name, synchronize
from pipelines.errors import ConfigError

SHAPES = ((2, 64, 64), (2, 256, 32))
"""Images, channels in and out, and side of the map; the kernel is 3 x 3."""
_WARM_UP = 2


@dataclass(frozen=True)
class LayerTime:
    """One layer at one shape; times are medians in milliseconds, memory in multiples of the input's bytes."""

    layer: str
    shape: tuple[int, int, int]
    forward: float
    forward_and_backward: float
    forward_memory: float | None
    """Largest allocation at one time, including the result; None if it was not measured."""
    backward_memory: float | None


def bench_deformable(*, device: str, repeats: int, as_json: bool) -> None:
    """Time the layers at every shape and print a table.

    Args:
        device: "cpu", "cuda" or "auto".
        repeats: number of timed repetitions; their median is reported.
        as_json: print the figures as one JSON object.

    Raises:
        ConfigError: there are no repetitions to measure, or the device does not exist.
    """
    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}; it must be 1 or more.")
    where = chosen_device(device)
    console.say(
        "bench", f"{device_name(where)}, fp32, {clock_name(where)}, median of {repeats} after {_WARM_UP} for warm-up"
    )
    rows = [row for shape in SHAPES for row in _ours(shape, where, repeats)]
    other, note = _torchvision(where, repeats)
    rows += other
    if as_json:
        facts = {"device": device_name(where), "torch": torch.__version__, "repeats": repeats, "torchvision": note}
        print(json.dumps({**facts, "rows": [asdict(row) for row in rows]}))
        return
    print(_table(rows))
    console.say("bench", f"torchvision: {note}")


def run_layer(layer: str, shape: tuple[int, int, int], device: torch.device) -> tuple[Callable[[], Tensor], Tensor]:
    """Return a call of one layer on random input that requires a gradient, and that input.

    Offsets are about one cell.
    """
    images, channels, side = shape
    generator = torch.Generator().manual_seed(0)

    def random(*size: int, spread: float = 1.0) -> Tensor:
        return (torch.randn(*size, generator=generator) * spread).to(device).requires_grad_()

    features = random(images, channels, side, side)
    weight, bias = random(channels, channels, 3, 3, spread=0.05), random(channels)
    if layer == "plain":
        return lambda: functional.conv2d(features, weight, bias, padding=1), features
    offset, mask = random(images, 18, side, side), random(images, 9, side, side)
    if layer == "deformable":
        return lambda: deformable_convolution(features, offset, mask.sigmoid(), weight, bias, padding=1), features
    from torchvision.ops import deform_conv2d  # type: ignore[import-not-found,unused-ignore]

    return lambda: deform_conv2d(features, offset, weight, bias, padding=1, mask=mask.sigmoid()), features


def time_layer(layer: str, shape: tuple[int, int, int], device: torch.device, repeats: int) -> tuple[float, float]:
    """Measure the median milliseconds of the forward pass, and of forward and backward together."""
    call, _ = run_layer(layer, shape, device)
    clock = clock_of(device)

    def measured(work: Callable[[], object]) -> float:
        seconds = []
        for turn in range(_WARM_UP + repeats):
            synchronize(device)
            start = clock()
            work()
            synchronize(device)
            if turn >= _WARM_UP:
                seconds.append(clock() - start)
        return 1000 * median(seconds)

    with torch.no_grad():
        forward = measured(call)
    return forward, measured(lambda: _backward(call))


def _ours(shape: tuple[int, int, int], device: torch.device, repeats: int) -> Iterator[LayerTime]:
    for layer in ("plain", "deformable"):
        call, features = run_layer(layer, shape, device)
        size = features.numel() * features.element_size()
        forward_memory = _peak_bytes(functools.partial(_without_gradient, call), device) / size
        backward_memory = _peak_bytes(functools.partial(_backward, call), device) / size
        yield LayerTime(layer, shape, *time_layer(layer, shape, device, repeats), forward_memory, backward_memory)
        console.say("bench", f"{layer} at {_shown(shape)}")


def _without_gradient(call: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        call()


def _backward(call: Callable[[], Tensor]) -> None:
    torch.autograd.backward(call().sum())


def _peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Measure the most bytes of tensors that `work` allocates at one time."""
    work()  # from here on, the gradients of the leaves exist
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    recorded = profiler.profiler
    assert recorded is not None
    assert recorded.kineto_results is not None
    changes = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hide what the profiler's library writes to stderr itself, past Python's own."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _torchvision(device: torch.device, repeats: int) -> tuple[list[LayerTime], str]:
    """Measure torchvision's kernel in another process; returns its rows, and its version or what failed."""
    program = (
        "import json, sys, torch, torchvision\n"
        "from pipelines.bench.deformable import SHAPES, time_layer\n"
        "torch.set_num_threads(int(sys.argv[3]))\n"
        "times = [time_layer('torchvision', shape, torch.device(sys.argv[1]), int(sys.argv[2])) for shape in SHAPES]\n"
        "print(json.dumps([torchvision.__version__, times]))\n"
    )
    words = [sys.executable, "-c", program, str(device), str(repeats), str(torch.get_num_threads())]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        problem = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
        missing = "No module named 'torchvision'" in problem
        return [], "not installed" if missing else f"does not work here ({problem[:200]})"
    version, times = json.loads(done.stdout.strip().splitlines()[-1])
    rows = [
        LayerTime("torchvision", shape, forward, both, None, None)
        for shape, (forward, both) in zip(SHAPES, times, strict=True)
    ]
    return rows, f"{version}, in a process of its own"


def _table(rows: Sequence[LayerTime]) -> str:
    lines = [f"{'3x3, N x C x H x W':<20}{'layer':<14}{'forward':>10}{'+ backward':>12}{'memory':>9}{'+ backward':>12}"]
    for row in sorted(rows, key=lambda row: SHAPES.index(row.shape)):
        memory = [f"{value:.1f} x" if value is not None else "-" for value in (row.forward_memory, row.backward_memory)]
        lines.append(
            f"{_shown(row.shape):<20}{row.layer:<14}{row.forward:>7.1f} ms{row.forward_and_backward:>9.1f} ms"
            f"{memory[0]:>9}{memory[1]:>12}"
        )
    lines.append("memory: largest allocation at one time, including the result, in multiples of the input's bytes")
    return "\n".join(lines)


def _shown(shape: tuple[int, int, int]) -> str:
    images, channels, side = shape
    return f"{images} x {channels} x {side} x {side}"
