"""Checkpoints in a bucket: the files of each first, its seal last; taken back only when every sha256 is right.

Unusual here: the bucket is reached through what the caller hands over (`FileStore`), so this room needs no client of
its own. One PUT of the seal makes a checkpoint current; whatever an upload that was killed leaves behind has no seal.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from cluster.checkpoints.checkpoint import SEAL, Checkpoint, CheckpointFolder, HarmedCheckpointError, open_checkpoint
from cluster.errors import ClusterError


class Sink(Protocol):
    """Takes bytes in order."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


class FileStore(Protocol):
    """A place with named files, `/` between folders; a write is all or nothing, an error tells where and why."""

    location: str

    def read_bytes(self, name: str) -> bytes:
        """The whole file."""

    def upload(self, path: Path, name: str) -> None:
        """Copy a local file into the store."""

    def stream(self, name: str, sink: Sink) -> None:
        """Write the whole file into a sink."""

    def list_names(self) -> list[str]:
        """Names of all files."""

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""


class RemoteCheckpoints:
    """The checkpoints of one run in a store.

    Args:
        store: the run's own place.
        keep: how many of the newest stay; the one of the highest score stays beside them.
        warn: told, in one line, about a checkpoint that is passed over.
    """

    def __init__(self, store: FileStore, keep: int = 2, warn: Callable[[str], None] = lambda line: None) -> None:
        self.store = store
        self.keep = keep
        self._warn = warn
        self.progress: Callable[[], object] = lambda: None
        """Called for every block of a download."""

    def complete(self) -> list[str]:
        """Names of the sealed checkpoints, the oldest first."""
        return sorted(name.split("/")[0] for name in self.store.list_names() if name.endswith(f"/{SEAL}"))

    def orphans(self) -> list[str]:
        """Files of uploads that were never sealed."""
        names = self.store.list_names()
        sealed = {name.split("/")[0] for name in names if name.endswith(f"/{SEAL}")}
        return [name for name in names if name.startswith("step-") and name.split("/")[0] not in sealed]

    def upload(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint, seal it, then drop those no longer kept.

        Raises:
            Exception: what the store raises; what was current before still is.
        """
        name = checkpoint.path.name
        for later in [other for other in self.complete() if other >= name]:
            # Of this step or a later one, yet training came from before: harmed and passed over.
            self.store.delete(f"{later}/{SEAL}")
        files = json.loads((checkpoint.path / SEAL).read_text())["files"]
        for file in (*sorted(files), SEAL):
            self.store.upload(checkpoint.path / file, f"{name}/{file}")
        self.collect()

    def fetch(self, name: str, folder: Path) -> Checkpoint:
        """Bring a checkpoint into a folder, where it is current once it is verified; done once by each node.

        Raises:
            HarmedCheckpointError: what the store gave is not what was written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        final, partial = folder / name, folder / f".{name}.partial"
        with FileLock(folder / ".fetch.lock"):
            if final.exists():
                return open_checkpoint(final)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            self._download(f"{name}/{SEAL}", partial / SEAL)
            try:
                files = json.loads((partial / SEAL).read_text())["files"]
            except (ValueError, KeyError) as error:
                raise HarmedCheckpointError(f"{self.store.location}/{name}/{SEAL} cannot be read: {error}.") from error
            present = set(self.store.list_names())
            for file in files:
                if f"{name}/{file}" in present:  # a missing one is told of by open_checkpoint
                    self._download(f"{name}/{file}", partial / file)
            try:
                open_checkpoint(partial)
            except HarmedCheckpointError as error:
                raise HarmedCheckpointError(
                    str(error).replace(str(partial), f"{self.store.location}/{name}").replace(partial.name, name)
                ) from None
            partial.rename(final)
        return open_checkpoint(final, verify=False)

    def _download(self, name: str, path: Path) -> None:
        with path.open("wb") as file:
            self.store.stream(name, _Noticed(file, self.progress))

    def newest(self, local: CheckpointFolder) -> Checkpoint | None:
        """The newest whole checkpoint of the store and of the local folder together, in the local folder.

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
                break
            harmed = local.folder / name
            if harmed.exists():
                harmed.rename(local.folder / f".{name}.harmed")
            try:
                return self.fetch(name, local.folder)
            except HarmedCheckpointError as error:
                self._warn(f"skipped: {error}")
        if here is None and (trouble or names):
            raise trouble or ClusterError(
                f"none of the {len(names)} checkpoints in {self.store.location} is whole. Restore one from a copy, or "
                f"delete them to begin at step 0."
            )
        return here

    def collect(self) -> list[str]:
        """Remove orphans and what is kept no longer, each one's seal first; gives the names removed."""
        names = self.complete()
        files = self.store.list_names()
        # One that has lost its facts is harmed: whoever opens it is told, and what comes after is kept all the same.
        judged = [name for name in names if f"{name}/state.json" in files]
        scored = [(score, name) for name in judged if (score := self._score(name)) is not None]
        kept = {*names[-self.keep :], *(name for _, name in sorted(scored)[-1:])}
        removed = sorted(set(names) - kept)
        for name in removed:
            self.store.delete(f"{name}/{SEAL}")
        for file in files:
            if file.startswith("step-") and file.split("/")[0] not in kept:
                self.store.delete(file)
        return removed

    def _score(self, name: str) -> float | None:
        try:
            score = json.loads(self.store.read_bytes(f"{name}/state.json")).get("score")
        except ValueError:
            return None
        return None if score is None else float(score)


class _Noticed:
    """A sink whose every write is noticed."""

    def __init__(self, sink: Sink, notice: Callable[[], object]) -> None:
        self._sink, self._notice = sink, notice

    def write(self, data: bytes, /) -> object:
        self._notice()
        return self._sink.write(data)
