"""The shards of a folder of annotated images, built once for each content of the folder."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from data_shards.building.annotated_folder import AnnotatedFolder
from data_shards.building.build import Progress, build_shards
from data_shards.checking.duplicates import Fingerprint, fingerprint
from data_shards.checking.grouped_split import near_duplicate_groups, split_groups
from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.format.manifest import MANIFEST_NAME, load_manifest
from data_shards.reading.decode import decode_jpeg
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.files import read_json, write_json

_RECORD = "finetune.json"
# To be raised when the same folder results in other shards: all are then built again.
_VERSION = 1
_LONGEST_NAME = 60

Json = dict[str, Any]


@dataclass(frozen=True)
class BuiltShards:
    """The splits of a folder, as shards."""

    folder: Path
    splits: tuple[str, ...]
    """`train`, and those of `val` and `test` that there are."""
    split: str = ""
    """The split of a single set, in words; empty if the folder has splits of its own."""
    notes: tuple[str, ...] = ()
    """Lines about boxes that building left out, and images without objects."""
    built: bool = True
    """False if an earlier command built the shards."""

    def location(self, split: str) -> str:
        """Return the location of a split; empty if there is none."""
        return str(self.folder / split) if split in self.splits else ""


def content_digest(found: AnnotatedFolder, share: float, seed: int) -> str:
    """Return a digest of everything that decides what is built: labels, images, and how they are split."""
    digest = hashlib.sha256(f"{_VERSION} {share!r} {seed}".encode())
    digest.update(json.dumps(found.documents, sort_keys=True).encode())
    names = sorted({image["file_name"] for document in found.documents.values() for image in document["images"]})
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, of_image in enumerate(pool.map(_digest_of, (found.images / name for name in names)), start=1):
            digest.update(of_image)
            if len(names) > 1000:
                console.progress_line("compare", done, len(names), "images with the last build")
    return digest.hexdigest()


def _digest_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"cannot read the image {path}: {error.strerror}. Check it and its permissions.") from error


def built_shards(
    found: AnnotatedFolder, name: str, digest: str, cache: Path, *, share: float, seed: int
) -> BuiltShards:
    """Return the shards of a folder's content; build them unless an earlier command did.

    The record that makes a cache complete is written last: a build that was killed is resumed by the same command.

    Args:
        found: the annotated images.
        name: of the folder, for people.
        digest: of its content, as `content_digest` returns it.
        cache: the folder of all built shards.
        share: of a single set, the part to validate on; 0 validates on nothing.
        seed: of the split.

    Raises:
        ConfigError: the cache cannot be written.
        DataError: the images or annotations cannot be used, or cannot be split.
    """
    folder = cache / f"{_plain(name)}-{digest[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lock"):
            if (whole := _whole(folder, digest)) is not None:
                return whole
            built = _build(found, folder, share, seed)
            record = {"digest": digest, "splits": built.splits, "split": built.split, "notes": built.notes}
            write_json(folder / _RECORD, record)
            return built
    except OSError as error:
        raise ConfigError(
            f"shards cannot be written to {folder}: {error.strerror or error}. Free some space, or give --shards "
            "another folder."
        ) from error


def _plain(name: str) -> str:
    """Make a folder's name one that needs no quotes in a shell, as far as its alphabet allows."""
    plain = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name).strip(".-")
    return plain.encode()[:_LONGEST_NAME].decode(errors="ignore") or "data"


def _whole(folder: Path, digest: str) -> BuiltShards | None:
    """Return the shards of an earlier command; None if they are not complete, or a file of them is missing."""
    record = read_json(folder / _RECORD)
    if record.pop("digest", "") != digest:
        return None
    whole = BuiltShards(folder, tuple(record["splits"]), record["split"], tuple(record["notes"]), built=False)
    return whole if all(_is_whole(whole.location(split)) for split in whole.splits) else None


def _is_whole(location: str) -> bool:
    if not Path(location, MANIFEST_NAME).is_file() or _is_damaged(location):
        return False
    shards = load_manifest(location).shards
    return all(Path(location, name).is_file() for shard in shards for name in (shard.name, shard.index))


