"""The objects found in one image, as people use them: arrays, or one object after the other."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.counting import counted

_SCORES_SHOWN = 5


class FoundObject(NamedTuple):
    """One object of a `Prediction`."""

    class_name: str
    score: float
    """Confidence, from 0 to 1."""
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the upright image."""
    label: int
    """Index of the class in the detector's list."""
    keypoints: NDArray[np.float32] | None = None
    """(joints, 3): x, y and score of each joint; None without joints."""
    box3d: NDArray[np.float32] | None = None
    """The row of `Prediction.box3d`; None without depth."""


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The objects found in one image, best score first. Iterate over it for one object at a time."""

    boxes: NDArray[np.float32]
    """(objects, 4): x1, y1, x2, y2 in pixels of the upright image. They are edges, as COCO's are: a box around one
    pixel is 1 wide. Like the results of an evaluation, they are not cut off at the image's sides."""
    scores: NDArray[np.float32]
    """(objects,): confidence, from 0 to 1."""
    labels: NDArray[np.int64]
    """(objects,): index of each object's class in the detector's list."""
    class_names: list[str]
    """Name of each object's class."""
    size: tuple[int, int]
    """Height and width of the upright image, in pixels."""
    keypoints: NDArray[np.float32] | None = None
    """(objects, joints, 3): x and y in pixels of the upright image, and the score of the joint. None without joints."""
    box3d: NDArray[np.float32] | None = None
    """(objects, 7): x and y of the object's middle in pixels of the upright image; its depth in metres; its height,
    width and length in metres; its observation angle in radians, -pi .. pi. None for detectors without depth."""

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.scores)

    def __iter__(self) -> Iterator[FoundObject]:
        """Yield every object, best score first."""
        for row, (name, score, box, label) in enumerate(
            zip(self.class_names, self.scores.tolist(), self.boxes.tolist(), self.labels.tolist(), strict=True)
        ):
            yield FoundObject(
                class_name=name,
                score=score,
                box=tuple(box),
                label=label,
                keypoints=None if self.keypoints is None else self.keypoints[row],
                box3d=None if self.box3d is None else self.box3d[row],
            )

    def __repr__(self) -> str:
        height, width = self.size
        scores = defaultdict(list)
        for name, score in zip(self.class_names, self.scores.tolist(), strict=True):
            scores[name].append(f"{score:.2f}")
        shown = [
            f"{name} {' '.join(some[:_SCORES_SHOWN])}{' …' if len(some) > _SCORES_SHOWN else ''}"
            for name, some in scores.items()
        ]
        found = f"{counted(len(self), 'object')} in {width} x {height} pixels"
        return f"Prediction({found}{': ' if shown else ''}{', '.join(shown)})"

    def rows(self, chosen: NDArray[np.bool_] | NDArray[np.int64] | Sequence[int]) -> "Prediction":
        """Return some of the objects.

        Args:
            chosen: their places, or for each object whether to keep it.
        """
        places = np.arange(len(self))[np.asarray(chosen, dtype=None if len(chosen) else np.int64)]
        return Prediction(
            boxes=self.boxes[places],
            scores=self.scores[places],
            labels=self.labels[places],
            class_names=[self.class_names[place] for place in places.tolist()],
            size=self.size,
            keypoints=None if self.keypoints is None else self.keypoints[places],
            box3d=None if self.box3d is None else self.box3d[places],
        )

    def as_coco(self, image_id: int, category_ids: Sequence[int], *, rounding: bool = False) -> list[dict[str, Any]]:
        """Return COCO's results, as `aweigh evaluate --detections` writes them.

        Args:
            image_id: COCO's id of the image.
            category_ids: COCO's id of each class, in the order of the labels.
            rounding: round boxes, keypoints and scores to two decimals, as some publications do.

        Returns:
            One dictionary for each object: `image_id`, `category_id`, `bbox` (x, y, width, height) and `score`;
            `keypoints` of detectors of joints; `center`, `depth`, `dimensions` and `alpha` in 3D.
        """
        import torch

        # Only here: a prediction needs neither.
        from pipelines.evaluation.coco_metrics import results_from_detections
        from pipelines.evaluation.evaluate import describe_in_3d

        return results_from_detections(
            [image_id] * len(self),
            self.boxes,
            self.scores,
            self.labels,
            category_ids,
            rounding=rounding,
            keypoints=None if self.keypoints is None else self.keypoints[..., :2],
            further=() if self.box3d is None else describe_in_3d(torch.from_numpy(self.box3d)),
        )
