"""A batch, as loaders yield it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from data_shards.errors import DataError
from data_shards.loading.batch_arrays import BatchArrays

_EXTRA = ("keypoints", "depth", "dimensions", "alpha", "rescaled", "rotated", "clip_boxes")


@runtime_checkable
class Lease(Protocol):
    """A batch's piece of the loader's memory, on loan until its tensors are gone."""

    def pin(self) -> bool:
        """Register the memory with CUDA. Return True if copies from it can overlap with computation."""

    def in_use_until(self, event: "torch.cuda.Event") -> None:
        """Keep the loan until the device has passed the event."""


@dataclass
class Batch:
    """Images of one rank, or of one microbatch, with their labels."""

    images: UInt8[Tensor, "batch 3 height width"]
    """RGB, in the input frame."""
    boxes: Float32[Tensor, "batch max_objects 4"]
    """x1, y1, x2, y2 in the input frame, unclipped; 0 in unused places."""
    labels: Int64[Tensor, "batch max_objects"]
    """Index into the manifest's classes; -1 in unused places; -2 - c for a region to ignore for class c, and
    -2 - (number of classes) for one to ignore for all of them."""
    image_ids: Int64[Tensor, " batch"]
    """COCO's image ids."""
    transforms: Float32[Tensor, "batch 2 3"]
    """Image frame to input frame, as boxes move: of pixel indexes, or of edges if whole images are resized."""
    original_sizes: Int64[Tensor, "batch 2"]
    """Height and width of the image, in pixels."""
    sample_ids: Int64[Tensor, " batch"]
    """Running index over the manifest's shards."""
    epoch: int
    """Counted from 0; -1 in evaluation."""
    step: int
    """Training step over all epochs, counted from 0; in evaluation, number of the batch in this rank's share."""
    flips: Bool[Tensor, " batch"] | None = None
    """True for images that `augment` has yet to mirror."""
    colour_factors: Float32[Tensor, "batch 3"] | None = None
    """Factors of brightness, contrast and saturation."""
    colour_order: Int64[Tensor, "batch 3"] | None = None
    """The order in which they are applied: 0, 1, 2 for brightness, contrast and saturation."""
    lighting: Float32[Tensor, "batch 3"] | None = None
    """Weights of the principal colours."""
    mirror_sums: Int64[Tensor, " batch"] | None = None
    """Sum of an x in the input frame and of its mirror image: the width if boxes have edges there, one less if x is the
    index of a pixel. None stands for the latter."""
    keypoints: Float32[Tensor, "batch max_objects joints 3"] | None = None
    """x, y in the input frame and COCO's visibility; 0 for joints that are not labelled. In an image that `augment` has
    yet to mirror, left and right joints have changed places already."""
    depth: Float32[Tensor, "batch max_objects"] | None = None
    """Depth in metres. This field and the next three exist for data with 3D labels."""
    dimensions: Float32[Tensor, "batch max_objects 3"] | None = None
    """Height, width and length, in metres."""
    alpha: Float32[Tensor, "batch max_objects"] | None = None
    """Observation angle in radians, -pi .. pi."""
    calibration: Float32[Tensor, "batch 3 4"] | None = None
    """Projection matrix of the camera, for the image in the shards."""
    rescaled: Bool[Tensor, " batch"] | None = None
    """True for images whose sizes in pixels no longer match depths in metres, because of augmentation."""
    rotated: Bool[Tensor, " batch"] | None = None
    """True for images that augmentation has rotated; as published, their boxes are those of the unrotated image."""
    content_sizes: Int64[Tensor, "batch 2"] | None = None
    """Height and width of the part of the input that the image fills, from the top left corner; None where a black
    border is part of the published input."""
    clip_boxes: Float32[Tensor, "batch 4"] | None = None
    """x1, y1, x2, y2 in the input frame: the part of the input that shows the image, to whose last pixels
    CornerNet-Saccade clips its objects. None where the whole input counts."""

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
        """Labels beside boxes and classes, by the names of `encode`'s arguments."""
        return {name: getattr(self, name) for name in _EXTRA if getattr(self, name) is not None}

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input frame."""
        return self.images.shape[2], self.images.shape[3]

    def clone(self) -> "Batch":
        """Return a copy in memory of its own."""
        return self._mapped(Tensor.clone)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device. Copies to a GPU overlap with its work and read the loader's own memory."""
        device = torch.device(device)
        if device.type != "cuda":
            return self._mapped(lambda tensor: tensor.to(device))
        pinned = self._lease is not None and self._lease.pin()

        def moved(tensor: Tensor) -> Tensor:
            source = tensor if pinned or tensor.device.type != "cpu" else tensor.pin_memory()
            return source.to(device, non_blocking=True)

        batch = self._mapped(moved)
        if pinned and self._lease is not None:
            # The copies run later than this call: the loader must not overwrite their source before they are done.
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
