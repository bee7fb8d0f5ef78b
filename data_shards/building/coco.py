"""Reading COCO instances files, and refusing those whose mistakes would silently spoil training.

COCO's `x, y, width, height` boxes and its category ids with gaps appear only here and in the JSON inside the shards.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import numpy as np

from data_shards.building.class_list import take_over
from data_shards.building.coco_checks import (
    Json,
    check_annotations,
    check_fields,
    check_images,
    check_unique,
    others,
    read_document,
)
from data_shards.building.labels import find_labels
from data_shards.errors import DataError
from data_shards.format.manifest import CocoClass, IgnoredCategory
from data_shards.suggestions import did_you_mean

DegenerateBoxes = Literal["drop", "refuse"]
EmptyImages = Literal["keep", "drop"]


@dataclass(frozen=True)
class CocoImage:
    """One image and its annotations: COCO's own dictionaries, in the order of the file."""

    id: int
    file_name: str
    width: int
    height: int
    annotations: tuple[Json, ...]
    dropped_boxes: int = 0
    """Degenerate boxes of this image that were in the file."""
    calibration: list[list[float]] | None = None
    """Projection matrix of the camera, three rows of four; `calib` in KITTI's files."""


@dataclass(frozen=True)
class CocoDataset:
    """A checked annotation file. It includes crowds, and images without boxes unless those were dropped."""

    path: Path
    classes: tuple[CocoClass, ...]
    """In the order of their ids."""
    images: tuple[CocoImage, ...]
    """In the order of the file."""
    zero_size_boxes: int
    """Dropped boxes without width or height."""
    outside_boxes: int
    """Dropped boxes that touch no pixel of their image."""
    dropped_images: int = 0
    """Dropped images without an object."""
    labels: tuple[str, ...] = ()
    """Labels beside the boxes, as `labels.find_labels` names them."""
    ignored: tuple[IgnoredCategory, ...] = ()
    """Categories that are not classes; their boxes mark regions to ignore."""
    unnamed_joints: int = 0
    """Annotations with keypoints whose category does not name its joints; these keypoints stay in the JSON only."""
    resolved_names: str = ""
    """A line about file names that were written otherwise; empty if there are none."""

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
    classes_from: Sequence[CocoClass] = (),
) -> CocoDataset:
    """Read and check a COCO instances file.

    Args:
        annotations: the JSON file.
        images: the folder that file names are relative to. None does not check that the files exist.
        degenerate_boxes: "drop" drops and counts boxes of zero width or height and boxes wholly outside their image;
            "refuse" refuses the file because of them. Boxes partly outside are always kept as they are.
        empty_images: "drop" drops images without a box of a class that is more than a pixel wide and high, as the
            published FCOS does for training. Crowds count as boxes.
        ignore: categories that are not learnt, by name, and the class that each may be mistaken for, or "*" for any:
            {"Van": "Car"} for KITTI. Their boxes are kept, with the labels that `detectors` ignores.
        leave_out: categories whose annotations are left out.
        classes_from: classes of another split, whose ids, joints and order this file takes over by name. Empty keeps
            those of the file.

    Raises:
        DataError: the file is missing, cut short or not a COCO file; an id is used twice; an annotation names an
            unknown image or category; an image file is missing; a box is not four numbers; or a box is degenerate and
            `degenerate_boxes` is "refuse". The message names the first case of its kind and counts the others.
    """
    _check_choices(degenerate_boxes, empty_images)
    path = Path(annotations)
    document = read_document(path)
    categories = read_categories(path, document["categories"])
    # In this order: the checks of annotations rely on ids and sizes that those of images have checked.
    resolved = check_images(path, document["images"], None if images is None else Path(images))
    check_annotations(path, document, {item.id for item in categories})
    if classes_from:
        categories = take_over(path, document, categories, classes_from, {*(ignore or {}), *leave_out})
    classes, ignored = _roles(path, categories, ignore or {}, leave_out)

    left_out = {item.id for item in categories if item.name in leave_out}
    wanted = [item for item in document["annotations"] if item["category_id"] not in left_out]
    degenerate = _find_degenerate(wanted, document["images"])
    if degenerate and degenerate_boxes == "refuse":
        _refuse_degenerate(path, degenerate)
    all_images = _assemble(document["images"], wanted, degenerate)
    class_of = {item.id: item for item in classes}
    kept = tuple(image for image in all_images if empty_images == "keep" or _has_object(image, class_of))
    if not kept:
        raise DataError(
            f"{path} has no image with an object of a learnt class, so --empty-images drop leaves nothing to train on. "
            "Check --ignore and --leave-out, or keep empty images."
        )
    dropped_images = len(all_images) - len(kept)
    return replace(_summarise(path, classes, ignored, kept, dropped_images, degenerate), resolved_names=resolved)


def _check_choices(degenerate_boxes: str, empty_images: str) -> None:
    if degenerate_boxes not in get_args(DegenerateBoxes):
        raise DataError(f"degenerate_boxes is {degenerate_boxes!r}; set it to 'drop' or 'refuse'.")
    if empty_images not in get_args(EmptyImages):
        raise DataError(f"empty_images is {empty_images!r}; set it to 'keep' or 'drop'.")


