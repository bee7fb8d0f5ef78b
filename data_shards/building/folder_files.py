"""The files of a folder by their kind, and the sets of annotated images that are found among them."""

import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.building.source_files import is_image
from data_shards.counting import counted
from data_shards.errors import DataError

SPLITS = ("train", "val", "test")
_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
WORDS_OF = {split: tuple(word for word, meant in _WORDS.items() if meant == split) for split in SPLITS}
"""Words that tools use for each split."""

Json = dict[str, Any]


@dataclass(frozen=True)
class AnnotatedSet:
    """One set of annotated images, not read yet."""

    split: str
    """`train`, `val` or `test`; empty if nothing says."""
    source: str
    """The annotation file or folder, as people would write it."""
    images: Path
    """The folder that file names will be relative to."""
    load: Callable[[], tuple[Json, list[str]]]
    """Reads the set as a COCO document, and returns notes about it; raises DataError."""


@dataclass(frozen=True)
class FolderFiles:
    """The files below a folder that may matter, in order."""

    root: Path
    json: list[Path]
    xml: list[Path]
    yaml: list[Path]
    text: list[Path]
    images: list[Path]

    @classmethod
    def below(cls, root: Path, without: Collection[Path] = ()) -> "FolderFiles":
        """List a folder, without hidden files and the folders `without`.

        Raises:
            DataError: there is no such folder, or it cannot be read.
        """
        if not root.is_dir():
            what = f"{root} is not a folder" if root.exists() else f"the folder {root} does not exist"
            raise DataError(f"{what}; give the folder with the images and their annotations.")
        if not os.access(root, os.R_OK | os.X_OK):
            raise DataError(f"cannot read the folder {root}: Permission denied. Change its permissions.")
        found: dict[str, list[Path]] = {kind: [] for kind in ("json", "xml", "yaml", "text", "images")}
        for path in _walk(root, {os.path.realpath(folder) for folder in without}):
            suffix = path.suffix.lower()
            kind = {".json": "json", ".xml": "xml", ".yaml": "yaml", ".yml": "yaml"}.get(suffix)
            if kind is None:
                kind = "images" if is_image(path) else "text" if suffix in (".txt", ".names") else None
            if kind is not None:
                found[kind].append(path)
        return cls(root=root, **found)

    def describe(self) -> str:
        """Count the files by kind."""
        counts = [
            ("image", self.images),
            (".txt file", self.text),
            (".json file", self.json),
            (".xml file", self.xml),
            (".yaml file", self.yaml),
        ]
        return ", ".join(counted(len(paths), kind) for kind, paths in counts if paths) or "an empty folder"

    def shown(self, path: Path) -> str:
        """Return a path as people would write it, from the folder."""
        return relative_name(path, self.root)

    def split_of(self, path: Path) -> str:
        """Return the split that a path below the folder names, its last part first; empty if none does."""
        parts = Path(relative_name(path, self.root)).parts
        return next((split for part in reversed(parts) if (split := split_word(part))), "")


def split_word(name: str) -> str:
    """Return the split that a name contains as a word (`instances_train2017.json`); empty if none or several."""
    found = {_WORDS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in _WORDS}
    return found.pop() if len(found) == 1 else ""


def relative_name(path: Path, base: Path) -> str:
    """Return a path relative to a folder, with slashes; symbolic links stay as they are."""
    return Path(os.path.relpath(os.path.abspath(path), os.path.abspath(base))).as_posix()


def _walk(root: Path, without: Collection[str]) -> Iterator[Path]:
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        # Links may lead back up; each folder is listed once.
        real = os.path.realpath(folder)
        if real in seen or real in without:
            subfolders.clear()
            continue
        seen.add(real)
        # macOS puts a second, hidden file of each one into the archives that it makes.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__MACOSX")
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name)
