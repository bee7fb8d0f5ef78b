"""Checks of a COCO file that need nothing but the file and the folder of its images.

Every message names the first case and counts the others: one mistake of an export usually repeats in thousands of
annotations.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_shards.building.coco_fields import fits_float32, normalise
from data_shards.building.file_names import resolve_file_names
from data_shards.building.labels import is_calibration
from data_shards.building.text_files import decode_text
from data_shards.errors import DataError
from data_shards.reading.decode import image_size

Json = dict[str, Any]


def read_document(path: Path) -> Json:
    """Parse a COCO file, check that its three lists are there, and normalise its fields.

    Raises:
        DataError: the file cannot be read, is not JSON, lacks a list, or has a field that contradicts itself.
    """
    text = _read_text(path)
    document = _parse_json(path, text)
    if not isinstance(document, dict):
        raise DataError(
            f"{path} holds a {type(document).__name__}, not COCO's dictionary. Give an instances file; "
            "a list of results cannot be trained on."
        )
    for name in ("images", "annotations", "categories"):
        if not isinstance(document.get(name), list):
            raise DataError(
                f"{path} has no list {name!r}, so it is not a COCO instances file. Give the JSON with images, "
                "annotations and categories."
            )
    normalise(path, document, text)
    return document


def _read_text(path: Path) -> str:
    try:
        return decode_text(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"there is no annotation file {path}; check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text: {error}. Give the COCO instances JSON.") from error
    except OSError as error:
        raise DataError(
            f"cannot read the annotation file {path}: {error.strerror}. Check the path and its permissions."
        ) from error


def _parse_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # Asked only after JSON failed, because every JSON file is YAML as well and may be named so.
        if path.suffix.lower() in (".yaml", ".yml"):
            raise DataError(
                f"{path} is YAML, not COCO JSON; for YOLO data run `aweigh shards import-yolo` first."
            ) from error
        if text.lstrip().startswith("<"):
            raise DataError(
                f"{path} is XML, not COCO JSON; for Pascal VOC data run `aweigh shards import-voc` first."
            ) from error
        end = len(text.rstrip())
        # A whole file ends with its closing brace. A file cut short ends elsewhere, or leaves a brace open.
        if error.pos >= end or error.msg.startswith("Unterminated") or not text.rstrip().endswith("}"):
            raise DataError(
                f"{path} is cut short: its JSON stops in the middle after {end:,} characters. "
                "Copy or download it again."
            ) from error
        raise DataError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}. Correct it there."
        ) from error
    except RecursionError:
        raise DataError(f"{path} is nested too deeply for a COCO file. Export it again.") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise DataError(f"{path} has a number that cannot be read: {error}. Correct it there.") from error


def check_images(path: Path, images: list[Json], folder: Path | None) -> str:
    """Check ids, sizes, cameras and, below a folder, the files of all images.

    Images without width and height get those of their file.

    Returns:
        A line about file names that were resolved; empty if there are none.

    Raises:
        DataError: an image cannot be used.
    """
    check_fields(path, "image", images, {"id": int, "file_name": str})
    note = ""
    if folder is not None and not all(image.keys() >= {"width", "height"} for image in images):
        note = resolve_file_names(path, images, folder)
        _complete_sizes(path, images, folder)
    check_fields(path, "image", images, {"width": int, "height": int})
    check_unique(path, "image", images)
    if not images:
        raise DataError(f"{path} has no images; there is nothing to train on. List them under 'images'.")
    if negative := [image for image in images if image["id"] < 0]:
        raise DataError(
            f"{path}: image id {negative[0]['id']} is negative{others(negative)}. Number the images from 0 or 1."
        )
    if odd := [image for image in images if image.get("calib") is not None and not is_calibration(image["calib"])]:
        raise DataError(
            f"{path}: image {odd[0]['id']} has the calib {odd[0]['calib']!r}{others(odd)}; write three rows of four "
            "numbers, the projection matrix of the camera."
        )
    if folder is not None:
        note = note or resolve_file_names(path, images, folder)
    return note


def _complete_sizes(path: Path, images: list[Json], folder: Path) -> None:
    """Read sizes that the file leaves out from the images, as in KITTI's converted files."""
    for image in images:
        if image.keys() >= {"width", "height"}:
            continue
        try:
            width, height = image_size((folder / image["file_name"]).read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: image {image['id']} has no width or no height, and {folder / image['file_name']} does not "
                f"tell: {error}. Replace the file, or remove the image."
            ) from error
        image.setdefault("width", width)
        image.setdefault("height", height)


