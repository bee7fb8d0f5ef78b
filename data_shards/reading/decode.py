"""From encoded bytes to upright RGB pixels.

Pixels are those of `cv2.imread`, turned upright by the EXIF orientation, except that the channels are RGB. COCO's own
annotations refer to these pixels.
"""

import re
import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from data_shards.reading.scratch import Image

_JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG\r\n\x1a\n"
# Offset of the colour type in a PNG.
_PNG_COLOURS = 25
_JPEG_END = b"\xff\xd9"

# Zero bytes in a row that a disk leaves where it never wrote a block, and coded pixels hardly ever have.
_HOLE = bytes(256)
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
# Warnings of libjpeg after which pixels are missing or wrong. Other warnings are about headers.
_DAMAGE = re.compile(
    r"premature end|bad (Huffman|arithmetic) code|found marker|inconsistent progression|extraneous", re.IGNORECASE
)

# First bytes of files that get among images, what they are, and what to do about them.
_CONVERT = "convert it to JPEG or PNG"
_FETCH = "fetch the image itself"
_KINDS = (
    (rb"RIFF....WEBP", "a WebP picture", _CONVERT),
    (rb"GIF8", "a GIF picture", _CONVERT),
    (rb"BM.{4}\0\0\0\0", "a BMP picture", _CONVERT),
    (rb"II[*+]\0|MM\0[*+]", "a TIFF picture, or a camera's raw file", _CONVERT),
    (rb"....ftyp(avif|avis)", "an AVIF picture", _CONVERT),
    (rb"....ftyp(hei|hev|mif1|msf1)", "a HEIC picture", _CONVERT),
    (rb"....ftyp|\x1aE\xdf\xa3", "a video", "export its frames as JPEG or PNG"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture", _CONVERT),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture", _CONVERT),
    (rb"8BPS", "a Photoshop file", _CONVERT),
    (rb"%PDF", "a PDF document", _CONVERT),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the image", "run git lfs pull"),
    (rb"PK\x03\x04", "a ZIP archive", "unpack it"),
    (rb"\x1f\x8b|7z\xbc\xaf|Rar!|\xfd7zXZ|BZh", "an archive", "unpack it"),
    (rb"(?i)\s*(<\?xml[^>]*>\s*|<!--.*?-->\s*|<!doctype svg[^>]*>\s*)*<svg", "an SVG drawing", _CONVERT),
    (rb"(?i)\s*(<!--.*?-->\s*)*<(!doctype html|html|head|body)", "an HTML page, such as one to log in", _FETCH),
    (rb"\s*<\?xml", "an XML file, such as a server's error message", _FETCH),
    (rb"\s*[\[{]", "a JSON file, such as a server's error message", _FETCH),
    (rb"\0{8}", "a file of zeros, which a disk left", "copy it again"),
    (rb"\Z", "an empty file", "copy it again"),
)


def decode_jpeg(data: bytes, buffer: UInt8[np.ndarray, " bytes"] | None = None) -> Image:
    """Decode a JPEG (or a PNG) to upright RGB.

    Grayscale becomes three equal channels, CMYK its RGB colours. Files that libjpeg reads only with a harmless warning
    are left to OpenCV, but a file whose pixels end early is always refused, whatever a decoder makes of it.

    Args:
        data: the file.
        buffer: memory for the pixels, large enough for them; the result may use other memory all the same.

    Raises:
        ValueError: no decoder reads the bytes, or they end early or have a hole.
    """
    if data.startswith(_JPEG_START):
        try:
            return _upright(simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=buffer), exif_orientation(data))
        except ValueError as error:
            if _ends_early(data):
                raise ValueError("the JPEG ends early") from error
            if damage := _damage(data, str(error)):
                raise ValueError(f"the JPEG is damaged: {damage}") from error
    if data.startswith(_PNG_START) and not any(kind == b"IEND" for kind, _ in _png_chunks(data)):
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
        return (height, width) if exif_orientation(data) >= 5 else (width, height)
    if data.startswith(_PNG_START):
        raise ValueError("the PNG ends inside its header")
    raise ValueError(other_content(data))


