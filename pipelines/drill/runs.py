"""Trainings in processes of their own, followed line by line and killed as real failures kill them."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.fake_cluster import FakeCluster
from cluster.heartbeat import read_standing
from pipelines.errors import ConfigError

_SECONDS = 1200.0
_ROOT = Path(__file__).resolve().parents[2]
# A machine that is busy with drills may take minutes where Ray allows one. The short interval of the health check
# keeps detection fast all the same.
PATIENCE = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
}


class DrillError(ConfigError):
    """The drill itself could not be carried out; training may still be correct."""


@dataclass(frozen=True)
class Course:
    """The training that every run of a drill does.

    Args:
        recipe: name or file.
        flags: of the recipe, the drill's own included.
        folder: folder of all runs of this drill.
        steps: steps of the whole training.
        shards: locations of "train" and "validation"; empty for none.
        environment: environment variables of every command.
    """

    recipe: str
    flags: tuple[str, ...]
    folder: Path
    steps: int
    shards: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, name: str, *flags: str, **environment: str) -> "Attempt":
        """Start `aweigh train`; later flags win."""
        words = ("train", *self._words(name, flags))
        return Attempt(words, self.folder / name, {**self.environment, **environment})

    def submit(self, name: str, cluster: FakeCluster, *flags: str, **environment: str) -> "Attempt":
        """Submit the training to a cluster's job server, from an empty folder as a user's own machine would."""
        desk = self.folder / "desk"
        desk.mkdir(exist_ok=True)
        words = ("submit", *self._words(name, flags), "--address", cluster.dashboard)
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])])
        known = {**self.environment, **cluster.environment, "PYTHONPATH": path}
        return Attempt(words, self.folder / name, {**known, **environment}, directory=desk)

    def _words(self, name: str, flags: Sequence[str]) -> tuple[str, ...]:
        return (self.recipe, *self.flags, "--run.folder", str(self.folder), "--run.name", name, *flags)


class Attempt:
    """One `aweigh train` or `aweigh submit` that is running."""

    def __init__(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str], directory: Path | None = None
    ) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.times: list[float] = []
        """Unix time at which each line arrived."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", *words],
            # A submitted job's lines arrive on stdout, those of `aweigh train` on stderr.
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **PATIENCE, **environment},
            cwd=directory,
        )
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, pattern: str) -> str:
        """Wait for a line that matches, and return it."""
        seen = 0
        with self._news:
            deadline = time.monotonic() + _SECONDS
            while True:
                for line in self.lines[seen:]:
                    if re.search(pattern, line):
                        return line
                seen = len(self.lines)
                if self._ended or not self._news.wait(max(0.0, deadline - time.monotonic())):
                    raise DrillError(
                        f"{pattern!r} was never printed; the last lines are: {' | '.join(self.lines[-3:])}"
                    )

    def wait_for_step(self, step: int) -> int:
        """Wait until `step` or a later step is logged; returns the step that was."""
        seen = 0
        with self._news:
            deadline = time.monotonic() + _SECONDS
            while True:
                for line in self.lines[seen:]:
                    found = re.match(r"step ([\d,]+)/", line)
                    if found and (reached := int(found[1].replace(",", ""))) >= step:
                        return reached
                seen = len(self.lines)
                if self._ended or not self._news.wait(max(0.0, deadline - time.monotonic())):
                    raise DrillError(
                        f"step {step} was never reached; the last lines are: {' | '.join(self.lines[-3:])}"
                    )

    def first_time(self, pattern: str, after: float) -> float:
        """Return the time of the first matching line after a time, or that time itself if there is none."""
        pairs = zip(self.times, self.lines, strict=False)
        return next((at for at, line in pairs if at > after and re.search(pattern, line)), after)

    def finish(self, status: int = 0) -> None:
        """Wait for the end and check the exit status."""
        try:
            found = self.process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill_driver()
            raise DrillError(f"the training did not end within {_SECONDS:.0f} s") from None
        self._reader.join(10)
        if found != status:
            raise DrillError(f"the training ended with status {found}, not {status}: {' | '.join(self.lines[-3:])}")

    def finish_resumed(self) -> None:
        """Wait for the line that says it resumes, then for its end."""
        self.wait_for(r"^resumed ")
        self.finish()

    def workers(self) -> list[psutil.Process]:
        """Find the training workers that this command started, rank 0 first."""
        found = [one for one in self._descendants() if "RayTrainWorker" in " ".join(_command_line(one))]
        first = self._process_of_rank(0)
        return sorted(found, key=lambda one: one.pid != first)

    def kill_worker(self, rank: int = -1) -> None:
        """Kill a worker with SIGKILL; the last one if `rank` is negative."""
        if rank >= 0:
            psutil.Process(self._process_of_rank(rank)).kill()
            return
        workers = self.workers()
        if not workers:
            raise DrillError("there was no worker to kill")
        workers[-1].kill()

    def kill_driver(self) -> None:
        """Kill the command itself with SIGKILL, and wait until all that it started is gone."""
        started = self._descendants()
        agents = [one for one in started if "Agent" in " ".join(_command_line(one))]
        self.process.kill()
        self.process.wait()
        # Workers, raylet and the rest end within seconds of their driver; two agents would take a minute.
        for one in agents:
            if one.is_running():
                one.kill()
        _, left = psutil.wait_procs(started, timeout=90)
        if left:
            raise DrillError(f"a killed driver left {len(left)} processes running, {_command_line(left[0])}")

    def terminate(self) -> None:
        """Send SIGTERM, as `ray job stop` and Kubernetes do."""
        self.process.send_signal(signal.SIGTERM)

    def abandon(self) -> None:
        """Kill the command if it still runs."""
        if self.process.poll() is None:
            self.kill_driver()

    def _process_of_rank(self, rank: int) -> int:
        standing = read_standing(self.folder, rank)
        return standing.process if standing else -1

    def _descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self.times.append(time.time())
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


@contextmanager
def running(attempt: Attempt) -> Iterator[Attempt]:
    """Yield the attempt, and leave no process of it behind."""
    try:
        yield attempt
    finally:
        attempt.abandon()


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
