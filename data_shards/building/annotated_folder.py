"""A folder of annotated images as tools export it, recognised by its files: YOLO, COCO or Pascal VOC.

Every kind ends as COCO documents, one a split, with file names relative to one folder. Nothing is written in the
folder, which may be read-only.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.building.coco_folder import find_coco
from data_shards.building.folder_files import SPLITS, AnnotatedSet, FolderFiles, relative_name
from data_shards.building.imported import joined
from data_shards.building.voc_folder import find_voc
from data_shards.building.yolo_folder import find_yolo
from data_shards.counting import counted
from data_shards.errors import DataError

Json = dict[str, Any]

_LOOKED_FOR = (
    "YOLO (data.yaml, or classes.txt with images and labels), COCO (a JSON with images, annotations and categories), "
    "or Pascal VOC (.xml files)"
)


@dataclass(frozen=True)
class AnnotatedFolder:
    """The annotated images that were found in a folder."""

    kind: str
    """`YOLO`, `COCO` or `Pascal VOC`."""
    images: Path
    """The folder that file names are relative to."""
    documents: dict[str, Json]
    """COCO documents with the same categories, by split: `train`, `val` and `test`, or `all` for a single set."""
    sources: dict[str, str]
    """The files or folders that each split was read from, relative to the folder."""
    notes: tuple[str, ...]
    """Lines about what was left out, renamed or resolved."""

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of their ids."""
        categories = next(iter(self.documents.values()))["categories"]
        return [item["name"] for item in sorted(categories, key=lambda item: item["id"])]

    def describe(self) -> str:
        """Say in a line what was found."""
        names = self.class_names
        shown = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
        counts = {split: counted(len(document["images"]), "image") for split, document in self.documents.items()}
        splits = "; ".join(
            f"{'' if split == 'all' else f'{split} '}{count} ({self.sources[split]})" for split, count in counts.items()
        )
        return f"{self.kind}, {counted(len(names), 'class')} ({shown}): {splits}"


def read_annotated_folder(folder: str | Path, *, without: Collection[Path] = ()) -> AnnotatedFolder:
    """Recognise a folder of annotated images, and read all its annotations.

    Args:
        folder: the folder; annotations and images may be in folders below it.
        without: folders below it that are not looked into, such as one of runs.

    Raises:
        DataError: nothing that is known was found, or more than one thing; or the annotations cannot be used.
    """
    root = Path(folder)
    files = FolderFiles.below(root, without)
    kinds = {
        kind: sets
        for kind, sets in (
            ("YOLO", find_yolo(files)),
            ("COCO", find_coco(files)),
            ("Pascal VOC", find_voc(files)),
        )
        if sets
    }
    if not kinds:
        raise DataError(f"{root}: no annotations were found in {files.describe()}. Looked for {_LOOKED_FOR}.")
    if len(kinds) > 1:
        both = " and ".join(f"{kind} ({sets[0].source})" for kind, sets in kinds.items())
        raise DataError(f"{root} has annotations of more than one kind: {both}. Give a folder with one kind.")
    kind, sets = next(iter(kinds.items()))
    by_split, notes = _by_split(root, kind, sets)
    base = _common_folder(root, [one.images for one in sets])
    loaded = {split: [one.load() for one in group] for split, group in by_split.items()}
    notes += [note for group in loaded.values() for _, of_set in group for note in of_set]
    documents = {
        split: _merged(
            [_below(document, one.images, base) for one, (document, _) in zip(group, loaded[split], strict=True)],
            [one.source for one in group],
        )
        for split, group in by_split.items()
    }
    notes += _unite_classes(documents, {split: group[0].source for split, group in by_split.items()})
    notes += _drop_placeholder(documents)
    sources = {split: ", ".join(one.source for one in group) for split, group in by_split.items()}
    return AnnotatedFolder(kind, base, documents, sources, tuple(notes))


