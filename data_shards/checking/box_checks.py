"""Checks of the boxes and joints of one image.

Positions are judged in the image frame. Sizes and cells are judged in the input frame, with the longer side of the
image filling the input, which is the middle scale of the published training.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy.typing import NDArray

from data_shards.counting import counted
from data_shards.reading.geometry import crop_matrix, transform_boxes

Boxes = Float32[NDArray[np.float32], "objects 4"]
Labels = Int64[NDArray[np.int64], " objects"]

_SAME_OBJECT_IOU = 0.9
"""Overlap from which two boxes of one class count as one object, annotated twice."""


def box_findings(
    boxes: Boxes,
    labels: Labels,
    iscrowd: Bool[NDArray[np.bool_], " objects"],
    size: tuple[int, int],
    *,
    stride: int,
    input_size: tuple[int, int],
    max_objects: int,
) -> list[tuple[str, str]]:
    """Find what may be wrong with the boxes of one image.

    Args:
        boxes: x1, y1, x2, y2 in the image frame.
        labels: classes; only boxes of one class are compared with each other.
        iscrowd: marks crowds, which are judged by position only.
        size: height and width of the image.
        stride: of the detector's finest output, in input pixels.
        input_size: height and width of the input.
        max_objects: number of boxes in an image that training uses.

    Returns:
        Kind and text of each finding.
    """
    if not len(boxes):
        return [("no_objects", "no box")]
    found: list[tuple[str, str]] = []
    if len(boxes) > max_objects:
        found.append(("too_many", f"{len(boxes):,} objects, {len(boxes) - max_objects:,} more than {max_objects:,}"))
    if iscrowd.any():
        found.append(("crowd", f"{int(iscrowd.sum()):,} of {counted(len(boxes), 'box')}"))
    misplaced = _misplaced(boxes, size)
    found += [
        (kind, f"box {_shown(boxes[row])} in an image of {size[1]} x {size[0]} pixels")
        for kind, rows in misplaced.items()
        for row in np.flatnonzero(rows)
    ]
    usable = ~misplaced["no_area"] & ~misplaced["outside"] & ~iscrowd
    return [
        *found,
        *_annotated_twice(boxes[usable], labels[usable]),
        *_too_small(boxes[usable], size, input_size, stride),
        *_in_one_cell(boxes[usable], labels[usable], size, input_size, stride),
    ]


def _misplaced(boxes: Boxes, size: tuple[int, int]) -> dict[str, NDArray[np.bool_]]:
    height, width = size
    x1, y1, x2, y2 = boxes.T
    no_area = (x2 <= x1) | (y2 <= y1)
    outside = ~no_area & ((x1 >= width) | (y1 >= height) | (x2 <= 0) | (y2 <= 0))
    # Labelling tools round; up to a pixel beyond the border is not worth a finding.
    beyond = np.maximum.reduce([-x1, -y1, x2 - width, y2 - height])
    return {"no_area": no_area, "outside": outside, "partly_outside": ~outside & (beyond > 1)}


def _annotated_twice(boxes: Boxes, labels: Labels) -> Iterator[tuple[str, str]]:
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for row in range(len(boxes)):
        later = row + 1 + np.flatnonzero(labels[row + 1 :] == labels[row])
        sides = np.minimum(boxes[row, 2:], boxes[later, 2:]) - np.maximum(boxes[row, :2], boxes[later, :2])
        shared = np.maximum(sides, 0).prod(axis=1)
        overlaps = shared / (areas[row] + areas[later] - shared)
        for other in np.flatnonzero(overlaps >= _SAME_OBJECT_IOU):
            pair = f"{_shown(boxes[row])} and {_shown(boxes[later[other]])}"
            yield "same_box", f"boxes {pair}, IoU {float(overlaps[other]):.2f}"


def _too_small(
    boxes: Boxes, size: tuple[int, int], input_size: tuple[int, int], stride: int
) -> Iterator[tuple[str, str]]:
    in_input = boxes_in_input(boxes, size, input_size)
    sides = np.minimum(in_input[:, 2] - in_input[:, 0], in_input[:, 3] - in_input[:, 1])
    for box, side in zip(boxes, sides, strict=True):
        if side < stride:
            yield (
                "below_stride",
                f"box {_shown(box)} is {side:.1f} input pixels on its shorter side, a cell is {stride}",
            )


def _in_one_cell(
    boxes: Boxes, labels: Labels, size: tuple[int, int], input_size: tuple[int, int], stride: int
) -> Iterator[tuple[str, str]]:
    for group in groups_in_one_cell(boxes_in_input(boxes, size, input_size), labels, stride):
        text = " and ".join(_shown(boxes[row]) for row in group[:2])
        yield "same_cell", f"boxes {text}" + (f" and {len(group) - 2} more" if len(group) > 2 else "")


def joint_findings(
    keypoints: Float32[NDArray[np.float32], "objects joints 3"], boxes: Boxes, size: tuple[int, int]
) -> list[tuple[str, str]]:
    """Find labelled joints outside their image or far from their object.

    Args:
        keypoints: x, y in the image frame and visibility.
        boxes: x1, y1, x2, y2 in the image frame.
        size: height and width of the image.

    Returns:
        Kind and text of each finding, at most one of a kind for an object.
    """
    points, labelled = keypoints[..., :2], keypoints[..., 2] > 0
    beyond = labelled & ((points < -1) | (points > np.array(size[::-1]) + 1)).any(axis=-1)
    # COCO's boxes follow the outline of the visible part, and its joints leave them by a little.
    slack = 0.25 * (boxes[:, 2:] - boxes[:, :2])[:, None] + 2
    off_box = (points < boxes[:, None, :2] - slack) | (points > boxes[:, None, 2:] + slack)
    off_box = labelled & ~beyond & off_box.any(axis=-1)
    found = []
    for kind, which, where in (
        ("joints_outside", beyond, f"the image of {size[1]} x {size[0]} pixels"),
        ("joints_off_box", off_box, "its box"),
    ):
        for row in np.flatnonzero(which.any(axis=1)):
            joint = int(which[row].argmax())
            x, y = points[row, joint].tolist()
            found.append((kind, f"joint {joint + 1} at ({x:g}, {y:g}) of box {_shown(boxes[row])} is outside {where}"))
    return found


def boxes_in_input(boxes: Boxes, size: tuple[int, int], input_size: tuple[int, int]) -> Boxes:
    """Map boxes from the image frame to the input frame.

    Args:
        boxes: x1, y1, x2, y2 in the image frame.
        size: height and width of the image.
        input_size: height and width of the input.
    """
    height, width = size
    return transform_boxes(boxes, crop_matrix((width / 2, height / 2), max(height, width), input_size))


def groups_in_one_cell(boxes_in_input: Boxes, labels: Labels, stride: int) -> list[list[int]]:
    """Group the boxes of one class whose centres fall into one cell.

    Args:
        boxes_in_input: x1, y1, x2, y2 in the input frame.
        labels: their classes.
        stride: size of a cell, in input pixels.

    Returns:
        Ascending rows of each group of two or more.
    """
    groups: dict[tuple[int, int, int], list[int]] = {}
    cells = np.floor((boxes_in_input[:, :2] + boxes_in_input[:, 2:]) / 2 / stride).astype(np.int64)
    for row, ((x, y), label) in enumerate(zip(cells.tolist(), labels.tolist(), strict=True)):
        groups.setdefault((label, x, y), []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _shown(box: Float32[NDArray[np.float32], "4"]) -> str:
    x1, y1, x2, y2 = box.tolist()
    return f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
