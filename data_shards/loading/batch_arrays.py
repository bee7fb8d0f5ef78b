"""The arrays behind one batch, laid out one after the other in a piece of memory.

The loader process fills them and the trainer reads them in the same memory. Both compute the place of each array from
the batch's shape alone, so no addresses are exchanged. A new field is one line here and one in `Batch`.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
from jaxtyping import Int64 as Int64Array
from jaxtyping import UInt8
from numpy.typing import NDArray

from data_shards.format.manifest import Manifest
from data_shards.loading.random_draws import Draws

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

# A cache line.
_ALIGNMENT = 64


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """Sizes of a batch's arrays, and which of the optional ones exist."""

    rows: int
    """Number of images."""
    height: int
    """Height of the input, in pixels."""
    width: int
    """Width of the input, in pixels."""
    objects: int
    """Most annotations of an image."""
    augmented: bool = False
    """True if the batch carries the draws that the device applies."""
    joints: int = 0
    """Joints of each object; 0 for data without."""
    in_3d: bool = False
    """True for data with depth, dimensions and angle of each object."""
    whole_images: bool = False
    """True if images are resized whole and padded on the right and below, to `content_sizes`."""
    clipped: bool = False
    """True if objects are clipped to `clip_boxes`."""

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
        clipped: bool = False,
    ) -> "BatchShape":
        """Return the shape of a batch of a data set, or of data with boxes only if there is no manifest."""
        return cls(
            rows=rows,
            height=input_size[0],
            width=input_size[1],
            objects=objects,
            augmented=augmented,
            joints=manifest.joints if manifest is not None else 0,
            in_3d=manifest is not None and manifest.in_3d,
            whole_images=whole_images,
            clipped=clipped,
        )

    @property
    def num_bytes(self) -> int:
        """Memory of all arrays of the batch."""
        return _layout(self)[-1][-1]


Dimension = int | Literal["height", "width", "objects", "joints"]


@dataclass(frozen=True)
class Row:
    """Type and shape of one row of an array."""

    dtype: type[np.generic]
    dimensions: tuple[Dimension, ...] = ()
    """Sizes, or names of fields of `BatchShape`."""
    absent: float | None = None
    """Fill value of the places beyond an image's objects."""
    where: tuple[str, ...] = ()
    """Present only if all of these `BatchShape` fields are set."""
    drawn: bool = False
    """True if the values are those of the field of `Draws` with the same name."""


@dataclass(frozen=True)
class BatchArrays:
    """One array for each tensor of `Batch`. A thread fills a row at a time."""

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
    mirror_sums: Annotated[Int64 | None, Row(np.int64, where=("augmented",))] = None
    keypoints: Annotated[Float32 | None, Row(np.float32, ("objects", "joints", 3), 0, ("joints",))] = None
    depth: Annotated[Float32 | None, Row(np.float32, ("objects",), 0, ("in_3d",))] = None
    dimensions: Annotated[Float32 | None, Row(np.float32, ("objects", 3), 0, ("in_3d",))] = None
    alpha: Annotated[Float32 | None, Row(np.float32, ("objects",), 0, ("in_3d",))] = None
    calibration: Annotated[Float32 | None, Row(np.float32, (3, 4), where=("in_3d",))] = None
    rescaled: Annotated[Bool | None, Row(np.bool_, where=("augmented", "in_3d"), drawn=True)] = None
    rotated: Annotated[Bool | None, Row(np.bool_, where=("augmented", "joints"), drawn=True)] = None
    content_sizes: Annotated[Int64 | None, Row(np.int64, (2,), where=("whole_images",), drawn=True)] = None
    clip_boxes: Annotated[Float32 | None, Row(np.float32, (4,), where=("clipped",), drawn=True)] = None

    @classmethod
    def over(cls, memory: UInt8[np.ndarray, " bytes"], shape: BatchShape) -> "BatchArrays":
        """Return views of `shape.num_bytes` bytes of memory or more. The bytes stay as they are."""
        arrays: dict[str, Any] = {}
        for name, dtype, dimensions, start, end in _layout(shape):
            arrays[name] = memory[start:end].view(dtype).reshape(dimensions)
        return cls(**arrays)

    @classmethod
    def empty(
        cls,
        sample_ids: Int64Array[np.ndarray, " samples"],
        input_size: tuple[int, int],
        max_objects: int,
        *,
        augmented: bool,
        manifest: Manifest | None = None,
        whole_images: bool = False,
        clipped: bool = False,
    ) -> "BatchArrays":
        """Return arrays in memory of their own, ready to be filled.

        Args:
            sample_ids: the sample of each row.
            input_size: height and width of the input, in pixels.
            max_objects: most annotations of an image.
            augmented: add arrays for the draws that the device applies.
            manifest: the data's, which says which labels exist beside boxes; None for boxes only.
            whole_images: images are resized whole and padded, to `content_sizes`.
            clipped: objects are clipped to `clip_boxes`.
        """
        shape = BatchShape.of(
            manifest,
            len(sample_ids),
            input_size,
            max_objects,
            augmented=augmented,
            whole_images=whole_images,
            clipped=clipped,
        )
        arrays = cls.over(np.zeros(shape.num_bytes, dtype=np.uint8), shape)
        arrays.begin(sample_ids)
        return arrays

    def begin(self, sample_ids: Int64Array[np.ndarray, " samples"]) -> None:
        """Prepare for these samples: remove the objects of the batch that used the memory before."""
        self.clear_objects(slice(None))
        self.sample_ids[:] = sample_ids

    def clear_objects(self, rows: int | slice) -> None:
        """Remove the objects of some rows."""
        for name, row in _ROWS.items():
            if row.absent is not None and (array := getattr(self, name)) is not None:
                array[rows] = row.absent

    def take(self, draws: Draws) -> None:
        """Store the draws that the device applies."""
        for name, row in _ROWS.items():
            if row.drawn and (array := getattr(self, name)) is not None:
                array[:] = getattr(draws, name)


_ROWS: dict[str, Row] = {
    name: annotation.__metadata__[0] for name, annotation in get_type_hints(BatchArrays, include_extras=True).items()
}


def _layout(shape: BatchShape) -> list[tuple[str, type[np.generic], tuple[int, ...], int, int]]:
    """Return name, dtype, shape, first and last byte of each array."""
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
