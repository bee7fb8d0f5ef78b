"""A photograph with what a detector found in it: boxes, joints and boxes in 3D, at the photograph's own size."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.pictures.drawing import Panel, class_color

_EDGES = (
    *((0, 1), (1, 2), (2, 3), (3, 0)),
    *((4, 5), (5, 6), (6, 7), (7, 4)),
    *((0, 4), (1, 5), (2, 6), (3, 7)),
    # A cross on the front.
    *((0, 5), (1, 4)),
)
"""Pairs of the corners of a box in 3D, as `corners_in_3d` orders them, that a line connects."""

_NEAREST = 0.1
"""Metres in front of the camera from which a corner is drawn; behind it there is no place in the image."""


def draw_predictions(
    image: NDArray[np.uint8],
    boxes: NDArray[np.floating],
    labels: NDArray[np.integer],
    scores: NDArray[np.floating],
    class_names: Sequence[str],
    *,
    keypoints: NDArray[np.floating] | None = None,
    skeletons: Sequence[Sequence[tuple[int, int]]] = (),
    corners: Sequence[NDArray[np.floating] | None] = (),
    notes: Sequence[str] = (),
) -> NDArray[np.uint8]:
    """Return the photograph with everything drawn on it.

    Args:
        image: (height, width, 3) RGB.
        boxes: (objects, 4) x1, y1, x2, y2 in pixels of the image, best score first.
        labels: (objects,)
        scores: (objects,)
        class_names: by label.
        keypoints: (objects, joints, 3) x, y and COCO's visibility.
        skeletons: for each label, the pairs of joints that a line connects, counted from 1.
        corners: for each object, its eight corners in the image, from `corners_in_3d`, drawn in place of its box; None
            draws the box.
        notes: for each object, a text behind its score.
    """
    panel = Panel(image, full_size=True)
    # The best is drawn last, over the others.
    for row in reversed(range(len(boxes))):
        label = int(labels[row])
        color = class_color(label)
        text = f"{class_names[label]} {scores[row]:.2f}" + (f" {notes[row]}" if notes else "")
        body = corners[row] if corners else None
        if body is None:
            panel.add(boxes[row], text, color)
        else:
            panel.add_edges(body, _EDGES, color)
            panel.add_label(boxes[row], text, color)
        if keypoints is not None:
            panel.add_joints(keypoints[row], skeletons[label] if skeletons else (), color)
    return panel.drawn()


def corners_in_3d(
    dimensions: Sequence[float], location: Sequence[float], rotation_y: float, camera: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the eight corners of a box in 3D, (8, 2) x, y in pixels of the image; NaN for those behind the camera.

    Args:
        dimensions: height, width and length in metres.
        location: x, y, z in metres of the middle of the underside, in the camera's frame.
        rotation_y: angle around the vertical axis in radians.
        camera: (3, 4) projection matrix.

    Source:
        KITTI's object development kit, computeBox3D.m and projectToImage.m.
    """
    height, width, length = dimensions
    along = np.array([1, 1, -1, -1]) * length / 2
    across = np.array([1, -1, -1, 1]) * width / 2
    cosine, sine = np.cos(rotation_y), np.sin(rotation_y)
    x, z = cosine * along + sine * across, cosine * across - sine * along
    # Corners 0, 1, 4 and 5 are the front; y points down.
    underside = np.stack((x, np.zeros(4), z, np.zeros(4)), axis=1)
    middle = np.array([*location, 1.0])
    points = np.concatenate((underside, underside - np.array([0, height, 0, 0]))) + middle
    seen = points @ np.asarray(camera, dtype=np.float64).T
    depth = np.where(seen[:, 2] > _NEAREST, seen[:, 2], np.nan)
    return np.asarray(seen[:, :2] / depth[:, None])