def check_annotations(path: Path, document: Json, category_ids: set[int]) -> None:
    """Check ids and boxes of all annotations, and the images and categories that they name.

    Raises:
        DataError: an annotation cannot be used.
    """
    annotations = document["annotations"]
    fields: dict[str, type] = {"id": int, "image_id": int, "category_id": int, "bbox": list}
    check_fields(path, "annotation", annotations, fields)
    check_unique(path, "annotation", annotations)
    image_ids = {image["id"] for image in document["images"]}
    if stray := [item for item in annotations if item["image_id"] not in image_ids]:
        raise DataError(
            f"{path}: annotation {stray[0]['id']} names image {stray[0]['image_id']}, which is not among its "
            f"images{others(stray)}. Add the image, or remove the annotation."
        )
    if stray := [item for item in annotations if item["category_id"] not in category_ids]:
        raise DataError(
            f"{path}: annotation {stray[0]['id']} of image {stray[0]['image_id']} has category id "
            f"{stray[0]['category_id']}, which is not among its categories{others(stray)}. Add the category, or "
            f"correct the id; known ids: {shortened(sorted(category_ids))}."
        )
    if odd := [item for item in annotations if not _is_box(item["bbox"])]:
        raise DataError(
            f"{path}: annotation {odd[0]['id']} of image {odd[0]['image_id']} has the box {odd[0]['bbox']!r}"
            f"{others(odd)}; write four finite numbers x, y, width, height."
        )


def _is_box(box: list[Any]) -> bool:
    return len(box) == 4 and all(map(fits_float32, box))


def check_fields(path: Path, kind: str, items: list[Any], fields: Mapping[str, type]) -> None:
    """Check that every item is a dictionary whose fields have the expected types.

    Raises:
        DataError: names the first that is not.
    """
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise DataError(f"{path}: {kind} number {index} is {item!r}, not a dictionary. Correct it there.")
        for name, expected in fields.items():
            value = item.get(name)
            # bool is a kind of int in Python, but true is not an id.
            if not isinstance(value, expected) or isinstance(value, bool):
                known = f"id {item['id']}" if "id" in item else f"number {index}"
                found = f"has {name} {value!r}" if name in item else f"has no {name!r}"
                raise DataError(f"{path}: {kind} {known} {found}; write {_KINDS[name]}.")


_KINDS = {
    "id": "a whole number",
    "image_id": "a whole number",
    "category_id": "a whole number",
    "width": "a whole number of pixels",
    "height": "a whole number of pixels",
    "name": "a text",
    "file_name": "a text",
    "bbox": "a list x, y, width, height",
}


def check_unique(path: Path, kind: str, items: list[Json]) -> None:
    """Check that no two items share an id.

    Raises:
        DataError: names the first id that is used twice.
    """
    if twice := [number for number, count in Counter(item["id"] for item in items).items() if count > 1]:
        raise DataError(f"{path}: {kind} id {twice[0]} is used more than once{others(twice)}; give each its own.")


def others(found: Sequence[Any]) -> str:
    """Count the cases after the first, for the end of a message; empty if there are none."""
    return f" ({len(found) - 1:,} more like it)" if len(found) > 1 else ""


def shortened(numbers: Iterable[int | str]) -> str:
    """List values for a message: all of up to twelve, else the first eleven and the last."""
    texts = [str(number) for number in numbers]
    return ", ".join(texts if len(texts) <= 12 else [*texts[:11], "…", texts[-1]])
