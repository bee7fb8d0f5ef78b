"""The published crop geometry: from pixels, points and boxes of an image to those of the network's input.

Pixels, points and boxes go through the same affine matrix, image frame to input frame. It is one of pixel indexes, for
which CenterNet takes the corners of boxes, too; `of_edges` turns it into one of edges.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from data_shards.reading.scratch import Image, Scratch


def crop_matrix(
    centre: tuple[float, float], scale: float, input_size: tuple[int, int], degrees: float = 0.0
) -> Float64[np.ndarray, "2 3"]:
    """Return the matrix of the published crop: `centre` goes to the middle of the input, `scale` pixels fill its width.

    Args:
        centre: x, y in the image frame, in pixels.
        scale: width of the crop in image pixels.
        input_size: height and width of the input, in pixels.
        degrees: angle by which the crop is turned clockwise in the image; the picture turns the other way.

    Returns:
        The map from pixel indexes x, y, 1 of the image to those of the input. As published, without a half-pixel
        correction.

    Source:
        CenterNet, src/lib/utils/image.py get_affine_transform, in closed form.
    """
    height, width = input_size
    zoom = width / scale
    if degrees:
        cosine, sine = zoom * np.cos(np.radians(degrees)), zoom * np.sin(np.radians(degrees))
        linear = np.array([[cosine, sine], [-sine, cosine]])
        shift = np.array([width / 2, height / 2]) - linear @ np.array(centre)
        return np.concatenate([linear, shift[:, None]], axis=1)
    return np.array(
        [[zoom, 0.0, width / 2 - zoom * centre[0]], [0.0, zoom, height / 2 - zoom * centre[1]]],
        dtype=np.float64,
    )


def scaled(image: Image, scale: float) -> Image:
    """Resize an image to CenterNet's test scale: sides times `scale`, rounded down, bilinear.

    Source:
        xingyizhou/CenterNet, src/lib/detectors/base_detector.py, `pre_process`.
    """
    height, width = image.shape[:2]
    return cv2.resize(image, scaled_size((width, height), scale), interpolation=cv2.INTER_LINEAR)


def scaled_size(sides: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the sides of `scaled`'s result, in the order of `sides`; at least 1."""
    return max(1, int(sides[0] * scale)), max(1, int(sides[1] * scale))


