"""COCO folders as tools export them.

The folders of Roboflow (`train/_annotations.coco.json` beside the images), CVAT (`annotations/instances_default.json`
and `images`), Label Studio (`result.json` and `images`), FiftyOne (`labels.json` and `data`) and COCO itself have one
thing in common: a JSON file with images, annotations and categories. The folder of its images is the one that has them.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_shards.building.coco import read_categories
from data_shards.building.coco_checks import check_annotations, check_images, read_document
from data_shards.building.folder_files import WORDS_OF, AnnotatedSet, FolderFiles, Json, split_word
from data_shards.building.text_files import decode_text
from data_shards.errors import DataError

# Formats with one file an image may have thousands of them; COCO's annotations are in few.
_MOST_FILES = 100
_LISTS = ("images", "annotations", "categories")


def find_coco(files: FolderFiles) -> list[AnnotatedSet]:
    """Find the COCO files of a folder.

    Raises:
        DataError: several files claim the same split; or all JSON files are of a kind that cannot be read.
    """
    others: dict[str, Path] = {}
    paths: list[Path] = []
    for path in files.json[:_MOST_FILES]:
        content = _parsed(path)
        if isinstance(content, dict) and all(isinstance(content.get(name), list) for name in _LISTS):
            paths.append(path)
        elif kind := _other_kind(content):
            others.setdefault(kind, path)
    paths = _of_objects(paths)
    if not paths and others and not (files.yaml or files.xml):
        kind, path = next(iter(others.items()))
        raise DataError(f"{path} is in the format of {kind}, which is not read. Export the data as COCO, YOLO or VOC.")
    sets = [_annotated_set(files, path) for path in paths]
    for split in sorted({one.split for one in sets}):
        same = [one.source for one in sets if one.split == split]
        if len(same) > 1:
            what = f"of the split {split}" if split else "whose names do not contain train, val or test"
            raise DataError(
                f"{files.root} has {len(same)} COCO files {what}: {', '.join(same[:4])}. Give the folder of one data "
                "set, or name its files train.json and val.json."
            )
    return sets


def _parsed(path: Path) -> Any:
    try:
        return json.loads(decode_text(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return None  # of some other tool


def _other_kind(content: Any) -> str:
    """Return the tool whose own format this is; empty if unknown."""
    if isinstance(content, dict):
        return "LabelMe" if "shapes" in content else "VIA" if "_via_img_metadata" in content else ""
    first = content[0] if isinstance(content, list) and content else None
    if not isinstance(first, dict):
        return ""
    if "data" in first and "annotations" in first:
        return "Label Studio's own JSON"
    return "CreateML" if "image" in first and "annotations" in first else ""


def _of_objects(paths: Sequence[Path]) -> list[Path]:
    """Leave out what COCO has beside the instances (joints of the same images), and train and val in one file."""
    chosen = []
    for path in paths:
        beside = [other for other in paths if other.parent == path.parent]
        if "instances" not in path.name and any("instances" in other.name for other in beside):
            continue
        if "trainval" in path.name and any(split_word(other.name) == "train" for other in beside):
            continue
        chosen.append(path)
    return chosen


def _annotated_set(files: FolderFiles, path: Path) -> AnnotatedSet:
    split = files.split_of(path)
    folder = _image_folder(files, path, split)
    return AnnotatedSet(split, files.shown(path), folder, partial(_load, path, folder))


def _image_folder(files: FolderFiles, path: Path, split: str) -> Path:
    """Return the folder that has most of a file's images; the whole folder if none has any."""
    names = [
        item["file_name"]
        for item in _parsed(path)["images"]
        if isinstance(item, dict) and isinstance(item.get("file_name"), str)
    ]
    here, above = path.parent, path.parent.parent
    words = [*WORDS_OF.get(split, ()), path.stem.removeprefix("instances_")]
    # In this order: splits may have files of the same names, so the folder of the file or of its split comes first.
    folders = [here, here / "images"]
    for base in dict.fromkeys((here, above if path != files.root and here != files.root else here, files.root)):
        folders += [base / "images" / word for word in words] + [base / word for word in words]
        folders += [base / word / "images" for word in words] + [base / "images", base / "data", base]
    folders += sorted({image.parent for image in files.images})[:_MOST_FILES]
    best, most = files.root, 0
    for folder in dict.fromkeys(folders):
        if not folder.is_dir():
            continue
        found = sum((folder / name).is_file() for name in names if len(name) < 4096 and "\0" not in name)
        if found > most:
            best, most = folder, found
        if names and found == len(names):
            break
    return best


def _load(path: Path, folder: Path) -> tuple[Json, list[str]]:
    document = read_document(path)
    categories = read_categories(path, document["categories"])
    note = check_images(path, document["images"], folder)
    check_annotations(path, document, {item.id for item in categories})
    return document, [note] if note else []
