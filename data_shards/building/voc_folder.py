"""Pascal VOC folders: `Annotations`, `JPEGImages` and `ImageSets` as in the challenge, or .xml files beside images."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from pathlib import Path

from data_shards.building.folder_files import SPLITS, WORDS_OF, AnnotatedSet, FolderFiles, Json
from data_shards.building.imported import as_document
from data_shards.building.source_files import IMAGE_ENDINGS, read_lines
from data_shards.building.voc import class_names_in, import_voc, listed_file
from data_shards.errors import DataError

_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "image", "imgs", "img")


def find_voc(files: FolderFiles) -> list[AnnotatedSet]:
    """Find the folders of VOC files.

    Raises:
        DataError: the .xml files are of CVAT's own format.
    """
    by_folder: dict[Path, Path] = {}
    for path in files.xml:
        if path.parent not in by_folder and (tag := _root_tag(path)) == "annotation":
            by_folder[path.parent] = path
        elif path.parent not in by_folder and tag == "annotations" and not (files.json or files.yaml):
            raise DataError(f"{path} is in CVAT's own format, which is not read. Export the data as COCO, YOLO or VOC.")
    places: list[tuple[str, Path, Path | None]] = []
    for folder in by_folder:
        lists = _lists(folder)
        places += [(split, folder, path) for split, path in lists] or [(files.split_of(folder), folder, None)]
    # One list of classes for all: a split may lack some, and labels count through the list.
    names = partial(_all_names, [(folder, path) for _, folder, path in places])
    return [_annotated_set(files, split, folder, path, by_folder[folder], names) for split, folder, path in places]


def _annotated_set(
    files: FolderFiles, split: str, folder: Path, image_set: Path | None, first: Path, names: Callable[[], list[str]]
) -> AnnotatedSet:
    images = _image_folder(files, folder, first)
    source = files.shown(folder if image_set is None else image_set)
    return AnnotatedSet(split, source, images, partial(_load, folder, images, image_set, _is_one_based(first), names))


def _root_tag(path: Path) -> str:
    try:
        return next(ElementTree.iterparse(path, events=("start",)))[1].tag
    except (OSError, ElementTree.ParseError, StopIteration, ValueError):
        # Text in an encoding that only the import decodes; its name says that it belongs to an image.
        return "annotation" if any(path.with_suffix(ending).exists() for ending in IMAGE_ENDINGS) else ""


def _lists(annotations: Path) -> list[tuple[str, Path]]:
    """Return the lists of images of each split; none unless there is one to train on."""
    folder = annotations.parent / "ImageSets" / "Main"
    found = [
        (split, path)
        for split in SPLITS
        if (path := folder / f"{split}.txt").is_file() and path.stat().st_size and _is_whole(annotations, path)
    ]
    return found if any(split == "train" for split, _ in found) else []


def _is_whole(annotations: Path, path: Path) -> bool:
    """True if the annotations are here; the challenge of 2007 ships those of its test split apart."""
    return path.stem == "train" or all(listed_file(annotations, line).is_file() for line in read_lines(path))


def _image_folder(files: FolderFiles, folder: Path, first: Path) -> Path:
    """Return the folder that has the image of the first annotation; the whole folder if none has it."""
    names = [f"{first.stem}{ending}" for ending in IMAGE_ENDINGS]
    beside = [folder.parent / name for name in _IMAGE_FOLDERS]
    # annotations/train beside images/train
    beside += [folder.parent.parent / name / folder.name for name in _IMAGE_FOLDERS]
    split = files.split_of(folder)
    beside += [folder.parent / word for word in WORDS_OF.get(split, ())]
    others = sorted({image.parent for image in files.images})
    for candidate in (folder, *beside, folder.parent, *others):
        if any((candidate / name).is_file() for name in names):
            return candidate
    return files.root


def _is_one_based(path: Path) -> bool:
    """Recognise the files of the challenges, whose corners count pixels from 1."""
    # Written near the start of each: <database>The VOC2007 Database</database>.
    return re.search(rb"<database>\s*The VOC20\d\d Database\s*</database>", path.read_bytes()[:2000]) is not None


def _all_names(places: list[tuple[Path, Path | None]]) -> list[str]:
    return sorted({name for folder, image_set in places for name in class_names_in(folder, image_set)})


def _load(
    folder: Path, images: Path, image_set: Path | None, one_based: bool, names: Callable[[], list[str]]
) -> tuple[Json, list[str]]:
    listed = names()
    if not listed:
        raise DataError(f"no .xml file in {folder} has an object, so there is nothing to detect. Annotate some images.")
    document, notes = as_document(
        lambda target: import_voc(folder, images, target, classes=listed, image_set=image_set, one_based=one_based)
    )
    if one_based:
        notes.append("corners count pixels from 1, because the files say that they are the challenge's")
    return document, notes
