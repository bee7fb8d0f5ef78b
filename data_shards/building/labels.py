"""What annotations say of an object beside its box: joints, and its place in 3D. COCO's fields become arrays here.

Joints are COCO's own (`keypoints`, three numbers each); 3D is what CenterNet's converted KITTI files hold (`depth`,
`dim`, `alpha`, `location`, `rotation_y`, and `calib` of the image).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DataError
from data_shards.format.manifest import CocoClass

Json = dict[str, Any]
Float32 = NDArray[np.float32]

# Field of an annotation, array of the index, numbers in it.
_NEEDED_IN_3D = (("depth", "depth", 1), ("dim", "dimensions", 3), ("alpha", "alpha", 1))
_USEFUL_IN_3D = (("location", "location", 3), ("rotation_y", "rotation_y", 1))


def find_labels(path: Path, annotations: Sequence[Json], classes: Mapping[int, CocoClass]) -> tuple[str, ...]:
    """Which labels the annotations of a file hold: "keypoints", "3d" or both.

    Joints count where the category lists their names: without those nobody could tell left from right. An
    annotation without any counts as one with none labelled. In 3D, all annotations of a class have to be.

    Args:
        path: the file, for errors.
        annotations: its annotations.
        classes: by category id, those that are learnt.

    Raises:
        DataError: an annotation has another number of joints than its category, or fields of 3D that are missing or
            are no numbers.
    """
    found = []
    joints = [item for item in annotations if "keypoints" in item and classes.get(item["category_id"], _NONE).keypoints]
    for item in joints:
        names = classes[item["category_id"]].keypoints
        if not _numbers(item["keypoints"], 3 * len(names)):
            raise DataError(
                f"{path}: annotation {item['id']} of image {item['image_id']} has keypoints "
                f"{_shown(item['keypoints'])}; "
                f"its category {classes[item['category_id']].name!r} lists {len(names)} joints, which takes "
                f"{3 * len(names)} numbers x, y, visibility. Correct it, or the category."
            )
    if joints:
        found.append("keypoints")
    learnt = [item for item in annotations if item["category_id"] in classes]
    if any(item.keys() >= {"depth", "dim", "alpha"} for item in learnt):
        for item in learnt:
            for name, _, count in _NEEDED_IN_3D:
                if not _numbers(item.get(name), count):
                    raise DataError(
                        f"{path}: annotation {item['id']} of image {item['image_id']} has {name} "
                        f"{_shown(item.get(name))}, while others are annotated in 3D; it takes "
                        f"{'a number' if count == 1 else f'{count} numbers'}. Correct it, or leave its category out."
                    )
        found.append("3d")
    return tuple(found)


def label_arrays(
    annotations: Sequence[Json], classes: Mapping[int, CocoClass], labels: Sequence[str], joints: int
) -> dict[str, Float32]:
    """The arrays of an index for these annotations, by their names there.

    Args:
        annotations: in the order of the boxes.
        classes: by category id.
        labels: what `find_labels` found in the whole file.
        joints: those of the class that has most.

    Returns:
        `keypoints` `(boxes, joints, 3)`: x, y in the image frame and COCO's visibility, all 0 for joints that a class
        does not have; and, in 3D, `depth`, `alpha`, `rotation_y` `(boxes,)`, `dimensions` (height, width, length) and
        `location` `(boxes, 3)` in metres and radians, NaN where an annotation does not say.
    """
    arrays: dict[str, Float32] = {}
    if "keypoints" in labels:
        arrays["keypoints"] = np.zeros((len(annotations), joints, 3), dtype=np.float32)
        for row, item in enumerate(annotations):
            if "keypoints" in item and classes.get(item["category_id"], _NONE).keypoints:
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


def calibrations(values: Iterable[Any]) -> Float32:
    """Projection matrices `(images, 3, 4)` of cameras; NaN for an image that names none."""
    unknown = [[math.nan] * 4] * 3
    return np.array([unknown if value is None else value for value in values], dtype=np.float32).reshape(-1, 3, 4)


def is_calibration(value: Any) -> bool:
    """Whether a value is three rows of four numbers."""
    return isinstance(value, list) and len(value) == 3 and all(_numbers(row, 4) for row in value)


def _numbers(value: Any, count: int) -> bool:
    values = [value] if count == 1 else value
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in values)
    )


def _shown(value: Any) -> str:
    if not isinstance(value, list):
        return "missing" if value is None else repr(value)
    return repr(value) if len(value) <= 6 else f"a list of {len(value)}"


_NONE = CocoClass(-1, "")
