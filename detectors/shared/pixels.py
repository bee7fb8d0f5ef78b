"""Statistics of pixels that several detectors normalise their input with."""

from detectors.detector import Preprocessing

COCO_BGR = Preprocessing(
    channel_order="bgr",
    mean=(0.40789654, 0.44719302, 0.47026115),
    std=(0.28863828, 0.27408164, 0.27809835),
)
"""CornerNet's statistics of COCO, which CenterNet and Keypoint Triplets took over."""
