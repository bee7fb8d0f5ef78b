"""The arrays behind one batch, laid out one after the other in a piece of memory.

The loader process fills them and the trainer reads them in the same memory; both know where each array lies from the
batch's shape alone. A new field is one line here and one in `Batch`.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

import cv2
import numpy as np
from numpy.typing import NDArray

from data_shards.building.labels import joint_partners
from data_shards.format.manifest import Manifest
from data_shards.format.shard_index import ShardIndex
from data_shards.loading.random_draws import Draws
from data_shards.reading.decode import (
    Image,
    Scratch,
    crop_resize,
    ends_on_last_pixel,
    scaled,
    transform_boxes,
    transform_points,
    warp,
    without_rotation,
)
from data_shards.reading.samples import Samples
from data_shards.settings import BoxRules

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

_ALIGNMENT = 64
_GRAY = 128


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """How large the arrays of a batch are, and which there are."""

    rows: int
    """Images."""
    height: int
    """Of the input, in pixels."""
    width: int
    """Of the input, in pixels."""
    objects: int
    """Places for annotations of each image."""
    augmented: bool = False
    """With what the device needs of the draws."""
    joints: int = 0
    """Joints of each object; 0 for data without."""
    in_3d: bool = False
    """With depth, dimensions and angle of each object."""
    whole_images: bool = False
    """Images are resized whole and padded on the right and below, in `content_sizes`."""

    @classmethod
    def of(
        cls,
        manifest: Manifest | None,
        rows: int,
        input_size: tuple[int, int],
        objects: int,
        *,
        augmented: bool,
        whole_images: bool,
    ) -> "BatchShape":
        """The shape of a batch of a data set; without its manifest, of one that has boxes only."""
        return cls(
            rows=rows,
            height=input_size[0],
            width=input_size[1],
            objects=objects,
            augmented=augmented,
            joints=manifest.joints if manifest is not None else 0,
            in_3d=manifest is not None and manifest.in_3d,
            whole_images=whole_images,
        )


Dimension = int | Literal["height", "width", "objects", "joints"]


@dataclass(frozen=True)
class Row:
    """What one row of an array looks like."""

    dtype: type[np.generic]
    dimensions: tuple[Dimension, ...] = ()
    """Names are those of `BatchShape`."""
    absent: float | None = None
    """What stands where a row has fewer objects than there is room for."""
    where: tuple[str, ...] = ()
    """Only batches have it in whose `BatchShape` none of these is False or 0."""
    drawn: bool = False
    """What it holds is what `Draws` calls by the same name."""


@dataclass(frozen=True)
class Slot:
    """One array for each tensor of `Batch`; each row is filled by one thread."""

    images: Annotated[NDArray[np.uint8], Row(np.uint8, (3, "height", "width"))]
    boxes: Annotated[Float32, Row(np.float32, ("objects", 4), absent=0)]
    labels: Annotated[Int64, Row(np.int64, ("objects",), absent=-1)]
    image_ids: Annotated[Int64, Row(np.int64)]
    transforms: Annotated[Float32, Row(np.float32, (2, 3))]
    original_sizes: Annotated[Int64, Row(np.int64, (2,))]
    sample_ids: Annotated[Int64, Row(np.int64)]
    flips: Annotated[Bool | None, Row(np.bool_, where=("augmented",), drawn=True)] = None
    colour_factors: Annotated[Float32 | None, Row(np.float32, (3,), where=("augmented",), drawn=True)] = None
    colour_order: Annotated[Int64 | None, Row(np.int64, (3,), where=("augmented",), drawn=True)] = None
    lighting: Annotated[Float32 | None, Row(np.float32, (3,), where=("augmented",), drawn=True)] = None
    keypoints: Annotated[Float32 | None, Row(np.float32, ("objects", "joints", 3), 0, ("joints",))] = None
    depth: Annotated[Float32 | None, Row(np.float32, ("objects",), 0, ("in_3d",))] = None
    dimensions: Annotated[Float32 | None, Row(np.float32, ("objects", 3), 0, ("in_3d",))] = None
    alpha: Annotated[Float32 | None, Row(np.float32, ("objects",), 0, ("in_3d",))] = None
    calibration: Annotated[Float32 | None, Row(np.float32, (3, 4), where=("in_3d",))] = None
    rescaled: Annotated[Bool | None, Row(np.bool_, where=("augmented", "in_3d"), drawn=True)] = None
    rotated: Annotated[Bool | None, Row(np.bool_, where=("augmented", "joints"), drawn=True)] = None
    content_sizes: Annotated[Int64 | None, Row(np.int64, (2,), where=("whole_images",), drawn=True)] = None

    @classmethod
    def over(cls, memory: NDArray[np.uint8], shape: BatchShape) -> "Slot":
        """Views of memory of `slot_bytes(shape)` bytes or more, as they are."""
        arrays: dict[str, Any] = {}
        for name, dtype, dimensions, start, end in _layout(shape):
            arrays[name] = memory[start:end].view(dtype).reshape(dimensions)
        return cls(**arrays)

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
        """Arrays of their own for these samples, ready to be filled.

        Args:
            sample_ids: int64 `(samples,)`.
            input_size: height and width.
            max_objects: rows for each sample.
            augmented: make room for what the device will need of the draws, too.
            manifest: of the data; it says which labels there are beside boxes.
            whole_images: images are resized whole and padded on the right and below, in `content_sizes`.
        """
        shape = BatchShape.of(
            manifest, len(sample_ids), input_size, max_objects, augmented=augmented, whole_images=whole_images
        )
        slot = cls.over(np.zeros(slot_bytes(shape), dtype=np.uint8), shape)
        slot.begin(sample_ids)
        return slot

    def begin(self, sample_ids: Int64) -> None:
        """Make ready for these samples: nothing of an earlier batch is left in places without an object."""
        self._clear(slice(None))
        self.sample_ids[:] = sample_ids

    def _clear(self, rows: int | slice) -> None:
        for name, row in _ROWS.items():
            if row.absent is not None and (array := getattr(self, name)) is not None:
                array[rows] = row.absent

    def take(self, draws: Draws) -> None:
        """Note what the device will need of the draws."""
        for name, row in _ROWS.items():
            if row.drawn and (array := getattr(self, name)) is not None:
                array[:] = getattr(draws, name)

    def fill(
        self,
        row: int,
        samples: Samples,
        shard: int,
        place: int,
        matrix: NDArray[np.float64],
        rules: BoxRules = BoxRules(),  # noqa: B008 - it is frozen
        scale: float = 1.0,
    ) -> None:
        """Read, decode and resample one sample into one row; `take` comes before, for what is drawn.

        With a `scale` the image is resized first, its sides rounded down, and `matrix` is that of the resized one.
        """
        self.describe(row, samples, shard, place, matrix, rules, scale)
        self.show(row, samples, shard, place, matrix, scale)

    def describe(
        self,
        row: int,
        samples: Samples,
        shard: int,
        place: int,
        matrix: NDArray[np.float64],
        rules: BoxRules,
        scale: float = 1.0,
    ) -> None:
        """All of `fill` but the pixels; a batch's rows are best described one after the other, before any is shown."""
        shards = samples.shards
        index = shards.index(shard)
        size = shards.size(shard, place)
        # Boxes go by the scale itself, whatever the rounding of the sides did.
        to_input = matrix * np.array([scale, scale, 1.0])
        self._fill_labels(row, index, place, to_input, size, rules, shards.manifest)
        if self.calibration is not None and index.calibration is not None:
            self.calibration[row] = index.calibration[place]
        self.image_ids[row] = index.image_ids[place]
        self.transforms[row] = to_input
        self.original_sizes[row] = size

    def show(
        self, row: int, samples: Samples, shard: int, place: int, matrix: NDArray[np.float64], scale: float = 1.0
    ) -> None:
        """The pixels of `fill`. Where gray stands in for an image, its objects are taken back."""
        image = samples.image(shard, place)
        if image is None:
            self.images[row] = _GRAY
            self._clear(row)
            return
        cv2.split(self._pixels(row, image, matrix, scale, samples.scratch), list(self.images[row]))

    def _pixels(self, row: int, image: Image, matrix: NDArray[np.float64], scale: float, scratch: Scratch) -> Image:
        """The input `(height, width, 3)`."""
        height, width = self.images.shape[2:]
        if self.content_sizes is not None:
            return self._whole(row, image, scratch.image("input", height, width))
        if scale != 1:
            image = scaled(image, scale)
        if self.flips is not None:
            return crop_resize(image, matrix, (height, width), scratch)
        return warp(image, matrix, (height, width), scratch.image("input", height, width))

    def _whole(self, row: int, image: Image, out: Image) -> Image:
        """The image resized to its content size, in the top left corner; bilinear, as the published resizing is."""
        assert self.content_sizes is not None
        height, width = self.content_sizes[row].tolist()
        out[height:] = 0
        out[:height, width:] = 0
        if image.shape[:2] == (height, width):
            out[:height, :width] = image
        else:
            cv2.resize(image, (width, height), dst=out[:height, :width], interpolation=cv2.INTER_LINEAR)
        return out

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


def slot_bytes(shape: BatchShape) -> int:
    """The memory that the arrays of a batch take."""
    return _layout(shape)[-1][-1]


_ROWS: dict[str, Row] = {
    name: annotation.__metadata__[0] for name, annotation in get_type_hints(Slot, include_extras=True).items()
}


def _layout(shape: BatchShape) -> list[tuple[str, type[np.generic], tuple[int, ...], int, int]]:
    """Name, dtype, shape, begin and end, in bytes, of each array."""
    placed = []
    begin = 0
    for name, row in _ROWS.items():
        if not all(getattr(shape, condition) for condition in row.where):
            continue
        inner = (one if isinstance(one, int) else int(getattr(shape, one)) for one in row.dimensions)
        dimensions = (shape.rows, *inner)
        end = begin + math.prod(dimensions) * np.dtype(row.dtype).itemsize
        placed.append((name, row.dtype, dimensions, begin, end))
        begin = -(-end // _ALIGNMENT) * _ALIGNMENT
    return placed
