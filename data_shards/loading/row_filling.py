"""Filling one row of a batch with one sample: read, decode, resample, and take its labels to the input frame."""

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from data_shards.format.joints import joint_partners
from data_shards.loading.batch_arrays import BatchArrays
from data_shards.reading.geometry import (
    crop_resize,
    ends_on_last_pixel,
    of_edges,
    scaled,
    scaled_size,
    transform_boxes,
    transform_points,
    warp,
    without_rotation,
)
from data_shards.reading.resizing import resize
from data_shards.reading.samples import SampleLabels, Samples
from data_shards.reading.scratch import Image, Scratch
from data_shards.reading.windows import Window, cut
from data_shards.settings import BoxRules, Resizing

_GRAY = 128

# Each thread's memory for resampled images, kept from batch to batch.
_scratch = Scratch()


def fill(
    arrays: BatchArrays,
    row: int,
    samples: Samples,
    number: int,
    matrix: Float64[np.ndarray, "2 3"],
    rules: BoxRules = BoxRules(),  # noqa: B008 - it is frozen
    resizing: Resizing = "plain",
    scale: float = 1.0,
    window: Window | None = None,
) -> None:
    """Read, decode and resample one sample into one row; `BatchArrays.take` comes before it, for what is drawn.

    Args:
        arrays: the batch.
        row: the row to fill.
        samples: the data.
        number: the sample.
        matrix: image frame to input frame; of the resized image, if `scale` is not 1.
        rules: which boxes count, and where they end.
        resizing: the library whose pixels a whole image gets.
        scale: factor on the image's sides before the matrix applies; resized sides are rounded down.
        window: the part of the image to cut, in place of the matrix and the scale.

    Raises:
        DataError: the image cannot be read.
    """
    describe(arrays, row, samples, number, matrix, rules, scale, window)
    show(arrays, row, samples, number, matrix, resizing, scale, window)


def describe(
    arrays: BatchArrays,
    row: int,
    samples: Samples,
    number: int,
    matrix: Float64[np.ndarray, "2 3"],
    rules: BoxRules,
    scale: float = 1.0,
    window: Window | None = None,
) -> None:
    """Do all of `fill` but the pixels. One thread does it for all rows of a batch, before others show them."""
    size = samples.size(number)
    height, width = arrays.images.shape[2:] if arrays.content_sizes is None else arrays.content_sizes[row].tolist()
    mirrored = arrays.flips is not None and bool(arrays.flips[row])
    # As published, joints turn with the image; boxes stay those of the unturned one.
    of_boxes = without_rotation(matrix, (height, width), mirrored=mirrored) if matrix[0, 1] else matrix
    # As published, boxes follow the exact scale, although the resized sides are rounded.
    scaling = np.array([scale, scale, 1.0])
    edges = rules.box_ends == "edge" and rules.corners == "edges"
    if arrays.content_sizes is not None:
        # The matrix of a resized whole image is one of edges already.
        edges = rules.box_ends == "edge"
    elif window is not None:
        # So is a window's, which has the scale in it.
        of_boxes = matrix = window.matrix((height, width), size if edges else None)
        scaling[:2] = 1
    elif edges:
        of_boxes, matrix = of_edges(of_boxes), of_edges(matrix)
        scaling[:2] = np.array(scaled_size(size[::-1], scale)) / size[::-1]
    of_boxes, of_joints = of_boxes * scaling, matrix * scaling
    _fill_labels(arrays, row, samples, number, of_boxes, of_joints, rules)
    arrays.transforms[row] = of_joints
    arrays.original_sizes[row] = size
    if arrays.mirror_sums is not None:
        # Pixel i becomes width - 1 - i, and the edges on both sides of it width - i and width - 1 - i.
        arrays.mirror_sums[row] = width if edges else width - 1


