"""A batch as the loaders hand it over."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from data_shards.errors import DataError
from data_shards.loading.batch_arrays import BatchArrays

_EXTRA = ("keypoints", "depth", "dimensions", "alpha", "rescaled", "rotated")


class Lease(Protocol):
    """The piece of the loader's memory that a batch lies in, on loan until its tensors are gone."""

    def pin(self) -> bool:
        """Make the memory known to CUDA; whether copies from it may run beside the work."""

    def in_use_until(self, event: "torch.cuda.Event") -> None:
        """Do not take the memory back before the device has passed the event."""


@dataclass
class Batch:
    """Images of one rank, or one microbatch of them, and what is known of them."""

    images: Tensor
    """uint8 `(batch, 3, height, width)`, RGB, in the input frame."""
    boxes: Tensor
    """float32 `(batch, max_objects, 4)`: x1, y1, x2, y2 in the input frame, unclipped; 0 where there is none."""
    labels: Tensor
    """int64 `(batch, max_objects)`: index into the manifest's classes; -1 where there is none; -2 - c for something
    that is to be ignored for class c, and -2 - classes for all of them."""
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
    keypoints: Tensor | None = None
    """float32 `(batch, max_objects, joints, 3)`: x, y in the input frame and COCO's visibility; 0 where a joint is not
    labelled. In an image that `augment` still has to mirror, left and right have changed places already."""
    depth: Tensor | None = None
    """float32 `(batch, max_objects)`: in metres; this and the next ones for data with 3D labels."""
    dimensions: Tensor | None = None
    """float32 `(batch, max_objects, 3)`: height, width and length, in metres."""
    alpha: Tensor | None = None
    """float32 `(batch, max_objects)`: observation angle in radians, -pi .. pi."""
    calibration: Tensor | None = None
    """float32 `(batch, 3, 4)`: projection matrix of the camera, for the image as it lies in the shards."""
    rescaled: Tensor | None = None
    """bool `(batch,)`: images whose augmentation parted their sizes in pixels from depths in metres."""
    rotated: Tensor | None = None
    """bool `(batch,)`: images that augmentation has turned; boxes are those of the unturned one, as published."""
    content_sizes: Tensor | None = None
    """int64 `(batch, 2)`: height and width that the image fills of its input, from the top left corner; None where
    black border is part of the published input."""

    def __post_init__(self) -> None:
        self._lease: Lease | None = None

    @classmethod
    def over(cls, arrays: BatchArrays, epoch: int, step: int, lease: Lease | None = None) -> "Batch":
        """Return tensors that share the memory of these arrays."""
        values = {item.name: getattr(arrays, item.name) for item in fields(arrays)}
        tensors = {name: None if array is None else torch.from_numpy(array) for name, array in values.items()}
        batch = cls(epoch=epoch, step=step, **tensors)  # type: ignore[arg-type]
        batch._lease = lease
        return batch

    @property
    def extra(self) -> dict[str, Tensor]:
        """What detectors may want to know beside boxes and labels, by the names that their `encode` takes."""
        return {name: getattr(self, name) for name in _EXTRA if getattr(self, name) is not None}

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input frame."""
        return self.images.shape[2], self.images.shape[3]

    def clone(self) -> "Batch":
        """The same batch in memory of its own."""
        return self._mapped(Tensor.clone)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device; to a GPU the copy runs beside the work, out of the loader's own memory."""
        device = torch.device(device)
        if device.type != "cuda":
            return self._mapped(lambda tensor: tensor.to(device))
        pinned = self._lease is not None and self._lease.pin()

        def moved(tensor: Tensor) -> Tensor:
            source = tensor if pinned or tensor.device.type != "cpu" else tensor.pin_memory()
            return source.to(device, non_blocking=True)

        batch = self._mapped(moved)
        if pinned and self._lease is not None:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            self._lease.in_use_until(event)
        return batch

    def _mapped(self, change: Any) -> "Batch":
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if isinstance(value, Tensor)})


def check_input_size(input_size: Sequence[int]) -> None:
    """Refuse an input size that is not two positive numbers."""
    if len(input_size) != 2 or min(input_size) < 1:
        raise DataError(f"input_size is {tuple(input_size)}; give height and width, 1 or more pixels each.")