def _is_damaged(location: str) -> bool:
    """True for a manifest that cannot be read; shards that are missing are built again beside the others."""
    if not Path(location, MANIFEST_NAME).exists():
        return False
    try:
        load_manifest(location)
    except DataError:
        return True
    return False


def _build(found: AnnotatedFolder, folder: Path, share: float, seed: int) -> BuiltShards:
    documents, split = dict(found.documents), ""
    if "all" in documents:
        whole = documents.pop("all")
        documents["train"] = whole
        if share:
            documents["train"], documents["val"], split = _split(found, whole, share, seed)
    notes = tuple(note for name, document in documents.items() for note in _build_split(found, folder, name, document))
    return BuiltShards(folder, tuple(documents), split, notes)


def _split(found: AnnotatedFolder, whole: Json, share: float, seed: int) -> tuple[Json, Json, str]:
    """Split one document in two; also says in words how."""
    images = whole["images"]
    if len(images) < 2:
        raise DataError(
            f"{found.images} has a single annotated image, which cannot be split into one to learn from and one to "
            "measure on. Add images, or train without validation: --validation-share 0."
        )
    names = [image["file_name"] for image in images]
    groups = near_duplicate_groups(list(_fingerprints([found.images / name for name in names])), names)
    classes: dict[int, set[int]] = {image["id"]: set() for image in images}
    for annotation in whole["annotations"]:
        classes[annotation["image_id"]].add(annotation["category_id"])
    try:
        chosen = set(split_groups(groups, list(classes.values()), names, share=share, seed=seed))
    except DataError as error:
        raise DataError(f"{error} To train without validation, pass --validation-share 0.") from error
    train, validation = (
        _part(whole, [image for row, image in enumerate(images) if (row in chosen) == side]) for side in (False, True)
    )
    copies = [group for group in groups if len(group) > 1]
    text = (
        f"{counted(len(images), 'image')} into {len(train['images'])} to train on and {len(validation['images'])} to "
        f"validate on (share {share:g}, seed {seed})"
    )
    if copies:
        first = ", ".join(names[index] for index in copies[0][:3])
        stay = "group of near-duplicates stays" if len(copies) == 1 else "groups of near-duplicates stay"
        text += f"; {len(copies):,} {stay} on one side, such as {first}"
    return train, validation, text


def _part(whole: Json, images: Sequence[Json]) -> Json:
    ids = {image["id"] for image in images}
    annotations = [item for item in whole["annotations"] if item["image_id"] in ids]
    return {**whole, "images": list(images), "annotations": annotations}


def _fingerprints(paths: Sequence[Path]) -> Iterator[Fingerprint]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, of_image in enumerate(pool.map(_fingerprint, paths), start=1):
            console.progress_line("copies", done, len(paths), "images compared")
            yield of_image


def _fingerprint(path: Path) -> Fingerprint:
    data = path.read_bytes()
    try:
        return fingerprint(data, decode_jpeg(data))
    except ValueError:
        # Building names all images that do not decode. A plain thumbnail is like no other.
        return Fingerprint(hashlib.blake2b(data, digest_size=16).digest(), 0, np.zeros((16, 16), dtype=np.uint8))


def _build_split(found: AnnotatedFolder, folder: Path, split: str, document: Mapping[str, Any]) -> list[str]:
    source = folder / "annotations" / f"{split}.json"
    source.parent.mkdir(exist_ok=True)
    write_json(source, document)
    pace = console.Pace()

    def show(at: Progress) -> None:
        console.progress_line(split, at.images, at.total_images, "images", pace.note(at.images, at.total_images))

    report = build_shards(
        source,
        found.images,
        str(folder),
        split=split,
        processes=os.cpu_count() or 1,
        progress=show,
        overwrite=_is_damaged(str(folder / split)),
    )
    dropped = report.zero_size_boxes + report.outside_boxes
    notes = [f"{split}: {counted(dropped, 'box')} without area or outside its image dropped"] if dropped else []
    if report.images_without_boxes:
        notes.append(f"{split}: {counted(report.images_without_boxes, 'image')} without objects, kept as background")
    return notes
