"""Building shards: COCO annotations and their images become WebDataset tars, an index beside each, and a manifest.

The same annotations and images always give the same bytes. An interrupted build resumes: a record beside each finished
shard says what it was built from, until the manifest replaces the records. Samples are ordered by their scrambled image
ids: ids often follow time, place or class, and training mixes whole shards, so each shard should look like the whole
set. This order does not depend on the order of the annotation file, and new images do not change it for the old ones.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from data_shards.building.coco import CocoDataset, CocoImage, DegenerateBoxes, EmptyImages, read_categories, read_coco
from data_shards.building.coco_checks import read_document
from data_shards.building.shard_writing import BuiltShard, ShardJob, build_shard
from data_shards.building.shrink import shrunk_size
from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.format.manifest import MANIFEST_NAME, CocoClass, Manifest, Source, load_manifest, manifest_text
from data_shards.order.keyed_random import key, keys
from data_shards.processes import BYTES_WORTH_A_PROCESS, run_in_processes
from data_shards.storage.open import open_store
from data_shards.storage.store import Store

DEFAULT_SHARD_BYTES = 80_000_000
# A shard is assembled in memory, one in each process.
_MOST_SHARD_BYTES = 2_000_000_000
# Rough bytes that a tar adds to a sample: two headers, two paddings, a small JSON. Only decides where shards are cut.
_OVERHEAD_BYTES = 2048
# Domain of the keyed random numbers that order the samples; another number would give every data set another order.
_ORDER = 201


@dataclass(frozen=True)
class Progress:
    """Progress of a build, in shards and in images."""

    shards: int
    total_shards: int
    images: int
    total_images: int
    kept_images: int = 0
    """Images in shards that an earlier build had finished."""


@dataclass(frozen=True)
class BuildReport:
    """The data set that a build made, and counts of what it dropped."""

    location: str
    """LOCATION/SPLIT, as a recipe names it."""
    manifest: Manifest
    zero_size_boxes: int
    outside_boxes: int
    crowd_boxes: int
    images_without_boxes: int
    unchanged: bool
    """True if the location already held exactly these shards."""
    kept_shards: int = 0
    """Shards that an interrupted build had finished."""
    unnamed_joints: int = 0
    """Annotations whose keypoints no category names; see `CocoDataset`."""
    resolved_names: str = ""
    """A line about file names that were written otherwise; empty if there are none."""

    def describe(self) -> str:
        """Summarise in a few lines what was built and what was left out."""
        manifest = self.manifest
        summary = (
            f"{self.location}: {counted(manifest.num_samples, 'image')} in {counted(len(manifest.shards), 'shard')}, "
            f"{manifest.num_bytes / 1e6:,.1f} MB, manifest {manifest.digest[:6]}"
        )
        dropped = self.zero_size_boxes + self.outside_boxes
        boxes = (
            f"{counted(manifest.source.boxes, 'box')} of {counted(len(manifest.classes), 'class')}"
            + (
                f"; {dropped:,} dropped ({self.zero_size_boxes:,} without area, {self.outside_boxes:,} outside)"
                if dropped
                else ""
            )
            + f"; {counted(self.crowd_boxes, 'crowd')}, {counted(self.images_without_boxes, 'image')} without boxes"
            + ("; nothing changed since the last build" if self.unchanged else "")
        )
        return "\n".join([summary, boxes, *self._notes()])

    def _notes(self) -> Iterator[str]:
        manifest, source = self.manifest, self.manifest.source
        if manifest.labels:
            extra = {"keypoints": f"{counted(manifest.joints, 'joint')}", "3d": "depth, dimensions and orientation"}
            yield f"with {' and '.join(extra[name] for name in manifest.labels)}"
        if self.resolved_names:
            yield self.resolved_names
        if self.unnamed_joints:
            yield (
                f"keypoints of {counted(self.unnamed_joints, 'object')} are not used: their categories do not name "
                "their joints"
            )
        if manifest.ignored or source.left_out:
            ignored = ", ".join(
                f"{item.name} (as {'any class' if item.label < 0 else manifest.class_names[item.label]})"
                for item in manifest.ignored
            )
            yield f"ignored: {ignored or 'none'}; left out: {', '.join(source.left_out) or 'none'}"
        if source.max_size:
            longer = f"images longer than {source.max_size:,} pixels"
            yield f"{longer} were encoded again, JPEG quality {source.jpeg_quality}"
        if source.dropped_images:
            yield f"{counted(source.dropped_images, 'image')} without an object dropped"
        if self.kept_shards:
            yield f"{counted(self.kept_shards, 'shard')} of an earlier build kept, every byte compared"


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
    classes_from: str = "",
) -> BuildReport:
    """Turn a COCO file into shards at `output/split`, a folder or `s3://bucket/prefix`.

    Every image is decoded once to check it. The manifest is written after everything else, so an interrupted build
    leaves no data set behind. The same call resumes it, and keeps finished shards whose bytes are still those that
    were written. Each process assembles one shard in memory.

    Args:
        annotations: the COCO instances file.
        images: the folder that its file names are relative to.
        output: the location; `split` is a folder in it.
        split: name of the split, the first part of every shard's name.
        shard_bytes: a shard is closed before its images exceed this; a single image is never divided.
        degenerate_boxes: see `read_coco`.
        processes: how many shards are built at the same time, at most; small sets use fewer.
        progress: called after each finished shard, in order.
        overwrite: replace a different data set that is already there.
        empty_images: see `read_coco`.
        ignore: see `read_coco`.
        leave_out: see `read_coco`.
        max_size: images whose longer side has more pixels are shrunk to this and encoded again, and their labels
            scaled; 0 keeps every byte.
        jpeg_quality: quality of the images that are encoded again.
        classes_from: `LOCATION/SPLIT` or a COCO file whose classes this split takes over by name; see `read_coco`.

    Raises:
        DataError: the annotations are bad (see `read_coco`); images do not decode, or their sizes differ from the
            annotations (all are counted); or the location cannot be written or holds a different data set.
    """
    _check_settings(shard_bytes, processes, split, max_size, jpeg_quality)
    dataset = read_coco(
        annotations,
        images,
        degenerate_boxes=degenerate_boxes,
        empty_images=empty_images,
        ignore=ignore,
        leave_out=leave_out,
        classes_from=classes_of(classes_from) if classes_from else (),
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
    jobs = _plan(dataset, described, Path(images), store, existing)

    built, problems = _build(jobs, processes, progress)
    if problems:
        _clean_up_and_refuse(store, split, dataset, problems, existing)
    manifest = replace(described, shards=tuple(item.shard for item in built))
    unchanged = existing is not None and existing.digest == manifest.digest
    _publish(store, manifest, unchanged)
    return _report(store, dataset, manifest, unchanged, sum(item.kept for item in built))


def _check_settings(shard_bytes: int, processes: int, split: str, max_size: int, jpeg_quality: int) -> None:
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
            f"max_size is {max_size} and jpeg_quality {jpeg_quality}; set max_size to 0 (no limit) or more, and "
            "jpeg_quality between 1 and 100."
        )


def classes_of(where: str) -> tuple[CocoClass, ...]:
    """Read the classes of `LOCATION/SPLIT` or of a COCO file.

    Raises:
        DataError: there is neither, or it is damaged.
    """
    path = Path(where)
    if path.is_file() and path.name != MANIFEST_NAME:
        return read_categories(path, read_document(path)["categories"])
    return load_manifest(where.removesuffix(f"/{MANIFEST_NAME}")).classes


def _existing(store: Store, described: Manifest, overwrite: bool) -> Manifest | None:
    """Return the manifest of an earlier build from the same source; delete another one if `overwrite` allows it."""
    if not store.exists(MANIFEST_NAME):
        return None
    try:
        existing = load_manifest(store)
        same = (existing.source, existing.classes, existing.ignored) == (
            described.source,
            described.classes,
            described.ignored,
        )
        if same and not overwrite:
            return existing
        if not overwrite:
            raise DataError(
                f"{store.location} already holds another data set ({counted(existing.num_samples, 'image')}, manifest "
                f"{existing.digest[:6]}). Choose another --output, or pass --overwrite to replace it."
            )
    except DataError:
        if not overwrite:
            raise
    # Before any shard is replaced: a manifest must never be found beside shards that it does not describe.
    store.delete(MANIFEST_NAME)
    return None


def _plan(
    dataset: CocoDataset, described: Manifest, folder: Path, store: Store, existing: Manifest | None
) -> list[ShardJob]:
    """Divide the images among shards."""
    label_of = {item.id: label for label, item in enumerate(dataset.classes)}
    # Ignored boxes carry -2 minus the label of the class they may be mistaken for, or of one past the last for any.
    label_of |= {item.id: -2 - (item.label if item.label >= 0 else len(label_of)) for item in dataset.ignored}
    source = described.source
    chunks = _cut(_ordered(dataset), folder, source.shard_bytes, source.max_size)
    return [
        ShardJob(
            name=f"{described.split}-{number:06d}",
            images=chunk,
            estimated_bytes=estimated_bytes,
            folder=folder,
            label_of=label_of,
            class_of={item.id: item for item in dataset.classes},
            described=described,
            store=store,
            expected=existing,
            drops_any=bool(source.dropped_boxes),
        )
        for number, (chunk, estimated_bytes) in enumerate(chunks)
    ]


def _ordered(dataset: CocoDataset) -> list[CocoImage]:
    images = sorted(dataset.images, key=lambda image: image.id)
    scrambled = keys(key(_ORDER), np.array([image.id for image in images], dtype=np.int64))
    return [images[index] for index in np.argsort(scrambled, kind="stable")]


def _cut(
    images: Iterable[CocoImage], folder: Path, shard_bytes: int, max_size: int
) -> Iterator[tuple[list[CocoImage], int]]:
    """Yield the images of each shard, and about how many bytes they take."""
    chunk: list[CocoImage] = []
    filled = 0
    for image in images:
        width, height = shrunk_size(image.width, image.height, max_size)
        # The size after shrinking is unknown until then; bytes are taken to shrink with the pixels.
        share = width * height / max(1, image.width * image.height)
        size = int(os.path.getsize(folder / image.file_name) * share) + _OVERHEAD_BYTES
        if chunk and filled + size > shard_bytes:
            yield chunk, filled
            chunk, filled = [], 0
        chunk.append(image)
        filled += size
    if chunk:
        yield chunk, filled


def _build(
    jobs: Sequence[ShardJob], processes: int, progress: Callable[[Progress], None]
) -> tuple[list[BuiltShard], list[str]]:
    """Build all shards; return those that could be built, and the problems of the images of the others."""
    built: list[BuiltShard] = []
    problems: list[str] = []
    images = kept_images = 0
    total_images = sum(len(job.images) for job in jobs)
    worth = 1 + sum(job.estimated_bytes for job in jobs) // BYTES_WORTH_A_PROCESS
    for result in run_in_processes(build_shard, jobs, min(processes, worth)):
        # Shards after a bad one are still built: one run should report all bad images.
        if isinstance(result, list):
            problems += result
            continue
        built.append(result)
        images += result.shard.samples
        kept_images += result.kept * result.shard.samples
        progress(Progress(len(built), len(jobs), images, total_images, kept_images))
    return built, problems


def _clean_up_and_refuse(
    store: Store, split: str, dataset: CocoDataset, problems: Sequence[str], existing: Manifest | None
) -> NoReturn:
    if existing is None:
        _delete_all_but(store, split, set())
        if (folder := store.local_path("")) is not None:
            with suppress(OSError):  # it holds other files, or was never made
                folder.rmdir()
    shown = "; ".join(problems[:5])
    more = f"; and {len(problems) - 5:,} more" if len(problems) > 5 else ""
    raise DataError(
        f"{len(problems):,} of {counted(len(dataset.images), 'image')} of {dataset.path} cannot be used: "
        f"{shown}{more}. Correct or remove them; nothing was built."
    )


def _publish(store: Store, manifest: Manifest, unchanged: bool) -> None:
    """Write the manifest, which makes the shards a data set, and then remove the records and older shards."""
    if not unchanged:
        store.write_bytes(MANIFEST_NAME, f"{manifest_text(manifest)}\n".encode())
    _delete_all_but(store, manifest.split, {name for shard in manifest.shards for name in (shard.name, shard.index)})


def _delete_all_but(store: Store, split: str, kept: set[str]) -> None:
    """Remove files that builds of this split wrote: shards of a replaced set, records, and parts that a kill left."""
    ours = re.compile(rf"{re.escape(split)}-\d{{6}}\.(tar|index\.npz|built\.json)")
    for name in store.list_names():
        if ours.fullmatch(name) and name not in kept:
            store.delete(name)
    folder = store.local_path("")
    if folder is not None:
        for part in folder.glob(f".{split}-*.part"):
            part.unlink(missing_ok=True)


def _report(store: Store, dataset: CocoDataset, manifest: Manifest, unchanged: bool, kept_shards: int) -> BuildReport:
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
        resolved_names=dataset.resolved_names,
    )
