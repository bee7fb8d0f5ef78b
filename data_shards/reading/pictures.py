"""Pictures as samples: files, encoded bytes or pixels, without labels, decoded as those of shards are."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_shards.errors import DataError
from data_shards.format.manifest import CocoClass
from data_shards.reading.decode import decode_jpeg, image_extension, image_size, other_content
from data_shards.reading.samples import SampleLabels
from data_shards.reading.scratch import Image, Scratch

Picture = str | os.PathLike[str] | bytes | UInt8[np.ndarray, "_ _ 3"]
"""A file, the bytes of one, or upright RGB pixels."""


def read_picture(picture: Picture, name: str = "") -> Image:
    """Read one picture: the upright RGB pixels that its bytes have in shards.

    Args:
        picture: a JPEG or PNG file, the bytes of one, or pixels.
        name: name of the picture in errors; the path of a file needs none.

    Raises:
        DataError: it cannot be read, or is neither a JPEG nor a PNG.
    """
    return PictureSamples([picture], [name or _name(picture, 0)]).image(0)


class PictureSamples:
    """Pictures by number, each for one reading or more, at best in turn: then a file is read and decoded only once.

    Shards keep the bytes of an image unless they were built with `--max-size`, so a file and its copy in shards have
    the same pixels: those of `decode_jpeg`. Building refuses whatever is neither a JPEG nor a PNG, and so do pictures.

    Args:
        pictures: files, bytes, or pixels.
        names: the pictures in errors; None takes the paths of files, and numbers the others.
    """

    def __init__(self, pictures: Sequence[Picture], names: Sequence[str] | None = None) -> None:
        self._pictures = pictures
        self._names = names if names is not None else [_name(one, number) for number, one in enumerate(pictures)]
        self._data: dict[int, bytes] = {}
        self._sizes: dict[int, tuple[int, int]] = {}
        self._scratch = Scratch()
        self._last = _Last()

    @property
    def classes(self) -> tuple[CocoClass, ...]:
        """No classes, as there are no labels."""
        return ()

    def __len__(self) -> int:
        return len(self._pictures)

    def size(self, number: int) -> tuple[int, int]:
        """Return height and width of the upright picture, in pixels, from its header.

        Raises:
            DataError: the file cannot be read, or is neither a JPEG nor a PNG.
        """
        picture = self._pictures[number]
        if isinstance(picture, np.ndarray):
            return picture.shape[0], picture.shape[1]
        if (size := self._sizes.get(number)) is None:
            data = self._data[number] = self._read(number)
            try:
                width, height = image_size(data)
            except ValueError as error:
                raise DataError(f"{self._names[number]} does not decode ({error}).") from error
            size = self._sizes[number] = (height, width)
        return size

    def image(self, number: int) -> Image:
        """Return the upright picture.

        The next picture that the same thread asks for overwrites the pixels.

        Raises:
            DataError: the file cannot be read or decoded, or is neither a JPEG nor a PNG.
        """
        picture = self._pictures[number]
        if isinstance(picture, np.ndarray):
            return picture
        if self._last.number == number and self._last.image is not None:
            return self._last.image
        height, width = self.size(number)
        # The scratch memory is about to be overwritten, and with it the last picture.
        self._last.number = -1
        try:
            data = self._data.pop(number, None) or self._read(number)
            image = decode_jpeg(data, self._scratch.bytes("decoded", height * width * 3))
        except ValueError as error:
            raise DataError(f"{self._names[number]} does not decode ({error}).") from error
        if image.shape[:2] != (height, width):
            raise DataError(
                f"{self._names[number]} has {image.shape[1]} x {image.shape[0]} pixels, but its header says "
                f"{width} x {height}; save it anew."
            )
        self._last.number, self._last.image = number, image
        return image

    def labels(self, number: int) -> SampleLabels:
        """Return no objects; the image id is the number."""
        return SampleLabels(
            image_id=number,
            boxes=np.zeros((0, 4), dtype=np.float32),
            labels=np.zeros(0, dtype=np.int64),
            iscrowd=np.zeros(0, dtype=np.bool_),
        )

    def take_notes(self) -> list[str]:
        """Return nothing to log: a picture that cannot be read is refused."""
        return []

    def close(self) -> None:
        """Let go of the bytes that were read for a size alone."""
        self._data.clear()

    def _read(self, number: int) -> bytes:
        picture = self._pictures[number]
        assert not isinstance(picture, np.ndarray)
        if isinstance(picture, bytes):
            data = picture
        else:
            try:
                data = Path(picture).read_bytes()
            except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
                reason = getattr(error, "strerror", None) or error
                raise DataError(f"{self._names[number]} cannot be read ({reason}).") from error
        if image_extension(data) is None:
            raise DataError(f"{self._names[number]} is {other_content(data)}.")
        return data


class _Last(threading.local):
    """The picture that a thread decoded last: its views follow one another."""

    number = -1
    image: Image | None = None


def _name(picture: Picture, number: int) -> str:
    return os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else f"picture {number}"