def show(
    arrays: BatchArrays,
    row: int,
    samples: Samples,
    number: int,
    matrix: Float64[np.ndarray, "2 3"],
    resizing: Resizing,
    scale: float = 1.0,
    window: Window | None = None,
) -> None:
    """Do the pixels of `fill`. Where gray replaces an image, remove its objects again."""
    image = samples.image(number)
    if image is None:
        arrays.images[row] = _GRAY
        arrays.clear_objects(row)
        return
    # OpenCV has interleaved channels, the network wants planes: split writes them without another copy.
    cv2.split(_pixels(arrays, row, image, matrix, resizing, scale, window), list(arrays.images[row]))


def trained_boxes(samples: Samples, number: int, rules: BoxRules, max_objects: int) -> Float32[np.ndarray, "objects 4"]:
    """Return the boxes of a sample that its row in a batch contains, in the image frame, without regions to ignore."""
    known = samples.labels(number)
    chosen, boxes = _chosen(known, rules, samples.size(number), max_objects)
    return boxes[known.labels[chosen] >= 0]


def _pixels(
    arrays: BatchArrays,
    row: int,
    image: Image,
    matrix: Float64[np.ndarray, "2 3"],
    resizing: Resizing,
    scale: float,
    window: Window | None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the input in scratch memory."""
    height, width = arrays.images.shape[2:]
    if arrays.content_sizes is not None:
        content_height, content_width = arrays.content_sizes[row].tolist()
        out = _scratch.image("input", height, width)
        out[content_height:] = 0
        out[:content_height, content_width:] = 0
        resize(image, out[:content_height, :content_width], resizing)
        return out
    if window is not None:
        return cut(image, window, (height, width), _scratch)
    if scale != 1:
        image = scaled(image, scale)
    if arrays.flips is not None:
        return crop_resize(image, matrix, (height, width), _scratch)
    # Evaluation uses the published resampling to the bit.
    return warp(image, matrix, (height, width), _scratch.image("input", height, width))


def _chosen(
    known: SampleLabels, rules: BoxRules, size: tuple[int, int], max_objects: int
) -> tuple[Int64[np.ndarray, " objects"], Float32[np.ndarray, "objects 4"]]:
    """Return the annotations that a row contains, and their boxes in the image frame."""
    chosen = np.arange(len(known.labels))
    if rules.crowd == "drop":
        chosen = chosen[~known.iscrowd]
    boxes = known.boxes[chosen]
    if rules.box_ends == "last_pixel":
        boxes = ends_on_last_pixel(boxes, size)
        not_empty = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        chosen, boxes = chosen[not_empty], boxes[not_empty]
    return chosen[:max_objects], boxes[:max_objects]


def _fill_labels(
    arrays: BatchArrays,
    row: int,
    samples: Samples,
    number: int,
    of_boxes: Float64[np.ndarray, "2 3"],
    of_joints: Float64[np.ndarray, "2 3"],
    rules: BoxRules,
) -> None:
    known = samples.labels(number)
    arrays.image_ids[row] = known.image_id
    chosen, boxes = _chosen(known, rules, samples.size(number), arrays.labels.shape[1])
    count = len(chosen)
    arrays.boxes[row, :count] = transform_boxes(boxes, of_boxes)
    arrays.labels[row, :count] = labels = known.labels[chosen]
    if arrays.keypoints is not None and known.keypoints is not None:
        joints = known.keypoints[chosen]
        if arrays.flips is not None and arrays.flips[row]:
            # The device mirrors pixels and coordinates; which joint is the left one is only known here.
            partners = joint_partners(samples.classes)[np.maximum(labels, 0)]
            joints = np.take_along_axis(joints, partners[..., None], axis=1)
        joints[..., :2] = np.where(joints[..., 2:] > 0, transform_points(joints[..., :2], of_joints), 0)
        arrays.keypoints[row, :count] = joints
    if arrays.depth is not None:
        for name in ("depth", "dimensions", "alpha"):
            # Regions to ignore may lack these; nothing is learnt there.
            getattr(arrays, name)[row, :count] = np.nan_to_num(getattr(known, name)[chosen])
    if arrays.calibration is not None and known.calibration is not None:
        arrays.calibration[row] = known.calibration