def warp(
    image: Image, matrix: Float64[np.ndarray, "2 3"], input_size: tuple[int, int], out: Image | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Resample an image through an image-to-input matrix, as published: bilinear, black outside.

    Args:
        image: RGB, of any size.
        matrix: image frame to input frame.
        input_size: height and width of the result.
        out: memory for the result.
    """
    height, width = input_size
    return cv2.warpAffine(image, matrix, (width, height), dst=out, flags=cv2.INTER_LINEAR)


def crop_resize(
    image: Image, matrix: Float64[np.ndarray, "2 3"], input_size: tuple[int, int], scratch: Scratch | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Do the same as `warp` at a third of its cost, for matrices whose shift comes from `whole_pixel_shift`.

    One call resizes the visible slice of the image. Values differ from those of `warp` by at most one level of 255,
    except at a visible edge of the image: `warp` mixes image and black there, and here each pixel is one or the other.
    Other matrices are left to `warp`.

    Args:
        image, matrix, input_size: as for `warp`.
        scratch: memory for the result; the next call of the same thread overwrites it.
    """
    height, width = input_size
    across = _span(matrix[0, 0], matrix[0, 2], image.shape[1], width)
    down = _span(matrix[1, 1], matrix[1, 2], image.shape[0], height)
    scratch = scratch if scratch is not None else Scratch()
    if across is None or down is None or matrix[0, 1] or matrix[1, 0] or _only_copied(matrix, across, down):
        return warp(image, matrix, input_size, scratch.canvas(height, width, 0, height, 0, width))
    top, bottom, left, right = down.first, down.last, across.first, across.last
    out = scratch.canvas(height, width, top, bottom, left, right)
    if top == bottom or left == right:
        return out
    seen = image[down.begin : down.end, across.begin : across.end]
    # A slice that ends outside the input, or begins before it, is resized whole and then cut.
    exact = (down.resized, across.resized) == (bottom - top, right - left)
    if exact:
        target = out[top:bottom, left:right]
    else:
        target = scratch.image("resized", down.resized, across.resized)
    cv2.resize(seen, None, target, matrix[0, 0], matrix[1, 1], cv2.INTER_LINEAR)
    if not exact:
        out[top:bottom, left:right] = target[
            down.skipped : down.skipped + bottom - top, across.skipped : across.skipped + right - left
        ]
    return out


def whole_pixel_shift(zoom: float, shift: float) -> float:
    """Return the nearest shift that `crop_resize` can do, at most half a pixel of the coarser frame away.

    `cv2.resize` treats pixels as areas, and its slice begins with a whole one: some pixel edge of the image must fall
    on a pixel edge of the input.
    """
    begin, place = _anchor(zoom, shift)
    begin, place = (round(begin), place) if round(begin) >= 0 else (0, round(shift + 0.5 - 0.5 * zoom))
    return place - begin * zoom - 0.5 + 0.5 * zoom


def _anchor(zoom: float, shift: float) -> tuple[float, int]:
    """Return where a slice begins in the image, in pixels, and the input pixel that its first resized pixel becomes.

    In an enlarged image the slice begins before the input does: its first pixels have only one neighbour.
    """
    place = -max(0, math.ceil(0.5 * zoom - 0.5))
    return 0.5 + (place - shift - 0.5) / zoom, place


class _Span(NamedTuple):
    """One axis of a crop: pixels `begin` to `end` of the image become `resized` pixels.

    After the first `skipped` of these, the next ones are pixels `first` to `last` of the input.
    """

    begin: int
    end: int
    resized: int
    skipped: int
    first: int
    last: int


def _only_copied(matrix: Float64[np.ndarray, "2 3"], across: _Span, down: _Span) -> bool:
    """Return True if `cv2.resize` would only copy a slice that needs a slight zoom: its sides round to themselves."""
    sides = (across.end - across.begin, down.end - down.begin)
    return sides == (across.resized, down.resized) and not (matrix[0, 0] == 1 == matrix[1, 1])


def _span(zoom: float, shift: float, side: int, input_side: int) -> _Span | None:
    """Return the span of one axis, or None if no resized slice falls on whole input pixels."""
    start, place = _anchor(zoom, shift)
    begin = round(start)
    if begin < 0 or abs(start - begin) > 1e-6:
        # The slice would begin before the image: begin with its first pixel, whose edge must be one of the input's.
        edge = shift + 0.5 - 0.5 * zoom
        begin, place = 0, round(edge)
        if abs(edge - place) > 1e-6:
            return None
    # Up to the right neighbour of the last pixel and no further, so that a slice of the whole input need not be cut.
    end = min(side, begin + math.floor((input_side - place - 0.5) / zoom + 1.5 - 1e-9))
    # cv2.resize rounds the same way.
    resized = round((end - begin) * zoom) if end > begin else 0
    first = min(max(0, place), input_side)
    last = max(first, min(input_side, place + resized))
    return _Span(begin, end, resized, first - place, first, last)


def without_rotation(
    matrix: Float64[np.ndarray, "2 3"], input_size: tuple[int, int], *, mirrored: bool
) -> Float64[np.ndarray, "2 3"]:
    """Return a crop's matrix without its rotation. As published, boxes go through it.

    Args:
        matrix: the crop, from `Draws.matrix`.
        input_size: height and width of the input, in pixels.
        mirrored: True if the input is yet to be mirrored, which puts the crop's centre a pixel beside the middle.
    """
    zoom = float(np.hypot(*matrix[0, :2]))
    middle = np.array([input_size[1] / 2 - mirrored, input_size[0] / 2])
    centre = np.linalg.solve(matrix[:, :2], middle - matrix[:, 2])
    return np.concatenate([zoom * np.eye(2), (middle - zoom * centre)[:, None]], axis=1)


def of_edges(matrix: Float64[np.ndarray, "2 3"]) -> Float64[np.ndarray, "2 3"]:
    """Turn a map of pixel indexes into the same map of edges: pixel i is between the edges i and i + 1."""
    shift = matrix[:, 2] + 0.5 - matrix[:, :2] @ np.array([0.5, 0.5])
    return np.concatenate([matrix[:, :2], shift[:, None]], axis=1)


def transform_points(
    points: Float32[np.ndarray, "*points 2"], matrix: Float64[np.ndarray, "2 3"]
) -> Float32[np.ndarray, "*points 2"]:
    """Take points x, y from the image frame to the input frame."""
    return (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)


def transform_boxes(
    boxes: Float[np.ndarray, "objects 4"], matrix: Float64[np.ndarray, "2 3"]
) -> Float32[np.ndarray, "objects 4"]:
    """Take boxes from the image frame to the input frame, unclipped; the matrix has no rotation."""
    zoom_x, zoom_y = matrix[0, 0], matrix[1, 1]
    shift = np.array([matrix[0, 2], matrix[1, 2]] * 2)
    return (boxes * np.array([zoom_x, zoom_y] * 2) + shift).astype(np.float32)


def ends_on_last_pixel(
    boxes: Float32[np.ndarray, "objects 4"], size: tuple[int, int]
) -> Float32[np.ndarray, "objects 4"]:
    """End boxes on their last pixel and clip them to an image of height and width `size`; see `BoxRules.box_ends`.

    Source:
        tianzhi0549/FCOS, fcos_core/structures/bounding_box.py, `convert` and `clip_to_image`.
    """
    ends = np.maximum(boxes[:, 2:] - 1, boxes[:, :2])
    last = np.array([size[1] - 1, size[0] - 1] * 2, dtype=np.float32)
    return np.clip(np.concatenate([boxes[:, :2], ends], axis=1), 0, last).astype(np.float32)
