"""A batch as the loaders hand it over, and the arrays that threads fill to make one."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_shards.augment import Draws
from data_shards.decode import decode_jpeg, transform_boxes, warp
from data_shards.errors import DataError
from data_shards.shards import Shards

Int64 = NDArray[np.int64]


@dataclass
class Batch:
    """Images of one rank, or one microbatch of them, and what is known of them."""

    images: Tensor
    """uint8 `(batch, 3, height, width)`, RGB, in the input frame."""
    boxes: Tensor
    """float32 `(batch, max_objects, 4)`: x1, y1, x2, y2 in the input frame, unclipped; 0 where there is none."""
    labels: Tensor
    """int64 `(batch, max_objects)`: index into the manifest's classes; -1 where there is none."""
    image_ids: Tensor
    """int64 `(batch,)`: COCO's image ids."""
    transforms: Tensor
    """float32 `(batch, 2, 3)`: image frame to input frame."""
    original_sizes: Tensor
    """int64 `(batch, 2)`: height and width of the image."""
    sample_ids: Tensor
    """int64 `(batch,)`: running index over the manifest's shards."""
    epoch: int
    """Counted from 0; -1 in evaluation."""
    step: int
    """The training step over all epochs, counted from 0; in evaluation the batch of this rank."""
    flips: Tensor | None = None
    """bool `(batch,)`: images that `augment` still has to mirror."""
    colour_factors: Tensor | None = None
    """float32 `(batch, 3)`: for brightness, contrast, saturation."""
    colour_order: Tensor | None = None
    """int64 `(batch, 3)`: the order in which they are applied."""
    lighting: Tensor | None = None
    """float32 `(batch, 3)`: weights of the principal colours."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input frame."""
        return self.images.shape[2], self.images.shape[3]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device; from pinned memory where that lets the copy run beside the work."""
        asynchronous = torch.device(device).type == "cuda"

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            source = value.pin_memory() if asynchronous and value.device.type == "cpu" else value
            return source.to(device, non_blocking=asynchronous)

        return replace(self, **{item.name: moved(getattr(self, item.name)) for item in fields(self)})


@dataclass(frozen=True)
class Slot:
    """The arrays behind one batch; each row is filled by one thread."""

    images: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: Int64
    image_ids: Int64
    transforms: NDArray[np.float32]
    original_sizes: Int64
    sample_ids: Int64
    flips: NDArray[np.bool_] | None = None
    colour_factors: NDArray[np.float32] | None = None
    colour_order: Int64 | None = None
    lighting: NDArray[np.float32] | None = None

    @classmethod
    def empty(cls, sample_ids: Int64, input_size: tuple[int, int], max_objects: int, *, augmented: bool) -> "Slot":
        """Arrays for these samples; `augmented` ones also hold what the device will need of the draws."""
        count = len(sample_ids)
        slot = cls(
            images=np.empty((count, 3, *input_size), dtype=np.uint8),
            boxes=np.zeros((count, max_objects, 4), dtype=np.float32),
            labels=np.full((count, max_objects), -1, dtype=np.int64),
            image_ids=np.zeros(count, dtype=np.int64),
            transforms=np.zeros((count, 2, 3), dtype=np.float32),
            original_sizes=np.zeros((count, 2), dtype=np.int64),
            sample_ids=np.array(sample_ids, dtype=np.int64),
        )
        if not augmented:
            return slot
        return replace(
            slot,
            flips=np.zeros(count, dtype=np.bool_),
            colour_factors=np.ones((count, 3), dtype=np.float32),
            colour_order=np.zeros((count, 3), dtype=np.int64),
            lighting=np.zeros((count, 3), dtype=np.float32),
        )

    def batch(self, epoch: int, step: int) -> Batch:
        """Tensors over these very arrays: what the threads still write appears in them."""
        arrays = {item.name: getattr(self, item.name) for item in fields(self)}
        tensors = {name: None if array is None else torch.from_numpy(array) for name, array in arrays.items()}
        return Batch(epoch=epoch, step=step, **tensors)  # type: ignore[arg-type]

    def take(self, draws: Draws) -> None:
        """Note what the device will need of the draws."""
        for name in ("flips", "colour_factors", "colour_order", "lighting"):
            getattr(self, name)[:] = getattr(draws, name)

    def fill(self, row: int, shards: Shards, shard: int, place: int, matrix: NDArray[np.float64]) -> None:
        """Read, decode and resample one sample into one row."""
        index = shards.index(shard)
        data = shards.read_image(shard, place)
        try:
            image = decode_jpeg(data)
        except ValueError as error:
            raise DataError(
                f"shard {shards.manifest.shards[shard].name}, image {index.image_ids[place]} does not decode "
                f"({error}). Build the shards again."
            ) from error
        planes = self.images[row]
        cv2.split(warp(image, matrix, planes.shape[1:]), list(planes))
        first, last = index.row_splits[place : place + 2]
        count = min(last - first, self.labels.shape[1])
        self.boxes[row, :count] = transform_boxes(index.boxes[first : first + count], matrix)
        self.labels[row, :count] = index.labels[first : first + count]
        self.image_ids[row] = index.image_ids[place]
        self.transforms[row] = matrix
        self.original_sizes[row] = image.shape[:2]


def check_input_size(input_size: Sequence[int]) -> None:
    """Refuse an input size that is not two positive numbers."""
    if len(input_size) != 2 or min(input_size) < 1:
        raise DataError(f"input_size is {tuple(input_size)}; give height and width, 1 or more pixels each.")
