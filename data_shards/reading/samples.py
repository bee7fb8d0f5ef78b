"""Samples by number: an image with its labels, wherever it comes from."""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int64

from data_shards.errors import DataError
from data_shards.format.manifest import CocoClass
from data_shards.order.plan import Plan, World
from data_shards.reading.decode import decode_jpeg
from data_shards.reading.decoded_cache import DecodedImages
from data_shards.reading.scratch import Image, Scratch
from data_shards.reading.shards import Shards

Undecodable = Literal["refuse", "gray"]


@dataclass(frozen=True)
class SampleLabels:
    """The annotations of one sample, in the order of its file."""

    image_id: int
    """COCO's image id."""
    boxes: Float32[np.ndarray, "objects 4"]
    """x1, y1, x2, y2 in the image frame, unclipped."""
    labels: Int64[np.ndarray, " objects"]
    """Index of each object's class; negative for regions to ignore (see `Batch.labels`)."""
    iscrowd: Bool[np.ndarray, " objects"]
    """True for boxes around crowds."""
    keypoints: Float32[np.ndarray, "objects joints 3"] | None = None
    """x, y in the image frame and COCO's visibility."""
    depth: Float32[np.ndarray, " objects"] | None = None
    """Depth of each object's middle, in metres."""
    dimensions: Float32[np.ndarray, "objects 3"] | None = None
    """Height, width and length, in metres."""
    alpha: Float32[np.ndarray, " objects"] | None = None
    """Observation angle, in radians."""
    calibration: Float32[np.ndarray, "3 4"] | None = None
    """Projection matrix of the camera."""


@runtime_checkable
class Samples(Protocol):
    """Images and their labels, by number from 0. Safe to use from several threads."""

    @property
    def classes(self) -> tuple[CocoClass, ...]:
        """The classes, in the order of the labels."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def size(self, number: int) -> tuple[int, int]:
        """Return height and width of an image, in pixels, without decoding it."""

    def image(self, number: int) -> Image | None:
        """Return the upright image, or None to use gray without objects in its place.

        The next call of the same thread may overwrite the pixels.

        Raises:
            DataError: the image cannot be read.
        """

    def labels(self, number: int) -> SampleLabels:
        """Return the annotations of an image."""

    def take_notes(self) -> list[str]:
        """Return the lines to log since the last call."""

    def close(self) -> None:
        """Stop reading."""


class ShardSamples:
    """The samples of a split's shards; a number is the running index over the manifest's shards.

    Args:
        shards: the opened shards.
        undecodable: what to do about an image whose bytes are intact but that no decoder reads: "refuse" raises an
            error; "gray" uses a gray image without objects and notes it.
        decoded: cache of decoded images; None decodes every time.
    """

    def __init__(
        self, shards: Shards, *, undecodable: Undecodable = "refuse", decoded: DecodedImages | None = None
    ) -> None:
        self.shards = shards
        self._ends = list(accumulate(shard.samples for shard in shards.manifest.shards))
        self._undecodable = undecodable
        self._decoded = decoded
        self._scratch = Scratch()
        self._replaced: set[int] = set()
        self._notes: list[str] = []

    @property
    def classes(self) -> tuple[CocoClass, ...]:
        """The manifest's classes."""
        return self.shards.manifest.classes

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def size(self, number: int) -> tuple[int, int]:
        """Return height and width of an image, in pixels, from the shard's index."""
        return self.shards.size(*self.locate(number))

    def image(self, number: int) -> Image | None:
        """Return the upright image, or None to use gray in its place.

        The next image that the same thread asks for overwrites the pixels.

        Raises:
            DataError: the shard or the image differs from the manifest or the index, or the image does not decode.
        """
        shard, row = self.locate(number)
        height, width = self.shards.size(shard, row)
        buffer = self._scratch.bytes("decoded", height * width * 3)
        if self._decoded is not None and self._decoded.read(shard, row, buffer):
            return buffer.reshape(height, width, 3)
        data = self.shards.read_image(shard, row)
        try:
            image = decode_jpeg(data, buffer)
        except ValueError as error:
            self._refuse_or_note(number, str(error))
            return None
        # An image whose pixels differ in size from its index would not fit its place in the cache's file.
        if self._decoded is not None and image.shape == (height, width, 3):
            self._decoded.write(shard, row, np.ascontiguousarray(image))
        return image

    def labels(self, number: int) -> SampleLabels:
        """Return the annotations of an image, from the shard's index; no JSON is parsed."""
        shard, row = self.locate(number)
        index = self.shards.index(shard)
        own = slice(*index.row_splits[row : row + 2].tolist())
        return SampleLabels(
            image_id=int(index.image_ids[row]),
            boxes=index.boxes[own],
            labels=index.labels[own],
            iscrowd=index.iscrowd[own],
            keypoints=None if index.keypoints is None else index.keypoints[own],
            depth=None if index.depth is None else index.depth[own],
            dimensions=None if index.dimensions is None else index.dimensions[own],
            alpha=None if index.alpha is None else index.alpha[own],
            calibration=None if index.calibration is None else index.calibration[row],
        )

    def locate(self, number: int) -> tuple[int, int]:
        """Return the shard of a sample and its row there."""
        shard = bisect_right(self._ends, number)
        return shard, number - (self._ends[shard - 1] if shard else 0)

    def fetch_ahead(self, plan: Plan, world: World, step: int, stop_step: int | None) -> None:
        """Fetch shards before they are needed; see `Shards.fetch_ahead`."""
        self.shards.fetch_ahead(plan, world, step, stop_step)

    def reached(self, step: int) -> None:
        """Let go of shards that only earlier steps need."""
        self.shards.reached(step)

    def take_notes(self) -> list[str]:
        """Return the lines to log since the last call: one for each image that gray replaces, once."""
        notes, self._notes = self._notes, []
        if self._decoded is not None:
            notes += self._decoded.take_notes()
        return notes

    def close(self) -> None:
        """Stop fetching and let go of the files."""
        self.shards.close()

    def _refuse_or_note(self, number: int, reason: str) -> None:
        shard, row = self.locate(number)
        image_id = self.shards.index(shard).image_ids[row]
        what = f"shard {self.shards.manifest.shards[shard].name}, image {image_id} does not decode ({reason})"
        if self._undecodable == "refuse":
            raise DataError(f"{what}. Build the shards again without it, or set data.undecodable to gray.")
        if number not in self._replaced:
            self._replaced.add(number)
            self._notes.append(f"{what}: a gray image without objects replaces it")
