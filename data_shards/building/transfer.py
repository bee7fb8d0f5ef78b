"""Copying whole data sets between a folder and S3, so that neither side ever has a wrong or incomplete file.

Every file is hashed on arrival and compared with the manifest, which is written last: an interrupted transfer leaves no
data set, and the same command resumes with the missing files.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from data_shards.counting import counted
from data_shards.errors import DataError, LargerError
from data_shards.format.manifest import MANIFEST_NAME, Manifest, Shard, load_manifest, read_manifest
from data_shards.format.shard_index import ShardIndex
from data_shards.storage.atomic import replacing
from data_shards.storage.open import open_store
from data_shards.storage.store import Sink, Store

# Bytes can be damaged on the way. A file that is wrong twice is wrong at its source.
_ATTEMPTS = 2
_LOCK = ".transfer.lock"


@dataclass(frozen=True)
class TransferProgress:
    """Progress of a transfer."""

    shards: int
    total_shards: int
    bytes: int


@dataclass(frozen=True)
class TransferReport:
    """The data set that a transfer copied, and how much of it was missing."""

    source: str
    destination: str
    manifest: Manifest
    copied_shards: int
    """Shards that were missing or did not match the manifest; the others were left alone."""
    copied_bytes: int

    def describe(self) -> str:
        """Summarise the transfer in one line."""
        manifest = self.manifest
        kept = len(manifest.shards) - self.copied_shards
        return (
            f"{self.destination}: {counted(len(manifest.shards), 'shard')} with "
            f"{counted(manifest.num_samples, 'image')}, manifest {manifest.digest[:6]}, every byte compared; "
            f"{self.copied_shards:,} copied ({self.copied_bytes / 1e6:,.1f} MB), {kept:,} already there"
        )


def pull_shards(
    location: str,
    folder: str | os.PathLike[str],
    *,
    threads: int = 4,
    progress: Callable[[TransferProgress], None] = lambda _: None,
    overwrite: bool = False,
) -> TransferReport:
    """Copy a split, such as `s3://bucket/prefix/train`, into a folder.

    Args:
        location: the folder or S3 prefix with the manifest.
        folder: the folder to copy to; created if missing.
        threads: number of shards that are copied at the same time.
        progress: called after each shard.
        overwrite: replace a different data set in the folder.

    Returns:
        What was copied and what was already there.

    Raises:
        DataError: there are no shards at the location; the destination is not a folder, holds a different data set or
            is being written by another transfer; or a shard that arrives does not match the manifest.
    """
    destination = open_store(folder)
    if destination.local_path("") is None:
        raise DataError(f"cannot pull into {destination.location}: give a folder. `aweigh shards push` writes to S3.")
    source = open_store(location)
    text, manifest = read_manifest(source)
    with _only_writer(Path(folder).expanduser()):
        return _transfer(source, text, manifest, destination, threads, progress, overwrite)


def push_shards(
    folder: str | os.PathLike[str],
    location: str,
    *,
    threads: int = 4,
    progress: Callable[[TransferProgress], None] = lambda _: None,
    overwrite: bool = False,
) -> TransferReport:
    """Copy a split from a folder to S3, and read every object back, as S3 clients do not notice flipped bytes.

    Args:
        folder: the folder with the manifest.
        location: the folder or S3 prefix to copy to.
        threads: number of shards that are copied at the same time.
        progress: called after each shard.
        overwrite: replace a different data set at the location.

    Returns:
        What was copied and what was already there.

    Raises:
        DataError: there are no shards in the folder, or one does not match the manifest; the location cannot be
            written or holds a different data set; or an object does not arrive as it was sent.
    """
    source = open_store(folder)
    if source.local_path("") is None:
        raise DataError(f"cannot push from {source.location}: give a folder. `aweigh shards pull` reads from S3.")
    return _transfer(source, *read_manifest(source), open_store(location), threads, progress, overwrite)


def stored_sha256(store: Store, name: str, most_bytes: int | None = None) -> str:
    """Return the sha256 of a file or object, reading all of it; "" if it has more than `most_bytes`."""
    digest = _Digest()
    try:
        store.stream(name, digest, most_bytes=most_bytes)
    except LargerError:
        return ""
    return digest.hexdigest()


class _Digest:
    """A sink that hashes the bytes written to it, and passes them on to another sink if there is one."""

    def __init__(self, sink: Sink | None = None) -> None:
        self._digest = hashlib.sha256()
        self._sink = sink

    def write(self, data: bytes, /) -> int:
        self._digest.update(data)
        if self._sink is not None:
            self._sink.write(data)
        return len(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _transfer(
    source: Store,
    text: bytes,
    manifest: Manifest,
    destination: Store,
    threads: int,
    progress: Callable[[TransferProgress], None],
    overwrite: bool,
) -> TransferReport:
    if threads < 1:
        raise DataError(f"threads is {threads}; set it to 1 or more.")
    destination.check_writable()
    replaced = _withdraw_other(destination, manifest, overwrite)
    copied = _bring_shards(source, destination, manifest, threads, progress)
    # Last: with its manifest, the destination is a data set.
    destination.write_bytes(MANIFEST_NAME, text)
    _check_arrived(destination, MANIFEST_NAME, hashlib.sha256(text).hexdigest())
    kept = {name for shard in manifest.shards for name in (shard.name, shard.index)}
    for name in {name for shard in replaced for name in (shard.name, shard.index)} - kept:
        destination.delete(name)
    return TransferReport(
        source.location, destination.location, manifest, len(copied), sum(shard.bytes for shard in copied)
    )


def _bring_shards(
    source: Store,
    destination: Store,
    manifest: Manifest,
    threads: int,
    progress: Callable[[TransferProgress], None],
) -> list[Shard]:
    """Copy the shards that are missing or wrong; return them."""
    copied: list[Shard] = []
    done = done_bytes = 0
    pool = ThreadPoolExecutor(threads)
    try:
        running = {pool.submit(_bring_shard, source, destination, manifest, shard): shard for shard in manifest.shards}
        for future in as_completed(running):
            if future.result():
                copied.append(running[future])
            done, done_bytes = done + 1, done_bytes + running[future].bytes
            progress(TransferProgress(done, len(manifest.shards), done_bytes))
    finally:
        # After the first failure, shards that have not begun are given up.
        pool.shutdown(cancel_futures=True)
    return copied


def _withdraw_other(destination: Store, manifest: Manifest, overwrite: bool) -> tuple[Shard, ...]:
    """Delete a different data set's manifest; return its shards, which are deleted once the new ones are there."""
    if not destination.exists(MANIFEST_NAME):
        return ()
    try:
        there = load_manifest(destination)
    except DataError:
        if not overwrite:
            raise
        there = None
    if there is not None and there.digest == manifest.digest:
        return ()
    if not overwrite:
        assert there is not None
        raise DataError(
            f"{destination.location} already holds another data set ({counted(there.num_samples, 'image')}, manifest "
            f"{there.digest[:6]}, not {manifest.digest[:6]}). Choose another destination, or pass --overwrite to "
            "replace it."
        )
    # Before any shard is replaced: a manifest must never be found beside shards that it does not describe.
    destination.delete(MANIFEST_NAME)
    return there.shards if there is not None else ()


