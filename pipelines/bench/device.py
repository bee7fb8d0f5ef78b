"""The measured device, its name and its clock."""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipelines.errors import ConfigError


def chosen_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is a GPU if there is one.

    Raises:
        ConfigError: the machine does not have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device is {name!r}; choose auto, cpu or cuda.") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device is {name!r}; choose auto, cpu or cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device is {name!r}, but torch {torch.__version__} finds no GPU here; choose cpu.")
    return device


def device_name(device: torch.device) -> str:
    """Return the name of the hardware, with the number of threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} thread{'' if torch.get_num_threads() == 1 else 's'}"


def clock_of(device: torch.device) -> Callable[[], float]:
    """Return a clock in seconds: wall time for a GPU; for a CPU, which other processes may use too, CPU time."""
    return time.perf_counter if device.type == "cuda" else time.process_time


def clock_name(device: torch.device) -> str:
    """Name what `clock_of` measures."""
    return "wall time" if device.type == "cuda" else "CPU time of all threads"


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
