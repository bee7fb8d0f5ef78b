"""Left and right joints, which change places when an image is mirrored."""

import functools

import numpy as np
from jaxtyping import Int64

from data_shards.format.manifest import CocoClass


@functools.lru_cache(maxsize=8)
def joint_partners(classes: tuple[CocoClass, ...]) -> Int64[np.ndarray, "classes joints"]:
    """Pair left and right joints by their names, such as COCO's `left_eye` and `right_eye`.

    Returns:
        For each joint, the index of the joint that takes its place in a mirrored image: its partner, or itself. The
        second axis has the length of the class with the most joints.
    """
    joints = max((len(item.keypoints) for item in classes), default=0)
    partners = np.tile(np.arange(joints), (len(classes), 1))
    for row, item in enumerate(classes):
        place = {name: joint for joint, name in enumerate(item.keypoints)}
        for joint, name in enumerate(item.keypoints):
            partners[row, joint] = place.get(_other_side(name), joint)
    return partners


def _other_side(name: str) -> str:
    for one, other in (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT")):
        if one in name:
            return name.replace(one, other)
        if other in name:
            return name.replace(other, one)
    return name
