"""Joints and 3D labels: from the fields of COCO annotations to the arrays of an index.

Joints are COCO's own (`keypoints`, three numbers each). 3D labels are those of CenterNet's converted KITTI files
(`depth`, `dim`, `alpha`, `location`, `rotation_y`, and the image's `calib`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from data_shards.building.coco_fields import fits_float32
from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.format.manifest import CocoClass

Json = dict[str, Any]

# Field of an annotation, name of its array in the index, and how many numbers it has. Training needs the first three;
# the others are stored where the file has them.
_NEEDED_IN_3D = (("depth", "depth", 1), ("dim", "dimensions", 3), ("alpha", "alpha", 1))
_USEFUL_IN_3D = (("location", "location", 3), ("rotation_y", "rotation_y", 1))


def find_labels(path: Path, annotations: Sequence[Json], classes: Mapping[int, CocoClass]) -> tuple[str, ...]:
    """Find the labels that a file has beside boxes: "keypoints", "3d", both or none.

    Joints are used only if the category lists their names, which tell left from right when an image is mirrored. An
    annotation without keypoints counts as one with no joint labelled. If any annotation has 3D labels, every
    annotation of a class must have them.

    Args:
        path: the file, for errors.
        annotations: its annotations.
        classes: the classes that are learnt, by category id.

    Raises:
        DataError: the number of an annotation's joints differs from that of its category, or a 3D field is missing or
            not numbers.
    """
    found = []
    if _has_keypoints(path, annotations, classes):
        found.append("keypoints")
    if _is_in_3d(path, annotations, classes):
        found.append("3d")
    return tuple(found)


def _has_keypoints(path: Path, annotations: Sequence[Json], classes: Mapping[int, CocoClass]) -> bool:
    joints = [item for item in annotations if "keypoints" in item and classes.get(item["category_id"], _NONE).keypoints]
    for item in joints:
        names = classes[item["category_id"]].keypoints
        if not _numbers(item["keypoints"], 3 * len(names)):
            raise DataError(
                f"{path}: annotation {item['id']} of image {item['image_id']} has keypoints "
                f"{_shown(item['keypoints'])}, but its category {classes[item['category_id']].name!r} lists "
                f"{counted(len(names), 'joint')}, which take {3 * len(names)} numbers x, y, visibility. Correct it, or "
                "the category."
            )
    return bool(joints)


def _is_in_3d(path: Path, annotations: Sequence[Json], classes: Mapping[int, CocoClass]) -> bool:
    learnt = [item for item in annotations if item["category_id"] in classes]
    needed = {name for name, _, _ in _NEEDED_IN_3D}
    if not any(item.keys() >= needed for item in learnt):
        return False
    for item in learnt:
        for name, _, count in _NEEDED_IN_3D:
            if not _numbers(item.get(name), count):
                raise DataError(
                    f"{path}: annotation {item['id']} of image {item['image_id']} has "
                    f"{f'{name} {_shown(item[name])}' if name in item else f'no {name}'}, but others have 3D labels; "
                    f"it takes {'a number' if count == 1 else f'{count} numbers'}. Correct it, or leave its category "
                    "out."
                )
    return True


def label_arrays(
    annotations: Sequence[Json], classes: Mapping[int, CocoClass], labels: Sequence[str], joints: int
) -> dict[str, Float32[NDArray[np.float32], "boxes ..."]]:
    """Make the arrays that an index holds for these annotations, by name.

    Args:
        annotations: in the order of the boxes.
        classes: by category id.
        labels: the result of `find_labels` for the whole file.
        joints: number of joints of the class that has most.

    Returns:
        With "keypoints": `keypoints`, `(boxes, joints, 3)`, x and y in the image frame and COCO's visibility; all 0
        for joints that a class does not have. With "3d", in metres and radians, NaN where an annotation has no value:
        `depth`, `alpha` and `rotation_y`, `(boxes,)`; `dimensions` (height, width, length) and `location`,
        `(boxes, 3)`.
    """
    arrays: dict[str, NDArray[np.float32]] = {}
    if "keypoints" in labels:
        arrays["keypoints"] = np.zeros((len(annotations), joints, 3), dtype=np.float32)
        for row, item in enumerate(annotations):
            if item.get("keypoints") and classes.get(item["category_id"], _NONE).keypoints:
                values = np.array(item["keypoints"], dtype=np.float32).reshape(-1, 3)
                arrays["keypoints"][row, : len(values)] = values
    if "3d" in labels:
        for name, array, count in _NEEDED_IN_3D + _USEFUL_IN_3D:
            shape = (len(annotations), count) if count > 1 else (len(annotations),)
            arrays[array] = np.full(shape, np.nan, dtype=np.float32)
            for row, item in enumerate(annotations):
                if _numbers(item.get(name), count):
                    arrays[array][row] = item[name]
    return arrays


def calibrations(values: Iterable[Any]) -> Float32[NDArray[np.float32], "images 3 4"]:
    """Stack the projection matrices of the images' cameras; NaN for an image without one."""
    unknown = [[math.nan] * 4] * 3
    return np.array([unknown if value is None else value for value in values], dtype=np.float32).reshape(-1, 3, 4)


def is_calibration(value: Any) -> bool:
    """Return True for three rows of four numbers."""
    return isinstance(value, list) and len(value) == 3 and all(_numbers(row, 4) for row in value)


def _numbers(value: Any, count: int) -> bool:
    """Return True for a list of `count` numbers that fit 32-bit floats, or for one number if `count` is 1."""
    values = [value] if count == 1 else value
    return isinstance(values, list) and len(values) == count and all(map(fits_float32, values))


def _shown(value: Any) -> str:
    if not isinstance(value, list):
        return repr(value)
    return repr(value) if len(value) <= 6 else f"a list of {len(value)}"


_NONE = CocoClass(-1, "")
