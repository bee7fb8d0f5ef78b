"""Published times of detectors for one image, with the GPU and the size of the input."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedTime:
    """One row of a publication."""

    size: tuple[int, int]
    """Height and width of the input for the commonest image size of COCO, 480 x 640 (KITTI's for 3D)."""
    milliseconds: float | None
    """Time of one image; None if nobody has published it."""
    hardware: str = ""
    remark: str = ""


_XP = "Titan Xp"
_KEPT = (512, 672)
"""480 x 640 at its own resolution, padded as CenterNet pads: to the next larger multiple of 32."""
_KEPT_128 = (512, 768)
"""The same for Hourglass-104, whose inputs are multiples of 128."""
_SHORT_800 = (800, 1088)
"""480 x 640 with its shorter side at 800, padded to multiples of 32."""

TIMES: dict[str, PublishedTime] = {
    "centernet_resnet18": PublishedTime(_KEPT, None),
    "centernet_resnet101": PublishedTime(_KEPT, None),
    "centernet_resdcn18": PublishedTime(_KEPT, 7, _XP),
    "centernet_resdcn101": PublishedTime(_KEPT, 22, _XP),
    "centernet_dla34": PublishedTime(_KEPT, 19, _XP),
    "centernet_dla34_original": PublishedTime(_KEPT, None),
    "centernet_hourglass104": PublishedTime(_KEPT_128, 71, _XP),
    "centernet_dla34_pose": PublishedTime((512, 512), 44, _XP, "with flip"),
    "centernet_hourglass104_pose": PublishedTime((512, 512), 151, _XP, "with flip"),
    "centernet_dla34_3d": PublishedTime((384, 1280), 31, _XP),
    "fcos_resnet50": PublishedTime(_SHORT_800, 45, "V100", "improved: 44"),
    "fcos_resnet101": PublishedTime(_SHORT_800, 59, "V100", "improved: 57"),
    "foveabox_resnet50": PublishedTime(_SHORT_800, 41.5, "V100", "mmdetection; align: 51.6"),
    "foveabox_resnet101": PublishedTime(_SHORT_800, 57.5, "V100", "mmdetection; align: 68.0"),
    "cornernet_hourglass104": PublishedTime((511, 511), 244, "Titan X", "with flip"),
    "cornernet_saccade": PublishedTime((255, 255), 190, "1080Ti", "an image, not one crop"),
    "cornernet_squeeze": PublishedTime((511, 511), 30, "1080Ti"),
    "keypoint_triplets_hourglass52": PublishedTime((511, 511), 270, "P100"),
    "keypoint_triplets_hourglass104": PublishedTime((511, 511), 340, "P100"),
}
"""By detector. Sources: Objects as Points, table 1, and xingyizhou/CenterNet, readme/MODEL_ZOO.md; tianzhi0549/FCOS,
README.md; open-mmlab/mmdetection, configs/foveabox; the papers of CornerNet, CornerNet-Lite and CenterNet Triplets."""

OTHERS = PublishedTime((512, 512), None)
"""For a detector without a row."""
