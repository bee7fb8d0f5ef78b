"""The least work of any loader: decode, crop and resize, split into planes, without reading, checks or transfer."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray


@dataclass(frozen=True)
class Crop:
    """The visible part of an image and its place in the input, all in pixels."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    top: int
    left: int
    height: int
    width: int


def crop_of(matrix: NDArray[np.float64], size: tuple[int, int], side: int) -> Crop:
    """Round the crop that an image-to-input matrix makes of an image of this size to whole pixels."""
    spans = []
    for axis, length in ((1, size[0]), (0, size[1])):
        zoom, shift = matrix[axis, axis], matrix[axis, 2]
        first, last = max(0, round(shift)), min(side, round(shift + zoom * length))
        begin = max(0, round((first - shift) / zoom))
        end = min(length, max(begin + 1, round((last - shift) / zoom)))
        spans.append((begin, end, first, max(1, last - first)))
    (top, bottom, y, height), (left, right, x, width) = spans
    return Crop((top, bottom), (left, right), y, x, height, width)


def read_all(
    files: Sequence[bytes], crops: Sequence[Crop], batch: NDArray[np.uint8], buffer: NDArray[np.uint8] | None
) -> None:
    """Decode every image into a row of a batch.

    Args:
        files: JPEGs.
        crops: one for each file.
        batch: uint8 `(rows, 3, side, side)`; its rows are filled in turn.
        buffer: memory for the pixels of the largest image, reused for each; None lets the decoder allocate its own.
    """
    side = batch.shape[2]
    canvas = np.zeros((side, side, 3), np.uint8)
    for number, (data, crop) in enumerate(zip(files, crops, strict=True)):
        image = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=buffer)
        target = canvas[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        seen = image[slice(*crop.rows), slice(*crop.columns)]
        cv2.resize(seen, (crop.width, crop.height), dst=target, interpolation=cv2.INTER_LINEAR)
        cv2.split(canvas, list(batch[number % len(batch)]))
