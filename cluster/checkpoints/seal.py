"""The seal of a checkpoint: size and sha256 of each of its files, written last.

A seal may come from a bucket that others can write to, so every value is checked before anything is done because of it.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError

SEAL = "checkpoint.json"
"""With this file, a checkpoint is complete."""
FORMAT_VERSION = 1
NEEDED = ("weights.safetensors", "optimizer.safetensors", "per_rank.safetensors", "state.json")
"""Files of every checkpoint."""
_STEP = re.compile(r"step-\d{8,12}")
# Words of ordinary letters: no separators, no control characters, no drive, no hidden file, no device of Windows.
_PLAIN = re.compile(r"(?!(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))[a-z0-9_][a-z0-9_.-]{0,99}(?<!\.)", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DamagedCheckpointError(ClusterError):
    """A checkpoint is incomplete, or differs from what was written; the one before it may be whole."""


@dataclass(frozen=True)
class Fingerprint:
    """Size and sha256 of a file."""

    bytes: int
    sha256: str


def is_step_name(name: str) -> bool:
    """Return True for the name of a checkpoint's folder, which becomes part of a path."""
    return _STEP.fullmatch(name) is not None


def read_seal(path: Path, shown: str) -> dict[str, Fingerprint]:
    """Read a seal: size and sha256 of each of the checkpoint's files.

    Args:
        path: the file.
        shown: its location, for messages.

    Raises:
        DamagedCheckpointError: it is missing or damaged, lacks a file, or lists a file outside of the checkpoint.
        ClusterError: it is of a later format.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DamagedCheckpointError(
            f"{shown} is missing, so this checkpoint is not complete. Choose another, or delete it."
        ) from None
    except OSError as error:
        raise _damaged(shown, f"it cannot be read ({error})") from error
    return parse_seal(content, shown)


def parse_seal(content: bytes, shown: str) -> dict[str, Fingerprint]:
    """Parse the content of a seal; see `read_seal`.

    Raises:
        DamagedCheckpointError, ClusterError: as `read_seal`.
    """
    try:
        seal = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(shown, f"it cannot be read ({error})") from error
    if not isinstance(seal, dict) or not isinstance(seal.get("files"), dict):
        raise _damaged(shown, "it lists no files")
    version = seal.get("format")
    if type(version) is int and version > FORMAT_VERSION:
        raise ClusterError(
            f"{shown} has checkpoint format {version}, this aweigh reads {FORMAT_VERSION}; update aweigh."
        )
    if type(version) is not int or version != FORMAT_VERSION:
        raise _damaged(shown, f"its format is {str(version)[:50]!r}")
    files = {_plain(name, shown): _fingerprint(value, name, shown) for name, value in seal["files"].items()}
    if missing := [name for name in NEEDED if name not in files]:
        raise _damaged(shown, f"it does not list {missing[0]}")
    return files


def _plain(name: str, shown: str) -> str:
    if _PLAIN.fullmatch(name) is None or name == SEAL:
        raise DamagedCheckpointError(
            f"{shown} lists {name[:100]!r}, which is not a plain file name. Choose another checkpoint."
        )
    return name


def _fingerprint(value: Any, name: str, shown: str) -> Fingerprint:
    if isinstance(value, dict):
        size, digest = value.get("bytes"), value.get("sha256")
        # `type` and not `isinstance`: True is an int too.
        if type(size) is int and 0 <= size < 2**63 and isinstance(digest, str) and _SHA256.fullmatch(digest):
            return Fingerprint(size, digest)
    raise _damaged(shown, f"{name} has no size and sha256")


def _damaged(shown: str, problem: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{shown} is damaged: {problem}. Choose another checkpoint.")
