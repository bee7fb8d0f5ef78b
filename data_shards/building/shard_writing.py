"""Building one shard in one process: a tar of samples, its index, and a record that both are complete.

The tar is assembled in memory, and every image is decoded once to check it. Nothing of a shard is stored unless all its
images can be used.
"""

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from data_shards.building.coco import CocoImage
from data_shards.building.labels import calibrations, label_arrays
from data_shards.building.shrink import shrink
from data_shards.building.transfer import stored_sha256
from data_shards.errors import DataError
from data_shards.format.manifest import CocoClass, Manifest, Shard, sample_key
from data_shards.format.shard_index import ShardIndex
from data_shards.reading.decode import decode_jpeg, exif_orientation, image_extension, other_content
from data_shards.storage.store import Store

# Raise it whenever the same input would give other bytes: builds begun by an older version are then not resumed.
_RECORD_VERSION = 2


@dataclass(frozen=True)
class ShardJob:
    """Everything a process needs to build one shard."""

    name: str
    """Name of the shard, without a file ending."""
    images: list[CocoImage]
    estimated_bytes: int
    folder: Path
    """The folder that file names are relative to."""
    label_of: dict[int, int]
    """Labels by category id; negative for ignored categories."""
    class_of: dict[int, CocoClass]
    described: Manifest
    """The manifest of the data set, still without shards."""
    store: Store
    expected: Manifest | None
    """Manifest of an earlier, complete build from the same source; the shard must come out the same."""
    drops_any: bool
    """True if the build drops a box of any image; the index then counts them by image."""

    @property
    def record(self) -> str:
        """Name of the file whose existence says that the shard is finished."""
        return f"{self.name}.built.json"

    def digest(self) -> str:
        """Hash everything that decides the shard's bytes; an image counts as changed if its size or time did."""
        files = []
        for image in self.images:
            status = os.stat(self.folder / image.file_name)
            files.append((image.id, image.file_name, status.st_size, status.st_mtime_ns))
        decided = [_RECORD_VERSION, self.name, self.described.digest, files]
        return hashlib.sha256(json.dumps(decided).encode()).hexdigest()


@dataclass(frozen=True)
class BuiltShard:
    """A stored shard; `kept` if an earlier build had finished it."""

    shard: Shard
    kept: bool = False


