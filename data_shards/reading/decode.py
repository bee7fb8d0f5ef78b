"""From encoded bytes to upright RGB pixels.

Pixels are those of `cv2.imread`, turned upright by the EXIF orientation, except that the channels are RGB. COCO's own
annotations refer to these pixels.
"""

import struct

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from data_shards.reading.scratch import Image

_JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG\r\n\x1a\n"
# Offset of the colour type in a PNG.
_PNG_COLOURS = 25


def decode_jpeg(data: bytes, buffer: UInt8[np.ndarray, " bytes"] | None = None) -> Image:
    """Decode a JPEG (or a PNG) to upright RGB.

    Grayscale becomes three equal channels, CMYK its RGB colours. Files that libjpeg reads only with a warning are left
    to OpenCV, but a file that ends early is always refused, whatever a decoder makes of it.

    Args:
        data: the file.
        buffer: memory for the pixels, large enough for them; the result may use other memory all the same.

    Raises:
        ValueError: no decoder reads the bytes, or they end early.
    """
    if data.startswith(_JPEG_START):
        try:
            return _upright(simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=buffer), exif_orientation(data))
        except ValueError as error:
            if _ends_early(data):
                raise ValueError("the JPEG ends early") from error
    if data.startswith(_PNG_START) and b"IEND" not in data[-64:]:
        raise ValueError("the PNG ends early")
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise ValueError("neither libjpeg nor OpenCV decodes it")
    return image


def image_extension(data: bytes) -> str | None:
    """Return `jpg` or `png` by the first bytes, None for anything else."""
    if data.startswith(_JPEG_START):
        return "jpg"
    return "png" if data.startswith(_PNG_START) else None


def image_size(data: bytes) -> tuple[int, int]:
    """Return width and height of the upright image, in pixels, from the header alone.

    Raises:
        ValueError: the bytes are neither a JPEG nor a PNG, or the header is damaged.
    """
    if data.startswith(_JPEG_START):
        height, width, _ = _jpeg_header(data)
        return (height, width) if exif_orientation(data) >= 5 else (width, height)
    if data.startswith(_PNG_START) and data[12:16] == b"IHDR" and len(data) > _PNG_COLOURS:
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    raise ValueError(f"neither a JPEG nor a PNG (it begins with {data[:8].hex(' ') or 'nothing'})")


def colour_space(data: bytes) -> str:
    """Return the file's colour space: `RGB` (also for YCbCr), `Gray` or `CMYK`.

    Raises:
        ValueError: as `image_size`.
    """
    if data.startswith(_JPEG_START):
        return {"Gray": "Gray", "CMYK": "CMYK", "YCCK": "CMYK"}.get(_jpeg_header(data)[2], "RGB")
    image_size(data)
    return "Gray" if data[_PNG_COLOURS] in (0, 4) else "RGB"


def _jpeg_header(data: bytes) -> tuple[int, int, str]:
    """Return height and width before EXIF turns them, and the colour space."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except KeyError as error:  # simplejpeg looks up a field that a cut header lacks
        raise ValueError("the JPEG ends inside its header") from error
    return height, width, colours


def exif_orientation(data: bytes) -> int:
    """Return the EXIF orientation of a JPEG, 1 to 8; 1 (upright) if it has none or a damaged one.

    Source:
        CIPA DC-008 (Exif 2.32), section 4.6.4, tag 0x0112.
    """
    start = _exif_start(data)
    if start < 0:
        return 1
    tiff = data[start + 6 : start + 6 + 65536]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == 0x0112 and kind == 3 and count == 1:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _exif_start(data: bytes) -> int:
    """Return the offset of the EXIF segment's contents; -1 if no segment before the pixels is one."""
    place = 2
    while (marker := data[place : place + 2])[:1] == b"\xff":
        if marker == b"\xff\xe1" and data[place + 4 : place + 10] == b"Exif\0\0":
            return place + 4
        if marker == b"\xff\xda":  # the pixels begin
            return -1
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    # Stray bytes between segments: OpenCV still reads such files, so look for the contents themselves.
    return data.find(b"Exif\0\0", 0, 65536)


def _ends_early(data: bytes) -> bool:
    # Entropy-coded data never contains the end marker FF D9, so a complete file has one after its last scan, FF DA.
    return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")


def _upright(image: Image, orientation: int) -> Image:
    if orientation == 1:
        return image
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    # Orientations 5 to 8 are transposed above; then each mirrors these axes.
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
