"""The images that a predictor takes: a path, the bytes of a file, an array or a PIL image."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from data_shards.reading.pictures import Picture
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    import PIL.Image

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | NDArray[np.uint8] | PIL.Image.Image"
"""A JPEG or PNG file or its bytes; upright RGB pixels `(height, width, 3)` or gray ones `(height, width)`, uint8; or a
PIL image."""

_TAKEN = (
    "give a path, a file's bytes, a uint8 array (height, width, 3) in RGB or (height, width) in gray, or a PIL image"
)


def as_picture(image: Any, name: str) -> Picture:
    """Return an image in the form that reading takes.

    Args:
        image: as `ImageLike`.
        name: name of the image in errors.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(image, (str, os.PathLike)):
        return _file(os.fspath(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, np.ndarray):
        return _pixels(image, name)
    import PIL.Image

    if isinstance(image, PIL.Image.Image):
        return _of_pil(image, name)
    hint = ""
    if type(image).__module__.partition(".")[0] == "torch":
        hint = "; of a tensor (3, height, width), that is tensor.permute(1, 2, 0).byte().cpu().numpy()"
    raise ConfigError(f"{name} is a {type(image).__name__}; {_TAKEN}{hint}.")


def _file(path: str | bytes) -> str:
    text = os.fsdecode(path)
    if "://" in text:
        raise ConfigError(f"{text} is an address, not a file; download it, or run `aweigh predict`, which reads s3://.")
    if Path(text).is_dir():
        raise ConfigError(f"{text} is a folder; give a list of its images, or run `aweigh predict`.")
    return text


def _pixels(image: NDArray[Any], name: str) -> NDArray[np.uint8]:
    shape = " x ".join(map(str, image.shape)) or "without dimensions"
    what = f"{name} is an array of {image.dtype}, {shape}"
    if image.dtype != np.uint8:
        raise ConfigError(f"{what}; pixels have to be uint8, 0 to 255.")
    if image.ndim == 3 and image.shape[2] == 4:
        raise ConfigError(f"{what}; leave out the fourth channel, as in image[..., :3].")
    if image.ndim == 4:
        raise ConfigError(f"{what}; give a list of images instead of one array.")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ConfigError(f"{what}; {_TAKEN}.")
    if not image.size:
        raise ConfigError(f"{what}; it has no pixels.")
    # OpenCV takes no views with negative strides, such as image[..., ::-1].
    return np.ascontiguousarray(image)


def _of_pil(image: "PIL.Image.Image", name: str) -> NDArray[np.uint8]:
    """Return upright RGB pixels; transparency is left out, as from a PNG file."""
    from PIL import ImageOps

    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            # The upper byte, as OpenCV reads PNGs of 16 bits; PIL itself would cut off everything above 255.
            gray = (np.asarray(upright) >> 8).astype(np.uint8)
            return _pixels(gray, name)
        if upright.mode in ("I", "F"):
            raise ConfigError(f"{name} is a PIL image of mode {upright.mode}, whose range is unknown; convert it to L.")
        return _pixels(np.array(upright.convert("RGB")), name)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{name} is a PIL image that cannot be converted to RGB ({error}).") from error
