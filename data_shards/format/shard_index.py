"""The index beside each shard: the offset of every sample, and its boxes as arrays.

With it, reading a sample is one `pread`, and training parses no JSON.
"""

import io
import zipfile
from dataclasses import MISSING, dataclass, fields

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt32

from data_shards.errors import DataError


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, row by row. Boxes of row i are those from `row_splits[i]` to `row_splits[i + 1]`."""

    image_offsets: Int64[np.ndarray, " samples"]
    """Offset of the encoded image in the tar file, in bytes."""
    image_sizes: Int64[np.ndarray, " samples"]
    """Length of the encoded image, in bytes."""
    image_crc32: UInt32[np.ndarray, " samples"]
    """CRC-32 of the encoded image."""
    json_offsets: Int64[np.ndarray, " samples"]
    """Offset of the sample's JSON in the tar file, in bytes."""
    json_sizes: Int64[np.ndarray, " samples"]
    """Length of the sample's JSON, in bytes."""
    image_ids: Int64[np.ndarray, " samples"]
    """COCO's image ids."""
    widths: Int64[np.ndarray, " samples"]
    """Width of the upright image, in pixels."""
    heights: Int64[np.ndarray, " samples"]
    """Height of the upright image, in pixels."""
    row_splits: Int64[np.ndarray, " samples+1"]
    """First box of each row, and the number of all boxes."""
    boxes: Float32[np.ndarray, "boxes 4"]
    """x1, y1, x2, y2 in the image frame, unclipped, in the order of the annotation file."""
    labels: Int64[np.ndarray, " boxes"]
    """Index into the manifest's classes."""
    iscrowd: Bool[np.ndarray, " boxes"]
    """True for boxes around crowds."""

    keypoints: Float32[np.ndarray, "boxes joints 3"] | None = None
    """x, y in the image frame and COCO's visibility. This field and the next ones exist only if the data set has such
    labels; see `labels.label_arrays`."""
    depth: Float32[np.ndarray, " boxes"] | None = None
    """Depth of the object's middle, in metres."""
    dimensions: Float32[np.ndarray, "boxes 3"] | None = None
    """Height, width and length, in metres."""
    alpha: Float32[np.ndarray, " boxes"] | None = None
    """Observation angle, in radians."""
    rotation_y: Float32[np.ndarray, " boxes"] | None = None
    """Rotation around the camera's vertical axis, in radians."""
    location: Float32[np.ndarray, "boxes 3"] | None = None
    """Middle of the underside in the camera's frame, in metres."""
    calibration: Float32[np.ndarray, "samples 3 4"] | None = None
    """Projection matrix of the camera."""
    dropped_boxes: Int64[np.ndarray, " samples"] | None = None
    """Number of degenerate boxes dropped at building; exists only if there were any."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def to_bytes(self) -> bytes:
        """Return an `.npz` file. The same index always results in the same bytes."""
        buffer = io.BytesIO()
        arrays = {item.name: getattr(self, item.name) for item in fields(self)}
        np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "ShardIndex":
        """Read the bytes that `to_bytes` returned.

        Args:
            data: the `.npz` file.
            where: its location, for error messages.

        Raises:
            DataError: the bytes are not an index.
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
            raise DataError(f"{where} is not the index of a shard ({error}): build the shards again.") from error
