"""Files in a folder of this machine, or of a file system that all machines mount."""

# ruff: noqa: D102 - the methods are described in `Store`.

import errno
import math
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_shards.counting import counted
from data_shards.errors import DataError, LargerError
from data_shards.storage.atomic import replacing
from data_shards.storage.store import FileVersion, Sink, Stopped, Store, write_at


class FolderStore(Store):
    """A folder of this machine, or of a file system that all machines mount."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()
        self.location = str(self.folder)

    def read_bytes(self, name: str, *, most_bytes: int | None = None) -> bytes:
        return b"".join(self._blocks(name, most_bytes))

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        with self._explained("write", name), replacing(self.folder / name) as temporary:
            temporary.write_bytes(data)

    def upload(self, path: str | os.PathLike[str], name: str) -> None:
        with self._explained("write", name), replacing(self.folder / name) as temporary:
            shutil.copyfile(path, temporary)

    def fetch(
        self,
        name: str,
        file: int,
        *,
        ranges: int = 1,
        stop: threading.Event | None = None,
        most_bytes: int | None = None,
    ) -> int:
        at = 0
        for block in self._blocks(name, most_bytes):
            if stop is not None and stop.is_set():
                raise Stopped
            with self._explained("read", name):
                write_at(file, block, at)
            at += len(block)
        return at

    def stream(self, name: str, sink: Sink, *, most_bytes: int | None = None) -> None:
        for block in self._blocks(name, most_bytes):
            with self._explained("read", name):
                sink.write(block)

    def _blocks(self, name: str, most_bytes: int | None) -> Iterator[bytes]:
        left = math.inf if most_bytes is None else most_bytes
        with self._explained("read", name), open(self.folder / name, "rb") as file:
            while block := file.read(1 << 20):
                left -= len(block)
                if left < 0:
                    raise LargerError(
                        f"{self.folder / name} has more than {counted(most_bytes or 0, 'byte')}. Copy it again."
                    )
                yield block

    def exists(self, name: str) -> bool:
        with self._explained("read", name):
            return (self.folder / name).is_file()

    def version(self, name: str) -> FileVersion:
        with self._explained("read", name):
            state = (self.folder / name).stat()
            return FileVersion(state.st_size, f"{state.st_mtime_ns}")

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
                with suppress(OSError):  # another process uses it by now
                    folder.rmdir()

    def check_readable(self) -> None:
        if not self.folder.is_dir():
            raise DataError(f"there is no folder {self.location}; check the path.")
        with self._explained("list", ""):
            os.listdir(self.folder)

    def local_path(self, name: str) -> Path | None:
        return self.folder / name

    @contextmanager
    def _explained(self, action: str, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if action == "write":
                raise DataError(f"cannot create folder {self.folder}; check the path.") from error
            raise DataError(f"there is no file {self.folder / name}; check the path.") from error
        except OSError as error:
            cause = os.strerror(error.errno) if error.errno else str(error)
            advice = {
                errno.ENOSPC: "Free some space there.",
                errno.EACCES: "Choose another folder, or change its permissions.",
                errno.EROFS: "Choose another folder; this file system is read-only.",
            }.get(error.errno or 0, "Check the path.")
            raise DataError(f"cannot {action} {self.folder / name}: {cause}. {advice}") from error
