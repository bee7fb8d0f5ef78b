"""Building shards: a COCO file and its images become WebDataset tars, an index beside each, and a manifest.

The same annotations and images always give the same bytes. Samples are put in the order of their scrambled
image ids: ids often follow time, place or class, and shards are what a reader mixes, so each shard should
look like the whole set. That order neither depends on the order of the annotation file nor changes for the
old images when new ones are added.
"""

import hashlib
import io
import json
import multiprocessing
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.coco import CocoDataset, CocoImage, DegenerateBoxes, read_coco
from data_shards.decode import decode_jpeg, exif_orientation, image_extension
from data_shards.errors import DataError
from data_shards.index import ShardIndex
from data_shards.keyed import key, keys
from data_shards.manifest import MANIFEST_NAME, Manifest, Shard, Source, load_manifest
from data_shards.store import Store, open_store

DEFAULT_SHARD_BYTES = 80_000_000
_MOST_SHARD_BYTES = 2_000_000_000
# What a tar adds to a sample: two headers, two paddings, a small JSON. Only used to cut shards.
_OVERHEAD_BYTES = 2048
# A process takes seconds to start, mostly for importing torch; less work than this is not worth another one.
_BYTES_WORTH_A_PROCESS = 40_000_000
_ORDER = 201


@dataclass(frozen=True)
class Progress:
    """How far a build is, in shards and in images."""

    shards: int
    total_shards: int
    images: int
    total_images: int


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

    def describe(self) -> str:
        """A few lines for people: what was built, and what was left out."""
        manifest = self.manifest
        dropped = self.zero_size_boxes + self.outside_boxes
        left_out = (
            f"; {dropped:,} dropped ({self.zero_size_boxes:,} without area, {self.outside_boxes:,} outside)"
            if dropped
            else ""
        )
        return (
            f"{self.location}: {_counted(manifest.num_samples, 'image')} in "
            f"{_counted(len(manifest.shards), 'shard')}, "
            f"{manifest.num_bytes / 1e6:,.1f} MB, manifest {manifest.digest[:6]}\n"
            f"{manifest.source.boxes:,} boxes of {len(manifest.classes):,} classes{left_out}; "
            f"{_counted(self.crowd_boxes, 'crowd')}, {_counted(self.images_without_boxes, 'image')} without boxes"
            + ("; nothing changed since the last build" if self.unchanged else "")
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
) -> BuildReport:
    """Turn a COCO file into shards at `output/split`, a folder or `s3://bucket/prefix`.

    Every image is decoded once to check it. The manifest is written when everything else is, so a build that
    is cut off leaves no data set behind. A shard is put together in memory, one for each process.

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

    Raises:
        DataError: bad annotations (see `read_coco`), images that do not decode or whose size is not what
            the annotations say (all of them counted), a place that cannot be written or holds another data
            set.
    """
    if not 0 < shard_bytes <= _MOST_SHARD_BYTES:
        raise DataError(f"shard_bytes is {shard_bytes:,}; set it between 1 and {_MOST_SHARD_BYTES:,}.")
    if processes < 1:
        raise DataError(f"processes is {processes}; set it to 1 or more.")
    if not split or "/" in split or split.startswith("."):
        raise DataError(f"split is {split!r}; give one word, such as 'train'.")
    dataset = read_coco(annotations, images, degenerate_boxes=degenerate_boxes)
    store = open_store(f"{output.rstrip('/') or '/'}/{split}")
    store.check_writable()
    source = Source(
        annotations_sha256=hashlib.sha256(dataset.path.read_bytes()).hexdigest(),
        shard_bytes=shard_bytes,
        degenerate_boxes=degenerate_boxes,
        boxes=dataset.num_boxes,
        dropped_boxes=dataset.zero_size_boxes + dataset.outside_boxes,
    )
    existing, replaced = _existing(store, source, overwrite)

    label_of = {item.id: label for label, item in enumerate(dataset.classes)}
    same = {shard.name: shard for shard in existing.shards} if existing else None
    jobs = [
        _Job(f"{split}-{number:06d}", chunk, size, Path(images), label_of, store, same)
        for number, (chunk, size) in enumerate(_cut(_ordered(dataset), Path(images), shard_bytes))
    ]
    built: list[Shard] = []
    bad: list[str] = []
    for result in _run(jobs, min(processes, 1 + sum(job.size for job in jobs) // _BYTES_WORTH_A_PROCESS)):
        if isinstance(result, list):
            bad += result
            continue
        built.append(result)
        done = sum(shard.samples for shard in built)
        progress(Progress(len(built), len(jobs), done, len(dataset.images)))
    if bad:
        if existing is None:
            _delete(store, built)
        shown = "; ".join(bad[:5])
        more = f"; and {len(bad) - 5:,} more" if len(bad) > 5 else ""
        raise DataError(
            f"{len(bad):,} of {len(dataset.images):,} images of {dataset.path} cannot be used: {shown}{more}. "
            "Correct or remove them; nothing was built."
        )
    manifest = Manifest(split, dataset.classes, tuple(built), source)
    unchanged = existing is not None and existing.digest == manifest.digest
    if not unchanged:
        text = json.dumps(manifest.as_json(), indent=1, sort_keys=True)
        store.write_bytes(MANIFEST_NAME, f"{text}\n".encode())
    kept = {shard.name for shard in built}
    _delete(store, [shard for shard in replaced if shard.name not in kept])
    return BuildReport(
        location=store.location,
        manifest=manifest,
        zero_size_boxes=dataset.zero_size_boxes,
        outside_boxes=dataset.outside_boxes,
        crowd_boxes=sum(bool(item.get("iscrowd")) for image in dataset.images for item in image.annotations),
        images_without_boxes=sum(not image.annotations for image in dataset.images),
        unchanged=unchanged,
    )


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"


def _existing(store: Store, source: Source, overwrite: bool) -> tuple[Manifest | None, tuple[Shard, ...]]:
    """The manifest of an earlier build of the same source, and the shards of one that is being replaced."""
    if not store.exists(MANIFEST_NAME):
        return None, ()
    replaced: tuple[Shard, ...] = ()
    try:
        existing = load_manifest(store)
        if existing.source == source and not overwrite:
            return existing, ()
        replaced = existing.shards
        if not overwrite:
            raise DataError(
                f"{store.location} already holds another data set ({existing.num_samples:,} images, manifest "
                f"{existing.digest[:6]}). Choose another output, or pass overwrite to replace it."
            )
    except DataError:
        if not overwrite:
            raise
    # Gone first: a manifest must never stand beside shards it does not describe.
    store.delete(MANIFEST_NAME)
    return None, replaced


def _delete(store: Store, shards: Iterable[Shard]) -> None:
    for shard in shards:
        store.delete(shard.name)
        store.delete(shard.index)


def _ordered(dataset: CocoDataset) -> list[CocoImage]:
    images = sorted(dataset.images, key=lambda image: image.id)
    scrambled = keys(key(_ORDER), np.array([image.id for image in images], dtype=np.int64))
    return [images[index] for index in np.argsort(scrambled, kind="stable")]


def _cut(images: Iterable[CocoImage], folder: Path, shard_bytes: int) -> Iterator[tuple[list[CocoImage], int]]:
    """The images of each shard, and about how many bytes they take."""
    chunk: list[CocoImage] = []
    filled = 0
    for image in images:
        size = os.path.getsize(folder / image.file_name) + _OVERHEAD_BYTES
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
    store: Store
    expected: dict[str, Shard] | None
    """The shards that are there already, when the same source was built before."""


def _run(jobs: list[_Job], processes: int) -> Iterator[Shard | list[str]]:
    if processes == 1 or len(jobs) == 1:
        yield from map(_build_shard, jobs)
        return
    # Forking a process that has threads (a test runner, Ray, torch) can deadlock the child.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context) as pool:
        yield from pool.map(_build_shard, jobs)


def _build_shard(job: _Job) -> Shard | list[str]:
    """Build one shard and store it; the list of what is wrong with its images where they cannot be used."""
    import webdataset  # brings torch along, which a command that builds nothing should not wait for

    bad: list[str] = []
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, user="aweigh", group="aweigh", mtime=0, encoder=False) as writer:
        for image in job.images:
            data = (job.folder / image.file_name).read_bytes()
            if problem := _problem(image, data):
                bad.append(f"image {image.id}, {image.file_name}: {problem}")
            elif not bad:
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
    index = _make_index(job, buffer).to_bytes()
    shard = Shard(
        name=f"{job.name}.tar",
        samples=len(job.images),
        bytes=len(tar),
        sha256=hashlib.sha256(tar).hexdigest(),
        index=f"{job.name}.index.npz",
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    if job.expected is not None and job.expected.get(shard.name) != shard:
        raise DataError(
            f"{job.store.location} was built from the same annotations, but shard {shard.name} would differ: "
            "images have changed since. Choose another output, or pass overwrite to replace it."
        )
    job.store.write_bytes(shard.index, index)
    job.store.write_bytes(shard.name, tar)
    return shard


def sample_key(image_id: int) -> str:
    """The WebDataset key of an image: its COCO id, twelve digits wide as in COCO's own file names."""
    return f"{image_id:012d}"


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
    }


def _make_index(job: _Job, tar: io.BytesIO) -> ShardIndex:
    tar.seek(0)
    members: dict[str, tuple[int, int]] = {}
    with tarfile.open(fileobj=tar, mode="r:") as archive:
        for member in archive:
            kind = "json" if member.name.endswith(".json") else "image"
            members[f"{member.name.partition('.')[0]}.{kind}"] = (member.offset_data, member.size)
    view = tar.getbuffer()
    placed = [members[f"{sample_key(image.id)}.image"] for image in job.images]
    described = [members[f"{sample_key(image.id)}.json"] for image in job.images]
    annotations = [item for image in job.images for item in image.annotations]
    return ShardIndex(
        image_offsets=_int64(offset for offset, _ in placed),
        image_sizes=_int64(size for _, size in placed),
        image_crc32=np.array([zlib.crc32(view[at : at + size]) for at, size in placed], dtype=np.uint32),
        json_offsets=_int64(offset for offset, _ in described),
        json_sizes=_int64(size for _, size in described),
        image_ids=_int64(image.id for image in job.images),
        widths=_int64(image.width for image in job.images),
        heights=_int64(image.height for image in job.images),
        row_splits=_int64(np.cumsum([0, *(len(image.annotations) for image in job.images)])),
        # Summed in double precision and rounded once, as the published code does.
        boxes=np.array([_corners(item["bbox"]) for item in annotations], dtype=np.float32).reshape(-1, 4),
        labels=_int64(job.label_of[item["category_id"]] for item in annotations),
        iscrowd=np.array([bool(item.get("iscrowd")) for item in annotations], dtype=np.bool_),
    )


def _corners(box: list[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height


def _int64(values: Iterable[Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(list(values), dtype=np.int64)
