"""Where files lie: a folder or an S3 bucket, behind one small interface.

A write is all or nothing: a folder gets a temporary file that is renamed, S3 (`s3.py`) a single PUT or a multipart
upload that appears when it is complete.
"""

import os
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

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
