"""From encoded bytes to the network's input frame: decoding, and the published crop geometry.

Images come out as `cv2.imread` gives them, turned upright by their EXIF orientation, except that the channels
are RGB. COCO's own annotations refer to these pixels.
"""

import math
import struct
import threading
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

Image = NDArray[np.uint8]

_JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG\r\n\x1a\n"
# Where the header says whether there are colours, after the size.
_PNG_COLOURS = 25


class Scratch(threading.local):
    """Memory that a thread uses again for every image: fresh pages cost a tenth of a decode.

    What is decoded or resampled into it is overwritten by the next image of the same thread.
    """

    def __init__(self) -> None:
        self._memory: dict[str, NDArray[np.uint8]] = {}
        # Of the canvas: its memory, and the rows and columns that may hold something else than black.
        self._canvas: Image | None = None
        self._seen = (0, 0, 0, 0)

    def bytes(self, use: str, size: int) -> NDArray[np.uint8]:
        """So many bytes for one use, with whatever they held before."""
        memory = self._memory.get(use)
        if memory is None or len(memory) < size:
            memory = self._memory[use] = np.empty(size, dtype=np.uint8)
        return memory[:size]

    def image(self, use: str, height: int, width: int) -> Image:
        """The same as `(height, width, 3)`."""
        return self.bytes(use, height * width * 3).reshape(height, width, 3)

    def canvas(self, height: int, width: int, top: int, bottom: int, left: int, right: int) -> Image:
        """A `(height, width, 3)` image that is black outside these rows and columns, and holds anything inside."""
        canvas = self.image("canvas", height, width)
        known = self._canvas
        if known is None or known.shape != canvas.shape or known.ctypes.data != canvas.ctypes.data:
            self._seen = (0, height, 0, width)
        self._canvas = canvas
        # Only what the last image left there: to write all of the border costs a fiftieth of a decode.
        was_top, was_bottom, was_left, was_right = self._seen
        canvas[was_top:top] = 0
        canvas[max(was_top, bottom) : was_bottom] = 0
        canvas[top:bottom, was_left:left] = 0
        canvas[top:bottom, max(was_left, right) : was_right] = 0
        self._seen = (top, bottom, left, right)
        return canvas


def decode_jpeg(data: bytes, buffer: NDArray[np.uint8] | None = None) -> Image:
    """Decode a JPEG (or a PNG) to upright RGB.

    Grayscale becomes three equal channels and CMYK its RGB colours. What libjpeg only reads with a warning is
    left to OpenCV, but a file that ends early is never taken, whatever a decoder makes of it.

    Args:
        data: the file.
        buffer: where the pixels may be put; at least as many bytes as they take. The result may lie elsewhere.

    Returns:
        uint8 `(height, width, 3)`, RGB.

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
    """`jpg` or `png` by the first bytes, None for anything else."""
    if data.startswith(_JPEG_START):
        return "jpg"
    return "png" if data.startswith(_PNG_START) else None


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of the upright image, in pixels, read from the header alone.

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
    """How the file keeps its colours: `RGB` (YCbCr counts as it), `Gray` or `CMYK`.

    Raises:
        ValueError: as `image_size`.
    """
    if data.startswith(_JPEG_START):
        return {"Gray": "Gray", "CMYK": "CMYK", "YCCK": "CMYK"}.get(_jpeg_header(data)[2], "RGB")
    image_size(data)
    return "Gray" if data[_PNG_COLOURS] in (0, 4) else "RGB"


def _jpeg_header(data: bytes) -> tuple[int, int, str]:
    """Height and width before EXIF turns them, and the colour space."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except KeyError as error:  # simplejpeg looks up what a header that ends early does not say
        raise ValueError("the JPEG ends inside its header") from error
    return height, width, colours


def exif_orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG, 1 to 8; 1 (upright) where there is none or it is damaged.

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
    """Where the EXIF segment's contents begin; -1 where no segment before the pixels is one."""
    place = 2
    while (marker := data[place : place + 2])[:1] == b"\xff":
        if marker == b"\xff\xe1" and data[place + 4 : place + 10] == b"Exif\0\0":
            return place + 4
        if marker == b"\xff\xda":  # the pixels begin
            return -1
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    # Stray bytes between segments: what OpenCV still reads is looked for as it is.
    return data.find(b"Exif\0\0", 0, 65536)


def crop_matrix(
    centre: tuple[float, float], scale: float, input_size: tuple[int, int], degrees: float = 0.0
) -> NDArray[np.float64]:
    """The published crop: the centre goes to the middle of the input, `scale` pixels fill its width.

    Args:
        centre: x, y in the image frame, in pixels.
        scale: width of the crop in image pixels.
        input_size: height and width of the input, in pixels.
        degrees: how far the crop is turned clockwise in the image; what is shown turns the other way.

    Returns:
        float64 `(2, 3)`, taking pixel indexes x, y, 1 of the image to those of the input. There is no
        half-pixel correction, as in the publication.

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
    """CenterNet's test scale: sides times `scale`, rounded down, bilinear.

    Source:
        xingyizhou/CenterNet, src/lib/detectors/base_detector.py, `pre_process`.
    """
    height, width = image.shape[:2]
    return cv2.resize(image, scaled_size((width, height), scale), interpolation=cv2.INTER_LINEAR)


def scaled_size(sides: tuple[int, int], scale: float) -> tuple[int, int]:
    """Sides of `scaled`'s result, in the order they are given."""
    return int(sides[0] * scale), int(sides[1] * scale)


