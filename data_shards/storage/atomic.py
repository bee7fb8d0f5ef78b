"""Replacing a file so that other processes see all of the old bytes or all of the new ones, even after a power cut."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what the block writes there replaces `path` when the block succeeds.

    Missing folders are made. A block that raises leaves `path` as it was. A process that is killed leaves a hidden
    file that ends in `.part`.

    Raises:
        OSError: the folder cannot be made, or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A unique name, so that two processes that write the same file cannot mix their bytes.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        # The bytes must reach the disk before the name does: after a power cut, some file systems otherwise show an
        # empty file under the final name.
        _flush(temporary)
        os.replace(temporary, path)
        # The rename is a change of the folder. File systems that cannot flush a folder (some network ones) refuse.
        with suppress(OSError):
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
