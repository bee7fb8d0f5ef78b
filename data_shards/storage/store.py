"""Where files lie: a folder or an S3 bucket, behind one small interface.

A write is all or nothing: a folder gets a temporary file that is renamed, S3 (`s3.py`) a single PUT or a multipart
upload that appears when it is complete.
"""

import errno
import os
import shutil
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from data_shards.errors import DataError
from data_shards.settings import ReadSettings

_PROBE = ".aweigh-write-check"


class Sink(Protocol):
    """Takes bytes in order: a file, or a digest of what passes by."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


class Store(ABC):
    """A place with named files. Names are relative, with `/` between folders."""

    location: str
    """The place as a user writes it: a folder, or `s3://bucket/prefix`."""

    @abstractmethod
    def read_bytes(self, name: str) -> bytes:
        """The whole file; raises DataError where there is none."""

    @abstractmethod
    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Create or replace a file; others see the old bytes or the new ones, never a part."""

    @abstractmethod
    def upload(self, path: str | os.PathLike[str], name: str) -> None:
        """Copy a local file into the store, with the same promise as `write_bytes`."""

    @abstractmethod
    def fetch(self, name: str, file: int, *, ranges: int = 1, stop: threading.Event | None = None) -> int:
        """Write the whole file into an open descriptor, from offset 0 on; what a failure leaves there is undefined.

        Args:
            name: the file.
            file: a descriptor to write to.
            ranges: parts of it that may travel at the same time.
            stop: gives up when it is set.

        Returns:
            The file's size in bytes.

        Raises:
            Stopped: `stop` was set.
            DataError: there is no such file, or it cannot be read.
        """

    @abstractmethod
    def stream(self, name: str, sink: "Sink") -> None:
        """Write the whole file into a sink, from its first byte to its last; raises DataError where there is none."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""

    @abstractmethod
    def list_names(self) -> list[str]:
        """Names of all files, sorted; empty where the place does not exist yet."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""

    @abstractmethod
    def check_readable(self) -> None:
        """Raise DataError unless the place exists and lets us read."""

    def check_writable(self) -> None:
        """Raise DataError unless a file can be written here; leaves neither file nor folder behind."""
        self.write_bytes(_PROBE, b"")
        self.delete(_PROBE)

    def local_path(self, name: str) -> Path | None:
        """The file itself where it can be opened in place, else None."""
        return None


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A fetch was given up because it was told to."""


def write_at(file: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at an offset of a descriptor."""
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written


def open_store(location: str | os.PathLike[str], reading: ReadSettings | None = None) -> Store:
    """The store at a location: a folder, or `s3://bucket/prefix`. Nothing is contacted yet.

    Args:
        location: the place.
        reading: how long S3 is waited for.

    Raises:
        DataError: the location is of another kind, or names no bucket.
    """
    location = os.fspath(location)
    scheme, separator, rest = location.partition("://")
    if not separator:
        return _FolderStore(location)
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise DataError(f"cannot open {location!r}: give a folder, or s3://BUCKET/PREFIX.")
    from data_shards.storage.s3 import open_s3

    return open_s3(bucket, prefix.strip("/"), reading or ReadSettings())


class _FolderStore(Store):
    """A folder of this machine, or of a file system that all machines mount."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()
        self.location = str(self.folder)

    def read_bytes(self, name: str) -> bytes:
        with self._explained("read", name):
            return (self.folder / name).read_bytes()

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        with self._explained("write", name), self._replacing(self.folder / name) as temporary:
            temporary.write_bytes(data)

    def upload(self, path: str | os.PathLike[str], name: str) -> None:
        with self._explained("write", name), self._replacing(self.folder / name) as temporary:
            shutil.copyfile(path, temporary)

    def fetch(self, name: str, file: int, *, ranges: int = 1, stop: threading.Event | None = None) -> int:
        at = 0
        with self._explained("read", name), open(self.folder / name, "rb") as source:
            while block := source.read(1 << 20):
                if stop is not None and stop.is_set():
                    raise Stopped
                write_at(file, block, at)
                at += len(block)
        return at

    def stream(self, name: str, sink: Sink) -> None:
        with self._explained("read", name), open(self.folder / name, "rb") as file:
            while block := file.read(1 << 20):
                sink.write(block)

    def exists(self, name: str) -> bool:
        with self._explained("read", name):
            return (self.folder / name).is_file()

    def list_names(self) -> list[str]:
        with self._explained("list", ""):
            return sorted(
                path.relative_to(self.folder).as_posix()
                for path in self.folder.rglob("*")
                if path.is_file() and not path.name.endswith(".part")
            )

    def delete(self, name: str) -> None:
        with self._explained("delete", name):
            (self.folder / name).unlink(missing_ok=True)

    def check_writable(self) -> None:
        new = [folder for folder in (self.folder, *self.folder.parents) if not os.path.exists(folder)]
        try:
            super().check_writable()
        finally:
            for folder in new:
                with suppress(OSError):  # another process has begun to use it
                    folder.rmdir()

    def check_readable(self) -> None:
        if not self.folder.is_dir():
            raise DataError(f"there is no folder {self.location}; check the path.")
        with self._explained("list", ""):
            os.listdir(self.folder)

    def local_path(self, name: str) -> Path | None:
        return self.folder / name

    @contextmanager
    def _replacing(self, path: Path) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own, so that two processes writing the same file cannot mix their bytes.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            yield temporary
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _explained(self, action: str, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if action == "write":
                raise DataError(f"cannot make folder {self.folder}; check the path.") from error
            raise DataError(f"there is no file {self.folder / name}; check the path.") from error
        except OSError as error:
            cause = os.strerror(error.errno) if error.errno else str(error)
            advice = {
                errno.ENOSPC: "Free some space there.",
                errno.EACCES: "Choose another folder, or change its permissions.",
                errno.EROFS: "Choose another folder; this file system is read-only.",
            }.get(error.errno or 0, "Check the path.")
            raise DataError(f"cannot {action} {self.folder / name}: {cause}. {advice}") from error
