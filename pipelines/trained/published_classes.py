"""Classes that weights were published for, which their files do not name: COCO's, its persons, VOC's and KITTI's."""

from data_shards.format.manifest import CocoClass
from detectors import Detector
from detectors.weights.class_rows import COCO_CLASSES_BY_ID

_COCO = tuple(CocoClass(number, name) for number, name in enumerate(COCO_CLASSES_BY_ID) if name)

_VOC_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_VOC = tuple(CocoClass(number, name) for number, name in enumerate(_VOC_NAMES, start=1))

# The ids of CenterNet's converted annotations.
_KITTI = (CocoClass(1, "Pedestrian"), CocoClass(2, "Car"), CocoClass(3, "Cyclist"))

_PERSON = CocoClass(
    1,
    "person",
    keypoints=(
        *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
        *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
        *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    ),
    skeleton=(
        *((16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9)),
        *((8, 10), (9, 11), (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7)),
    ),
)


def published_classes(detector: Detector) -> tuple[CocoClass, ...]:
    """Return the classes of a published file of this detector, as their number tells; empty if it tells none."""
    if "keypoints" in detector.needs:
        return (_PERSON,) if detector.num_classes == 1 else ()
    lists = {3: _KITTI} if "depth" in detector.needs else {80: _COCO, 20: _VOC}
    return lists.get(detector.num_classes, ())
