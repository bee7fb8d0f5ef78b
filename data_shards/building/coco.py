"""Reading COCO's instances JSON, and refusing files that would train something else than they say.

COCO's `x, y, width, height` boxes and its category ids with gaps live here and in the shards' JSON only.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from data_shards.building.labels import find_labels, is_calibration
from data_shards.errors import DataError
from data_shards.format.manifest import CocoClass, IgnoredCategory
from data_shards.reading.decode import image_size
from data_shards.suggestions import did_you_mean

Json = dict[str, Any]
DegenerateBoxes = Literal["drop", "refuse"]
EmptyImages = Literal["keep", "drop"]


@dataclass(frozen=True)
class CocoImage:
    """One image and its annotations, COCO's own dictionaries, in the order of the file."""

    id: int
    file_name: str
    width: int
    height: int
    annotations: tuple[Json, ...]
    dropped_boxes: int = 0
    """Degenerate ones that stood in the file."""
    calibration: list[list[float]] | None = None
    """The camera's projection matrix, three rows of four; in KITTI's files `calib`."""


@dataclass(frozen=True)
class CocoDataset:
    """A checked annotation file. Crowds are in it, and images without boxes unless they were to be dropped."""

    path: Path
    classes: tuple[CocoClass, ...]
    """In the order of their ids."""
    images: tuple[CocoImage, ...]
    """In the order of the file."""
    zero_size_boxes: int
    """Boxes without width or height that were dropped."""
    outside_boxes: int
    """Boxes that touch no pixel of their image and were dropped."""
    dropped_images: int = 0
    """Images without an object that were dropped."""
    labels: tuple[str, ...] = ()
    """What is known of objects beside their boxes; see `labels.find_labels`."""
    ignored: tuple[IgnoredCategory, ...] = ()
    """Categories that are no classes, whose boxes are kept to be ignored."""
    unnamed_joints: int = 0
    """Annotations with keypoints of a category that does not list its joints: they stay in the JSON alone."""

    @property
    def num_boxes(self) -> int:
        """Boxes that were kept."""
        return sum(len(image.annotations) for image in self.images)


def read_coco(
    annotations: str | Path,
    images: str | Path | None = None,
    *,
    degenerate_boxes: DegenerateBoxes = "drop",
    empty_images: EmptyImages = "keep",
    ignore: Mapping[str, str] | None = None,
    leave_out: Sequence[str] = (),
) -> CocoDataset:
    """Read and check an instances JSON.

    Args:
        annotations: the file.
        images: the folder its file names start from; None leaves out the check that the files are there.
        degenerate_boxes: boxes of zero width or height, or wholly outside their image, are dropped and
            counted ("drop") or make the file unusable ("refuse"). Boxes partly outside are kept as they are.
        empty_images: "drop" leaves out images without a box of a class that is more than a pixel wide and high, as
            the published FCOS does for training; crowds count as boxes.
        ignore: categories that are not learnt, by name, with the class they may be taken for, or "*" for all: KITTI's
            {"Van": "Car"}. Their boxes stay, with the labels that `detectors` takes for something to be ignored.
        leave_out: categories whose annotations are left out.

    Raises:
        DataError: the file is missing, cut short or no COCO file; an id is there twice; an annotation names
            an image or a category that is not there; an image file is missing; a box is not four numbers,
            or is degenerate and `degenerate_boxes` is "refuse". The first of each kind is named, the others
            are counted.
    """
    if degenerate_boxes not in get_args(DegenerateBoxes):
        raise DataError(f"degenerate_boxes is {degenerate_boxes!r}; set it to 'drop' or 'refuse'.")
    path = Path(annotations)
    document = _read_json(path)
    for name in ("images", "annotations", "categories"):
        if not isinstance(document.get(name), list):
            raise DataError(
                f"{path} has no list {name!r}: it is no COCO instances file. Give the JSON with "
                "images, annotations and categories."
            )
    if empty_images not in get_args(EmptyImages):
        raise DataError(f"empty_images is {empty_images!r}; set it to 'keep' or 'drop'.")
    categories = _read_classes(path, document["categories"])
    classes, ignored = _roles(path, categories, ignore or {}, leave_out)
    folder = None if images is None else Path(images)
    if folder is not None:
        _complete_sizes(document["images"], folder)
    _check_images(path, document["images"], folder)
    _check_annotations(path, document, {item.id for item in categories})
    left_out = {item.id for item in categories if item.name in leave_out}
    used_annotations = [item for item in document["annotations"] if item["category_id"] not in left_out]
    class_of = {item.id: item for item in classes}

    kept: dict[int, list[Json]] = {image["id"]: [] for image in document["images"]}
    size_of = {image["id"]: (image["width"], image["height"]) for image in document["images"]}
    degenerate: list[tuple[Json, str]] = []
    for annotation in used_annotations:
        width, height = size_of[annotation["image_id"]]
        if problem := _degenerate(annotation["bbox"], width, height):
            degenerate.append((annotation, problem))
        else:
            kept[annotation["image_id"]].append(annotation)
    if degenerate and degenerate_boxes == "refuse":
        annotation, problem = degenerate[0]
        x, y, width, height = annotation["bbox"]
        raise DataError(
            f"{path}: annotation {annotation['id']} of image {annotation['image_id']} has the box "
            f"x {x:g}, y {y:g}, width {width:g}, height {height:g}, which {problem}{_others(degenerate)}. "
            "Correct it, or set degenerate_boxes to 'drop'."
        )
    counts = Counter(problem for _, problem in degenerate)
    dropped_of = Counter(annotation["image_id"] for annotation, _ in degenerate)
    all_images = [
        CocoImage(
            image["id"],
            image["file_name"],
            image["width"],
            image["height"],
            tuple(kept[image["id"]]),
            dropped_of[image["id"]],
            image.get("calib"),
        )
        for image in document["images"]
    ]
    used = [image for image in all_images if empty_images == "keep" or _has_object(image, class_of)]
    if not used:
        raise DataError(f"{path} has no image with an object; there is nothing to train on.")
    return CocoDataset(
        path=path,
        classes=classes,
        images=tuple(used),
        zero_size_boxes=counts[_ZERO_SIZE],
        outside_boxes=counts[_OUTSIDE],
        dropped_images=len(all_images) - len(used),
        labels=find_labels(path, [item for image in used for item in image.annotations], class_of),
        ignored=ignored,
        unnamed_joints=sum(
            "keypoints" in item and item["category_id"] in class_of and not class_of[item["category_id"]].keypoints
            for image in used
            for item in image.annotations
        ),
    )


