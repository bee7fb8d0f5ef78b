"""Samples as pixels: read, decoded, and what is done about an image that no decoder reads."""

from typing import Literal

import numpy as np

from data_shards.errors import DataError
from data_shards.reading.decode import Image, Scratch, decode_jpeg
from data_shards.reading.decoded_cache import DecodedImages
from data_shards.reading.shards import Shards

Undecodable = Literal["refuse", "gray"]


class Samples:
    """Images of a data set, by shard and row. Safe to use from several threads.

    Args:
        shards: where they lie.
        undecodable: what to do about an image whose bytes are those that were built, but that no decoder reads:
            "refuse" it with an error, or put plain "gray" without objects in its place and note it.
        decoded: where decoded images are kept; None keeps none.
    """

    def __init__(
        self, shards: Shards, *, undecodable: Undecodable = "refuse", decoded: DecodedImages | None = None
    ) -> None:
        self.shards = shards
        self.scratch = Scratch()
        self._undecodable = undecodable
        self._decoded = decoded
        self._replaced: set[tuple[int, int]] = set()
        self._notes: list[str] = []

    def image(self, shard: int, row: int) -> Image | None:
        """The upright image, uint8 RGB `(height, width, 3)`; None where gray is to stand in its place.

        It is overwritten by the next image that the same thread asks for.

        Raises:
            DataError: the shard or the image is not what the manifest and the index say, or it does not decode.
        """
        height, width = self.shards.size(shard, row)
        buffer = self.scratch.bytes("decoded", height * width * 3)
        if self._decoded is not None and self._decoded.read(shard, row, buffer):
            return buffer.reshape(height, width, 3)
        data = self.shards.read_image(shard, row)
        try:
            image = decode_jpeg(data, buffer)
        except ValueError as error:
            self._refuse(shard, row, str(error))
            return None
        if self._decoded is not None and image.shape == (height, width, 3):
            self._decoded.write(shard, row, np.ascontiguousarray(image))
        return image

    def take_notes(self) -> list[str]:
        """What there is to tell since the last call: a line for each image that gray stands in for, once."""
        notes, self._notes = self._notes, []
        if self._decoded is not None:
            notes += self._decoded.take_notes()
        return notes

    def _refuse(self, shard: int, row: int, reason: str) -> None:
        index = self.shards.index(shard)
        what = (
            f"shard {self.shards.manifest.shards[shard].name}, image {index.image_ids[row]} does not decode ({reason})"
        )
        if self._undecodable == "refuse":
            raise DataError(f"{what}. Build the shards again without it, or set data.undecodable to gray.")
        if (shard, row) not in self._replaced:
            self._replaced.add((shard, row))
            self._notes.append(f"{what}: gray stands in its place, without objects")
