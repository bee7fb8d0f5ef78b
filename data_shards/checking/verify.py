"""Verifying shards: every file against its manifest and, if asked, every image against its index and its decoder.

What was found whole is noted in the cache folder as it goes, so that a verification which is stopped is gone on with;
one that comes to its end forgets it, and the next one reads everything again.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from data_shards.counting import counted
from data_shards.errors import DataError, UnavailableError
from data_shards.format.manifest import Manifest, load_manifest
from data_shards.processes import BYTES_WORTH_A_PROCESS, run_in_processes
from data_shards.reading.decode import decode_jpeg
from data_shards.reading.shards import Shards
from data_shards.storage.node_cache import default_cache_folder
from data_shards.storage.open import open_store


@dataclass(frozen=True)
class VerifyProgress:
    """How far a verification is."""

    shards: int
    total_shards: int
    images: int
    total_images: int


@dataclass(frozen=True)
class VerifyReport:
    """What was found."""

    location: str
    manifest: Manifest
    boxes: int
    decoded_images: int
    """0 where decoding was not asked for."""
    problems: tuple[str, ...]
    """What does not match, a line for each shard, in the manifest's order."""
    kept_shards: int = 0
    """Shards that a verification which was stopped had found whole, and that nobody has touched since."""

    def describe(self) -> str:
        """One line for people, of a set without problems."""
        decoded = f", {counted(self.decoded_images, 'image')} decoded" if self.decoded_images else ""
        decoded += (
            f"; {counted(self.kept_shards, 'shard')} by the verification that was stopped" if self.kept_shards else ""
        )
        return (
            f"{self.location}: {counted(len(self.manifest.shards), 'shard')} with "
            f"{counted(self.manifest.num_samples, 'image')} and {counted(self.boxes, 'box')} match manifest "
            f"{self.manifest.digest[:6]}, {self.manifest.num_bytes / 1e6:,.1f} MB{decoded}"
        )