def _by_split(root: Path, kind: str, sets: Sequence[AnnotatedSet]) -> tuple[dict[str, list[AnnotatedSet]], list[str]]:
    """Group sets by split, and decide which one validates if the names leave that open."""
    grouped: dict[str, list[AnnotatedSet]] = {}
    for one in sets:
        grouped.setdefault(one.split, []).append(one)
    if len(grouped) == 1:
        return {"all": next(iter(grouped.values()))}, []
    if "" in grouped:
        if "train" in grouped:
            unnamed = ", ".join(one.source for one in grouped[""])
            named = ", ".join(sorted(name for name in grouped if name))
            raise DataError(
                f"{root}: it is unclear which split {unnamed} belongs to, beside {named}. Put train, val or test into "
                "its name, or remove it."
            )
        grouped["train"] = grouped.pop("")
    if "train" not in grouped:
        raise DataError(
            f"{root} has {kind} annotations of {' and '.join(sorted(grouped))}, but none to train on. Looked for a "
            "file or folder named train."
        )
    notes: list[str] = []
    if "val" not in grouped:
        grouped["val"] = grouped.pop("test")
        notes.append("there is no validation split, so test is used for it")
    return {split: grouped[split] for split in SPLITS if split in grouped}, notes


def _common_folder(root: Path, folders: Iterable[Path]) -> Path:
    """Return the folder itself, unless data.yaml names images elsewhere."""
    return Path(os.path.commonpath([os.path.abspath(folder) for folder in (root, *folders)]))


def _below(document: Json, images: Path, base: Path) -> Json:
    for image in document["images"]:
        image["file_name"] = relative_name(images / image["file_name"], base)
    return document


def _merged(documents: Sequence[Json], sources: Sequence[str]) -> Json:
    _unite_classes(dict(enumerate(documents)), dict(enumerate(sources)))
    return joined(documents)


def _unite_classes(documents: Mapping[Any, Json], sources: Mapping[Any, str]) -> list[str]:
    """Let all documents have the same categories: those with one name are the same, whatever their ids.

    Returns:
        Notes about classes that only some of them have.

    Raises:
        DataError: a document has two categories of one name, or categories of one name have other joints.
    """
    lists = [[_category(item) for item in document["categories"]] for document in documents.values()]
    if all(sorted(map(str, one)) == sorted(map(str, lists[0])) for one in lists):
        return []
    united: dict[str, Json] = {}
    for split, document in documents.items():
        names = [item["name"] for item in document["categories"]]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(
                f"{sources[split]} lists class {twice!r} twice and the splits list other classes, so names do not tell "
                "which is which. Rename one of them."
            )
        for item in document["categories"]:
            known = united.setdefault(item["name"], {**item, "id": _free_id(united, item["id"])})
            if known.get("keypoints", []) != item.get("keypoints", []):
                raise DataError(f"{sources[split]}: class {item['name']!r} has other joints than in another split.")
    notes = []
    for split, document in documents.items():
        id_of = {item["id"]: united[item["name"]]["id"] for item in document["categories"]}
        lacking = [name for name in united if name not in {item["name"] for item in document["categories"]}]
        if lacking:
            notes.append(f"{sources[split]} does not list {', '.join(lacking[:4])}{', …' if len(lacking) > 4 else ''}")
        for annotation in document["annotations"]:
            annotation["category_id"] = id_of[annotation["category_id"]]
        document["categories"] = [dict(item) for item in united.values()]
    return notes


def _category(item: Json) -> tuple[Any, ...]:
    return item["id"], item["name"], json.dumps([item.get("keypoints", []), item.get("skeleton", [])])


def _free_id(united: Mapping[str, Json], wanted: int) -> int:
    taken = {item["id"] for item in united.values()}
    return wanted if wanted not in taken else 1 + max(taken)


def _drop_placeholder(documents: Mapping[str, Json]) -> list[str]:
    """Drop the category that Roboflow adds for the project itself: the parent of all others, without an object."""
    categories = next(iter(documents.values()))["categories"]
    used = {item["category_id"] for document in documents.values() for item in document["annotations"]}
    for parent in categories:
        others = [item for item in categories if item is not parent]
        if (
            others
            and parent["id"] not in used
            and parent.get("supercategory") in (None, "", "none")
            and all(item.get("supercategory") == parent["name"] for item in others)
        ):
            for document in documents.values():
                document["categories"] = [item for item in document["categories"] if item["id"] != parent["id"]]
            return [f"category {parent['name']!r} has no object and is the parent of all others, so it is left out"]
    return []
