"""Where each rank stands, in a small file that a thread renews; the rank that holds up the others is named.

Unusual here: when one rank hangs, all of them stop, each inside a collective. Ranks go through the same phases in the
same order, so the culprit is the one that has begun the fewest.
"""

import faulthandler
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger("aweigh")

HUNG_STATUS = 75
"""Exit status of a worker that ends itself because training hangs."""


@dataclass(frozen=True)
class Standing:
    """What a rank's file says."""

    rank: int
    node: str
    process: int
    step: int
    phase: str
    phases_begun: int
    since: float
    """Unix time at which the phase began or last made progress."""
    written: float
    """Unix time at which this was written."""
    started: float = 0.0
    """Unix time at which the process had joined the others."""
    last: bool = False
    """Whether the process wrote this when it ended; a killed one may have gone on for half a second after its last."""


class Heartbeat:
    """This rank's standing, renewed by a thread that also watches for a standstill.

    Args:
        folder: the run's folder; standings lie in its `heartbeats`.
        rank: this rank.
        world_size: number of ranks.
        hang_seconds: without progress for so long the culprit is named and this process ends, so that Ray starts the
            group again; 0 only keeps the standing.
        end: called instead of ending the process.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        world_size: int,
        hang_seconds: float,
        end: Callable[[], None] = lambda: os._exit(HUNG_STATUS),
    ) -> None:
        self._folder = folder / "heartbeats"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "logs" / f"rank-{rank}.log"
        self._rank, self._world_size = rank, world_size
        self._hang_seconds = hang_seconds
        self._end = end
        self._step, self._phase, self._begun, self._since = 0, "start", 0, time.time()
        self._progress = time.monotonic()
        self._started = time.time()
        self._done = threading.Event()
        self.previous = read_standing(folder, rank)
        """Where this rank stood when the last attempt ended; None in the first one."""
        self._write()
        self._thread = threading.Thread(target=self._renew, name="aweigh-heartbeat", daemon=True)
        self._thread.start()

    def begin(self, phase: str, step: int | None = None) -> None:
        """Say which phase begins; cheap enough for every part of every step."""
        self._phase = phase
        self._begun += 1
        if step is not None:
            self._step = step
        self.progress()

    def progress(self) -> None:
        """Say that a long phase is getting on."""
        self._since = time.time()
        self._progress = time.monotonic()

    def close(self) -> None:
        """Write the last standing and stop watching."""
        self._done.set()
        self._thread.join()
        self._write(last=True)

    def _renew(self) -> None:
        interval = min(0.5, self._hang_seconds / 4) if self._hang_seconds else 0.5
        while not self._done.wait(interval):
            try:
                self._write()
            except OSError as error:
                logger.warning("heartbeat: %s cannot be written (%s)", self._folder, error.strerror or error)
            still = time.monotonic() - self._progress
            if self._hang_seconds and still > self._hang_seconds and not self._waits():
                self._tell(still)
                self._end()
                return

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
            last=last,
        )
        temporary = self._folder / f".rank-{self._rank}.{os.getpid()}"
        temporary.write_text(json.dumps(asdict(standing)))
        os.replace(temporary, self._folder / f"rank-{self._rank}.json")

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
    """Whether one that this rank waits for is getting on, only slowly, as with a long upload: no standstill.

    Args:
        rank: who waits.
        standings: of every rank that has one.
        hang_seconds: without progress for so long, a rank is not getting on.
        now: Unix time.
    """
    fewest = min((one.phases_begun for one in standings), default=0)
    behind = [one for one in standings if one.rank != rank and one.phases_begun == fewest]
    return any(now - min(one.since, one.written) < hang_seconds for one in behind)


def describe_standstill(standings: list[Standing], still: float, now: float) -> str:
    """Name who holds up the others, in one line.

    Args:
        standings: of every rank that has one.
        still: seconds since this rank made progress.
        now: Unix time.
    """
    fewest = min(standings, key=lambda one: one.phases_begun)
    # A process that does not even renew its file is named whatever phase the others wait for it in.
    frozen = [one for one in standings if now - one.written >= still / 2]
    behind = frozen or [one for one in standings if one.phases_begun == fewest.phases_begun]
    if len(behind) == len(standings) > 1:
        return (
            f"hung      all {len(standings)} workers stand in {fewest.phase} after step {fewest.step:,} for "
            f"{still:.0f} s: the network between them, or what they all read. Stacks are in the logs; all start again"
        )
    named = "; ".join(
        f"worker {one.rank} on {one.node} (process {one.process}) is in {one.phase} after step {one.step:,} "
        f"for {now - one.since:.0f} s" + (", its process frozen or gone" if one in frozen else "")
        for one in behind
    )
    return f"hung      {named}. Stacks are in the logs; all start again from the last checkpoint"


def read_standing(folder: Path, rank: int) -> Standing | None:
    """The last standing of a rank in a run's folder; None where there is none that can be read."""
    try:
        content: dict[str, Any] = json.loads((folder / "heartbeats" / f"rank-{rank}.json").read_text())
        return Standing(**content)
    except (OSError, ValueError, TypeError):
        return None
