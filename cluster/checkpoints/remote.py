"""Checkpoints in a bucket: uploaded with the seal last, and verified by sha256 when they are downloaded.

Unusual here: the caller passes the bucket as a `FileStore`, so that this package needs no client for S3. One PUT of the
seal makes a checkpoint current; a killed upload leaves files without a seal.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from cluster.checkpoints import retention
from cluster.checkpoints.checkpoint import (
    SEAL,
    Checkpoint,
    CheckpointFolder,
    DamagedCheckpointError,
    none_is_whole,
    open_checkpoint,
    read_seal,
)
from cluster.errors import ClusterError


class Sink(Protocol):
    """Receives bytes in order."""

    def write(self, data: bytes, /) -> object:
        """Receive the next bytes."""


class FileStore(Protocol):
    """A place with named files, `/` between folders. A write is all or nothing; an error says where and why."""

    location: str

    def read_bytes(self, name: str) -> bytes:
        """Read a whole file."""

    def upload(self, path: Path, name: str) -> None:
        """Copy a local file into the store."""

    def stream(self, name: str, sink: Sink) -> None:
        """Write the whole file into a sink."""

    def list_names(self) -> list[str]:
        """List the names of all files."""

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""


class RemoteCheckpoints:
    """The checkpoints of one run in a store.

    Args:
        store: the run's own place.
        keep: number of newest checkpoints that stay; the one with the highest score stays as well.
        warn: receives one line about each damaged checkpoint that is skipped.
    """

    def __init__(self, store: FileStore, keep: int = 2, warn: Callable[[str], None] = lambda line: None) -> None:
        self.store = store
        self.keep = keep
        self._warn = warn
        self.progress: Callable[[], object] = lambda: None
        """Called for every block of a download."""

    def complete(self) -> list[str]:
        """List the names of the sealed checkpoints, the oldest first."""
        return sorted(name.split("/")[0] for name in self.store.list_names() if name.endswith(f"/{SEAL}"))

    def orphans(self) -> list[str]:
        """List the files of uploads that were never sealed."""
        names = self.store.list_names()
        sealed = {name.split("/")[0] for name in names if name.endswith(f"/{SEAL}")}
        return [name for name in names if name.startswith("step-") and name.split("/")[0] not in sealed]

    def upload(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint, seal it, then delete those no longer kept.

        Raises:
            Exception: any error of the store; what was current before still is.
        """
        name = checkpoint.path.name
        for later in [other for other in self.complete() if other >= name]:
            # Training resumed from before these, so they were damaged and skipped. They must not count as newest.
            self.store.delete(f"{later}/{SEAL}")
        files = read_seal(checkpoint.path / SEAL, str(checkpoint.path / SEAL))["files"]
        for file in (*sorted(files), SEAL):
            self.store.upload(checkpoint.path / file, f"{name}/{file}")
        self.collect()

    def fetch(self, name: str, folder: Path) -> Checkpoint:
        """Download a checkpoint into a folder, verify it, and make it current there; once per node.

        Raises:
            DamagedCheckpointError: the downloaded files differ from what was written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        final, partial = folder / name, folder / f".{name}.partial"
        # All ranks of a node call this; one downloads, and the others find the result.
        with FileLock(folder / ".fetch.lock"):
            if final.exists():
                return open_checkpoint(final)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            self._download(f"{name}/{SEAL}", partial / SEAL)
            files = read_seal(partial / SEAL, f"{self.store.location}/{name}/{SEAL}").get("files", {})
            present = set(self.store.list_names())
            for file in files:
                if f"{name}/{file}" in present:  # open_checkpoint reports a missing one
                    self._download(f"{name}/{file}", partial / file)
            try:
                open_checkpoint(partial)
            except DamagedCheckpointError as error:
                # The message names the bucket, where the damage is, instead of the download.
                raise DamagedCheckpointError(
                    str(error).replace(str(partial), f"{self.store.location}/{name}").replace(partial.name, name)
                ) from None
            partial.rename(final)
        return open_checkpoint(final, verify=False)

    def _download(self, name: str, path: Path) -> None:
        with path.open("wb") as file:
            self.store.stream(name, _ProgressSink(file, self.progress))

    def newest(self, local: CheckpointFolder) -> Checkpoint | None:
        """Open the newest whole checkpoint of store and local folder, downloaded if only the store has it.

        Raises:
            ClusterError: there are checkpoints, but none of them is whole.
        """
        names = self.complete()
        try:
            here, trouble = local.latest(), None
        except ClusterError as error:
            here, trouble = None, error
        for name in reversed(names):
            if here and name <= here.path.name:
                break  # the store has none that is newer than the local one
            damaged = local.folder / name
            if damaged.exists():  # `latest` has skipped it
                damaged.rename(local.folder / f".{name}.damaged")
            try:
                return self.fetch(name, local.folder)
            except DamagedCheckpointError as error:
                self._warn(f"skipped: {error}")
        if here is None and (trouble or names):
            raise trouble or none_is_whole(len(names), self.store.location)
        return here

    def collect(self) -> list[str]:
        """Delete orphans and checkpoints that are no longer kept; returns the checkpoints' names."""
        names = self.complete()
        files = self.store.list_names()
        scores = {
            # A checkpoint without facts is damaged, which must not stop the upload of later ones.
            name: retention.read_score(self.store.read_bytes(f"{name}/state.json"))
            for name in names
            if f"{name}/state.json" in files
        }
        kept = retention.kept(names, scores, self.keep)
        removed = sorted(set(names) - kept)
        # Each seal first: if this is interrupted, what is left is an orphan and not a damaged checkpoint.
        for name in removed:
            self.store.delete(f"{name}/{SEAL}")
        for file in files:
            if file.startswith("step-") and file.split("/")[0] not in kept:
                self.store.delete(file)
        return removed


class _ProgressSink:
    """A sink that reports every write."""

    def __init__(self, sink: Sink, report: Callable[[], object]) -> None:
        self._sink, self._report = sink, report

    def write(self, data: bytes, /) -> object:
        self._report()
        return self._sink.write(data)
