"""The estimate of a step's memory: live bytes counted exactly, and compared with a real process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_shards.reading.split import open_split
from pipelines import recipes
from pipelines.recipes.recipe import with_flags
from pipelines.recipes.settings import Recipe
from pipelines.training.memory_estimate import LiveBytes, MemoryEstimate, estimate_memory

# The published width: beside a small network, what a process needs for itself would count.
_WIDE = (
    "--data.input_size 256 256 --engine.precision fp32 --detector.weights none --detector.settings.width 64 "
    "--detector.settings.deconv_channels 256 256 256 --detector.settings.head_channels 64"
)

_MEASURE = """
import sys, torch
from data_shards.reading.split import open_split
from pipelines import recipes
from pipelines.recipes.recipe import with_flags
from pipelines.training.single_process import SingleProcess, blank_batch
location, size, *flags = sys.argv[1:]
manifest = open_split(location).manifest
small = with_flags(recipes.get("demo"), ["--data.input_size", "64", "64", "--engine.precision", "fp32"])
# Everything that is imported or set up in a first step is not of this recipe.
SingleProcess(small, manifest, torch.device("cpu"), initial=False).step([blank_batch(small, manifest, 2)], 0.0)
def memory(name):
    # Not getrusage, whose peak a process inherits from the one that started it.
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024
before = memory("VmRSS")
recipe = with_flags(recipes.get("demo"), flags)
training = SingleProcess(recipe, manifest, torch.device("cpu"), initial=False)
for _ in range(2):
    training.step([blank_batch(recipe, manifest, int(size))], 0.0)
print(memory("VmHWM") - before)
"""


def demo(*flags: str) -> Recipe:
    return with_flags(recipes.get("demo"), flags)


def test_live_bytes_follow_creation_and_release() -> None:
    with LiveBytes() as live:
        first = torch.zeros(1000)
        assert (live.current, live.peak) == (4000, 4000)
        view = first.view(10, 100)[3:]
        view.add_(1)
        assert live.current == 4000
        second = first + 1
        assert live.current == 8000
        del first
        assert live.current == 8000  # the view still holds the storage
        del view
        assert (live.current, live.peak) == (4000, 8000)
        del second
    assert (live.current, live.peak) == (0, 8000)


def test_what_autograd_keeps_is_counted_until_backward() -> None:
    values = torch.rand(1000, requires_grad=True)
    with LiveBytes() as live:
        loss = values.exp().exp().sum()
        # Both results of exp are kept for backward; the sum is one number.
        assert live.current == 8004
        loss.backward()
        assert live.current == 4004  # the gradient
        assert live.peak >= 12004


def test_the_largest_microbatch_is_the_last_that_fits() -> None:
    estimate = MemoryEstimate(weights=100, optimizer_state=200, engine=50, constant=40, per_image=10, update=90)
    assert estimate.peak(1) == 440  # the optimizer's step decides
    assert estimate.peak(20) == 590
    assert estimate.largest_microbatch(439) == 0
    assert estimate.largest_microbatch(599) == 20
    assert estimate.largest_microbatch(600) == 21


def test_weights_and_state_are_exact_and_frozen_stages_need_less(small_shards: Path) -> None:
    manifest = open_split(str(small_shards / "train")).manifest
    flags = ["--data.input_size", "64", "64", "--engine.precision", "fp32", "--engine.zero_stage", "0"]
    whole = estimate_memory(demo(*flags), manifest)
    frozen = estimate_memory(demo(*flags, "--detector.freeze", "stem", "layer1", "layer2"), manifest)
    assert whole.engine <= whole.weights
    # Adam keeps two numbers for each trained parameter, and a count of steps.
    assert whole.optimizer_state == pytest.approx(2 * whole.engine, rel=1e-3)
    assert frozen.weights == whole.weights
    assert frozen.engine < whole.engine
    assert frozen.per_image < 0.7 * whole.per_image


@pytest.mark.slow
def test_the_estimate_is_within_a_tenth_of_a_real_process(small_shards: Path) -> None:
    size = 8
    location, flags = str(small_shards / "train"), _WIDE.split()
    estimate = estimate_memory(demo(*flags), open_split(location).manifest)
    # glibc would keep freed blocks, which depends on their order; blocks of their own go back to the system.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", _MEASURE, location, str(size), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    measured = int(done.stdout)
    expected = estimate.peak(size) - estimate.engine  # there is no DeepSpeed in that process
    assert expected == pytest.approx(measured, rel=0.1)