def read_categories(path: Path, categories: list[Json]) -> tuple[CocoClass, ...]:
    """Check the categories of a COCO file and return them in the order of their ids.

    Raises:
        DataError: a category cannot be used, or there is none.
    """
    check_fields(path, "category", categories, {"id": int, "name": str})
    check_unique(path, "category", categories)
    if not categories:
        raise DataError(f"{path} has no categories; there is nothing to detect. List them under 'categories'.")
    for item in categories:
        joints, lines = item.get("keypoints", []), item.get("skeleton", [])
        if not (isinstance(joints, list) and all(isinstance(name, str) for name in joints)):
            raise DataError(
                f"{path}: category {item['id']} has keypoints {joints!r}; write the list of its joints' names."
            )
        if not (isinstance(lines, list) and all(_is_line(line, len(joints)) for line in lines)):
            raise DataError(
                f"{path}: category {item['id']} has the skeleton {lines!r}; write a list of pairs of its joints, "
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
        isinstance(line, list)
        and len(line) == 2
        and all(isinstance(end, int) and not isinstance(end, bool) and 1 <= end <= joints for end in line)
    )


def _roles(
    path: Path, categories: tuple[CocoClass, ...], ignore: Mapping[str, str], leave_out: Sequence[str]
) -> tuple[tuple[CocoClass, ...], tuple[IgnoredCategory, ...]]:
    """Divide the categories into those that are learnt and those that are ignored."""
    names = [item.name for item in categories]
    for name in (*ignore, *leave_out, *(name for name in ignore.values() if name != "*")):
        if name not in names:
            raise DataError(f"{path} has no category {name!r}; {did_you_mean(name, names)}")
    classes = tuple(item for item in categories if item.name not in ignore and item.name not in leave_out)
    # A label is the index of its class among those that are learnt; -1 stands for any of them.
    label_of = {item.name: label for label, item in enumerate(classes)} | {"*": -1}
    if not classes:
        raise DataError(
            f"{path}: all categories are ignored or left out, so there is nothing to detect. Keep at least one."
        )
    if lost := [name for name in ignore.values() if name not in label_of]:
        raise DataError(f"category {lost[0]!r} is itself ignored or left out; name a class that is learnt, or '*'.")
    return classes, tuple(
        IgnoredCategory(item.id, item.name, label_of[ignore[item.name]])
        for item in categories
        if item.name in ignore and item.name not in leave_out
    )


_ZERO_SIZE = "has no area"
_OUTSIDE = "is outside its image"


@dataclass(frozen=True)
class _Degenerate:
    """An annotation whose box cannot become a target, and the reason."""

    annotation: Json
    problem: str


def _find_degenerate(annotations: Iterable[Json], images: Iterable[Json]) -> list[_Degenerate]:
    size_of = {image["id"]: (image["width"], image["height"]) for image in images}
    return [
        _Degenerate(annotation, problem)
        for annotation in annotations
        if (problem := _problem(annotation["bbox"], *size_of[annotation["image_id"]]))
    ]


def _problem(box: list[float], image_width: int, image_height: int) -> str | None:
    x, y, width, height = box
    # Zero size first: an empty box outside its image is counted once, as empty. Corners are stored in 32 bits, where a
    # box of a billionth of a pixel has no size either.
    if not (np.float32(x + width) > np.float32(x) and np.float32(y + height) > np.float32(y)):
        return _ZERO_SIZE
    if x >= image_width or y >= image_height or x + width <= 0 or y + height <= 0:
        return _OUTSIDE
    return None


def _refuse_degenerate(path: Path, degenerate: Sequence[_Degenerate]) -> NoReturn:
    annotation, problem = degenerate[0].annotation, degenerate[0].problem
    x, y, width, height = annotation["bbox"]
    raise DataError(
        f"{path}: annotation {annotation['id']} of image {annotation['image_id']} has the box "
        f"x {x:g}, y {y:g}, width {width:g}, height {height:g}, which {problem}{others(degenerate)}. "
        "Correct it, or set degenerate_boxes to 'drop'."
    )


def _assemble(
    images: Sequence[Json], annotations: Sequence[Json], degenerate: Sequence[_Degenerate]
) -> list[CocoImage]:
    """Give every image its annotations, without the degenerate ones, and the number of those."""
    dropped_ids = {item.annotation["id"] for item in degenerate}
    dropped_of = Counter(item.annotation["image_id"] for item in degenerate)
    kept: dict[int, list[Json]] = {image["id"]: [] for image in images}
    for annotation in annotations:
        if annotation["id"] not in dropped_ids:
            kept[annotation["image_id"]].append(annotation)
    return [
        CocoImage(
            id=image["id"],
            file_name=image["file_name"],
            width=image["width"],
            height=image["height"],
            annotations=tuple(kept[image["id"]]),
            dropped_boxes=dropped_of[image["id"]],
            calibration=image.get("calib"),
        )
        for image in images
    ]


def _has_object(image: CocoImage, class_of: Mapping[int, CocoClass]) -> bool:
    # The published FCOS ignores boxes of up to a pixel when it looks for empty images, but not crowds.
    return any(item["category_id"] in class_of and min(item["bbox"][2:]) > 1 for item in image.annotations)


def _summarise(
    path: Path,
    classes: tuple[CocoClass, ...],
    ignored: tuple[IgnoredCategory, ...],
    images: tuple[CocoImage, ...],
    dropped_images: int,
    degenerate: Iterable[_Degenerate],
) -> CocoDataset:
    class_of = {item.id: item for item in classes}
    annotations = [item for image in images for item in image.annotations]
    dropped_boxes = Counter(item.problem for item in degenerate)
    return CocoDataset(
        path=path,
        classes=classes,
        images=images,
        zero_size_boxes=dropped_boxes[_ZERO_SIZE],
        outside_boxes=dropped_boxes[_OUTSIDE],
        dropped_images=dropped_images,
        labels=find_labels(path, annotations, class_of),
        ignored=ignored,
        unnamed_joints=sum(
            bool(item.get("keypoints"))
            and item["category_id"] in class_of
            and not class_of[item["category_id"]].keypoints
            for item in annotations
        ),
    )
