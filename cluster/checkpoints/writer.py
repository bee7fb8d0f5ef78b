"""Checkpoints written and uploaded by a thread of rank 0 while training continues; at most one at a time."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointFolder
from cluster.checkpoints.remote import RemoteCheckpoints
from cluster.engine.engine import TrainingState
from cluster.errors import ClusterError

logger = logging.getLogger("aweigh")


class CheckpointWriter:
    """Writes checkpoints in the background, in order.

    If a checkpoint cannot be written, this is logged and the next one is tried. If that fails too, or if it was the
    last one, an exception ends training, whose work would be lost otherwise. An upload that fails is logged and never
    ends training: the checkpoint is in the folder, and the next upload may succeed.

    Args:
        folder: the folder in which checkpoints become current.
        remote: the bucket to which each is copied afterwards.
        waiting: called every second while training waits for a slow disk or upload, which is not a standstill.
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
        """Seconds that training has waited for the previous checkpoint."""
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._not_uploaded: Checkpoint | None = None
        """The newest checkpoint, if its upload failed."""

    def save(
        self,
        state: TrainingState,
        facts: Mapping[str, Any],
        score: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Start to write a checkpoint, after waiting for the previous one.

        Args:
            state: on the CPU; the caller must not change it any more.
            facts: as for `CheckpointFolder.save`.
            score: as for `CheckpointFolder.save`.
            metadata: as for `CheckpointFolder.save`.

        Raises:
            ClusterError: neither this one nor the previous one could be written.
        """
        began = time.perf_counter()
        self._join()
        self.waited_seconds += time.perf_counter() - began
        if self._failure is not None:
            # The second attempt runs in the foreground, so that its failure can end training here.
            self._failure = None
            self._write(state, facts, score, metadata)
            self._raise_failure()
            return
        arguments = (state, facts, score, metadata)
        self._thread = threading.Thread(target=self._write, args=arguments, name="aweigh-checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is written, and uploaded if the bucket takes it now.

        Raises:
            ClusterError: it could not be written.
        """
        self._join()
        if self._not_uploaded is not None:
            self._thread = threading.Thread(target=self._upload, args=(self._not_uploaded,), name="aweigh-checkpoint")
            self._thread.start()
            self._join()
        self._raise_failure()

    def close(self) -> None:
        """Wait likewise without raising, when another error ends training already; a failure has been logged."""
        self._join()

    def _write(
        self,
        state: TrainingState,
        facts: Mapping[str, Any],
        score: float | None,
        metadata: Mapping[str, str] | None,
    ) -> None:
        try:
            checkpoint = self.folder.save(state, facts, score, metadata)
        except Exception as error:  # the disk failed: `save` or `wait` decides what follows
            self._failure = error
            logger.warning("%s", error)
        else:
            self._upload(checkpoint)

    def _upload(self, checkpoint: Checkpoint) -> None:
        if self.remote is None:
            return
        self._not_uploaded = checkpoint
        try:
            self.remote.upload(checkpoint)
        except Exception as error:  # the store raised
            logger.warning("checkpoint of step %s is only in %s: %s", f"{checkpoint.step:,}", checkpoint.path, error)
        else:
            self._not_uploaded = None

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
