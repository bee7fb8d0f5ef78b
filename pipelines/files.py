"""Small files that are never half written."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
"""Endings of the picture files that are written, in lower case."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write, which replaces `path` in one rename if the block succeeds.

    A reader of `path` sees the old or the new file and never a part. If the block fails, nothing is left of its file.
    """
    # A name of its own for each writer, also on other machines that share the folder.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield unfinished
        # On disk before the name points to it: after a power failure the file is the old or the new one, not empty.
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the content of a file by a text, in one rename."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Replace the content of a file by a value as JSON, in one rename."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one if the file is missing or damaged."""
    # A machine that loses power may keep the rename and lose the content.
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
