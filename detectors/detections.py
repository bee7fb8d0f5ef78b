"""Detections, and their way from the input frame (pixels of the network's input) to the image frame.

The image frame is pixels of the upright original; a `transform` is the affine map from there to an input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from detectors.shapes import Float, Int


@dataclass
class Detections:
    """The objects found in one image, best score first. The frame is the producer's: input for `decode`, image for
    `detect`.
    """

    boxes: Float[Tensor, "objects 4"]
    """x1, y1, x2, y2."""
    scores: Float[Tensor, " objects"]
    labels: Int[Tensor, " objects"]
    """Index into the class list."""
    keypoints: Float[Tensor, "objects joints 3"] | None = None
    """x and y in the frame of the boxes, and a score. Of detectors of joints."""
    box3d: Float[Tensor, "objects 7"] | None = None
    """x and y of the centre in the frame of the boxes; depth, height, width and length in
    metres; observation angle in radians. Of detectors in 3D; only x and y depend on the frame."""
    unclipped: Float[Tensor, "objects 4"] | None = None
    """The boxes before they were clipped. Of candidates, where suppression measures these."""

    def rows(self, index: Int[Tensor, " rows"]) -> "Detections":
        """The objects at these rows."""
        return Detections(
            boxes=self.boxes[index],
            scores=self.scores[index],
            labels=self.labels[index],
            keypoints=None if self.keypoints is None else self.keypoints[index],
            box3d=None if self.box3d is None else self.box3d[index],
            unclipped=None if self.unclipped is None else self.unclipped[index],
        )

    def cpu(self) -> "Detections":
        """The same objects on the CPU."""
        return Detections(
            boxes=self.boxes.cpu(),
            scores=self.scores.cpu(),
            labels=self.labels.cpu(),
            keypoints=None if self.keypoints is None else self.keypoints.cpu(),
            box3d=None if self.box3d is None else self.box3d.cpu(),
            unclipped=None if self.unclipped is None else self.unclipped.cpu(),
        )


@dataclass(frozen=True)
class DetectionTensors:
    """The objects found in a batch, best score first, in as many places for every image; in the input frame.

    An empty place has the label -1; all else is 0 there. Empty places are the last ones.
    """

    boxes: Float[Tensor, "batch places 4"]
    """x1, y1, x2, y2."""
    scores: Float[Tensor, "batch places"]
    labels: Int[Tensor, "batch places"]
    """Index into the class list."""
    keypoints: Float[Tensor, "batch places joints 3"] | None = None
    """As in `Detections`; likewise `box3d`."""
    box3d: Float[Tensor, "batch places 7"] | None = None

    def padded(self, places: int) -> "DetectionTensors":
        """The same objects with this many places, at least as many as there are."""
        missing = places - self.labels.shape[1]
        if missing == 0:
            return self

        def more(values: Tensor | None) -> Tensor | None:
            return None if values is None else functional.pad(values, (*(0, 0) * (values.dim() - 2), 0, missing))

        return DetectionTensors(
            boxes=functional.pad(self.boxes, (0, 0, 0, missing)),
            scores=functional.pad(self.scores, (0, missing)),
            labels=functional.pad(self.labels, (0, missing), value=-1),
            keypoints=more(self.keypoints),
            box3d=more(self.box3d),
        )

    def cleared(self) -> "DetectionTensors":
        """The same with zeros in the places whose label is -1."""
        full = self.labels >= 0
        return DetectionTensors(
            boxes=torch.where(full[..., None], self.boxes, 0),
            scores=torch.where(full, self.scores, 0),
            labels=self.labels,
            keypoints=None if self.keypoints is None else torch.where(full[..., None, None], self.keypoints, 0),
            box3d=None if self.box3d is None else torch.where(full[..., None], self.box3d, 0),
        )

    def images(self) -> list[Detections]:
        """The places of each image, empty ones included."""
        return [
            Detections(
                boxes=self.boxes[image],
                scores=self.scores[image],
                labels=self.labels[image],
                keypoints=None if self.keypoints is None else self.keypoints[image],
                box3d=None if self.box3d is None else self.box3d[image],
            )
            for image in range(len(self.labels))
        ]


def joined(parts: Sequence[Detections]) -> Detections:
    """One list of all detections, one part after the other; all parts come from the same detector."""
    if len(parts) == 1:
        return parts[0]
    keypoints = [part.keypoints for part in parts if part.keypoints is not None]
    boxes3d = [part.box3d for part in parts if part.box3d is not None]
    unclipped = [part.unclipped for part in parts if part.unclipped is not None]
    return Detections(
        boxes=torch.cat([part.boxes for part in parts]),
        scores=torch.cat([part.scores for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        keypoints=torch.cat(keypoints) if keypoints else None,
        box3d=torch.cat(boxes3d) if boxes3d else None,
        unclipped=torch.cat(unclipped) if unclipped else None,
    )


def in_image(detections: Detections, transform: Float[Tensor, "2 3"]) -> Detections:
    """Move detections from the input frame to the image frame, and to the CPU.

    Args:
        detections: in the input frame.
        transform: from image to input, on the CPU.
    """
    return _moved(detections.cpu(), lambda points: points_in_image(points, transform))


def points_in_image(
    points_in_input: Float[Tensor, "*points 2"], transform: Float[Tensor, "2 3"]
) -> Float[Tensor, "*points 2"]:
    """Move points from the input frame to the image frame.

    Args:
        points_in_input: x, y.
        transform: from image to input.

    Returns:
        float32.
    """
    linear, shift = transform[:, :2].double(), transform[:, 2].double()
    points = (points_in_input.double() - shift).reshape(-1, 2)
    return torch.linalg.solve(linear, points.T).T.reshape(points_in_input.shape).float()


def in_other_input(detections: Detections, transform: Float[Tensor, "2 3"], other: Float[Tensor, "2 3"]) -> Detections:
    """Move detections from one view's input frame to another's; bit for bit the same where the frames agree.

    Args:
        detections: in the input frame of the first view.
        transform: from image to that input, float64 on the CPU, without rotation or skew.
        other: likewise, of the view whose frame is wanted.
    """
    if torch.equal(transform, other):
        return detections
    linear = other[:, :2] @ torch.linalg.inv(transform[:, :2])
    shift = other[:, 2] - linear @ transform[:, 2]
    # Without rotation and skew this is a factor and a shift for each axis.
    factor, offset = (part.to(detections.boxes) for part in (linear.diagonal(), shift))
    return _moved(detections, lambda points: points * factor + offset)


def _moved(detections: Detections, move: Callable[[Tensor], Tensor]) -> Detections:
    """Apply `move`, which takes points `(..., 2)`, to all that depends on the frame."""
    keypoints, box3d, unclipped = detections.keypoints, detections.box3d, detections.unclipped
    return Detections(
        boxes=move(detections.boxes.reshape(-1, 2, 2)).reshape(-1, 4),
        scores=detections.scores,
        labels=detections.labels,
        keypoints=None if keypoints is None else _first_two_moved(keypoints, move),
        box3d=None if box3d is None else _first_two_moved(box3d, move),
        unclipped=None if unclipped is None else move(unclipped.reshape(-1, 2, 2)).reshape(-1, 4),
    )


def _first_two_moved(values: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat((move(values[..., :2]), values[..., 2:]), dim=-1)
