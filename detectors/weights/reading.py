"""Reading weights files of every kind, as untrusted input: whatever is wrong with one is a single line.

The first bytes decide the kind, since files are renamed as they travel.
"""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectors.errors import DetectorError
from detectors.weights.plain_pickle import DamagedError, DataUnpickler, ForbiddenGlobalError
from detectors.weights.torch_file import OLD_MAGIC, read_old, read_zip

_AGAIN = "Download it again, or copy it again from where it was saved."

_OTHER_KINDS = (
    (b"version https://git-lfs", "a Git LFS pointer; `git lfs pull` fetches the file"),
    (b"\x1f\x8b", "a gzip file; unpack it"),
    (b"\x89HDF", "an HDF5 file of another framework"),
    (b"7z\xbc\xaf", "a 7-Zip archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"<?xml", "an XML page, such as a server's refusal"),
)


@dataclass
class FileContent:
    """Content of a weights file."""

    entries: Mapping[Any, Any]
    """As saved, with every tensor and array as a tensor on the CPU."""
    objects: dict[str, int] = field(default_factory=dict)
    """Objects of training runners that were not read, by the name of their class, and their number."""


def read(path: Path) -> FileContent:
    """Read a weights file to the CPU, as it was saved. No code in it is run.

    Raises:
        DetectorError: the file is missing, damaged or not a checkpoint, or holds code.
    """
    if not path.is_file():
        state = "is a folder, not a file" if path.is_dir() else "is not there"
        raise DetectorError(f"weights file {path} {state}. Check the path.")
    no_checkpoint = f"{path} is not a checkpoint: "
    try:
        start = _first_bytes(path)
        content, objects = _parsed(path, start)
    except ForbiddenGlobalError as error:
        raise DetectorError(
            f"{path} holds code or objects beside tensors ({error.args[0]}), which loading would run; refused. "
            "Where you trust it, save it again as torch.save(model.state_dict(), path)."
        ) from error
    except DamagedError as error:
        raise DetectorError(f"{path} is damaged: {error.args[0]}. {_AGAIN}") from error
    except zipfile.BadZipFile as error:
        # The archive names the member: "Bad CRC-32 for file 'archive/data/3'".
        what = str(error) if "CRC" in str(error) else f"damaged or of another kind ({error})"
        if "CRC" in what:
            raise DetectorError(f"{path} is damaged: {what}. {_AGAIN}") from error
        raise DetectorError(f"{no_checkpoint}{what}. {_AGAIN}") from error
    except pickle.UnpicklingError as error:
        raise DetectorError(
            f"{no_checkpoint}neither a file of torch.save nor a pickle of arrays. Choose another file."
        ) from error
    except Exception as error:  # the parsers raise whatever they meet in a damaged file
        kind = _kind(start) or type(error).__name__
        raise DetectorError(f"{no_checkpoint}damaged or of another kind ({kind}). {_AGAIN}") from error
    if not isinstance(content, Mapping):
        raise DetectorError(
            f"{no_checkpoint}it holds a {type(content).__name__}, not a state dict. Choose another file."
        )
    return FileContent(content, objects)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _parsed(path: Path, start: bytes) -> tuple[Any, dict[str, int]]:
    if start.startswith(b"PK"):
        return read_zip(path)
    if start.startswith(OLD_MAGIC):
        return read_old(path)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        from safetensors.torch import load_file

        return load_file(path), {}
    if _kind(start):
        raise ValueError
    with path.open("rb") as file:
        unpickler = DataUnpickler(file)
        return unpickler.load(), unpickler.objects


def _kind(start: bytes) -> str:
    """Name the kind of a file that does not hold weights; "" if it is unknown."""
    if not start:
        return "an empty file"
    if start.lstrip()[:9].lower().startswith((b"<html", b"<!doctype")):
        return "an HTML page, such as a download that needs a login"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it, or save it again if PyTorch 0.1 wrote it"
    return next((kind for magic, kind in _OTHER_KINDS if start.startswith(magic)), "")
