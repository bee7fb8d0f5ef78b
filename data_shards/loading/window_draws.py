"""The random windows of the CornerNet family: sizes and places of `reading/windows.py`, from uniform numbers."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64

from data_shards.reading.geometry import scaled_size
from data_shards.reading.windows import Window, visible

_LARGE, _SMALL, _LEAST = 96, 32, 16
"""Longest sides of boxes, in pixels, that separate CornerNet-Saccade's three zooms."""
_LARGEST = 254
_NEAR = 15
"""A crop around an object is centred less than this many pixels from the object's middle."""


def pixel_crop(centre: tuple[int, int], scale: float, input_size: tuple[int, int]) -> Window:
    """Return CornerNet's crop: the input's sides times `scale`, in pixels of the image.

    Args:
        centre: x, y in the image frame.
        scale: factor on the input's sides, which are rounded down.
        input_size: height and width of the input, in pixels.

    Source:
        princeton-vl/CornerNet, sample/utils.py, `random_crop`.
    """
    height, width = (max(1, int(side * scale)) for side in input_size)
    return Window(1.0, centre[0] - width // 2, centre[1] - height // 2, height, width)


def object_crop(
    boxes: Float32[np.ndarray, "objects 4"],
    size: tuple[int, int],
    input_size: tuple[int, int],
    *,
    scales: Sequence[float],
    scale: float,
    reference: float,
    nearness: float,
    places: Float64[np.ndarray, "2"],
    spreads: Float64[np.ndarray, "2 2"],
) -> tuple[Window, Float64[np.ndarray, "4"]]:
    """Return CornerNet-Saccade's crop, which has the input's size, and the box to which objects are clipped.

    The image is zoomed until a random object's longest side has a random length: in [96, 254] if it is longer than 96
    pixels, in [32, 96] if it is longer than 32, otherwise in [16, 32]. Then the crop contains this object or, half of
    the time, is centred near its middle. Where the zoomed image is narrower than the crop, it is centred. In a smaller
    input than the published 255 x 255, lengths end a pixel below the input's shorter side.

    Args:
        boxes: x1, y1, x2, y2 of the objects, in the image frame.
        size: height and width of the image, in pixels.
        input_size: height and width of the input, in pixels.
        scales: zooms of an image without objects; one is chosen at random.
        scale, reference, nearness: numbers in [0, 1) that choose zoom, object, and the crop's kind.
        places: numbers that choose the place of the crop, x and y.
        spreads: for a crop near an object: numbers that choose how far it may be to the left (above) and to the right
            (below), x and y.

    Returns:
        The window, and x1, y1, x2, y2 in the input frame: the part of the window that shows the image, up to the last
        pixel, and up to the last pixel that the image had before the zoom.

    Source:
        princeton-vl/CornerNet-Lite, core/sample/cornernet_saccade.py, `ref_scale`, `crop_image_dets`,
        `clip_detections`.
    """
    # As published, boxes end on the last pixel of the image, and those without size there are never chosen.
    last = np.array([size[1] - 1, size[0] - 1] * 2)
    clipped = np.clip(boxes.astype(np.float64), 0, last)
    clipped = clipped[(clipped[:, 2:] > clipped[:, :2]).all(axis=1)]
    chosen = None
    if len(clipped):
        chosen = clipped[int(reference * len(clipped))]
        longest = float((chosen[2:] - chosen[:2]).max())
        zoom = _length(longest, min(input_size) - 1, scale) / longest
        chosen = chosen * zoom
    else:
        zoom = scales[int(scale * len(scales))]
    sides = scaled_size(size, zoom)
    near = nearness > 0.5
    centre_x, centre_y = (
        _centre(
            None if chosen is None else (chosen[axis], chosen[axis + 2]),
            sides[1 - axis],
            input_size[1 - axis],
            places[axis],
            spreads[axis] if near else None,
        )
        for axis in (0, 1)
    )
    height, width = input_size
    window = Window(zoom, centre_x - width // 2, centre_y - height // 2, height, width)
    (left, right), (top, bottom) = (
        visible(window.left, width, sides[1]),
        visible(window.top, height, sides[0]),
    )
    limits = np.array(
        [left, top, min(right - 1, last[0] * zoom), min(bottom - 1, last[1] * zoom)], dtype=np.float64
    ) - np.array([window.left, window.top] * 2)
    return window, limits


def _length(longest: float, limit: int, number: float) -> int:
    """Draw the length, in pixels of the zoomed image, of the longest side of the reference object."""
    if longest > _LARGE:
        least, most = _LARGE, _LARGEST
    elif longest > _SMALL:
        least, most = _SMALL, _LARGE
    else:
        least, most = _LEAST, _SMALL
    return _integer(min(least, limit), min(most, limit), number)


def _centre(
    reference: tuple[float, float] | None,
    image_side: int,
    side: int,
    place: float,
    spread: Float64[np.ndarray, "2"] | None,
) -> int:
    """Draw the middle of the crop along one axis.

    Args:
        reference: ends of the reference object; None if there is none.
        image_side: side of the zoomed image, in pixels.
        side: side of the crop.
        place: number in [0, 1) that chooses the place.
        spread: two more, if the crop must be near the reference's middle.
    """
    if image_side <= side:
        return image_side // 2
    if reference is not None and spread is not None:
        middle = int((reference[0] + reference[1]) // 2)
        least = max(middle - _integer(0, _NEAR - 1, spread[0]), 0)
        most = min(middle + _integer(0, _NEAR - 1, spread[1]), image_side - 1)
        return _integer(least, most, place)
    least, most = 0, image_side - side
    if reference is not None:
        least, most = int(max(reference[1] - side, least)), int(min(most, reference[0]))
    return _integer(least, most, place) + side // 2


def _integer(least: int, most: int, number: float) -> int:
    """Return an integer from `least` to `most`, all equally likely, for a number in [0, 1)."""
    return least + int(number * (most - least + 1))
