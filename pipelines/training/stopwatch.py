"""Measure the seconds of each phase of a step, and report each phase to the heartbeat."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

PHASES = ("data", "augment", "encode", "forward", "backward", "optimizer")


class Stopwatch:
    """Sums the seconds spent in each phase of a step.

    Args:
        device: the device that computes.
        exact: wait for a GPU at the end of each phase, so that its work is not counted in a later phase; slower.
        begins: called with the name of each phase when it begins.
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
        """Return the seconds of each phase since the last call, and start from zero."""
        taken, self.seconds = self.seconds, dict.fromkeys(PHASES, 0.0)
        return taken
