"""Smaller images for smaller shards: an image is decoded, resized and encoded again, and its labels are scaled."""

from dataclasses import replace
from typing import Any

import cv2
import simplejpeg

from data_shards.building.coco import CocoImage
from data_shards.building.coco_checks import Json
from data_shards.building.coco_fields import fits_float32
from data_shards.reading.decode import decode_jpeg


def shrunk_size(width: int, height: int, max_size: int) -> tuple[int, int]:
    """Return width and height with the longer side at most `max_size` pixels; 0 sets no limit."""
    longer = max(width, height)
    if not max_size or longer <= max_size:
        return width, height
    return max(1, round(width * max_size / longer)), max(1, round(height * max_size / longer))


def shrink(image: CocoImage, data: bytes, max_size: int, quality: int) -> tuple[CocoImage, bytes]:
    """Shrink an image and its annotations to a longer side of at most `max_size` pixels.

    Pixels are averaged (OpenCV's INTER_AREA) and stored upright, as a JPEG without metadata. Boxes, areas, joints,
    polygons and the camera's matrix are scaled by the exact ratio of the sides. A segmentation in run lengths, or in
    a form of its own, cannot be scaled and is left out.

    Args:
        image: the annotations.
        data: the encoded image.
        max_size: of the longer side, in pixels; 0 sets no limit.
        quality: JPEG quality, 1 to 100.

    Returns:
        The new annotations and encoded image; the same ones if the image is not longer than `max_size`.
    """
    width, height = shrunk_size(image.width, image.height, max_size)
    if (width, height) == (image.width, image.height):
        return image, data
    pixels = cv2.resize(decode_jpeg(data), (width, height), interpolation=cv2.INTER_AREA)
    # Sides are rounded to whole pixels, so the two ratios differ slightly.
    x, y = width / image.width, height / image.height
    calibration = image.calibration
    if calibration is not None:
        # The first two rows of the projection yield pixels; the third yields the depth they are divided by.
        calibration = [[factor * value for value in row] for factor, row in zip((x, y, 1.0), calibration, strict=True)]
    smaller = replace(
        image,
        width=width,
        height=height,
        annotations=tuple(_scaled(item, x, y) for item in image.annotations),
        calibration=calibration,
    )
    return smaller, simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")


def _scaled(annotation: Json, x: float, y: float) -> Json:
    left, upper, width, height = annotation["bbox"]
    scaled = annotation | {"bbox": [left * x, upper * y, width * x, height * y]}
    if (area := annotation.get("area")) is not None:
        scaled["area"] = area * x * y
    if joints := annotation.get("keypoints"):
        if len(joints) % 3 == 0:
            scaled["keypoints"] = [value * (x, y, 1)[place % 3] for place, value in enumerate(joints)]
        else:
            del scaled["keypoints"]
    if (segmentation := annotation.get("segmentation")) is not None:
        if _is_polygon(segmentation):  # written flat, without the list around it
            scaled["segmentation"] = _scaled_polygon(segmentation, x, y)
        elif isinstance(segmentation, list) and all(map(_is_polygon, segmentation)):
            scaled["segmentation"] = [_scaled_polygon(polygon, x, y) for polygon in segmentation]
        else:
            del scaled["segmentation"]
    return scaled


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) % 2 == 0 and all(map(fits_float32, value))


def _scaled_polygon(polygon: list[float], x: float, y: float) -> list[float]:
    return [value * (x, y)[place % 2] for place, value in enumerate(polygon)]
