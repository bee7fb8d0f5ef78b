"""Each rank's progress, in a small file that a thread renews, to find the rank that blocks the others.

Unusual here: when one rank hangs, all of them stop, each inside a collective. Ranks go through the same phases in the
same order, so the culprit is the one that has begun the fewest. If a GPU hangs, the processes of all ranks stop in one
phase, and the culprit is the GPU that has finished the fewest.
"""

import faulthandler
import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.counting import counted
from cluster.files import write_text

logger = logging.getLogger("aweigh")

HUNG_STATUS = 75
"""Exit status of a worker that ends itself because training hangs (EX_TEMPFAIL)."""


@dataclass(frozen=True)
class Standing:
    """A rank's progress, as its file records it."""

    rank: int
    node: str
    process: int
    step: int
    phase: str
    phases_begun: int
    since: float
    """Unix time at which the phase began or last made progress."""
    written: float
    """Unix time at which the file was written."""
    started: float = 0.0
    """Unix time at which the process joined the others."""
    device_phases: int = 0
    """Phases whose work the GPU has finished; 0 on a CPU, which finishes each before it begins the next."""
    last: bool = False
    """True if the process wrote this at its end; a killed one may have run for half a second after its last record."""


class Heartbeat:
    """This rank's progress record, renewed by a thread that also watches for a standstill.

    Args:
        folder: the run's folder; records are in its `heartbeats`.
        rank: this rank.
        world_size: number of ranks.
        hang_seconds: seconds without progress after which the culprit is named and this process ends, so that Ray
            restarts the group; 0 only keeps the record.
        end: ends the process; replaced in tests.
        mark: marks the end of the work that is queued on the GPU so far, and returns a function that tells whether the
            GPU has reached it; None on a CPU.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        world_size: int,
        hang_seconds: float,
        # Not sys.exit: the main thread is stuck in a collective and would never see the exception.
        end: Callable[[], None] = lambda: os._exit(HUNG_STATUS),
        mark: Callable[[], Callable[[], bool]] | None = None,
    ) -> None:
        self._folder = folder / "heartbeats"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "logs" / f"rank-{rank}.log"
        self._rank, self._world_size = rank, world_size
        self._hang_seconds = hang_seconds
        self._end = end
        self._mark = mark
        self._marks: deque[Callable[[], bool]] = deque()
        self._device_phases = 0
        self._computing = 0
        self._step, self._phase, self._begun, self._since = 0, "start", 0, time.time()
        self._progress = time.monotonic()
        self._started = time.time()
        self._done = threading.Event()
        self.previous = read_standing(folder, rank)
        """This rank's progress when the last attempt ended; None in the first attempt."""
        self._write()
        self._thread = threading.Thread(target=self._renew, name="aweigh-heartbeat", daemon=True)
        self._thread.start()

    def begin(self, phase: str, step: int | None = None) -> None:
        """Record that a phase begins; cheap enough for every part of every step."""
        self._phase = phase
        self._begun += 1
        if self._mark is not None:
            self._marks.append(self._mark())
        if step is not None:
            self._step = step
        self.progress()

    def progress(self) -> None:
        """Record progress within a long phase."""
        # Unix time is for other nodes to read; the monotonic clock, which nobody sets, decides about a standstill.
        self._since = time.time()
        self._progress = time.monotonic()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Count the block as progress, however long it takes: a computation that reports none itself."""
        self._computing += 1
        try:
            yield
        finally:
            self._computing -= 1
            self.progress()

    def close(self) -> None:
        """Write the last record and stop watching."""
        self._done.set()
        self._thread.join()
        self._write(last=True)

    def _renew(self) -> None:
        interval = min(0.5, self._hang_seconds / 4) if self._hang_seconds else 0.5
        while not self._done.wait(interval):
            if self._computing:
                self.progress()
            self._see_what_the_device_finished()
            try:
                self._write()
            except OSError as error:
                logger.warning("heartbeat: %s cannot be written (%s)", self._folder, error.strerror or error)
            still = time.monotonic() - self._progress
            if self._hang_seconds and still > self._hang_seconds and not self._waits():
                self._tell(still)
                self._end()
                return

    def _see_what_the_device_finished(self) -> None:
        while self._marks and self._marks[0]():
            self._marks.popleft()
            self._device_phases += 1

    def _write(self, *, last: bool = False) -> None:
        standing = Standing(
            rank=self._rank,
            node=socket.gethostname(),
            process=os.getpid(),
            step=self._step,
            phase=self._phase,
            phases_begun=self._begun,
            since=self._since,
            written=time.time(),
            started=self._started,
            device_phases=self._device_phases,
            last=last,
        )
        # Not flushed to disk: it is renewed twice a second, and a flush may wait behind a checkpoint that is written.
        write_text(self._folder / f"rank-{self._rank}.json", json.dumps(asdict(standing)), flush=False)

    def _waits(self) -> bool:
        return waits_for_work(self._rank, self._standings(), self._hang_seconds, time.time())

    def _standings(self) -> list[Standing]:
        return [one for rank in range(self._world_size) if (one := read_standing(self._folder.parent, rank))]

    def _tell(self, still: float) -> None:
        standings = self._standings()
        logger.error("%s", describe_standstill(standings, still, time.time()))
        try:
            with self._log.open("a") as log:
                faulthandler.dump_traceback(file=log, all_threads=True)
        except OSError as error:
            logger.warning("heartbeat: no stacks can be written to %s (%s)", self._log, error.strerror or error)


def waits_for_work(rank: int, standings: list[Standing], hang_seconds: float, now: float) -> bool:
    """Return True if a rank that this one waits for still makes progress, as during a long upload: no standstill.

    Args:
        rank: the rank that waits.
        standings: records of all ranks that have one.
        hang_seconds: seconds without progress after which a rank counts as hung.
        now: Unix time.
    """
    fewest = min((one.phases_begun for one in standings), default=0)
    behind = [one for one in standings if one.rank != rank and one.phases_begun == fewest]
    return any(now - min(one.since, one.written) < hang_seconds for one in behind)


def describe_standstill(standings: list[Standing], still: float, now: float) -> str:
    """Name the rank that blocks the others, in one line.

    Args:
        standings: records of all ranks that have one.
        still: seconds since this rank made progress.
        now: Unix time.
    """
    fewest = min(standings, key=lambda one: one.phases_begun)
    # A process that no longer renews its file is the culprit, even if it began as many phases as the others.
    frozen = [one for one in standings if now - one.written >= still / 2]
    behind = frozen or [one for one in standings if one.phases_begun == fewest.phases_begun]
    if len(behind) == len(standings) > 1:
        if hung := _hung_gpus(standings):
            return hung
        return (
            f"hung      all {len(standings)} workers have been in {fewest.phase} after step {fewest.step:,} for "
            f"{still:.0f} s: check the network between them and the storage that they read. Stacks are in the logs; "
            f"all workers restart"
        )
    named = "; ".join(
        f"worker {one.rank} on {one.node} (process {one.process}) has been in {one.phase} after step {one.step:,} "
        f"for {now - one.since:.0f} s" + (", and its process is frozen or gone" if one in frozen else "")
        for one in behind
    )
    return f"hung      {named}. Stacks are in the logs; all workers restart from the last checkpoint"


def _hung_gpus(standings: list[Standing]) -> str:
    """Name the GPUs that have finished less than the others: every CPU waits in the same phase then."""
    fewest, most = (choose(one.device_phases for one in standings) for choose in (min, max))
    if fewest == most:
        return ""
    late = counted(most - fewest, "phase")
    named = "; ".join(
        f"the GPU of worker {one.rank} on {one.node} (process {one.process}) is {late} behind the others' after step "
        f"{one.step:,}"
        for one in standings
        if one.device_phases == fewest
    )
    return f"hung      {named}. `nvidia-smi` there and the kernel's log may say why; all workers restart"


def read_standing(folder: Path, rank: int) -> Standing | None:
    """Read the last progress record of a rank in a run's folder; None if there is no readable one."""
    try:
        content: dict[str, Any] = json.loads((folder / "heartbeats" / f"rank-{rank}.json").read_text())
        return Standing(**content)
    except (OSError, ValueError, TypeError):
        return None