def build_shard(job: ShardJob) -> BuiltShard | list[str]:
    """Build and store one shard, or keep the finished one of an interrupted build.

    Args:
        job: the images and their place in the data set.

    Returns:
        The shard; or, if any image cannot be used, one problem for each such image.

    Raises:
        DataError: the shard differs from that of the earlier build, or it cannot be stored.
    """
    try:
        digest = job.digest()
    except OSError as error:
        return [_unreadable(error)]
    if (finished := _finished(job, digest)) is not None:
        return BuiltShard(finished, kept=True)
    buffer = io.BytesIO()
    written, problems = _write_samples(job, buffer)
    if problems:
        return problems
    tar = buffer.getbuffer()
    index = _make_index(job, written, buffer).to_bytes()
    shard = Shard(
        name=f"{job.name}.tar",
        samples=len(written),
        bytes=len(tar),
        sha256=hashlib.sha256(tar).hexdigest(),
        index=f"{job.name}.index.npz",
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    # Checked before anything is written, so that a refusal leaves the published shards as they are.
    if job.expected is not None and shard not in job.expected.shards:
        raise DataError(
            f"{job.store.location} was built from the same annotations, but shard {shard.name} would differ: "
            "images have changed since. Choose another --output, or pass --overwrite to replace it."
        )
    job.store.write_bytes(shard.index, index)
    job.store.write_bytes(shard.name, tar)
    if job.expected is None:
        # Last, because the record promises that index and tar are there.
        job.store.write_bytes(job.record, json.dumps({"built_from": digest, "shard": asdict(shard)}).encode())
    return BuiltShard(shard)


def _finished(job: ShardJob, digest: str) -> Shard | None:
    """Return the shard that an interrupted build finished, if it is still what was written, byte for byte."""
    if job.expected is not None or not job.store.exists(job.record):
        return None
    try:
        record = json.loads(job.store.read_bytes(job.record))
        shard = Shard(**record["shard"])
        if record["built_from"] != digest:
            return None
        for name, sha256 in ((shard.index, shard.index_sha256), (shard.name, shard.sha256)):
            if not job.store.exists(name) or stored_sha256(job.store, name) != sha256:
                return None
    except (ValueError, TypeError, KeyError):
        return None  # a damaged record only costs building the shard again
    return shard


def _write_samples(job: ShardJob, buffer: io.BytesIO) -> tuple[list[CocoImage], list[str]]:
    """Write every image and its JSON into a tar; return the images as stored, and the problems of unusable ones."""
    import webdataset  # imports torch, which a command that builds nothing should not wait for

    written: list[CocoImage] = []
    problems: list[str] = []
    source = job.described.source
    # Owner, time and mode are fixed: the same samples must give the same bytes on any machine.
    with webdataset.TarWriter(buffer, user="aweigh", group="aweigh", mtime=0, encoder=False) as writer:
        for original in job.images:
            try:
                data = (job.folder / original.file_name).read_bytes()
            except OSError as error:
                problems.append(_unreadable(error))
                continue
            if problem := _problem(original, data):
                problems.append(f"image {original.id}, {original.file_name}: {problem}")
            elif not problems:  # after the first problem, images are only checked
                image, data = shrink(original, data, source.max_size, source.jpeg_quality)
                written.append(image)
                writer.write(
                    {
                        "__key__": sample_key(image.id),
                        str(image_extension(data)): data,
                        "json": json.dumps(_as_json(image), separators=(",", ":"), allow_nan=False).encode(),
                    }
                )
    return written, problems


def _unreadable(error: OSError) -> str:
    return f"{error.filename}: cannot be read ({error.strerror})"


def _problem(image: CocoImage, data: bytes) -> str | None:
    if image_extension(data) is None:
        return other_content(data)
    try:
        height, width = decode_jpeg(data).shape[:2]
    except ValueError as error:
        return f"does not decode ({error})"
    if (width, height) == (image.width, image.height):
        return None
    problem = f"is {width} x {height} pixels, but the annotations say {image.width} x {image.height}"
    # Swapped sides and an orientation that swaps them: the labelling tool ignored EXIF.
    if (height, width) == (image.width, image.height) and exif_orientation(data) >= 5:
        problem += " (its EXIF orientation turns it; the boxes were drawn on the unturned pixels)"
    return problem


def _as_json(image: CocoImage) -> dict[str, Any]:
    return {
        "image_id": image.id,
        "file_name": image.file_name,
        "width": image.width,
        "height": image.height,
        "annotations": list(image.annotations),
        **({} if image.calibration is None else {"calib": image.calibration}),
    }


def _make_index(job: ShardJob, images: Sequence[CocoImage], tar: io.BytesIO) -> ShardIndex:
    places = _member_places(tar)
    view = tar.getbuffer()
    image_places = [places[f"{sample_key(image.id)}.image"] for image in images]
    json_places = [places[f"{sample_key(image.id)}.json"] for image in images]
    annotations = [item for image in images for item in image.annotations]
    return ShardIndex(
        image_offsets=_int64(offset for offset, _ in image_places),
        image_sizes=_int64(size for _, size in image_places),
        image_crc32=np.array([zlib.crc32(view[at : at + size]) for at, size in image_places], dtype=np.uint32),
        json_offsets=_int64(offset for offset, _ in json_places),
        json_sizes=_int64(size for _, size in json_places),
        image_ids=_int64(image.id for image in images),
        widths=_int64(image.width for image in images),
        heights=_int64(image.height for image in images),
        row_splits=_int64(np.cumsum([0, *(len(image.annotations) for image in images)])),
        # Summed in double precision and rounded once, as the published code does.
        boxes=np.array([_corners(item["bbox"]) for item in annotations], dtype=np.float32).reshape(-1, 4),
        labels=_int64(job.label_of[item["category_id"]] for item in annotations),
        iscrowd=np.array([bool(item.get("iscrowd")) for item in annotations], dtype=np.bool_),
        **label_arrays(annotations, job.class_of, job.described.labels, job.described.joints),
        calibration=calibrations(image.calibration for image in images) if job.described.in_3d else None,
        dropped_boxes=_int64(image.dropped_boxes for image in images) if job.drops_any else None,
    )


def _member_places(tar: io.BytesIO) -> dict[str, tuple[int, int]]:
    """Read offset and size of every member back from the tar, by `key.image` and `key.json`."""
    places: dict[str, tuple[int, int]] = {}
    tar.seek(0)
    with tarfile.open(fileobj=tar, mode="r:") as archive:
        for member in archive:
            kind = "json" if member.name.endswith(".json") else "image"
            places[f"{member.name.partition('.')[0]}.{kind}"] = (member.offset_data, member.size)
    return places


def _corners(box: list[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height


def _int64(values: Iterable[Any]) -> Int64[NDArray[np.int64], " values"]:
    return np.array(list(values), dtype=np.int64)