def _bring_shard(source: Store, destination: Store, manifest: Manifest, shard: Shard) -> bool:
    """Bring one shard and its index; return True if either had to be copied."""
    index = _bring(source, destination, shard.index, shard.index_sha256, manifest.most_index_bytes(shard))
    local = destination if destination.local_path("") is not None else source
    # The checksums prove only that these are the manifest's files, not that a build wrote them.
    where = f"{local.location}/{shard.index}"
    ShardIndex.from_bytes(local.read_bytes(shard.index), where).check(shard, manifest, where)
    copied = _bring(source, destination, shard.name, shard.sha256, shard.bytes)
    path = local.local_path(shard.name)
    if path is not None and (found := path.stat().st_size) != shard.bytes:
        raise DataError(
            f"{path} has {counted(found, 'byte')}, but the manifest of {source.location} says {shard.bytes:,}. Build "
            "the shards again."
        )
    return copied or index


def _bring(source: Store, destination: Store, name: str, sha256: str, most_bytes: int) -> bool:
    if destination.exists(name) and stored_sha256(destination, name, most_bytes) == sha256:
        return False
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _copy(source, destination, name, sha256, most_bytes)
            return True
        except _WrongBytes as error:
            if attempt == _ATTEMPTS:
                if not error.found:
                    raise DataError(
                        f"{error.where}/{name} is larger than the {most_bytes:,} bytes that the manifest of "
                        f"{source.location} allows. Build or copy the shard again."
                    ) from None
                raise DataError(
                    f"{error.where}/{name} does not match the manifest of {source.location}, {_ATTEMPTS} times: "
                    f"sha256 {error.found}, expected {sha256}. Build or copy the shard again."
                ) from None
    raise AssertionError("unreachable")


class _WrongBytes(Exception):  # noqa: N818 - it never leaves this module
    def __init__(self, where: str, found: str) -> None:
        self.where = where
        self.found = found
        """The sha256; empty if the file is too large."""


def _copy(source: Store, destination: Store, name: str, sha256: str, most_bytes: int) -> None:
    final = destination.local_path(name)
    if final is None:
        path = source.local_path(name)
        assert path is not None
        if (found := stored_sha256(source, name, most_bytes)) != sha256:
            raise _WrongBytes(source.location, found)
        destination.upload(path, name)
        if (found := stored_sha256(destination, name, most_bytes)) != sha256:
            raise _WrongBytes(destination.location, found)
        return
    with _explained(final), replacing(final) as part:
        with open(part, "wb") as file:
            digest = _Digest(file)
            try:
                source.stream(name, digest, most_bytes=most_bytes)
            except LargerError:
                raise _WrongBytes(source.location, "") from None
        if digest.hexdigest() != sha256:
            raise _WrongBytes(source.location, digest.hexdigest())


def _check_arrived(destination: Store, name: str, sha256: str) -> None:
    if stored_sha256(destination, name) != sha256:
        destination.delete(name)
        raise DataError(f"{destination.location}/{name} did not arrive as it was sent. Run the command again.")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {path.parent}: {error.strerror or error}. Free some space, or change its permissions."
        ) from error


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, and remove the parts that a killed transfer left in it.

    Two transfers into one folder would remove each other's parts.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / _LOCK, timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise DataError(f"another transfer is writing {folder}. Wait for it, or choose another folder.") from error
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}. Choose another folder.") from error
    try:
        for part in folder.glob(".*.part"):
            part.unlink(missing_ok=True)
        yield
    finally:
        (folder / _LOCK).unlink(missing_ok=True)
        lock.release()
