"""Stdout and stderr that take any text and outlive their terminal."""

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast


def open_streams() -> None:
    """Make stdout and stderr take any text, also if they are closed or only take ASCII.

    What cannot be written to stderr is dropped: a terminal that is gone must not end a training.
    """
    for name in ("stdout", "stderr"):
        # Python sets a stream to None if its descriptor is closed.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stderr = cast("TextIO", _Lasting(sys.stderr))


class _Lasting:
    """A stream that drops what cannot be written, because its reader or its terminal is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def flush_streams() -> None:
    """Flush stdout and stderr; a stream whose reader is gone does not matter."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
