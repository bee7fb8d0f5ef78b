"""Building shards: a COCO file and its images become WebDataset tars, an index beside each, and a manifest.

The same annotations and images always give the same bytes. A build that was cut off is gone on with: beside each
finished shard lies a record of what it was built from, until the manifest takes their place. Samples are put in the
order of their scrambled image ids: ids often follow time, place or class, and shards are what a reader mixes, so each
shard should look like the whole set. That order neither depends on the order of the annotation file nor changes for
the old images when new ones are added.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.building.coco import CocoDataset, CocoImage, DegenerateBoxes, EmptyImages, read_coco
from data_shards.building.labels import calibrations, label_arrays
from data_shards.building.shrink import shrink, shrunk_size
from data_shards.building.transfer import stored_sha256
from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.format.manifest import MANIFEST_NAME, CocoClass, Manifest, Shard, Source, load_manifest, sample_key
from data_shards.format.shard_index import ShardIndex
from data_shards.order.keyed_random import key, keys
from data_shards.processes import BYTES_WORTH_A_PROCESS, run_in_processes
from data_shards.reading.decode import decode_jpeg, exif_orientation, image_extension
from data_shards.storage.open import open_store
from data_shards.storage.store import Store

DEFAULT_SHARD_BYTES = 80_000_000
_MOST_SHARD_BYTES = 2_000_000_000
# What a tar adds to a sample: two headers, two paddings, a small JSON. Only used to cut shards.
_OVERHEAD_BYTES = 2048
_ORDER = 201
# Raised when the same input would give other bytes: records of an earlier aweigh are then not gone on from.
_RECORD_VERSION = 1


@dataclass(frozen=True)
class Progress:
    """How far a build is, in shards and in images."""

    shards: int
    total_shards: int
    images: int
    total_images: int
    kept_images: int = 0
    """Those of shards that an earlier build had finished."""


@dataclass(frozen=True)
class BuildReport:
    """What a build made."""

    location: str
    """LOCATION/SPLIT, as a recipe names it."""
    manifest: Manifest
    zero_size_boxes: int
    outside_boxes: int
    crowd_boxes: int
    images_without_boxes: int
    unchanged: bool
    """The place already held exactly these shards."""
    kept_shards: int = 0
    """Shards that a build which was cut off had finished."""
    unnamed_joints: int = 0
    """Annotations whose keypoints no category names; see `CocoDataset`."""

    def describe(self) -> str:
        """A few lines for people: what was built, and what was left out."""
        manifest = self.manifest
        dropped = self.zero_size_boxes + self.outside_boxes
        left_out = (
            f"; {dropped:,} dropped ({self.zero_size_boxes:,} without area, {self.outside_boxes:,} outside)"
            if dropped
            else ""
        )
        source = manifest.source
        extra = {"keypoints": f"{manifest.joints} joints", "3d": "depth, dimensions and orientation"}
        lines = [f"with {' and '.join(extra[name] for name in manifest.labels)}" if manifest.labels else ""]
        if self.unnamed_joints:
            lines.append(
                f"keypoints of {self.unnamed_joints:,} objects are not used: their category lists no joints by name"
            )
        if manifest.ignored or source.left_out:
            ignored = ", ".join(
                f"{item.name} (as {'any class' if item.label < 0 else manifest.class_names[item.label]})"
                for item in manifest.ignored
            )
            lines.append(f"ignored: {ignored or 'none'}; left out: {', '.join(source.left_out) or 'none'}")
        if source.max_size:
            lines.append(
                f"images longer than {source.max_size:,} pixels were encoded again, JPEG quality {source.jpeg_quality}"
            )
        if source.dropped_images:
            lines.append(f"{counted(source.dropped_images, 'image')} without an object dropped")
        if self.kept_shards:
            lines.append(f"{counted(self.kept_shards, 'shard')} of an earlier build kept, every byte compared")
        return (
            f"{self.location}: {counted(manifest.num_samples, 'image')} in "
            f"{counted(len(manifest.shards), 'shard')}, "
            f"{manifest.num_bytes / 1e6:,.1f} MB, manifest {manifest.digest[:6]}\n"
            f"{counted(manifest.source.boxes, 'box')} of {counted(len(manifest.classes), 'class')}{left_out}; "
            f"{counted(self.crowd_boxes, 'crowd')}, {counted(self.images_without_boxes, 'image')} without boxes"
            + ("; nothing changed since the last build" if self.unchanged else "")
            + "".join(f"\n{line}" for line in lines if line)
        )


def build_shards(
    annotations: str | Path,
    images: str | Path,
    output: str,
    *,
    split: str,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    degenerate_boxes: DegenerateBoxes = "drop",
    processes: int = 1,
    progress: Callable[[Progress], None] = lambda _: None,
    overwrite: bool = False,
    empty_images: EmptyImages = "keep",
    ignore: Mapping[str, str] | None = None,
    leave_out: Sequence[str] = (),
    max_size: int = 0,
    jpeg_quality: int = 95,
) -> BuildReport:
    """Turn a COCO file into shards at `output/split`, a folder or `s3://bucket/prefix`.

    Every image is decoded once to check it. The manifest is written when everything else is, so a build that
    is cut off leaves no data set behind; the same call goes on with it, keeping finished shards whose bytes are
    still those that were written. A shard is put together in memory, one for each process.

    Args:
        annotations: the instances JSON.
        images: the folder its file names start from.
        output: the location; `split` is a folder in it.
        split: name of the split, the first part of every shard's name.
        shard_bytes: a shard is closed before its images exceed this; one image is never divided.
        degenerate_boxes: see `read_coco`.
        processes: at most so many build at the same time; small sets take fewer.
        progress: called after each finished shard, in order.
        overwrite: replace another data set that is already there.
        empty_images, ignore, leave_out: see `read_coco`.
        max_size: encode images again whose longer side has more pixels, and scale their labels; 0 keeps all bytes.
        jpeg_quality: of those.

    Raises:
        DataError: bad annotations (see `read_coco`), images that do not decode or whose size is not what
            the annotations say (all of them counted), a place that cannot be written or holds another data
            set.
    """
    if not 0 < shard_bytes <= _MOST_SHARD_BYTES:
        raise DataError(
            f"shard_bytes (--shard-megabytes) is {shard_bytes:,} bytes; set it between 1 and {_MOST_SHARD_BYTES:,}."
        )
    if processes < 1:
        raise DataError(f"processes is {processes}; set it to 1 or more.")
    if not split or "/" in split or split.startswith("."):
        raise DataError(f"split is {split!r}; give one word, such as 'train'.")
    if max_size < 0 or not 1 <= jpeg_quality <= 100:
        raise DataError(
            f"max_size is {max_size} and jpeg_quality {jpeg_quality}; set them to 0 (no limit) or more, and 1 to 100."
        )
    dataset = read_coco(
        annotations,
        images,
        degenerate_boxes=degenerate_boxes,
        empty_images=empty_images,
        ignore=ignore,
        leave_out=leave_out,
    )
    store = open_store(f"{output.rstrip('/') or '/'}/{split}")
    store.check_writable()
    source = Source(
        annotations_sha256=hashlib.sha256(dataset.path.read_bytes()).hexdigest(),
        shard_bytes=shard_bytes,
        degenerate_boxes=degenerate_boxes,
        boxes=dataset.num_boxes,
        dropped_boxes=dataset.zero_size_boxes + dataset.outside_boxes,
        empty_images=empty_images,
        dropped_images=dataset.dropped_images,
        left_out=tuple(sorted(leave_out)),
        max_size=max_size,
        jpeg_quality=jpeg_quality if max_size else 0,
    )
    described = Manifest(split, dataset.classes, (), source, dataset.labels, dataset.ignored)
    existing = _existing(store, described, overwrite)
    jobs = list(_jobs(dataset, described, Path(images), store, existing))
    built: list[Shard] = []
    bad: list[str] = []
    done = kept_images = kept_shards = 0
    wanted = min(processes, 1 + sum(job.size for job in jobs) // BYTES_WORTH_A_PROCESS)
    for result in run_in_processes(_build_shard, jobs, wanted):
        if isinstance(result, list):
            bad += result
            continue
        built.append(result.shard)
        done += result.shard.samples
        kept_shards += result.kept
        kept_images += result.kept * result.shard.samples
        progress(Progress(len(built), len(jobs), done, len(dataset.images), kept_images))
    if bad:
        if existing is None:
            _delete_all_but(store, split, set())
            if (folder := store.local_path("")) is not None:
                with suppress(OSError):  # something else lies there, or nothing was written
                    folder.rmdir()
        shown = "; ".join(bad[:5])
        more = f"; and {len(bad) - 5:,} more" if len(bad) > 5 else ""
        raise DataError(
            f"{len(bad):,} of {len(dataset.images):,} images of {dataset.path} cannot be used: {shown}{more}. "
            "Correct or remove them; nothing was built."
        )
    manifest = Manifest(split, dataset.classes, tuple(built), source, dataset.labels, dataset.ignored)
    unchanged = existing is not None and existing.digest == manifest.digest
    if not unchanged:
        text = json.dumps(manifest.as_json(), indent=1, sort_keys=True)
        store.write_bytes(MANIFEST_NAME, f"{text}\n".encode())
    _delete_all_but(store, split, {name for shard in built for name in (shard.name, shard.index)})
    return BuildReport(
        location=store.location,
        manifest=manifest,
        zero_size_boxes=dataset.zero_size_boxes,
        outside_boxes=dataset.outside_boxes,
        crowd_boxes=sum(bool(item.get("iscrowd")) for image in dataset.images for item in image.annotations),
        images_without_boxes=sum(not image.annotations for image in dataset.images),
        unchanged=unchanged,
        kept_shards=kept_shards,
        unnamed_joints=dataset.unnamed_joints,
    )


def _existing(store: Store, described: Manifest, overwrite: bool) -> Manifest | None:
    """The manifest of an earlier build of the same source; that of another data set goes where it is to be replaced."""
    if not store.exists(MANIFEST_NAME):
        return None
    try:
        existing = load_manifest(store)
        same = (existing.source, existing.ignored) == (described.source, described.ignored)
        if same and not overwrite:
            return existing
        if not overwrite:
            raise DataError(
                f"{store.location} already holds another data set ({existing.num_samples:,} images, manifest "
                f"{existing.digest[:6]}). Choose another output, or pass --overwrite to replace it."
            )
    except DataError:
        if not overwrite:
            raise
    # Gone first: a manifest must never stand beside shards it does not describe.
    store.delete(MANIFEST_NAME)
    return None


def _delete_all_but(store: Store, split: str, kept: set[str]) -> None:
    """Remove what builds of this split wrote: shards of a replaced set, records, half a file that a kill left."""
    ours = re.compile(rf"{re.escape(split)}-\d{{6}}\.(tar|index\.npz|built\.json)")
    for name in store.list_names():
        if ours.fullmatch(name) and name not in kept:
            store.delete(name)
    folder = store.local_path("")
    if folder is not None:
        for part in folder.glob(f".{split}-*.part"):
            part.unlink(missing_ok=True)


def _ordered(dataset: CocoDataset) -> list[CocoImage]:
    images = sorted(dataset.images, key=lambda image: image.id)
    scrambled = keys(key(_ORDER), np.array([image.id for image in images], dtype=np.int64))
    return [images[index] for index in np.argsort(scrambled, kind="stable")]


def _jobs(
    dataset: CocoDataset, described: Manifest, folder: Path, store: Store, existing: Manifest | None
) -> Iterator["_Job"]:
    label_of = {item.id: label for label, item in enumerate(dataset.classes)}
    label_of |= {item.id: -2 - (item.label if item.label >= 0 else len(label_of)) for item in dataset.ignored}
    source = described.source
    chunks = _cut(_ordered(dataset), folder, source.shard_bytes, source.max_size)
    for number, (chunk, size) in enumerate(chunks):
        yield _Job(
            name=f"{described.split}-{number:06d}",
            images=chunk,
            size=size,
            folder=folder,
            label_of=label_of,
            class_of={item.id: item for item in dataset.classes},
            described=described,
            store=store,
            expected=existing,
            drops_any=bool(source.dropped_boxes),
        )


def _cut(
    images: Iterable[CocoImage], folder: Path, shard_bytes: int, max_size: int
) -> Iterator[tuple[list[CocoImage], int]]:
    """The images of each shard, and about how many bytes they take."""
    chunk: list[CocoImage] = []
    filled = 0
    for image in images:
        width, height = shrunk_size(image.width, image.height, max_size)
        # About what an image takes, should it be encoded again.
        share = width * height / max(1, image.width * image.height)
        size = int(os.path.getsize(folder / image.file_name) * share) + _OVERHEAD_BYTES
        if chunk and filled + size > shard_bytes:
            yield chunk, filled
            chunk, filled = [], 0
        chunk.append(image)
        filled += size
    if chunk:
        yield chunk, filled


@dataclass(frozen=True)
class _Job:
    """What one process needs to build one shard."""

    name: str
    images: list[CocoImage]
    size: int
    folder: Path
    label_of: dict[int, int]
    class_of: dict[int, CocoClass]
    described: Manifest
    """The manifest to come, without its shards."""
    store: Store
    expected: Manifest | None
    """The shards that are there already, when the same source was built before."""
    drops_any: bool

    @property
    def record(self) -> str:
        """Name of the file that says the shard is finished."""
        return f"{self.name}.built.json"

    def digest(self) -> str:
        """Of all that decides the shard's bytes; images count as changed when their size or time has."""
        files = []
        for image in self.images:
            status = os.stat(self.folder / image.file_name)
            files.append((image.id, image.file_name, status.st_size, status.st_mtime_ns))
        decided = [_RECORD_VERSION, self.name, self.described.digest, files]
        return hashlib.sha256(json.dumps(decided).encode()).hexdigest()


