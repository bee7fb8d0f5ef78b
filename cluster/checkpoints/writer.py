"""Checkpoints written and uploaded by a thread of rank 0 while training goes on; at most one is on its way."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.checkpoints.checkpoint import CheckpointFolder
from cluster.checkpoints.remote import RemoteCheckpoints
from cluster.engine.engine import TrainingState
from cluster.errors import ClusterError

logger = logging.getLogger("aweigh")


class CheckpointWriter:
    """Writes what it is given in the background, in order.

    A checkpoint that cannot be written is said at once and the next one is tried; where that fails as well,
    or at the end, training is told by an exception: going on would be work that nothing keeps.

    Args:
        folder: where checkpoints become current.
        remote: where each is copied to, once it is.
        waiting: called every second of waiting for a slow disk or upload, which is no standstill.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        remote: RemoteCheckpoints | None = None,
        waiting: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder = folder
        self.remote = remote
        self._waiting = waiting
        self.waited_seconds = 0.0
        """How long training has waited for the one before."""
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, state: TrainingState, facts: Mapping[str, Any], score: float | None = None) -> None:
        """Begin to write; waits first for the one before.

        Args:
            state: on the CPU, and nobody changes it any more.
            facts: as for `CheckpointFolder.save`.
            score: likewise.

        Raises:
            ClusterError: this one and the one before could not be written.
        """
        began = time.perf_counter()
        self._join()
        self.waited_seconds += time.perf_counter() - began
        if self._failure is not None:
            self._failure = None
            self._write(state, facts, score)
            self._raise_failure()
            return
        self._thread = threading.Thread(target=self._write, args=(state, facts, score), name="aweigh-checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last one is written and uploaded.

        Raises:
            ClusterError: it could not be.
        """
        self._join()
        self._raise_failure()

    def close(self) -> None:
        """Wait likewise, where something else has gone wrong already: what fails has been logged."""
        self._join()

    def _write(self, state: TrainingState, facts: Mapping[str, Any], score: float | None) -> None:
        try:
            checkpoint = self.folder.save(state, facts, score)
            if self.remote is not None:
                self.remote.upload(checkpoint)
        except Exception as error:  # of the disk, or whatever the store raises: training decides what follows
            self._failure = error
            logger.warning("%s", error)

    def _join(self) -> None:
        if self._thread is None:
            return
        while self._thread.is_alive():
            self._thread.join(1.0)
            self._waiting()
        self._thread = None

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure if isinstance(failure, ClusterError) else ClusterError(str(failure)) from failure
