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
from data_shards.decode import (
    decode_jpeg,
    ends_on_last_pixel,
    scaled,
    transform_boxes,
    transform_points,
    warp,
    without_rotation,
)
from data_shards.errors import DataError
from data_shards.index import ShardIndex
from data_shards.labels import joint_partners
from data_shards.manifest import Manifest
from data_shards.settings import BoxRules
from data_shards.shards import Shards

Int64 = NDArray[np.int64]

_EXTRA = ("keypoints", "depth", "dimensions", "alpha", "rescaled", "rotated")
_FROM_DRAWS = ("flips", "colour_factors", "colour_order", "lighting", "rescaled", "rotated", "content_sizes")


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

    @property
    def extra(self) -> dict[str, Tensor]:
        """What detectors may want to know beside boxes and labels, by the names that their `encode` takes."""
        return {name: getattr(self, name) for name in _EXTRA if getattr(self, name) is not None}

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
    keypoints: NDArray[np.float32] | None = None
    depth: NDArray[np.float32] | None = None
    dimensions: NDArray[np.float32] | None = None
    alpha: NDArray[np.float32] | None = None
    calibration: NDArray[np.float32] | None = None
    rescaled: NDArray[np.bool_] | None = None
    rotated: NDArray[np.bool_] | None = None
    content_sizes: Int64 | None = None

    @classmethod
    def empty(
        cls,
        sample_ids: Int64,
        input_size: tuple[int, int],
        max_objects: int,
        *,
        augmented: bool,
        manifest: Manifest | None = None,
        whole_images: bool = False,
    ) -> "Slot":
        """Arrays for these samples.

        Args:
            sample_ids: int64 `(samples,)`.
            input_size: height and width.
            max_objects: rows for each sample.
            augmented: make room for what the device will need of the draws, too.
            manifest: of the data; it says which labels there are beside boxes.
            whole_images: images are resized whole and padded on the right and below, in `content_sizes`.
        """
        count = len(sample_ids)
        slot = cls(
            images=np.empty((count, 3, *input_size), dtype=np.uint8),
            boxes=np.zeros((count, max_objects, 4), dtype=np.float32),
            labels=np.full((count, max_objects), -1, dtype=np.int64),
            image_ids=np.zeros(count, dtype=np.int64),
            transforms=np.zeros((count, 2, 3), dtype=np.float32),
            original_sizes=np.zeros((count, 2), dtype=np.int64),
            sample_ids=np.array(sample_ids, dtype=np.int64),
            content_sizes=np.zeros((count, 2), dtype=np.int64) if whole_images else None,
        )
        if manifest is not None and manifest.joints:
            slot = replace(slot, keypoints=np.zeros((count, max_objects, manifest.joints, 3), dtype=np.float32))
        if manifest is not None and manifest.in_3d:
            slot = replace(
                slot,
                depth=np.zeros((count, max_objects), dtype=np.float32),
                dimensions=np.zeros((count, max_objects, 3), dtype=np.float32),
                alpha=np.zeros((count, max_objects), dtype=np.float32),
                calibration=np.zeros((count, 3, 4), dtype=np.float32),
            )
        if not augmented:
            return slot
        return replace(
            slot,
            rescaled=np.zeros(count, dtype=np.bool_) if slot.depth is not None else None,
            rotated=np.zeros(count, dtype=np.bool_) if slot.keypoints is not None else None,
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
        for name in _FROM_DRAWS:
            if (array := getattr(self, name)) is not None:
                array[:] = getattr(draws, name)

    def fill(
        self,
        row: int,
        shards: Shards,
        shard: int,
        place: int,
        matrix: NDArray[np.float64],
        rules: BoxRules = BoxRules(),  # noqa: B008 - it is frozen
        scale: float = 1.0,
    ) -> None:
        """Read, decode and resample one sample into one row; `take` comes before, for what is drawn.

        With a `scale` the image is resized first, its sides rounded down, and `matrix` is that of the resized one.
        """
        index = shards.index(shard)
        data = shards.read_image(shard, place)
        try:
            image = decode_jpeg(data)
        except ValueError as error:
            raise DataError(
                f"shard {shards.manifest.shards[shard].name}, image {index.image_ids[place]} does not decode "
                f"({error}). Build the shards again."
            ) from error
        size = image.shape[:2]
        if scale != 1:
            image = scaled(image, scale)
        if self.content_sizes is None:
            planes = self.images[row]
            cv2.split(warp(image, matrix, planes.shape[1:]), list(planes))
        else:
            self._fill_whole(row, image)
        # Boxes go by the scale itself, whatever the rounding of the sides did.
        matrix = matrix * np.array([scale, scale, 1.0])
        self._fill_labels(row, index, place, matrix, size, rules, shards.manifest)
        self.image_ids[row] = index.image_ids[place]
        self.transforms[row] = matrix
        self.original_sizes[row] = size

    def _fill_whole(self, row: int, image: NDArray[np.uint8]) -> None:
        """The image resized to its content size, in the top left corner; bilinear, as the published resizing is."""
        assert self.content_sizes is not None
        height, width = (int(side) for side in self.content_sizes[row])
        resized = image
        if image.shape[:2] != (height, width):
            resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        planes = self.images[row]
        planes[:, :height, :width] = resized.transpose(2, 0, 1)
        planes[:, height:] = 0
        planes[:, :height, width:] = 0

    def _fill_labels(
        self,
        row: int,
        index: ShardIndex,
        place: int,
        matrix: NDArray[np.float64],
        size: tuple[int, int],
        rules: BoxRules,
        manifest: Manifest,
    ) -> None:
        chosen = np.arange(*index.row_splits[place : place + 2])
        if rules.crowd == "drop":
            chosen = chosen[~index.iscrowd[chosen]]
        boxes = index.boxes[chosen]
        if rules.box_ends == "last_pixel":
            boxes = ends_on_last_pixel(boxes, size)
            something = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
            chosen, boxes = chosen[something], boxes[something]
        chosen = chosen[: self.labels.shape[1]]
        count = len(chosen)
        mirrored = self.flips is not None and bool(self.flips[row])
        turned = matrix[0, 1] != 0
        of_boxes = without_rotation(matrix, self.images.shape[2:], mirrored=mirrored) if turned else matrix
        self.boxes[row, :count] = transform_boxes(boxes[:count], of_boxes)
        self.labels[row, :count] = labels = index.labels[chosen]
        if self.keypoints is not None and index.keypoints is not None:
            joints = index.keypoints[chosen]
            if mirrored:
                partners = joint_partners(manifest.classes)[np.maximum(labels, 0)]
                joints = np.take_along_axis(joints, partners[..., None], axis=1)
            joints[..., :2] = np.where(joints[..., 2:] > 0, transform_points(joints[..., :2], matrix), 0)
            self.keypoints[row, :count] = joints
        if self.depth is not None:
            for name in ("depth", "dimensions", "alpha"):
                # What is to be ignored may not say; nothing is learnt there.
                getattr(self, name)[row, :count] = np.nan_to_num(getattr(index, name)[chosen])
            assert self.calibration is not None
            assert index.calibration is not None
            self.calibration[row] = index.calibration[place]


def check_input_size(input_size: Sequence[int]) -> None:
    """Refuse an input size that is not two positive numbers."""
    if len(input_size) != 2 or min(input_size) < 1:
        raise DataError(f"input_size is {tuple(input_size)}; give height and width, 1 or more pixels each.")
