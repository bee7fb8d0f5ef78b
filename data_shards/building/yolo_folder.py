"""YOLO folders: a data.yaml whose `train`, `val` and `test` name the images, or a list of classes beside labels.

The paths of a data.yaml are often wrong on the machine that reads them: relative to a parent folder (Roboflow's
`../train/images`), or of the machine that wrote them. They are then looked for below the folder of data.yaml.
"""

import os
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_shards.building.folder_files import SPLITS, WORDS_OF, AnnotatedSet, FolderFiles, Json, relative_name
from data_shards.building.imported import as_document, joined
from data_shards.building.source_files import is_image, read_lines, read_text
from data_shards.building.yolo import import_yolo
from data_shards.errors import DataError

# classes.txt is LabelImg's and Label Studio's; obj.names is Darknet's and CVAT's.
_CLASS_LISTS = ("classes.txt", "obj.names", "labels.names")


def find_yolo(files: FolderFiles) -> list[AnnotatedSet]:
    """Find the images of a YOLO folder, by its data.yaml or else by the folders' names.

    Raises:
        DataError: two files could be the data.yaml, or the images it names are not there.
    """
    described = [(path, document) for path in files.yaml if "names" in (document := _document(path))]
    if described:
        least = min(len(path.parts) for path, _ in described)
        nearest = [item for item in described if len(item[0].parts) == least]
        chosen = [item for item in nearest if item[0].stem == "data"] or nearest
        if len(chosen) > 1:
            shown = ", ".join(files.shown(path) for path, _ in chosen[:4])
            raise DataError(f"{files.root} has {len(chosen)} YAML files with names of classes: {shown}. Keep one.")
        path, document = chosen[0]
        return _of_entries(files, path, document) or _of_folders(files, path.parent, path)
    lists = [path for path in files.text if path.name in _CLASS_LISTS]
    of_images = {path.stem for path in files.images} & {path.stem for path in files.text}
    if not lists or not of_images:
        return []
    names = lists[0]
    return _of_folders(files, names.parent.parent if names.parent.name == "labels" else names.parent, names)


def _document(path: Path) -> dict[str, Any]:
    import yaml  # only data.yaml needs it

    try:
        document = yaml.load(read_text(path, "a data.yaml"), yaml.BaseLoader)
    except (DataError, RecursionError, ValueError, yaml.YAMLError):
        return {}  # of some other tool
    return document if isinstance(document, dict) else {}


def _of_entries(files: FolderFiles, path: Path, document: dict[str, Any]) -> list[AnnotatedSet]:
    """Follow the `train`, `val` and `test` of a data.yaml; nothing if it has no `train`."""
    places: dict[str, list[Path]] = {}
    notes: dict[str, list[str]] = {}
    for split in SPLITS:
        value = next((document[word] for word in WORDS_OF[split] if document.get(word)), None)
        entries = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        entries = [entry.strip() for entry in entries if isinstance(entry, str) and entry.strip()]
        found = {entry: _resolved(entry, path.parent, str(document.get("path") or "")) for entry in entries}
        if lost := [entry for entry, place in found.items() if place is None]:
            # A data.yaml often names a test split that was never exported.
            if split == "test":
                continue
            raise DataError(
                f"{path}: {split} is {lost[0]}, but neither this path nor an end of it is in {path.parent}. Correct "
                "the path."
            )
        if entries:
            places[split] = [place for place in found.values() if place is not None]
            notes[split] = [
                f"{files.shown(path)} says {split}: {entry}; using {place}"
                for entry, place in found.items()
                if place is not None and place != path.parent / entry
            ]
    if "train" not in places:
        return []
    if places.get("val") == places["train"]:
        # Small sets are often published with one folder for both.
        notes["train"].append(f"{files.shown(path)} names the same images for train and val, so they are split in two")
        del places["val"]
    named = {split if len(places) > 1 else "": of_split for split, of_split in places.items()}
    return [
        _annotated_set(files, split, of_split, path, notes.get(split or "train", []))
        for split, of_split in named.items()
    ]


def _resolved(entry: str, here: Path, stated: str) -> Path | None:
    """Return the folder or list that an entry of a data.yaml means; None if there is nothing like it."""
    entry, stated = (text.strip().replace("\\", "/") for text in (entry, stated))
    for root in (here / stated, here):
        if (root / entry).exists():
            return root / entry
    for text in (f"{stated}/{entry}", entry):
        parts = [part for part in text.split("/") if part not in ("", ".", "..")]
        # The longest end counts: parent folders are left out only as far as needed.
        for start in range(len(parts)):
            if (found := here.joinpath(*parts[start:])).exists():
                return found
    return None


def _of_folders(files: FolderFiles, root: Path, names: Path) -> list[AnnotatedSet]:
    """Find images by the usual names of folders: images/train, train/images, obj_train_data, or images."""
    sets = []
    for split in SPLITS:
        places = [
            place
            for word in WORDS_OF[split]
            for place in (root / "images" / word, root / word / "images", root / word, root / f"obj_{word}_data")
            if place.is_dir()
        ]
        if places:
            sets.append(_annotated_set(files, split, places[:1], names))
    if any(one.split == "train" for one in sets):
        return sets
    return [_annotated_set(files, "", [root / "images" if (root / "images").is_dir() else root], names)]


def _annotated_set(
    files: FolderFiles, split: str, places: Sequence[Path], names: Path, notes: Sequence[str] = ()
) -> AnnotatedSet:
    folders = [_images_of(place) for place in places]
    roots = [folder if folder.is_dir() else names.parent for folder in folders]
    base = Path(os.path.commonpath([os.path.abspath(root) for root in roots]))
    source = ", ".join(files.shown(place) for place in places)
    return AnnotatedSet(split, source, base, partial(_load, folders, base, names, notes))


def _images_of(place: Path) -> Path:
    """Return the images of an entry that names the folder above images and labels."""
    return place / "images" if (place / "images").is_dir() and (place / "labels").is_dir() else place


def _load(places: Sequence[Path], base: Path, names: Path, found: Sequence[str]) -> tuple[Json, list[str]]:
    documents, notes = [], list(found)
    for place in places:
        folder, listed = (place, None) if place.is_dir() else _listed(place, base)
        document, of_import = as_document(partial(_import, folder, names))
        notes += of_import
        for image in document["images"]:
            image["file_name"] = relative_name(folder / image["file_name"], base)
        documents.append(document if listed is None else _only(document, listed))
    return joined(documents), notes


def _import(folder: Path, names: Path, target: Path) -> Any:
    return import_yolo(None, folder, target, names=names)


def _listed(path: Path, base: Path) -> tuple[Path, set[str]]:
    """Return the folder of the images that a text file lists, and their names relative to `base`."""
    found = [(line, _resolved(line, path.parent, "")) for line in read_lines(path)]
    images = [place for _, place in found if place is not None and is_image(place)]
    if len(images) < len(found):
        lost = next(line for line, place in found if place is None or not is_image(place))
        raise DataError(
            f"{path} lists {lost}, which is not an image that is found from {path.parent} "
            f"({len(found) - len(images) - 1:,} more like it). Correct the list."
        )
    folder = Path(os.path.commonpath([os.path.abspath(image.parent) for image in images]))
    return folder, {relative_name(image, base) for image in images}


def _only(document: Json, names: Collection[str]) -> Json:
    images = [image for image in document["images"] if image["file_name"] in names]
    ids = {image["id"] for image in images}
    annotations = [item for item in document["annotations"] if item["image_id"] in ids]
    return {**document, "images": images, "annotations": annotations}
