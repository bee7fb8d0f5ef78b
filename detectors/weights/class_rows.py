"""Rows of the layers that count classes: those of classes with the same name are copied from a file of another list.

Two names are the same if only case, spaces, hyphens and underscores differ: "traffic light", "Traffic_Light". Synonyms
and plurals are other classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from detectors.errors import DetectorError

COCO_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
"""COCO's classes in the order of their ids, which is that of every published file with 80 outputs."""

_UNUSED_IDS = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_BY_ID = iter(COCO_CLASSES)
COCO_CLASSES_BY_ID = tuple("" if number in _UNUSED_IDS else next(_BY_ID) for number in range(91))
"""COCO's classes by category id, which torchvision's outputs are; "" where an id is not in use."""

_BY_COUNT = {len(names): names for names in (COCO_CLASSES, COCO_CLASSES_BY_ID)}


class ClassRows:
    """Copies the rows of the classes that a detector and a file have in common.

    Args:
        ours: names of the detector's classes, in the order of the labels.
        theirs: names of the file's classes; empty if they are unknown.
        path: the file, for messages.
    """

    def __init__(self, ours: Sequence[str], theirs: Sequence[str], path: Path) -> None:
        self._ours, self._theirs, self._path = ours, theirs, path
        self.matched: dict[str, str] = {}
        """Class of the detector to its name in the file, once a layer was copied."""
        self.source = ""
        """Origin of the file's class list, once a layer was copied."""

    @property
    def new(self) -> list[str]:
        """Classes of the detector that the file does not have."""
        return [name for name in self._ours if name not in self.matched]

    def copied(self, value: Tensor, own: Tensor) -> Tensor | None:
        """Return the detector's tensor with the rows of common classes from the file's; None if the shapes do not fit.

        Args:
            value: of the file; its first dimension counts classes.
            own: of the detector, as it starts.

        Raises:
            DetectorError: the names of the file's classes are unknown, or are not as many as its layers count.
        """
        per_class = own.shape[0] // len(self._ours)
        if value.shape[1:] != own.shape[1:] or value.shape[0] % per_class:
            return None
        labels = self._labels(value.shape[0] // per_class)
        result = own.detach().clone().reshape(len(self._ours), per_class, *own.shape[1:])
        rows = value.to(own.dtype).reshape(-1, per_class, *own.shape[1:])
        for label, name in enumerate(self._ours):
            if (there := labels.get(_plain(name))) is not None:
                result[label] = rows[there]
        return result.flatten(0, 1)

    def _labels(self, count: int) -> dict[str, int]:
        """Return the labels of the file's classes by plain name."""
        theirs, source = self._theirs, "its own"
        remedy = (
            "Set detector.skip_mismatched instead of detector.match_classes, which trains the class layers from random "
            "weights."
        )
        if not theirs:
            if count not in _BY_COUNT:
                raise DetectorError(
                    f"{self._path} has {count} classes and does not name them, so that none can be matched. {remedy}"
                )
            theirs, source = _BY_COUNT[count], f"COCO's, since it has {count}"
        elif len(theirs) != count:
            raise DetectorError(f"{self._path} names {len(theirs)} classes, but its layers have {count}. {remedy}")
        # From the end, so that the first of equal names counts.
        labels = {_plain(theirs[label]): label for label in reversed(range(count)) if theirs[label]}
        self.source = source
        self.matched = {name: theirs[labels[_plain(name)]] for name in self._ours if _plain(name) in labels}
        return labels


def names_in(content: Mapping[Any, Any]) -> list[str]:
    """Return the class names that mmdetection writes beside the weights; none if there are none."""
    meta = content.get("meta")
    if not isinstance(meta, Mapping):
        return []
    of_dataset = meta.get("dataset_meta")
    for owner in (meta, of_dataset if isinstance(of_dataset, Mapping) else {}):
        for key in ("CLASSES", "classes"):
            names = owner.get(key)
            if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
                return list(names)
    return []


def _plain(name: str) -> str:
    return "".join(sign for sign in name.casefold() if not sign.isspace() and sign not in "-_")