def _roles(
    path: Path, categories: tuple[CocoClass, ...], ignore: Mapping[str, str], leave_out: Sequence[str]
) -> tuple[tuple[CocoClass, ...], tuple[IgnoredCategory, ...]]:
    """The categories that are learnt, and those that are ignored."""
    names = [item.name for item in categories]
    for name in (*ignore, *leave_out, *(name for name in ignore.values() if name != "*")):
        if name not in names:
            raise DataError(f"{path} has no category {name!r}; {did_you_mean(name, names)}")
    classes = tuple(item for item in categories if item.name not in ignore and item.name not in leave_out)
    place = {item.name: label for label, item in enumerate(classes)} | {"*": -1}
    if not classes:
        raise DataError(f"{path}: all its categories are ignored or left out; there is nothing to detect.")
    if lost := [name for name in ignore.values() if name not in place]:
        raise DataError(f"category {lost[0]!r} is ignored or left out itself; name a class that is learnt, or '*'.")
    return classes, tuple(
        IgnoredCategory(item.id, item.name, place[ignore[item.name]])
        for item in categories
        if item.name in ignore and item.name not in leave_out
    )


def _complete_sizes(images: list[Json], folder: Path) -> None:
    """Read sizes that the file does not give from the images, as for KITTI's converted files."""
    for image in images:
        if isinstance(image, dict) and not image.keys() & {"width", "height"} and "file_name" in image:
            try:
                image["width"], image["height"] = image_size((folder / str(image["file_name"])).read_bytes())
            except (OSError, ValueError):
                continue  # the checks that follow say what is wrong


def _has_object(image: CocoImage, class_of: Mapping[int, CocoClass]) -> bool:
    return any(item["category_id"] in class_of and min(item["bbox"][2:]) > 1 for item in image.annotations)


_ZERO_SIZE = "has no area"
_OUTSIDE = "lies outside its image"


def _degenerate(box: list[float], image_width: int, image_height: int) -> str | None:
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return _ZERO_SIZE
    if x >= image_width or y >= image_height or x + width <= 0 or y + height <= 0:
        return _OUTSIDE
    return None


def _read_json(path: Path) -> Json:
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise DataError(f"there is no annotation file {path}; check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the annotation file {path}: {error}") from error
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        end = len(text.rstrip())
        # A whole file ends with the brace that closes it; what is cut ends elsewhere or leaves one open.
        if error.pos >= end or error.msg.startswith("Unterminated") or not text.rstrip().endswith("}"):
            raise DataError(
                f"{path} is cut short: its JSON stops in the middle after {end:,} characters. "
                "Copy or download it again."
            ) from error
        raise DataError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}. Correct it there."
        ) from error
    if not isinstance(document, dict):
        raise DataError(
            f"{path} holds a {type(document).__name__}, not COCO's dictionary. Give an instances file; "
            "a list of results cannot be trained on."
        )
    return document


