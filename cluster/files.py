"""Small files that other processes read while they are being replaced."""

import os
import secrets
from pathlib import Path


def write_text(path: Path, text: str, *, flush: bool = True) -> None:
    """Replace a file's content in one rename, so that a reader sees the old or the new text and never a part.

    Args:
        path: the file.
        text: its new content.
        flush: bring the text to the disk before the rename, so that not even a power failure leaves an empty file.
    """
    # A name of its own for each writer: a dying worker of an earlier attempt may write beside its successor.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with partial.open("w") as file:
            file.write(text)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
