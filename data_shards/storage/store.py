"""The interface to named files in a folder or an S3 bucket.

A write is all or nothing: a folder gets a temporary file that is renamed (`folder.py`), S3 a single PUT or a multipart
upload that appears when it is complete (`s3.py`).
"""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

_PROBE = ".aweigh-write-check"


@runtime_checkable
class Sink(Protocol):
    """Takes bytes in order, such as a file or a digest."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


@dataclass(frozen=True)
class FileVersion:
    """One version of a file, as the store describes it."""

    size: int
    """Bytes."""
    tag: str
    """A text that differs when the file was replaced."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Names of hash functions (sha256, sha1, md5, crc32) to the digest of the whole file, in hexadecimal."""


class Store(ABC):
    """A location with named files. Names are relative, with `/` between folders."""

    location: str
    """The location as a user writes it: a folder, or `s3://bucket/prefix`."""

    @abstractmethod
    def read_bytes(self, name: str, *, most_bytes: int | None = None) -> bytes:
        """Return the whole file.

        Args:
            name: the file.
            most_bytes: the largest size that it may have; whoever writes to a location may put an endless file there.

        Raises:
            LargerError: it has more than `most_bytes`.
            DataError: there is no such file, or it cannot be read.
        """

    @abstractmethod
    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Create or replace a file. Other processes see the old bytes or the new ones, never a part."""

    @abstractmethod
    def upload(self, path: str | os.PathLike[str], name: str) -> None:
        """Copy a local file into the store. Other processes see all of it or nothing, as with `write_bytes`."""

    @abstractmethod
    def fetch(
        self,
        name: str,
        file: int,
        *,
        ranges: int = 1,
        stop: threading.Event | None = None,
        most_bytes: int | None = None,
    ) -> int:
        """Write the whole file into an open descriptor, from offset 0 on. A failure leaves undefined bytes there.

        Args:
            name: the file.
            file: the descriptor to write to.
            ranges: most parts of the file to request at the same time.
            stop: an event that cancels the fetch.
            most_bytes: as for `read_bytes`.

        Returns:
            The file's size in bytes.

        Raises:
            Stopped: `stop` was set.
            LargerError: it has more than `most_bytes`.
            DataError: there is no such file, or it cannot be read.
        """

    @abstractmethod
    def stream(self, name: str, sink: Sink, *, most_bytes: int | None = None) -> None:
        """Write the whole file into a sink, from its first byte to its last.

        Args:
            name: the file.
            sink: takes the bytes.
            most_bytes: as for `read_bytes`.

        Raises:
            LargerError: it has more than `most_bytes`.
            DataError: there is no such file, or it cannot be read.
        """

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Return True if there is a file of this name."""

    @abstractmethod
    def version(self, name: str) -> FileVersion:
        """Describe a file without reading it.

        Raises:
            DataError: there is no such file, or the store does not answer.
        """

    @abstractmethod
    def list_names(self) -> list[str]:
        """Return the names of all files, sorted; none if the location does not exist yet."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file if it exists."""

    @abstractmethod
    def check_readable(self) -> None:
        """Raise DataError unless the location exists and can be read."""

    def check_writable(self) -> None:
        """Raise DataError unless a file can be written here. Leaves neither file nor folder behind."""
        self.write_bytes(_PROBE, b"")
        self.delete(_PROBE)

    def local_path(self, name: str) -> Path | None:
        """Return the path of the file if it can be opened in place, else None."""
        return None


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A fetch was cancelled on request."""


def write_at(file: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at an offset of a descriptor; the system may take less at a time."""
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written
