"""The index beside each shard: the offset of every sample, and its boxes as arrays.

With it, reading a sample is one `pread`, and training parses no JSON.
"""

import io
import math
import zipfile
from dataclasses import MISSING, dataclass, fields

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt32
from numpy.lib import format as npy

from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.format.manifest import Manifest, Shard

# No image format of aweigh's has longer sides.
_LONGEST_SIDE = 2**31 - 1
_FLOATS_IN_3D = {"depth": (), "dimensions": (3,), "alpha": (), "rotation_y": (), "location": (3,)}


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
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = archive.infolist()
                # An index is stored without compression. Sizes that promise more than the file has are those of a
                # decompression bomb.
                if sum(max(member.file_size, member.compress_size) for member in members) > len(data):
                    raise ValueError("its arrays claim to be larger than the file")
                arrays = {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}
            return cls(
                **{
                    item.name: arrays[item.name]
                    for item in fields(cls)
                    if item.default is MISSING or item.name in arrays
                }
            )
        except Exception as error:  # zipfile and numpy's parser of headers raise errors of a dozen kinds
            cause = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"{where} is not the index of a shard ({cause}): build the shards again.") from error

    def check(self, record: Shard, manifest: Manifest, where: str) -> None:
        """Compare every array with the shard and the data set that it describes.

        A checksum proves only that the index is the one that the manifest names, not that a build wrote it.

        Args:
            record: the shard's entry in the manifest.
            manifest: its classes and labels; its shards are not used.
            where: location of the index, for the error message.

        Raises:
            DataError: names the first array that does not fit.
        """
        if problem := self._problem(record, manifest):
            raise DataError(f"{where} does not fit its shard: {problem}. Build the shards again.")

    def _problem(self, record: Shard, manifest: Manifest) -> str | None:
        if self.image_ids.ndim == 1 and len(self) != record.samples:
            return f"it holds {counted(len(self), 'sample')}, but the manifest says {record.samples:,}"
        return (
            self._problem_of_shapes(record.samples, manifest)
            or self._problem_of_places(record)
            or self._problem_of_values(manifest)
        )

    def _problem_of_shapes(self, samples: int, manifest: Manifest) -> str | None:
        boxes = len(self.boxes) if self.boxes.ndim else 0
        expected: dict[str, tuple[type, tuple[int, ...]]] = dict.fromkeys(
            (
                *("image_offsets", "image_sizes", "json_offsets", "json_sizes"),
                *("image_ids", "widths", "heights", "dropped_boxes"),
            ),
            (np.int64, (samples,)),
        )
        expected |= {
            "image_crc32": (np.uint32, (samples,)),
            "row_splits": (np.int64, (samples + 1,)),
            "boxes": (np.float32, (boxes, 4)),
            "labels": (np.int64, (boxes,)),
            "iscrowd": (np.bool_, (boxes,)),
            "calibration": (np.float32, (samples, 3, 4)),
            "keypoints": (np.float32, (boxes, manifest.joints, 3)),
            **{name: (np.float32, (boxes, *rest)) for name, rest in _FLOATS_IN_3D.items()},
        }
        needed = {"keypoints"} if manifest.joints else set()
        needed |= {*_FLOATS_IN_3D, "calibration"} if manifest.in_3d else set()
        for name, (kind, shape) in expected.items():
            array = getattr(self, name)
            if array is None:
                if name in needed:
                    return f"{name} is missing, but the manifest lists {', '.join(manifest.labels)}"
            elif (array.dtype, array.shape) != (kind, shape):
                return f"{name} is {array.dtype} {array.shape}; expected {np.dtype(kind)} {shape}"
        return None

    def _problem_of_places(self, record: Shard) -> str | None:
        for name in ("image", "json"):
            offsets, sizes = getattr(self, f"{name}_offsets"), getattr(self, f"{name}_sizes")
            # Not offset + size, which may overflow.
            if ((offsets < 0) | (sizes < 0) | (offsets > record.bytes) | (sizes > record.bytes - offsets)).any():
                return f"{name}_offsets and {name}_sizes reach outside the {record.bytes:,} bytes of {record.name}"
        return None

    def _problem_of_values(self, manifest: Manifest) -> str | None:
        for name in ("widths", "heights"):
            sides = getattr(self, name)
            if ((sides < 1) | (sides > _LONGEST_SIDE)).any():
                return f"{name} has {int(sides.min())} and {int(sides.max())}; an image has 1 pixel or more"
        splits = self.row_splits
        if splits[0] != 0 or splits[-1] != len(self.boxes) or (splits[1:] < splits[:-1]).any():
            return f"row_splits does not ascend from 0 to {len(self.boxes):,}, the number of its boxes"
        for name in ("boxes", "keypoints"):
            values = getattr(self, name)
            if values is not None and not np.isfinite(values).all():
                return f"{name} has a value that is not a finite number"
        known = np.zeros(len(self.labels), dtype=np.bool_)
        num_classes = len(manifest.classes)
        known |= (self.labels >= 0) & (self.labels < num_classes)
        for item in manifest.ignored:
            known |= self.labels == -2 - (item.label if item.label >= 0 else num_classes)
        if not known.all():
            return f"label {int(self.labels[~known][0])} is not one of the manifest's {counted(num_classes, 'label')}"
        if self.dropped_boxes is not None and (self.dropped_boxes < 0).any():
            return "dropped_boxes has a negative number"
        return None


def _array(data: bytes) -> np.ndarray:
    """Read an `.npy` file of numbers; memory is taken only for what is there, whatever its header claims."""
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    header = npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    shape, fortran, kind = header
    # In Python, whose numbers do not overflow.
    size = math.prod(shape) * kind.itemsize
    if kind.hasobject or fortran or any(length < 0 for length in shape) or size != len(data) - file.tell():
        raise ValueError("an array does not have the size that its header claims")
    # A copy, since the callers' arrays are their own to change.
    return np.frombuffer(data, kind, offset=file.tell()).reshape(shape).copy()
