"""Seconds of each phase of a step, which is also what the heartbeat is told."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

PHASES = ("data", "augment", "encode", "forward", "backward", "optimizer")


class Stopwatch:
    """Seconds spent in each phase of a step.

    Args:
        device: waited for at the end of each phase where `exact`.
        exact: wait for the device, so that a phase on a GPU is not counted in the next; slows the step down.
        begins: told the name of each phase when it begins.
    """

    def __init__(self, device: torch.device, exact: bool, begins: Callable[[str], None] = lambda phase: None) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._wait = exact and device.type == "cuda"
        self._begins = begins

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a phase."""
        self._begins(name)
        start = time.perf_counter()
        yield
        if self._wait:
            torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The seconds since the last call."""
        taken, self.seconds = self.seconds, dict.fromkeys(PHASES, 0.0)
        return taken
