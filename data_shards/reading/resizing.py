"""Whole images resized by their shorter side: the sizes and the pixels of each library.

Everywhere pixels are areas, so an edge of the image moves by the exact ratio of the new side to the old one. Libraries
differ in how they round sides, and in how they shrink: Pillow averages all pixels below an output pixel, plain bilinear
resampling looks at the nearest two along each axis.
"""

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float64, Int64
from PIL import Image as PillowImage

from data_shards.reading.scratch import Image
from data_shards.settings import Resizing

Sides = Float64[np.ndarray, " images"]

# Libraries that shrink by Pillow, averaging; the others interpolate between neighbours, however far apart they are.
_AVERAGING = ("authors", "detectron2")


def resized(
    sizes: Int64[np.ndarray, "images 2"],
    shorter_sides: Int64[np.ndarray, " images"] | int,
    longer_side_limit: int,
    resizing: Resizing = "plain",
) -> Int64[np.ndarray, "images 2"]:
    """Return heights and widths with this shorter side, or less if the longer side would exceed its limit.

    Args:
        sizes: height and width of the images, in pixels.
        shorter_sides: the wanted shorter side, of each image or of all.
        longer_side_limit: most pixels of the longer side.
        resizing: the library whose rounding to follow.

    Returns:
        At least one pixel each. The longer side never exceeds the next multiple of 32 of its limit, which the rounding
        of "authors" would do for images more than twenty times as long as wide.
    """
    shorter, longer = sizes.min(axis=1).astype(np.float64), sizes.max(axis=1).astype(np.float64)
    wanted = np.broadcast_to(np.asarray(shorter_sides, dtype=np.float64), shorter.shape)
    short, long = _ROUNDING[resizing](shorter, longer, wanted, longer_side_limit)
    short, long = np.maximum(short, 1).astype(np.int64), np.maximum(long, 1).astype(np.int64)
    long = np.minimum(long, -(-longer_side_limit // 32) * 32)
    upright = sizes[:, :1] > sizes[:, 1:]
    return np.where(upright, np.stack([long, short], axis=1), np.stack([short, long], axis=1))


def resize(image: Image, out: Image, resizing: Resizing = "plain") -> None:
    """Resize an image to the size of `out`, as a library does.

    Source:
        tianzhi0549/FCOS, fcos_core/data/transforms/transforms.py, and facebookresearch/detectron2,
        detectron2/data/transforms/transform.py (Pillow); torchvision/models/detection/transform.py and
        open-mmlab/mmcv, mmcv/image/geometric.py (plain).
    """
    height, width = out.shape[:2]
    if image.shape == out.shape:
        out[:] = image
    elif resizing in _AVERAGING and (height < image.shape[0] or width < image.shape[1]):
        pillow = PillowImage.fromarray(image).resize((width, height), PillowImage.Resampling.BILINEAR)
        out[:] = np.asarray(pillow)
    else:
        # Enlarging is the same everywhere, up to the rounding of a pixel.
        cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)


# Each rule repeats its library's operations in their order, in float64 as Python's own numbers are: products such as
# 289 * (800 / 289) fall below 800, and a side that is rounded down loses a pixel then.


def _authors(shorter: Sides, longer: Sides, wanted: Sides, limit: int) -> tuple[Sides, Sides]:
    """Round a limited shorter side to the nearest pixel; the longer side follows from it, rounded down.

    Source:
        tianzhi0549/FCOS, fcos_core/data/transforms/transforms.py, `Resize.get_size`.
    """
    limited = np.rint(limit * shorter / longer)
    short = np.maximum(1, np.where(longer / shorter * wanted > limit, limited, wanted))
    return short, np.floor(short * longer / shorter)


def _torchvision(shorter: Sides, longer: Sides, wanted: Sides, limit: int) -> tuple[Sides, Sides]:
    """Multiply both sides by one factor, and round them down.

    Source:
        torchvision/models/detection/transform.py, `_resize_image_and_masks`.
    """
    factor = np.minimum(wanted / shorter, limit / longer)
    return np.floor(shorter * factor), np.floor(longer * factor)


def _detectron2(shorter: Sides, longer: Sides, wanted: Sides, limit: int) -> tuple[Sides, Sides]:
    """Multiply the longer side by a factor, both sides by another if that exceeds the limit, and round to the nearest.

    Source:
        facebookresearch/detectron2, detectron2/data/transforms/augmentation_impl.py,
        `ResizeShortestEdge.get_output_shape`; AdelaiDet uses it as it is.
    """
    long = wanted / shorter * longer
    factor = np.where(long > limit, limit / long, 1.0)
    return np.floor(wanted * factor + 0.5), np.floor(long * factor + 0.5)


def _mmdetection(shorter: Sides, longer: Sides, wanted: Sides, limit: int) -> tuple[Sides, Sides]:
    """Multiply both sides by one factor, and round them to the nearest pixel.

    Source:
        open-mmlab/mmcv, mmcv/image/geometric.py, `rescale_size`.
    """
    factor = np.minimum(limit / longer, wanted / shorter)
    return np.floor(shorter * factor + 0.5), np.floor(longer * factor + 0.5)


_ROUNDING: dict[Resizing, Callable[[Sides, Sides, Sides, int], tuple[Sides, Sides]]] = {
    "plain": _authors,
    "authors": _authors,
    "torchvision": _torchvision,
    "detectron2": _detectron2,
    "mmdetection": _mmdetection,
}