def verify_shards(
    location: str,
    *,
    decode: bool = False,
    processes: int = 1,
    cache_folder: str | os.PathLike[str] | None = None,
    cache_bytes: int = 0,
    progress: Callable[[VerifyProgress], None] = lambda _: None,
) -> VerifyReport:
    """Compare every shard and index with the manifest, byte for byte; shards in S3 are fetched for it.

    All shards are looked at, whatever is wrong with some. Memory holds an image for each process. Stopped and called
    again, it leaves out the shards that were whole, unless their files have changed since; a shard with a problem is
    read again.

    Args:
        location: where the manifest lies.
        decode: also check each image's CRC, decode it, and compare its size, its id and its number of annotations
            with the index.
        processes: at most so many shards at the same time; small sets take fewer.
        cache_folder: where shards from S3 are kept, and what was found so far.
        cache_bytes: how many bytes of them; 0 for no limit.
        progress: called after each shard, in order.

    Raises:
        DataError: there is no manifest, or it cannot be read. What is wrong with shards stands in the report.
        UnavailableError: shards cannot be had at all, for a server that does not answer or a cache without room; the
            next call goes on with them.
    """
    if processes < 1:
        raise DataError(f"processes is {processes}; set it to 1 or more.")
    manifest = load_manifest(location)
    folder = str(cache_folder if cache_folder is not None else default_cache_folder())
    notes = _Notes(location, manifest, decode, Path(folder))
    jobs = [
        _Job(
            location,
            replace(manifest, shards=(shard,)),
            folder,
            cache_bytes,
            decode,
            notes.boxes_of(location, shard.name),
        )
        for shard in manifest.shards
    ]
    problems: dict[int, str] = {}
    boxes = images = decoded = kept = 0
    wanted = min(processes, 1 + manifest.num_bytes // BYTES_WORTH_A_PROCESS)
    for number, found in enumerate(run_in_processes(_verify, jobs, wanted)):
        record = manifest.shards[number]
        if isinstance(found, str):
            problems[number] = found
        else:
            boxes += found
            decoded += record.samples if decode else 0
            kept += jobs[number].known_boxes is not None
            notes.add(location, record.name, found)
        images += record.samples
        progress(VerifyProgress(number + 1, len(manifest.shards), images, manifest.num_samples))
    notes.forget()
    if not problems and boxes != manifest.source.boxes:
        problems[0] = (
            f"{location}: its indexes hold {boxes:,} boxes, the manifest says {manifest.source.boxes:,}. "
            "Build the shards again."
        )
    return VerifyReport(
        location, manifest, boxes, decoded, tuple(problems[number] for number in sorted(problems)), kept
    )


class _Notes:
    """Which shards were found whole, one a line, in a file that a kill leaves behind and a good end removes."""

    def __init__(self, location: str, manifest: Manifest, decode: bool, cache_folder: Path) -> None:
        where = location if "://" in location else str(Path(location).expanduser().resolve())
        name = hashlib.sha256(json.dumps([where, manifest.digest, decode]).encode()).hexdigest()[:32]
        self._path = cache_folder / "verified" / f"{name}.jsonl"
        self._known: dict[str, tuple[list[int] | None, int]] = {}
        try:
            text = self._path.read_text(errors="replace")
        except OSError:
            text = ""  # there is none, or it cannot be read: everything is looked at
        for line in filter(None, text.splitlines()):
            try:
                shard, identity, boxes = json.loads(line)
            except ValueError:
                continue  # cut off in the middle
            self._known[shard] = (identity, boxes)

    def boxes_of(self, location: str, shard: str) -> int | None:
        """How many boxes a shard holds that was found whole and is still the same file; None for any other."""
        identity, boxes = self._known.get(shard, ([], 0))
        return boxes if identity == _identity(location, shard) else None

    def add(self, location: str, shard: str, boxes: int) -> None:
        """Note a shard; a cache folder that cannot be written only costs reading it again."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a") as file:
                file.write("\n" + json.dumps([shard, _identity(location, shard), boxes]))
        except OSError:
            pass

    def forget(self) -> None:
        """Everything was looked at."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def _identity(location: str, shard: str) -> list[int] | None:
    """What the file system says of a shard's file; None in S3, whose objects are trusted to stay while this goes on."""
    if "://" in location:
        return None
    try:
        status = os.stat(Path(location).expanduser() / shard)
    except OSError:
        return [0]
    return [status.st_ino, status.st_size, status.st_mtime_ns]


@dataclass(frozen=True)
class _Job:
    """What a process needs to verify one shard."""

    location: str
    manifest: Manifest
    """With this one shard: what a process keeps in memory ends with the shard."""
    cache_folder: str
    cache_bytes: int
    decode: bool
    known_boxes: int | None


def _verify(job: _Job) -> int | str:
    """The number of boxes of a shard, or what is wrong with it."""
    if job.known_boxes is not None:
        return job.known_boxes
    try:
        store = open_store(job.location)
        with closing(Shards(store, job.manifest, job.cache_folder, cache_bytes=job.cache_bytes)) as shards:
            return _count_verified(shards, 0, job.decode)
    except UnavailableError:
        raise
    except DataError as error:
        return str(error)


def _count_verified(shards: Shards, shard: int, decode: bool) -> int:
    record = shards.manifest.shards[shard]
    shards.verify_shard(shard)
    index = shards.index(shard)
    where = f"shard {shards.store.location}/{record.name}"
    if len(index) != record.samples:
        raise DataError(
            f"{where}: its index holds {len(index):,} samples, the manifest says {record.samples:,}. "
            "Build the shards again."
        )
    for row in range(len(index)) if decode else ():
        image_id = index.image_ids[row]
        try:
            height, width = decode_jpeg(shards.read_image(shard, row)).shape[:2]
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{where}, image {image_id}: does not decode ({error}). Build the shards again.") from error
        sample = shards.read_json(shard, row)
        count = int(index.row_splits[row + 1] - index.row_splits[row])
        found = (width, height, sample["image_id"], len(sample["annotations"]))
        expected = (int(index.widths[row]), int(index.heights[row]), int(image_id), count)
        if found != expected:
            raise DataError(
                f"{where}, image {image_id}: width, height, id and number of annotations are {found}, its index says "
                f"{expected}. Build the shards again."
            )
    return len(index.labels)