def _read_classes(path: Path, categories: list[Json]) -> tuple[CocoClass, ...]:
    _check_fields(path, "category", categories, {"id": int, "name": str})
    _check_unique(path, "category", categories)
    if not categories:
        raise DataError(f"{path} has no categories; there is nothing to detect. List them under 'categories'.")
    for item in categories:
        joints, lines = item.get("keypoints", []), item.get("skeleton", [])
        if not (isinstance(joints, list) and all(isinstance(name, str) for name in joints)):
            raise DataError(f"{path}: category {item['id']} has keypoints {joints!r}; they are a list of names.")
        if not (isinstance(lines, list) and all(_is_line(line, len(joints)) for line in lines)):
            raise DataError(
                f"{path}: category {item['id']} has the skeleton {lines!r}; it is a list of pairs of its joints, "
                "counted from 1."
            )
    return tuple(
        CocoClass(
            item["id"],
            item["name"],
            tuple(item.get("keypoints", ())),
            tuple((one, other) for one, other in item.get("skeleton", ())),
        )
        for item in sorted(categories, key=lambda item: item["id"])
    )


def _is_line(line: Any, joints: int) -> bool:
    return (
        isinstance(line, list) and len(line) == 2 and all(isinstance(end, int) and 1 <= end <= joints for end in line)
    )


def _check_images(path: Path, images: list[Json], folder: Path | None) -> None:
    _check_fields(path, "image", images, {"id": int, "file_name": str, "width": int, "height": int})
    _check_unique(path, "image", images)
    if not images:
        raise DataError(f"{path} has no images; there is nothing to train on.")
    if negative := [image for image in images if image["id"] < 0]:
        raise DataError(f"{path}: image id {negative[0]['id']} is negative{_others(negative)}; ids start at 0.")
    if odd := [image for image in images if image.get("calib") is not None and not is_calibration(image["calib"])]:
        raise DataError(
            f"{path}: image {odd[0]['id']} has the calib {odd[0]['calib']!r}{_others(odd)}; it takes three rows of "
            "four numbers, the camera's projection matrix."
        )
    if folder is None:
        return
    if not folder.is_dir():
        raise DataError(f"there is no folder of images {folder}; check the path.")
    try:
        missing = [image for image in images if not (folder / image["file_name"]).is_file()]
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename}: {error.strerror}. Check the path and its permissions."
        ) from error
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(images):,} images of {path} are not in {folder}; the first is image "
            f"{missing[0]['id']}, file {missing[0]['file_name']}. Check the folder, or fetch them again."
        )


def _check_annotations(path: Path, document: Json, category_ids: set[int]) -> None:
    annotations = document["annotations"]
    fields: dict[str, type | tuple[type, ...]] = {"id": int, "image_id": int, "category_id": int, "bbox": list}
    _check_fields(path, "annotation", annotations, fields)
    _check_unique(path, "annotation", annotations)
    image_ids = {image["id"] for image in document["images"]}
    if stray := [item for item in annotations if item["image_id"] not in image_ids]:
        raise DataError(
            f"{path}: annotation {stray[0]['id']} names image {stray[0]['image_id']}, which is not among its "
            f"images{_others(stray)}. Add the image, or remove the annotation."
        )
    if stray := [item for item in annotations if item["category_id"] not in category_ids]:
        raise DataError(
            f"{path}: annotation {stray[0]['id']} of image {stray[0]['image_id']} has category id "
            f"{stray[0]['category_id']}, which is not among its categories{_others(stray)}. Known ids: "
            f"{_shortened(sorted(category_ids))}."
        )
    if odd := [item for item in annotations if not _is_box(item["bbox"])]:
        raise DataError(
            f"{path}: annotation {odd[0]['id']} of image {odd[0]['image_id']} has the box {odd[0]['bbox']!r}"
            f"{_others(odd)}; a box is four finite numbers x, y, width, height."
        )


def _is_box(box: list[Any]) -> bool:
    return len(box) == 4 and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in box
    )


def _check_fields(path: Path, kind: str, items: list[Any], fields: dict[str, type | tuple[type, ...]]) -> None:
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise DataError(f"{path}: {kind} number {index} is {item!r}, not a dictionary.")
        for name, expected in fields.items():
            value = item.get(name)
            if not isinstance(value, expected) or isinstance(value, bool):
                known = f"id {item['id']}" if "id" in item else f"number {index}"
                found = f"has {name} {value!r}" if name in item else f"has no {name!r}"
                raise DataError(f"{path}: {kind} {known} {found}; it takes {_KINDS[name]}.")


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


def _check_unique(path: Path, kind: str, items: list[Json]) -> None:
    if twice := [number for number, count in Counter(item["id"] for item in items).items() if count > 1]:
        raise DataError(f"{path}: {kind} id {twice[0]} is there more than once{_others(twice)}; give each its own.")


def _others(found: list[Any]) -> str:
    return f" ({len(found) - 1:,} more like it)" if len(found) > 1 else ""


def _shortened(numbers: Iterable[int | str]) -> str:
    texts = [str(number) for number in numbers]
    return ", ".join(texts if len(texts) <= 12 else [*texts[:11], "…", texts[-1]])
