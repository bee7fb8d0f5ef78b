"""The detectors by name: a table of the functions that build them, and those of other packages.

Another package adds a detector by an entry point of the group `aweigh.detectors`, whose name is the detector's and
whose object is a function like those in the table. In its pyproject.toml:

    [project.entry-points."aweigh.detectors"]
    my_detector = "my_package.detector:my_detector"

This module imports every family, so nothing but the package's face imports it.
"""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from detectors.centernet import boxes_3d, centernet, pose
from detectors.cornernet import cornernet, saccade
from detectors.detector import Detector
from detectors.errors import DetectorError, nearest
from detectors.fcos import fcos
from detectors.foveabox import foveabox
from detectors.keypoint_triplets import triplets

ENTRY_POINT_GROUP = "aweigh.detectors"

_BUILDERS: dict[str, Callable[..., Detector]] = {
    "centernet_resnet18": centernet.centernet_resnet18,
    "centernet_resnet101": centernet.centernet_resnet101,
    "centernet_resdcn18": centernet.centernet_resdcn18,
    "centernet_resdcn101": centernet.centernet_resdcn101,
    "centernet_dla34": centernet.centernet_dla34,
    "centernet_dla34_original": centernet.centernet_dla34_original,
    "centernet_hourglass104": centernet.centernet_hourglass104,
    "centernet_dla34_pose": pose.centernet_dla34_pose,
    "centernet_hourglass104_pose": pose.centernet_hourglass104_pose,
    "centernet_dla34_3d": boxes_3d.centernet_dla34_3d,
    "cornernet_hourglass104": cornernet.cornernet_hourglass104,
    "cornernet_saccade": saccade.cornernet_saccade,
    "cornernet_squeeze": cornernet.cornernet_squeeze,
    "fcos_resnet50": fcos.fcos_resnet50,
    "fcos_resnet101": fcos.fcos_resnet101,
    "keypoint_triplets_hourglass104": triplets.keypoint_triplets_hourglass104,
    "keypoint_triplets_hourglass52": triplets.keypoint_triplets_hourglass52,
    "foveabox_resnet50": foveabox.foveabox_resnet50,
    "foveabox_resnet101": foveabox.foveabox_resnet101,
}


def names() -> list[str]:
    """Names that `build` takes, those of other packages included, in alphabetical order."""
    return sorted({*_BUILDERS, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def build(name: str, num_classes: int | None = None, **settings: Any) -> Detector:
    """Build a detector with freshly initialised weights, as its publication initialises them.

    Args:
        name: one of `names()`.
        num_classes: classes to tell apart; without it those of the publication (80 for boxes on COCO).
        settings: the detector's own settings, by name.

    Raises:
        DetectorError: the name or a setting is unknown (the message names the nearest), a value cannot be honoured,
            or the detector of another package cannot be used.
    """
    builder = _builder(name)
    if num_classes is not None:
        settings["num_classes"] = num_classes
    detector = builder(**settings)
    if not isinstance(detector, Detector):
        raise DetectorError(
            f"the builder of detector {name!r} returned a {type(detector).__name__}, not a detectors.Detector. "
            f"Correct the function that its entry point names."
        )
    detector.name = name
    return detector


def _builder(name: str) -> Callable[..., Any]:
    points = list(entry_points(group=ENTRY_POINT_GROUP, name=name))
    owners = [*(["aweigh"] if name in _BUILDERS else []), *map(_package, points)]
    if not owners:
        raise DetectorError(f"unknown detector {name!r}{nearest(name, names())}")
    if len(owners) > 1:
        # Which one was meant cannot be known, and weights of one may load into the other without an error.
        raise DetectorError(
            f"detector {name!r} comes from {owners[0]} and again from {owners[1]}; uninstall {owners[1]}, or have its "
            f"authors choose another name."
        )
    return _BUILDERS[name] if name in _BUILDERS else _loaded(points[0])


def _loaded(point: EntryPoint) -> Callable[..., Any]:
    try:
        return point.load()
    except Exception as error:  # importing a package may raise anything
        raise DetectorError(
            f"detector {point.name!r} of package {_package(point)} cannot be imported from {point.value!r}: "
            f"{type(error).__name__}: {error}. Update or uninstall {_package(point)}."
        ) from error


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unnamed package"