def other_content(data: bytes) -> str:
    """Describe the content of a file that is neither a JPEG nor a PNG, and what to do about it."""
    for start, kind, advice in _KINDS:
        if re.match(start, data[:1024], re.DOTALL):
            return f"neither a JPEG nor a PNG, but {kind}: {advice}"
    return f"neither a JPEG nor a PNG (it begins with {data[:8].hex(' ')})"


def png_depth(data: bytes) -> tuple[int, bool]:
    """Return bits per channel of a PNG, and whether it can be transparent; 8 and False for other files."""
    if not data.startswith(_PNG_START) or len(data) <= _PNG_COLOURS:
        return 8, False
    has_alpha = data[_PNG_COLOURS] in (4, 6) or any(kind == b"tRNS" for kind, _ in _png_chunks(data))
    return data[_PNG_COLOURS - 1], has_alpha


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
    """Return the EXIF orientation of a JPEG or PNG, 1 to 8; 1 (upright) if it has none or a damaged one.

    Source:
        CIPA DC-008 (Exif 2.32), section 4.6.4, tag 0x0112; PNG (third edition), section 11.3.4.6, eXIf.
    """
    if data.startswith(_PNG_START):
        tiff = next((contents for kind, contents in _png_chunks(data) if kind == b"eXIf"), b"")
    else:
        start = _exif_start(data)
        tiff = data[start + 6 : start + 6 + 65536] if start >= 0 else b""
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


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and contents of the chunks up to the end chunk; contents only of eXIf, which readers drop if damaged.

    Stops without an end chunk where the file is cut. Bytes after the end chunk do not belong to the PNG.
    """
    place = len(_PNG_START)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            return
        contents = b""
        if kind == b"eXIf" and zlib.crc32(data[place + 4 : end]) == int.from_bytes(data[end : end + 4]):
            contents = data[place + 8 : end]
        yield kind, contents
        if kind == b"IEND":
            return
        place = end + 4


def _ends_early(data: bytes) -> bool:
    # Entropy-coded data never contains the end marker FF D9, so a complete file has one after its last scan, FF DA.
    return data.rfind(_JPEG_END) <= data.rfind(b"\xff\xda")


def _damage(data: bytes, warning: str) -> str:
    """Return libjpeg's warning if it means that pixels are missing or wrong, else nothing."""
    # Decoding stops at the first warning, which may hide another. So what a harmless one is about is taken out.
    extraneous = _EXTRANEOUS.search(warning)
    if not _DAMAGE.search(warning) or (extraneous and extraneous[2] != "d9"):
        data = _mended(data)
        warning = _warning(data)
        extraneous = _EXTRANEOUS.search(warning)
    if extraneous and extraneous[2] == "d9":
        # Bytes are left before the end marker: padding, unless the zeros before them were decoded as pixels.
        pixels = data.find(b"\xff\xda")
        end = data.find(_JPEG_END, pixels)
        padding = end - int(extraneous[1])
        if data.find(_HOLE, pixels, padding) >= 0:
            return "zeros in the middle of its data"
        warning = _warning(data[:padding] + data[end:])
    return warning.removeprefix("Corrupt JPEG data: ") if _DAMAGE.search(warning) else ""


def _warning(data: bytes) -> str:
    try:
        simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        return str(error)
    return ""


def _mended(data: bytes) -> bytes:
    """Return a JPEG without the parts of its header that libjpeg warns about and that do not matter to damage."""
    parts, place = [data[:2]], 2
    while (at := data.find(b"\xff", place)) >= 0 and at + 4 <= len(data):
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xDA:
            parts.append(data[at:])
            break
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:
            place = at + 1  # a stray byte, not a segment
            continue
        if marker == 0xFE or 0xE0 <= marker <= 0xEF:
            place = end  # a comment, or data of applications
            continue
        parts.append(data[at:end])
        place = end
    return b"".join(parts)


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
