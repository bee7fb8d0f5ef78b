"""The device that is measured."""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipelines.errors import ConfigError


def chosen_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device is {name!r}; known are auto, cpu and cuda.") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device is {name!r}; known are auto, cpu and cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device is {name!r}, but torch {torch.__version__} sees no GPU here.")
    return device


def device_name(device: torch.device) -> str:
    """What the hardware calls itself, with the number of threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} thread{'' if torch.get_num_threads() == 1 else 's'}"


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds: of the wall for a GPU, and of all threads of this process for a CPU, which others may be using too."""
    return time.perf_counter if device.type == "cuda" else time.process_time


def clock_name(device: torch.device) -> str:
    """What `clock_of` counts."""
    return "wall time" if device.type == "cuda" else "CPU time of all threads"


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