def warp(image: Image, matrix: NDArray[np.float64], input_size: tuple[int, int], out: Image | None = None) -> Image:
    """Resample an image through an image-to-input matrix, as published: bilinear, black outside.

    Args:
        image: uint8 `(height, width, 3)`.
        matrix: float64 `(2, 3)`, image to input.
        input_size: height and width of the result.
        out: where the result may be put, `(*input_size, 3)`.

    Returns:
        uint8 `(*input_size, 3)`.
    """
    height, width = input_size
    return cv2.warpAffine(image, matrix, (width, height), dst=out, flags=cv2.INTER_LINEAR)


def crop_resize(
    image: Image, matrix: NDArray[np.float64], input_size: tuple[int, int], scratch: Scratch | None = None
) -> Image:
    """What `warp` gives, at a third of its cost, for matrices whose shift is one of `whole_pixel_shift`.

    The slice of the image that is seen is resized in one call. Values differ from those of `warp` by one level of
    255 at most, but where the edge of the image is in sight: there every pixel is of the image or black, and `warp`
    mixes the two. Other matrices are left to `warp`.

    Args:
        image, matrix, input_size: as for `warp`.
        scratch: memory for the result, which the next call of this thread then overwrites.
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
    """The shift nearest to a given one with which `crop_resize` works: at most half a pixel, of the larger kind, away.

    `cv2.resize` takes pixels as areas, and its slice begins with a whole one: some whole pixel edge of the image
    has to fall on a whole pixel edge of the input.
    """
    begin, place = _anchor(zoom, shift)
    begin, place = (round(begin), place) if round(begin) >= 0 else (0, round(shift + 0.5 - 0.5 * zoom))
    return place - begin * zoom - 0.5 + 0.5 * zoom


def _anchor(zoom: float, shift: float) -> tuple[float, int]:
    """Where in the image, in pixels, a slice begins whose first resized pixel is `place` of the input.

    Where the image is enlarged, slices begin before the input does: their first pixels have only one neighbour.
    """
    place = -max(0, math.ceil(0.5 * zoom - 0.5))
    return 0.5 + (place - shift - 0.5) / zoom, place


class _Span(NamedTuple):
    """One axis of a crop: pixels `begin` to `end` of the image become `resized` pixels, of which those after
    `skipped` are `first` to `last` of the input."""

    begin: int
    end: int
    resized: int
    skipped: int
    first: int
    last: int


def _only_copied(matrix: NDArray[np.float64], across: _Span, down: _Span) -> bool:
    """Whether `cv2.resize` would copy the slice though it is to be zoomed a little: its sides round to themselves."""
    sides = (across.end - across.begin, down.end - down.begin)
    return sides == (across.resized, down.resized) and not (matrix[0, 0] == 1 == matrix[1, 1])


def _span(zoom: float, shift: float, side: int, input_side: int) -> _Span | None:
    """None where no slice that is resized falls on these pixels."""
    start, place = _anchor(zoom, shift)
    begin = round(start)
    if begin < 0 or abs(start - begin) > 1e-6:
        edge = shift + 0.5 - 0.5 * zoom
        begin, place = 0, round(edge)
        if abs(edge - place) > 1e-6:
            return None
    # Up to the right neighbour of the last pixel, and no further: where that is the whole input, nothing is cut off.
    end = min(side, begin + math.floor((input_side - place - 0.5) / zoom + 1.5 - 1e-9))
    # As cv2.resize rounds.
    resized = round((end - begin) * zoom) if end > begin else 0
    first = min(max(0, place), input_side)
    last = max(first, min(input_side, place + resized))
    return _Span(begin, end, resized, first - place, first, last)


def without_rotation(
    matrix: NDArray[np.float64], input_size: tuple[int, int], *, mirrored: bool
) -> NDArray[np.float64]:
    """The crop of `matrix` as it would be unturned: what the publication takes boxes through.

    Args:
        matrix: float64 `(2, 3)`, a crop, as `Draws.matrix` gives it.
        input_size: height and width of the input.
        mirrored: the input is still to be mirrored, so the crop's centre lies a pixel beside the middle.
    """
    zoom = float(np.hypot(*matrix[0, :2]))
    middle = np.array([input_size[1] / 2 - mirrored, input_size[0] / 2])
    centre = np.linalg.solve(matrix[:, :2], middle - matrix[:, 2])
    return np.concatenate([zoom * np.eye(2), (middle - zoom * centre)[:, None]], axis=1)


def transform_points(points: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """Points `(..., 2)` as x, y through an image-to-input matrix: float32, same shape."""
    return (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)


def transform_boxes(boxes: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """Boxes in the image frame to the input frame, unclipped: float32 `(objects, 4)` to the same."""
    zoom_x, zoom_y = matrix[0, 0], matrix[1, 1]
    shift = np.array([matrix[0, 2], matrix[1, 2]] * 2)
    return (boxes * np.array([zoom_x, zoom_y] * 2) + shift).astype(np.float32)


def ends_on_last_pixel(boxes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes that end on their last pixel, within the image of height and width `size`; see `BoxRules.box_ends`.

    Source:
        tianzhi0549/FCOS, fcos_core/structures/bounding_box.py, `convert` and `clip_to_image`.
    """
    ends = np.maximum(boxes[:, 2:] - 1, boxes[:, :2])
    last = np.array([size[1] - 1, size[0] - 1] * 2, dtype=np.float32)
    return np.clip(np.concatenate([boxes[:, :2], ends], axis=1), 0, last).astype(np.float32)


def _ends_early(data: bytes) -> bool:
    # Entropy-coded data never holds the end marker FF D9, so it must follow the last start of a scan, FF DA.
    return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")


def _upright(image: Image, orientation: int) -> Image:
    if orientation == 1:
        return image
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    # After the transposition of 5 to 8: which axes each orientation mirrors.
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
