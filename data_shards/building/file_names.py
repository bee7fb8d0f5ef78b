"""File names as annotations write them, and the files that they mean.

Tools write paths of other machines, of Windows, of servers, or with letters composed otherwise. A name is resolved only
if exactly one file below the folder of images can be meant, and never to a file outside it.
"""

import difflib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from data_shards.counting import counted
from data_shards.errors import DataError

Json = dict[str, Any]


class ImageFiles:
    """The files below a folder of images; listed only if a name has to be searched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        """Return True for the path of a file in the folder, written as the file system does.

        Raises:
            OSError: the path cannot be looked up.
        """
        return not leaves_folder(name) and (self.folder / name).is_file()

    def meant_by(self, name: str) -> str | None:
        """Return the one file that a name can mean in another spelling; None if there is none, or more than one."""
        for parts in _spellings(name):
            # The longest path counts: folders are left out only as far as needed.
            for start in range(len(parts)):
                found = self._by_spelling.get(_spelling("/".join(parts[start:])))
                if found:
                    return found[0] if len(found) == 1 else None
        return None

    def hint(self, name: str) -> str:
        """Return `; did you mean 'sub/a.jpg'?` for the file whose name is closest, or nothing."""
        last = next((parts[-1] for parts in _spellings(name) if parts), name)
        by_name = {path.rpartition("/")[2]: path for paths in self._by_spelling.values() for path in paths}
        close = {_spelling(each): path for each, path in by_name.items()}.get(_spelling(last))
        if close is None and (near := difflib.get_close_matches(last, list(by_name)[:20_000], n=1)):
            close = by_name[near[0]]
        return "" if close is None else f"; did you mean {close!r}?"

    @cached_property
    def _by_spelling(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        seen: set[str] = set()
        for folder, subfolders, names in os.walk(self.folder, followlinks=True):
            # Links may lead back up; each folder is listed once.
            real = os.path.realpath(folder)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders.sort()
            for name in sorted(names):
                path = Path(folder, name).relative_to(self.folder).as_posix()
                found[_spelling(path)].append(path)
        return found


def resolve_file_names(path: Path, images: Sequence[Json], folder: Path) -> str:
    """Replace, in place, file names that mean a file in another spelling.

    Args:
        path: the annotation file, for errors.
        images: COCO's images, each with a `file_name`.
        folder: the folder that file names are relative to.

    Returns:
        A line about the names that were resolved; empty if there are none.

    Raises:
        DataError: there is no such folder, or files are not in it; the message counts them.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder of images {folder}; check the path.")
    files = ImageFiles(folder)
    try:
        missing = [image for image in images if not files.has(image["file_name"])]
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename}: {error.strerror}. Check the path and its permissions."
        ) from error
    if not missing:
        return ""
    lost = {id(image) for image in missing}
    taken = Counter(os.path.normpath(image["file_name"]) for image in images if id(image) not in lost)
    meant = {id(image): files.meant_by(image["file_name"]) for image in missing}
    taken.update(name for name in meant.values() if name is not None)
    # Two images that mean one file are two images of which at least one is missing.
    unresolved = [image for image in missing if (name := meant[id(image)]) is None or taken[name] > 1]
    if unresolved:
        _refuse(path, images, files, unresolved)
    first = f"{missing[0]['file_name']!r} to {meant[id(missing[0])]!r}"
    for image in missing:
        image["file_name"] = meant[id(image)]
    return f"{counted(len(missing), 'file name')} resolved to files that are spelled otherwise, such as {first}"


def _refuse(path: Path, images: Sequence[Json], files: ImageFiles, unresolved: Sequence[Json]) -> None:
    image, name = unresolved[0], unresolved[0]["file_name"]
    if leaves_folder(name) and os.path.isfile(files.folder / name):
        raise DataError(
            f"{path}: image {image['id']} has file_name {name!r}, which leads out of the folder {files.folder}. Give "
            "the folder that holds all images with --images, and write names relative to it."
        )
    raise DataError(
        f"{len(unresolved):,} of the {len(images):,} images of {path} are not in {files.folder}; the first is image "
        f"{image['id']}, file {name}{files.hint(name) or '.'} Check the folder, or fetch them again."
    )


def leaves_folder(name: str) -> bool:
    """Return True for a path that is absolute, or that leads out of the folder it is relative to."""
    return os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir


def _spelling(path: str) -> str:
    """Return the same text for paths that differ only in case and in how their letters are composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _spellings(name: str) -> Iterator[list[str]]:
    """Yield the folders and the file that a name may stand for, most literal first."""
    seen = []
    without_query = re.sub(r"[?#].*", "", name) if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name) else name
    for text in (name, unquote(name), without_query, unquote(without_query)):
        parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
        while ".." in parts:
            # A folder before `..` cancels it; at the start it leads out of the folder, where nothing is searched.
            at = parts.index("..")
            del parts[max(0, at - 1) : at + 1]
        if parts and parts not in seen:
            seen.append(parts)
            yield parts
