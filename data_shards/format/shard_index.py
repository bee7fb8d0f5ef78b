"""The index beside each shard: where every sample lies, and its boxes as arrays.

With it a sample is one `pread`, and no JSON is parsed while training.
"""

import io
import zipfile
from dataclasses import MISSING, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DataError


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, row by row. Boxes of row i stand at `row_splits[i]` to `row_splits[i + 1]`."""

    image_offsets: NDArray[np.int64]
    """Where the encoded image begins in the tar file, in bytes, `(samples,)`."""
    image_sizes: NDArray[np.int64]
    """Its length in bytes."""
    image_crc32: NDArray[np.uint32]
    """Its CRC-32."""
    json_offsets: NDArray[np.int64]
    """Where the sample's JSON begins in the tar file, in bytes, `(samples,)`."""
    json_sizes: NDArray[np.int64]
    """Its length in bytes."""
    image_ids: NDArray[np.int64]
    """COCO's image ids."""
    widths: NDArray[np.int64]
    """Width of the upright image, in pixels."""
    heights: NDArray[np.int64]
    """Height of the upright image, in pixels."""
    row_splits: NDArray[np.int64]
    """`(samples + 1,)`."""
    boxes: NDArray[np.float32]
    """`(boxes, 4)`: x1, y1, x2, y2 in the image frame, unclipped, in the order of the annotation file."""
    labels: NDArray[np.int64]
    """`(boxes,)`: index into the manifest's classes."""
    iscrowd: NDArray[np.bool_]
    """`(boxes,)`."""

    keypoints: NDArray[np.float32] | None = None
    """`(boxes, joints, 3)`: x, y in the image frame and COCO's visibility. These and the following are there where the
    data set has such labels; see `labels.label_arrays`."""
    depth: NDArray[np.float32] | None = None
    """`(boxes,)`: of the object's middle, in metres."""
    dimensions: NDArray[np.float32] | None = None
    """`(boxes, 3)`: height, width and length, in metres."""
    alpha: NDArray[np.float32] | None = None
    """`(boxes,)`: observation angle, in radians."""
    rotation_y: NDArray[np.float32] | None = None
    """`(boxes,)`: around the camera's vertical axis, in radians."""
    location: NDArray[np.float32] | None = None
    """`(boxes, 3)`: middle of the underside in the camera's frame, in metres."""
    calibration: NDArray[np.float32] | None = None
    """`(samples, 3, 4)`: the camera's projection matrix."""
    dropped_boxes: NDArray[np.int64] | None = None
    """`(samples,)`: degenerate boxes that were dropped at building; there where any was."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def to_bytes(self) -> bytes:
        """An `.npz` file; the same index always gives the same bytes."""
        buffer = io.BytesIO()
        arrays = {item.name: getattr(self, item.name) for item in fields(self)}
        np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "ShardIndex":
        """Read what `to_bytes` wrote; `where` is what an error calls it.

        Raises:
            DataError: the bytes are no index.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return cls(
                    **{
                        item.name: arrays[item.name]
                        for item in fields(cls)
                        if item.default is MISSING or item.name in arrays
                    }
                )
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{where} is no index of a shard ({error}): build the shards again.") from error
