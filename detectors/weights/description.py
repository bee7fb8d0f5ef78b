"""A text inside a weights file that describes what the weights are of: written beside them, and read without them.

In a .safetensors file it is an entry of the metadata. In a file of torch.save, which is a ZIP archive, it is a member
of its own, as TorchScript's extra files are. torch.load, and the libraries that use it, never look at it: to them, the
content is exactly the state dict that they expect.
"""

import zipfile
from pathlib import Path

from detectors.errors import DetectorError

KEY = "aweigh"
"""Entry in the metadata of a .safetensors file."""

_MEMBER = "extra/aweigh.json"
_LARGEST_BYTES = 8 << 20
"""Thousands of classes with joints fit; a file is untrusted, and must not fill the memory with its description."""


def read_description(path: Path) -> str:
    """Read the description in a weights file; "" if it has none, or is damaged or of another kind.

    Raises:
        DetectorError: the description is too large, or is not text.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
        found = _of_zip(path) if start.startswith(b"PK") else _of_safetensors(path) if start[8:] == b"{" else b""
        if len(found) > _LARGEST_BYTES:
            raise DetectorError(f"{path} has a description of {len(found):,} bytes, which no weights need; refused.")
        return found.decode()
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return ""  # whoever loads the weights says what is wrong with the file
    except UnicodeDecodeError as error:
        raise DetectorError(f"{path} has a description that is not text. Export the weights again.") from error


def add_to_archive(path: Path, description: str) -> None:
    """Add the description to a file that torch.save wrote."""
    with zipfile.ZipFile(path, "a") as archive:
        root = next(name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl"))
        archive.writestr(root + _MEMBER, description)


def _of_zip(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(f"/{_MEMBER}")]
        if not members:
            return b""
        with archive.open(members[0]) as file:
            # One byte more than is allowed shows that it is too large, whatever size the archive claims.
            return file.read(_LARGEST_BYTES + 1)


def _of_safetensors(path: Path) -> bytes:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(KEY, "").encode()
    except SafetensorError:
        return b""
