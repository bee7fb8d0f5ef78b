"""Checkpoints in a bucket: uploaded with the seal last, and verified by sha256 on both ways.

Unusual here: the caller passes the bucket as a `FileStore`, so that this package needs no client for S3. One PUT of the
seal makes a checkpoint current; a killed upload leaves files without a seal. No single answer of the store is trusted:
what was uploaded is read back, a download that does not match is tried again, and `uploads.json` names the checkpoints
that a listing has to show.
"""

import hashlib
import io
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from cluster.checkpoints import retention
from cluster.checkpoints.checkpoint import Checkpoint, CheckpointFolder, compare, none_is_whole, open_checkpoint
from cluster.checkpoints.seal import SEAL, DamagedCheckpointError, Fingerprint, is_step_name, parse_seal, read_seal
from cluster.errors import ClusterError

RECORD = "uploads.json"
"""Names of the checkpoints that were uploaded and kept, beside them in the bucket."""
_LARGEST_SEAL_BYTES = 1 << 20
# Attempts to upload, to download and to list.
_ATTEMPTS = 3
# An error that took longer was tried again by the store itself.
_PATIENCE_SECONDS = 20.0
_FIRST_DELAY_SECONDS = 0.5


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

    def exists(self, name: str) -> bool:
        """Return True if there is a file of this name."""

    def write_bytes(self, name: str, data: bytes) -> None:
        """Create or replace a file."""

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
        self._damaged: set[str] = set()
        """Names of checkpoints that were downloaded and are damaged."""
        self._arrived: dict[str, str] = {}
        """The sha256 of each file of the last upload that was read back."""
        self.progress: Callable[[], object] = lambda: None
        """Called for every block of a transfer."""

    def complete(self) -> list[str]:
        """List the names of the sealed checkpoints, the oldest first.

        Raises:
            ClusterError: the record names uploads, but the store has none of them.
        """
        return self._sealed(self._listing())

    def orphans(self) -> list[str]:
        """List the files of uploads that were never sealed."""
        names = self._listing()
        sealed = self._sealed(names)
        return [name for name in names if is_step_name(_folder(name)) and _folder(name) not in sealed]

    def _listing(self) -> list[str]:
        """List all files; an empty listing is asked for again."""
        names: list[str] = []
        for attempt in range(_ATTEMPTS):
            time.sleep(_FIRST_DELAY_SECONDS * attempt)
            names = self.store.list_names()
            if names:
                break
        return names

    def _sealed(self, listing: Sequence[str]) -> list[str]:
        recorded = self._recorded()
        # A bucket may contain names that others chose, and each becomes part of a path.
        listed = {
            _folder(name) for name in listing if is_step_name(_folder(name)) and name == f"{_folder(name)}/{SEAL}"
        }
        unlisted = {name for name in recorded if name not in listed and self.store.exists(f"{name}/{SEAL}")}
        if unlisted:
            self._warn(f"{self.store.location} has {', '.join(sorted(unlisted))}, which its listing does not show")
        if recorded and not listed and not unlisted:
            # Starting at step 0 would overwrite what the store may have.
            raise ClusterError(
                f"{self.store.location} lists no checkpoint, but its {RECORD} says that {recorded[-1]} was uploaded. "
                f"Check the bucket and run the command again; delete {RECORD} there to start at step 0."
            )
        return sorted(listed | unlisted)

    def _recorded(self) -> list[str]:
        if not self.store.exists(RECORD):
            return []  # of an earlier version, or of a run without uploads
        try:
            names = json.loads(self.store.read_bytes(RECORD))["checkpoints"]
            return sorted(name for name in names if isinstance(name, str) and is_step_name(name))
        except (ValueError, KeyError, TypeError, RecursionError):
            return []  # damaged: the listing alone must do

    def upload(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint, read back what arrived, seal it, then delete those no longer kept.

        A checkpoint that gets its score after its evaluation is uploaded twice; files that are whole in the bucket are
        not sent again.

        Raises:
            Exception: any error of the store, or a ClusterError if it does not keep what it was sent; what was current
                before still is.
        """
        name = checkpoint.path.name
        there = self.complete()
        for later in [other for other in there if other > name]:
            # Training resumed from before these. One that is damaged must not count as newest.
            if later in self._damaged:
                self._warn(f"{self.store.location}/{later} is damaged and newer than {name}: deleted")
                self.store.delete(f"{later}/{SEAL}")
            else:
                self._warn(
                    f"{self.store.location}/{later} is newer than {name}, although training resumed from before it; it "
                    "stays, and another machine would resume from it"
                )
        files = read_seal(checkpoint.path / SEAL, str(checkpoint.path / SEAL))
        whole = self._whole(name, files, sealed=name in there)
        if name in there:
            self.store.delete(f"{name}/{SEAL}")
        for file in (*sorted(files.keys() - whole), SEAL):
            self._upload(checkpoint.path / file, f"{name}/{file}")
        self.collect(newest=name)

    def _whole(self, name: str, files: Mapping[str, Fingerprint], *, sealed: bool) -> set[str]:
        """Return which files of a checkpoint the bucket has already; what this process did not verify is read back."""
        try:
            recorded: Mapping[str, Fingerprint] = {}
            if sealed:
                content = io.BytesIO()
                self.store.stream(f"{name}/{SEAL}", _Bounded(content, _LARGEST_SEAL_BYTES, SEAL))
                recorded = parse_seal(content.getvalue(), f"{self.store.location}/{name}/{SEAL}")
            return {
                file for file, expected in files.items() if self._has(f"{name}/{file}", expected, recorded.get(file))
            }
        except Exception:
            # Whatever the store or the old seal is unable to say, sending everything again is right.
            return set()

    def _has(self, name: str, expected: Fingerprint, recorded: Fingerprint | None) -> bool:
        if self._arrived.get(name) == expected.sha256:
            return self.store.exists(name)
        return recorded == expected and self._digest(name, expected.bytes) == expected.sha256

    def _digest(self, name: str, most_bytes: int) -> str:
        """Return the sha256 of a file in the bucket; "" if it is missing or larger than expected."""
        digest = _Digest()
        try:
            if self.store.exists(name):
                self.store.stream(name, _ProgressSink(_Bounded(digest, most_bytes, name), self.progress))
                return digest.hexdigest()
        except DamagedCheckpointError:
            pass
        return ""

    def _upload(self, path: Path, name: str) -> None:
        with path.open("rb") as file:
            expected = hashlib.file_digest(file, "sha256").hexdigest()
        # Only the last upload is remembered: the second upload of a checkpoint follows its first.
        self._arrived = {other: digest for other, digest in self._arrived.items() if _folder(other) == _folder(name)}
        self._arrived.pop(name, None)
        for _ in range(_ATTEMPTS):
            self.store.upload(path, name)
            # A store, or a proxy before it, may answer 200 and keep other bytes, or none.
            if self._digest(name, path.stat().st_size) == expected:
                self._arrived[name] = expected
                return
        raise ClusterError(
            f"{self.store.location}/{name} does not arrive as it was sent, {_ATTEMPTS} times. Check the network and "
            f"the store; {path} is whole."
        )

    def fetch(self, name: str, folder: Path) -> Checkpoint:
        """Download a checkpoint into a folder, verify it, and make it current there; once per node.

        Raises:
            DamagedCheckpointError: the files differ from what was written, however often they are downloaded.
        """
        folder.mkdir(parents=True, exist_ok=True)
        final, partial = folder / name, folder / f".{name}.partial"
        # All ranks of a node call this; one downloads, and the others find the result.
        with FileLock(folder / ".fetch.lock"):
            if final.exists():
                return open_checkpoint(final)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for attempt in range(1, _ATTEMPTS + 1):
                began = time.monotonic()
                try:
                    self._fetch_files(name, partial)
                    break
                except Exception as error:
                    # Bytes can be damaged on the way, and an object can be replaced while it is read.
                    if attempt == _ATTEMPTS or time.monotonic() - began > _PATIENCE_SECONDS:
                        if isinstance(error, DamagedCheckpointError):
                            raise DamagedCheckpointError(f"{error} It was downloaded {attempt} times.") from error
                        raise
            partial.rename(final)
        return open_checkpoint(final, verify=False)

    def _fetch_files(self, name: str, partial: Path) -> None:
        """Download what is missing or wrong in `partial`. The seal always, since it may be what was wrong."""
        where = f"{self.store.location}/{name}"
        self._download(f"{name}/{SEAL}", partial / SEAL)
        for file, expected in read_seal(partial / SEAL, f"{where}/{SEAL}").items():
            try:
                compare(partial / file, expected, f"{where}/{file}", name)
            except DamagedCheckpointError:
                self._download(f"{name}/{file}", partial / file, most_bytes=expected.bytes)
                compare(partial / file, expected, f"{where}/{file}", name)
        try:
            open_checkpoint(partial, verify=False)
        except DamagedCheckpointError as error:
            # The message names the bucket, where the damage is, instead of the download.
            raise DamagedCheckpointError(str(error).replace(str(partial), where)) from None

    def _download(self, name: str, path: Path, most_bytes: int = _LARGEST_SEAL_BYTES) -> None:
        path.unlink(missing_ok=True)
        if not self.store.exists(name):
            return  # whoever reads the file reports that it is missing
        with path.open("wb") as file:
            self.store.stream(name, _ProgressSink(_Bounded(file, most_bytes, name), self.progress))

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
                local.set_aside(name)
            try:
                return self.fetch(name, local.folder)
            except DamagedCheckpointError as error:
                self._damaged.add(name)
                self._warn(f"skipped: {error}")
        if here is None and (trouble or names):
            raise trouble or none_is_whole(len(names), self.store.location)
        return here

    def collect(self, newest: str = "") -> list[str]:
        """Delete orphans and checkpoints that are no longer kept; returns the checkpoints' names.

        Args:
            newest: as for `CheckpointFolder.collect`.
        """
        # One listing for all that follows: with two, a checkpoint that only one of them shows would seem an orphan.
        files = self._listing()
        names = sorted({*self._sealed(files), *([newest] if newest else [])})
        scores = {
            # A checkpoint without facts is damaged, which must not stop the upload of later ones.
            name: retention.read_score(self.store.read_bytes(f"{name}/state.json"))
            for name in names
            if f"{name}/state.json" in files
        }
        kept = retention.kept(names, scores, self.keep, newest)
        removed = sorted(set(names) - kept)
        # Before anything is deleted, so that every name in the record is in the store.
        if names:
            self.store.write_bytes(RECORD, json.dumps({"checkpoints": sorted(kept)}).encode())
        # Each seal first: if this is interrupted, what is left is an orphan and not a damaged checkpoint.
        for name in removed:
            self.store.delete(f"{name}/{SEAL}")
        for file in files:
            if is_step_name(_folder(file)) and _folder(file) not in kept:
                self.store.delete(file)
        return removed


def _folder(name: str) -> str:
    return name.partition("/")[0]


class _Digest:
    """A sink that hashes."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def write(self, data: bytes, /) -> object:
        self._digest.update(data)
        return len(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class _Bounded:
    """A sink that takes no more bytes than the seal promises: an endless object must not fill the disk."""

    def __init__(self, sink: Sink, most_bytes: int, name: str) -> None:
        self._sink, self._left, self._name = sink, most_bytes, name

    def write(self, data: bytes, /) -> object:
        self._left -= len(data)
        if self._left < 0:
            raise DamagedCheckpointError(f"{self._name} is larger than its seal says. Choose another checkpoint.")
        return self._sink.write(data)


class _ProgressSink:
    """A sink that reports every write."""

    def __init__(self, sink: Sink, report: Callable[[], object]) -> None:
        self._sink, self._report = sink, report

    def write(self, data: bytes, /) -> object:
        self._report()
        return self._sink.write(data)
