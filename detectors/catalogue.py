"""The detectors by name: a table of the functions that build them.

Nothing but the package's face imports this module, since it imports every family.
"""

from collections.abc import Callable
from typing import Any

from detectors.centernet import boxes_3d, centernet, pose
from detectors.detector import Detector
from detectors.errors import DetectorError, nearest
from detectors.fcos import fcos

_BUILDERS: dict[str, Callable[..., Detector]] = {
    "centernet_resnet18": centernet.centernet_resnet18,
    "centernet_resnet101": centernet.centernet_resnet101,
    "centernet_resdcn18": centernet.centernet_resdcn18,
    "centernet_resdcn101": centernet.centernet_resdcn101,
    "centernet_dla34": centernet.centernet_dla34,
    "centernet_hourglass104": centernet.centernet_hourglass104,
    "centernet_dla34_pose": pose.centernet_dla34_pose,
    "centernet_hourglass104_pose": pose.centernet_hourglass104_pose,
    "centernet_dla34_3d": boxes_3d.centernet_dla34_3d,
    "fcos_resnet50": fcos.fcos_resnet50,
    "fcos_resnet101": fcos.fcos_resnet101,
}


def names() -> list[str]:
    """Names that `build` takes, in alphabetical order."""
    return sorted(_BUILDERS)


def build(name: str, num_classes: int | None = None, **settings: Any) -> Detector:
    """Build a detector with freshly initialised weights, as its publication initialises them.

    Args:
        name: one of `names()`.
        num_classes: classes to tell apart; without it those of the publication (80 for boxes on COCO).
        settings: the detector's own settings, by name.

    Raises:
        DetectorError: the name or a setting is unknown (the nearest is named), or a value cannot be honoured.
    """
    if name not in _BUILDERS:
        raise DetectorError(f"unknown detector {name!r}{nearest(name, names())}")
    if num_classes is not None:
        settings["num_classes"] = num_classes
    detector = _BUILDERS[name](**settings)
    detector.name = name
    return detector
