"""The crops of the CornerNet family: windows of whole pixels, cut from an image that may have been resized before.

Unlike the crop of `geometry.py`, which is one affine map, the published code cuts first and resizes what it has cut.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64

from data_shards.reading.geometry import scaled_size
from data_shards.reading.scratch import Image, Scratch

# Larger images are not resized whole for the sake of one window: a box of one pixel would be zoomed 32-fold.
_LARGEST_RESIZED_PIXELS = 2**24


class Window(NamedTuple):
    """A rectangle of a resized image. It may exceed the image, and is black there."""

    zoom: float
    """Factor on the image's sides; the resized sides are rounded down."""
    left: int
    """First column, in pixels of the resized image; may be negative."""
    top: int
    """First row."""
    height: int
    width: int

    def matrix(
        self, input_size: tuple[int, int], image_size: tuple[int, int] | None = None
    ) -> Float64[np.ndarray, "2 3"]:
        """Return the map of edges from image to input.

        Args:
            input_size: height and width of the input, in pixels.
            image_size: height and width of the image, for a map that follows the pixels, whose resized sides are whole.
                Without it, the map has the exact zoom, as published.
        """
        zooms = np.full(2, self.zoom)
        if image_size is not None:
            zooms = np.array(scaled_size(image_size, self.zoom)) / image_size
        down, across = input_size[0] / self.height, input_size[1] / self.width
        return np.array([[zooms[1] * across, 0.0, -self.left * across], [0.0, zooms[0] * down, -self.top * down]])


def visible(first: int, side: int, image_side: int) -> tuple[int, int]:
    """Return the pixels of one axis of the resized image that a window shows, as begin and end.

    As published, a window shows half of its side, rounded down, on either side of its middle: the last row and column
    of an odd window stay black, even inside the image.

    Source:
        princeton-vl/CornerNet, utils/image.py, `crop_image`, and sample/utils.py, `random_crop`.
    """
    begin = max(0, first)
    return begin, max(begin, min(image_side, first + side // 2 * 2))


def cut(image: Image, window: Window, input_size: tuple[int, int], scratch: Scratch) -> Image:
    """Resize an image, cut the window, and resize it to the input, padding included: bilinear, as `cv2.resize` does.

    Args:
        image: RGB, of any size.
        window: the part to cut.
        input_size: height and width of the result.
        scratch: memory for the result; the next call of the same thread overwrites it.
    """
    sides = scaled_size((image.shape[0], image.shape[1]), window.zoom)
    top, bottom = visible(window.top, window.height, sides[0])
    left, right = visible(window.left, window.width, sides[1])
    rows, columns = (top - window.top, bottom - window.top), (left - window.left, right - window.left)
    if top == bottom or left == right:
        rows, columns = (0, 0), (0, 0)
    pasted = scratch.canvas(window.height, window.width, *rows, *columns)
    if rows[1] > rows[0]:
        place = pasted[slice(*rows), slice(*columns)]
        if sides == image.shape[:2]:
            place[:] = image[top:bottom, left:right]
        elif sides[0] * sides[1] <= _LARGEST_RESIZED_PIXELS:
            resized = scratch.image("zoomed", *sides)
            cv2.resize(image, sides[::-1], dst=resized, interpolation=cv2.INTER_LINEAR)
            place[:] = resized[top:bottom, left:right]
        else:
            _resize_part(image, sides, (top, left), place)
    if pasted.shape[:2] == input_size:
        return pasted
    height, width = input_size
    out = scratch.image("input", height, width)
    return cv2.resize(pasted, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)


def _resize_part(image: Image, sides: tuple[int, int], first: tuple[int, int], out: Image) -> None:
    """Write a part of a much enlarged image: the pixels of `cv2.resize` up to its rounding, at the cost of the part.

    Args:
        image: the image.
        sides: height and width of the whole enlarged image.
        first: its row and column at the part's top left corner.
        out: memory for the part.
    """
    down, across = sides[0] / image.shape[0], sides[1] / image.shape[1]
    # cv2.resize scales edges, while warpAffine maps the middles of pixels.
    matrix = np.array([[across, 0.0, (across - 1) / 2 - first[1]], [0.0, down, (down - 1) / 2 - first[0]]])
    size = (out.shape[1], out.shape[0])
    out[:] = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