@dataclass(frozen=True)
class _Built:
    """A shard that is there; `kept` where an earlier build had finished it."""

    shard: Shard
    kept: bool = False


def _build_shard(job: _Job) -> _Built | list[str]:
    """Build one shard and store it; the list of what is wrong with its images where they cannot be used."""
    try:
        digest = job.digest()
    except OSError as error:
        return [_unreadable(error)]
    if (finished := _finished(job, digest)) is not None:
        return _Built(finished, kept=True)
    import webdataset  # brings torch along, which a command that builds nothing should not wait for

    bad: list[str] = []
    stored: list[CocoImage] = []
    source = job.described.source
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, user="aweigh", group="aweigh", mtime=0, encoder=False) as writer:
        for original in job.images:
            try:
                data = (job.folder / original.file_name).read_bytes()
            except OSError as error:
                bad.append(_unreadable(error))
                continue
            if problem := _problem(original, data):
                bad.append(f"image {original.id}, {original.file_name}: {problem}")
            elif not bad:
                image, data = shrink(original, data, source.max_size, source.jpeg_quality)
                stored.append(image)
                writer.write(
                    {
                        "__key__": sample_key(image.id),
                        str(image_extension(data)): data,
                        "json": json.dumps(_as_json(image), separators=(",", ":")).encode(),
                    }
                )
    if bad:
        return bad
    tar = buffer.getbuffer()
    index = _make_index(job, stored, buffer).to_bytes()
    shard = Shard(
        name=f"{job.name}.tar",
        samples=len(stored),
        bytes=len(tar),
        sha256=hashlib.sha256(tar).hexdigest(),
        index=f"{job.name}.index.npz",
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    if job.expected is not None and shard not in job.expected.shards:
        raise DataError(
            f"{job.store.location} was built from the same annotations, but shard {shard.name} would differ: "
            "images have changed since. Choose another output, or pass --overwrite to replace it."
        )
    job.store.write_bytes(shard.index, index)
    job.store.write_bytes(shard.name, tar)
    if job.expected is None:
        # Last: what it says has to be there.
        job.store.write_bytes(job.record, json.dumps({"built_from": digest, "shard": asdict(shard)}).encode())
    return _Built(shard)


def _unreadable(error: OSError) -> str:
    return f"{error.filename}: cannot be read ({error.strerror})"


def _finished(job: _Job, digest: str) -> Shard | None:
    """The shard if a build that was cut off had finished it, and it is still what was written, byte for byte."""
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
        return None
    return shard


def _problem(image: CocoImage, data: bytes) -> str | None:
    if image_extension(data) is None:
        return f"neither a JPEG nor a PNG (it begins with {data[:8].hex(' ') or 'nothing'})"
    try:
        height, width = decode_jpeg(data).shape[:2]
    except ValueError as error:
        return f"does not decode ({error})"
    if (width, height) == (image.width, image.height):
        return None
    problem = f"is {width} x {height} pixels, the annotations say {image.width} x {image.height}"
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


def _make_index(job: _Job, images: Sequence[CocoImage], tar: io.BytesIO) -> ShardIndex:
    tar.seek(0)
    members: dict[str, tuple[int, int]] = {}
    with tarfile.open(fileobj=tar, mode="r:") as archive:
        for member in archive:
            kind = "json" if member.name.endswith(".json") else "image"
            members[f"{member.name.partition('.')[0]}.{kind}"] = (member.offset_data, member.size)
    view = tar.getbuffer()
    placed = [members[f"{sample_key(image.id)}.image"] for image in images]
    described = [members[f"{sample_key(image.id)}.json"] for image in images]
    annotations = [item for image in images for item in image.annotations]
    return ShardIndex(
        image_offsets=_int64(offset for offset, _ in placed),
        image_sizes=_int64(size for _, size in placed),
        image_crc32=np.array([zlib.crc32(view[at : at + size]) for at, size in placed], dtype=np.uint32),
        json_offsets=_int64(offset for offset, _ in described),
        json_sizes=_int64(size for _, size in described),
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


def _corners(box: list[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height


def _int64(values: Iterable[Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(list(values), dtype=np.int64)
