"""From the driver's signals to a checkpoint: a request in the run's folder that workers read at step boundaries.

Unusual here: Ray replaces signal handling in workers, and its own reaction to Ctrl-C ends them in the middle of a step.
So the driver catches SIGINT, SIGTERM (which `ray job stop` sends) and SIGHUP, and writes its request to `control.json`.
A signal may have reached Ray's processes too, so the driver waits for the workers' files and not for Ray's answer.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from cluster.errors import StoppedError, WorkersFailedError
from cluster.files import write_text
from cluster.heartbeat import read_standing
from cluster.signals import NAMES, handled

_ANSWER_SECONDS = 5.0
"""Time that Ray has to report the end of workers that stopped, or to end workers on request."""
_SILENCE_SECONDS = 10.0
"""Time without a heartbeat of rank 0, renewed twice a second, after which its process is gone."""


class Stopping:
    """Handle signals while the block runs: the first asks workers to stop, the second stops them.

    Args:
        folder: the run's folder.
        grace_seconds: time that workers have to write a checkpoint.
        again_seconds: a second signal this soon is the first one: a terminal and its shell may both send SIGHUP.

    Raises:
        StoppedError: at the end of the block, if a signal interrupted it.
        WorkersFailedError: likewise, if a process of Ray ended.
    """

    def __init__(self, folder: Path, grace_seconds: float, again_seconds: float = 1.0) -> None:
        self._folder = folder
        self._grace_seconds = grace_seconds
        self._again_seconds = again_seconds
        self._abort: Callable[[], Any] | None = None
        self._received_at = 0.0
        self._interrupts = False
        self._again = threading.Event()
        self._left = threading.Event()
        self._before: dict[int, Any] = {}
        self._lost = ""
        self.signal: int | None = None
        """Number of the last signal that was received."""

    def __enter__(self) -> Self:
        # Requests of an earlier attempt must not stop this one.
        for name in ("control.json", "stopped.json"):
            (self._folder / name).unlink(missing_ok=True)
        self._before = {number: signal.signal(number, self._received) for number in handled()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is not None and issubclass(kind, KeyboardInterrupt) and (stopped := self.error()):
            raise stopped from None

    def workers_run(self, abort: Callable[[], Any]) -> None:
        """Take note that workers run, and of the function that ends them by force."""
        self._abort = abort

    def ray_lost(self, name: str) -> None:
        """Ask the workers to stop, since a process of Ray on this machine has ended; called from another thread.

        Workers train on without it, but Ray ends the driver a minute later, with a line of its own.
        """
        if self.signal is not None or self._lost or self._abort is None:
            return
        self._lost = name
        self._received_at = time.monotonic()
        _ask(self._folder, stop=True)
        threading.Thread(target=self._watch, name="aweigh-stopping", daemon=True).start()

    @property
    def asked(self) -> bool:
        """True if the workers were asked to stop."""
        return self.signal is not None or bool(self._lost)

    def error(self) -> WorkersFailedError | None:
        """Return the error to raise when the workers have ended; None if nothing asked them to stop."""
        if not self.asked:
            return None
        try:
            step = json.loads((self._folder / "stopped.json").read_text())["step"]
        except (OSError, ValueError, KeyError):
            what = "before a checkpoint was written"
        else:
            what = f"at step {step:,}; its checkpoint is written"
        if self.signal is None:
            return WorkersFailedError(
                f"Ray's {self._lost} on this machine ended by itself, killed or out of memory; stopped {what}. Run the "
                f"same command again to resume."
            )
        return StoppedError(f"stopped with {NAMES[signal.Signals(self.signal)]} {what}", self.signal)

    def finished_in_order(self) -> bool:
        """Return True if the workers wrote the checkpoint and stopped, as they were asked to."""
        return (self._folder / "stopped.json").exists()

    def wait_for_workers(self) -> None:
        """Wait until the workers have stopped, are gone, or the grace period is over.

        Ray may report a failure although they still write: the signal that asked for the end may have ended Ray.
        """
        while not self.finished_in_order() and not self._workers_are_gone() and self._seconds_left() > 0:
            if self._again.wait(0.1):
                return

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self._interrupts:
            raise KeyboardInterrupt
        again = self.signal is not None and time.monotonic() - self._received_at > self._again_seconds
        if self.signal is None:
            self._received_at = time.monotonic()
        self.signal = number
        if self._abort is None:
            # There are no workers yet, and nothing to save.
            raise KeyboardInterrupt
        if again:
            self._again.set()
            self._abort()
            return
        _ask(self._folder, stop=True)
        threading.Thread(target=self._watch, name="aweigh-stopping", daemon=True).start()

    def _watch(self) -> None:
        """Wait for the end of the workers, end them by force if the time is over, and do not wait for Ray for long."""
        self.wait_for_workers()
        if not self.finished_in_order() and self._abort is not None:
            self._abort()
        if self._left.wait(_ANSWER_SECONDS):
            return
        # The main thread waits for an answer of Ray that will not come, and only a signal wakes it.
        self._interrupts = True
        if not self._left.is_set():
            os.kill(os.getpid(), self.signal or signal.SIGTERM)

    def _workers_are_gone(self) -> bool:
        rank_0 = read_standing(self._folder, 0)
        return rank_0 is not None and time.time() - rank_0.written > _SILENCE_SECONDS

    def _seconds_left(self) -> float:
        return self._received_at + self._grace_seconds - time.monotonic()


class Control:
    """The driver's requests, as rank 0 reads them.

    Args:
        folder: the run's folder.
        interval_seconds: shortest time between two readings of the file.
    """

    def __init__(self, folder: Path, interval_seconds: float = 0.2) -> None:
        self._path = folder / "control.json"
        self._interval_seconds = interval_seconds
        self._looked = -interval_seconds
        self._answered = 0.0
        self._wishes: list[str] = []

    def wishes(self) -> list[str]:
        """Return "stop" from the moment it is requested, and "save" once for each request."""
        now = time.monotonic()
        if now - self._looked < self._interval_seconds:
            return [wish for wish in self._wishes if wish == "stop"]
        self._looked = now
        asked = _asked(self._path)
        self._wishes = ["stop"] if asked.get("stop") else []
        if asked.get("save", 0.0) > self._answered:
            self._answered = asked["save"]
            self._wishes.append("save")
        return self._wishes

    def stop_is_asked(self) -> bool:
        """Return True from the moment at which a stop is requested, within long work between two steps."""
        return bool(_asked(self._path).get("stop"))


def ask_checkpoint(folder: Path) -> float:
    """Ask the workers of a run for a checkpoint; returns the Unix time of the request."""
    now = time.time()
    _ask(folder, save=now)
    return now


def mark_stopped(folder: Path, step: int) -> None:
    """Record that the checkpoint of `step` is written and the workers end as requested; called by rank 0."""
    write_text(folder / "stopped.json", json.dumps({"step": step}))


def _ask(folder: Path, **wish: object) -> None:
    path = folder / "control.json"
    write_text(path, json.dumps({**_asked(path), **wish}))


def _asked(path: Path) -> dict[str, Any]:
    try:
        asked = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return asked if isinstance(asked, dict) else {}
