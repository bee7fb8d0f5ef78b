"""From the driver's signals to a checkpoint: a request in the run's folder that workers read at step boundaries.

Unusual here: Ray replaces signal handling in workers, and its own reaction to Ctrl-C ends them in the middle of a step.
So the driver catches SIGINT and SIGTERM (which `ray job stop` sends), writes its request to `control.json`, and kills
the workers only when the grace period is over or the signal arrives again.
"""

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

from cluster.errors import StoppedError
from cluster.files import write_text

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopping:
    """Handle signals while the block runs: the first asks workers to stop, the second stops them.

    Args:
        folder: the run's folder.
        grace_seconds: time that workers have to write a checkpoint.
    """

    def __init__(self, folder: Path, grace_seconds: float) -> None:
        self._folder = folder
        self._grace_seconds = grace_seconds
        self._abort: Callable[[], Any] | None = None
        self._timer: threading.Timer | None = None
        self._before: dict[int, Any] = {}
        self.signal: int | None = None
        """Number of the last signal that was received."""

    def __enter__(self) -> Self:
        # Requests of an earlier attempt must not stop this one.
        for name in ("control.json", "stopped.json"):
            (self._folder / name).unlink(missing_ok=True)
        # Python allows handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._received) for number in _NAMES}
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def workers_run(self, abort: Callable[[], Any]) -> None:
        """Take note that workers run, and of the function that ends them by force."""
        self._abort = abort

    def error(self) -> StoppedError | None:
        """Return the error to raise when the workers have ended; None if no signal asked them to stop."""
        if self.signal is None:
            return None
        try:
            step = json.loads((self._folder / "stopped.json").read_text())["step"]
        except (OSError, ValueError, KeyError):
            what = "before a checkpoint was written"
        else:
            what = f"at step {step:,}; its checkpoint is written"
        return StoppedError(f"stopped with {_NAMES[signal.Signals(self.signal)]} {what}", self.signal)

    def finished_in_order(self) -> bool:
        """Return True if the workers wrote the checkpoint and stopped, as they were asked to."""
        return (self._folder / "stopped.json").exists()

    def _received(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, number
        if self._abort is None:
            # There are no workers yet, and nothing to save.
            error = self.error()
            assert error is not None
            raise error
        if again:
            self._abort()
            return
        _ask(self._folder, stop=True)
        self._timer = threading.Timer(self._grace_seconds, self._abort)
        self._timer.daemon = True
        self._timer.start()


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
