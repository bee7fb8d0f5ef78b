"""From the driver's signals to a checkpoint: a request in the run's folder that workers read at step boundaries.

Unusual here: Ray replaces signal handling in workers, and its own answer to Ctrl-C ends them where they stand. So the
driver catches SIGINT and SIGTERM (also what `ray job stop` sends), asks through `control.json`, and ends the workers
by force only when the grace period is over or the signal comes again.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

from cluster.errors import StoppedError

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopping:
    """While the block runs, a first signal asks workers to stop and a second one stops them.

    Args:
        folder: the run's folder.
        grace_seconds: how long workers have.
    """

    def __init__(self, folder: Path, grace_seconds: float) -> None:
        self._folder = folder
        self._grace_seconds = grace_seconds
        self._abort: Callable[[], Any] | None = None
        self._timer: threading.Timer | None = None
        self._before: dict[int, Any] = {}
        self.signal: int | None = None
        """What was received."""

    def __enter__(self) -> Self:
        for name in ("control.json", "stopped.json"):
            (self._folder / name).unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._received) for number in _NAMES}
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def workers_run(self, abort: Callable[[], Any]) -> None:
        """From now on there are workers to ask; `abort` ends them by force."""
        self._abort = abort

    def error(self) -> StoppedError | None:
        """What to raise when the workers are gone; None where nobody asked them to stop, or they had finished."""
        if self.signal is None:
            return None
        try:
            step = json.loads((self._folder / "stopped.json").read_text())["step"]
        except (OSError, ValueError, KeyError):
            what = "before a checkpoint was written"
        else:
            what = f"at step {step:,}, its checkpoint is written"
        return StoppedError(f"stopped with {_NAMES[signal.Signals(self.signal)]} {what}", self.signal)

    def finished_in_order(self) -> bool:
        """Whether workers did what they were asked."""
        return (self._folder / "stopped.json").exists()

    def _received(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, number
        if self._abort is None:
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
    """What the driver asks of the workers; read by rank 0.

    Args:
        folder: the run's folder.
        interval_seconds: the file is looked at no more often.
    """

    def __init__(self, folder: Path, interval_seconds: float = 0.2) -> None:
        self._path = folder / "control.json"
        self._interval_seconds = interval_seconds
        self._looked = -interval_seconds
        self._answered = 0.0
        self._wishes: list[str] = []

    def wishes(self) -> list[str]:
        """ "stop" from the moment it is asked for; "save" once for each request."""
        now = time.monotonic()
        if now - self._looked < self._interval_seconds:
            return [wish for wish in self._wishes if wish == "stop"]
        self._looked = now
        try:
            asked = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return []
        self._wishes = ["stop"] if asked.get("stop") else []
        if asked.get("save", 0.0) > self._answered:
            self._answered = asked["save"]
            self._wishes.append("save")
        return self._wishes


def ask_checkpoint(folder: Path) -> float:
    """Ask the workers of a run for a checkpoint; gives the Unix time of the request."""
    now = time.time()
    _ask(folder, save=now)
    return now


def mark_stopped(folder: Path, step: int) -> None:
    """Rank 0 says that the checkpoint of `step` is written and the workers end as they were asked."""
    _write(folder / "stopped.json", {"step": step})


def _ask(folder: Path, **wish: object) -> None:
    try:
        asked = json.loads((folder / "control.json").read_text())
    except (OSError, ValueError):
        asked = {}
    _write(folder / "control.json", {**asked, **wish})


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content))
    os.replace(temporary, path)
