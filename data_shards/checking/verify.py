"""Verifying shards: every file against the manifest and, if asked, every image against its index and its decoder.

Intact shards are recorded in the cache folder one by one, so that an interrupted verification resumes. A finished one
deletes its record, and the next one reads everything again.
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
from data_shards.format.shard_index import ShardIndex
from data_shards.processes import BYTES_WORTH_A_PROCESS, run_in_processes
from data_shards.reading.decode import decode_jpeg
from data_shards.reading.shards import Shards
from data_shards.storage.node_cache import default_cache_folder
from data_shards.storage.open import open_store


@dataclass(frozen=True)
class VerifyProgress:
    """Progress of a verification."""

    shards: int
    total_shards: int
    images: int
    total_images: int


@dataclass(frozen=True)
class VerifyReport:
    """The problems of a data set, and how much was verified."""

    location: str
    manifest: Manifest
    boxes: int
    decoded_images: int
    """0 if decoding was not asked for."""
    problems: tuple[str, ...]
    """One line for each shard that does not match, in the manifest's order."""
    kept_shards: int = 0
    """Shards that an interrupted verification found intact and that nobody has changed since."""

    def describe(self) -> str:
        """Summarise in one line a data set without problems."""
        decoded = f", {counted(self.decoded_images, 'image')} decoded" if self.decoded_images else ""
        kept = f"; {counted(self.kept_shards, 'shard')} by the interrupted verification" if self.kept_shards else ""
        return (
            f"{self.location}: {counted(len(self.manifest.shards), 'shard')} with "
            f"{counted(self.manifest.num_samples, 'image')} and {counted(self.boxes, 'box')} match manifest "
            f"{self.manifest.digest[:6]}, {self.manifest.num_bytes / 1e6:,.1f} MB{decoded}{kept}"
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
    """Compare every shard and index with the manifest, byte for byte, fetching the shards if they are in S3.

    A problem in one shard does not keep the others from being verified. Each process holds one image in memory. The
    same call resumes an interrupted verification: it skips shards that were intact unless their files have changed, and
    reads shards with a problem again.

    Args:
        location: the folder or S3 prefix with the manifest.
        decode: also check the CRC of every image, decode it, and compare its size, id and number of annotations with
            the index.
        processes: how many shards are verified at the same time, at most; small sets use fewer.
        cache_folder: the folder for shards from S3 and for the record of intact shards; None for the default.
        cache_bytes: space for shards from S3; 0 for no limit.
        progress: called after each shard, in order.

    Returns:
        The problems of the shards, and what was verified.

    Raises:
        DataError: there is no manifest, or it cannot be read. Problems of shards are in the report instead.
        UnavailableError: shards cannot be fetched, because the server does not answer or the cache has no space. The
            same call resumes.
    """
    if processes < 1:
        raise DataError(f"processes is {processes}; set it to 1 or more.")
    manifest = load_manifest(location)
    folder = str(cache_folder if cache_folder is not None else default_cache_folder())
    record = _Record(location, manifest, decode, Path(folder))
    jobs = _plan(location, manifest, folder, cache_bytes, decode, record)
    results = _run(jobs, manifest, processes, record, progress)
    record.delete()
    return _report(location, manifest, decode, jobs, results)


@dataclass(frozen=True)
class _Job:
    """Everything a process needs to verify one shard."""

    location: str
    manifest: Manifest
    """With this shard alone: what a process keeps in memory for a shard is freed with its job."""
    cache_folder: str
    cache_bytes: int
    decode: bool
    known_boxes: int | None
    """Boxes of a shard that is known to be intact; None if it has to be verified."""


def _plan(
    location: str, manifest: Manifest, folder: str, cache_bytes: int, decode: bool, record: "_Record"
) -> list[_Job]:
    return [
        _Job(
            location=location,
            manifest=replace(manifest, shards=(shard,)),
            cache_folder=folder,
            cache_bytes=cache_bytes,
            decode=decode,
            known_boxes=record.boxes_of(location, shard.name),
        )
        for shard in manifest.shards
    ]


def _run(
    jobs: list[_Job],
    manifest: Manifest,
    processes: int,
    record: "_Record",
    progress: Callable[[VerifyProgress], None],
) -> list[int | str]:
    """Verify all shards; return the number of boxes of each, or its problem."""
    results: list[int | str] = []
    images = 0
    worth = 1 + manifest.num_bytes // BYTES_WORTH_A_PROCESS
    for job, result in zip(jobs, run_in_processes(_verify, jobs, min(processes, worth)), strict=True):
        (shard,) = job.manifest.shards
        results.append(result)
        if isinstance(result, int):
            record.add(job.location, shard.name, result)
        images += shard.samples
        progress(VerifyProgress(len(results), len(jobs), images, manifest.num_samples))
    return results


def _report(
    location: str, manifest: Manifest, decode: bool, jobs: list[_Job], results: list[int | str]
) -> VerifyReport:
    problems = [result for result in results if isinstance(result, str)]
    boxes = sum(result for result in results if isinstance(result, int))
    intact_samples = sum(
        shard.samples for shard, result in zip(manifest.shards, results, strict=True) if isinstance(result, int)
    )
    # The manifest knows only the sum over all shards, so it can be compared only if every shard was counted.
    if not problems and boxes != manifest.source.boxes:
        problems = [
            f"{location}: its indexes hold {counted(boxes, 'box')}, but the manifest says "
            f"{manifest.source.boxes:,}. Build the shards again."
        ]
    return VerifyReport(
        location=location,
        manifest=manifest,
        boxes=boxes,
        decoded_images=intact_samples if decode else 0,
        problems=tuple(problems),
        kept_shards=sum(job.known_boxes is not None for job in jobs),
    )


class _Record:
    """Shards that were found intact, one a line, in a file that survives a kill and is deleted at the end."""

    def __init__(self, location: str, manifest: Manifest, decode: bool, cache_folder: Path) -> None:
        where = location if "://" in location else str(Path(location).expanduser().resolve())
        name = hashlib.sha256(json.dumps([where, manifest.digest, decode]).encode()).hexdigest()[:32]
        self._path = cache_folder / "verified" / f"{name}.jsonl"
        self._known: dict[str, tuple[list[int] | None, int]] = {}
        try:
            text = self._path.read_text(errors="replace")
        except OSError:
            text = ""  # missing or unreadable: every shard is verified
        for line in filter(None, text.splitlines()):
            try:
                shard, identity, boxes = json.loads(line)
            except ValueError:
                continue  # a kill cut this line off
            self._known[shard] = (identity, boxes)

    def boxes_of(self, location: str, shard: str) -> int | None:
        """Return the number of boxes of a shard that is recorded and still the same file; None for any other."""
        identity, boxes = self._known.get(shard, ([], 0))
        return boxes if identity == _identity(location, shard) else None

    def add(self, location: str, shard: str, boxes: int) -> None:
        """Record an intact shard; if the cache folder cannot be written, a resumed verification reads it again."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a") as file:
                # The newline comes first, so that a line that a kill cut off cannot swallow this one.
                file.write("\n" + json.dumps([shard, _identity(location, shard), boxes]))
        except OSError:
            pass

    def delete(self) -> None:
        """Delete the record after the last shard."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def _identity(location: str, shard: str) -> list[int] | None:
    """Return inode, size and time of a shard's file, to notice changes.

    None in S3, whose objects are trusted not to change between an interruption and the resumed verification.
    """
    if "://" in location:
        return None
    try:
        status = os.stat(Path(location).expanduser() / shard)
    except OSError:
        return [0]  # unlike any identity that was recorded
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _verify(job: _Job) -> int | str:
    """Return the number of boxes of a shard, or its problem."""
    if job.known_boxes is not None:
        return job.known_boxes
    try:
        store = open_store(job.location)
        with closing(Shards(store, job.manifest, job.cache_folder, cache_bytes=job.cache_bytes)) as shards:
            return _count_verified(shards, 0, job.decode)
    except UnavailableError:
        raise  # a DataError, but not the shard's fault
    except DataError as error:
        return str(error)


def _count_verified(shards: Shards, shard: int, decode: bool) -> int:
    record = shards.manifest.shards[shard]
    shards.verify_shard(shard)
    index = shards.index(shard)
    where = f"shard {shards.store.location}/{record.name}"
    for row in range(len(index)) if decode else ():
        _check_sample(shards, shard, index, row, where)
    return len(index.labels)


def _check_sample(shards: Shards, shard: int, index: ShardIndex, row: int, where: str) -> None:
    image_id = int(index.image_ids[row])
    sample = shards.read_json(shard, row)  # which compares it with the index
    where = f"{where}, image {image_id}, {sample['file_name']}"
    try:
        height, width = decode_jpeg(shards.read_image(shard, row)).shape[:2]
    except DataError:
        raise  # a ValueError, but complete already
    except ValueError as error:
        raise DataError(f"{where}: does not decode ({error}). Build the shards again.") from error
    expected = int(index.widths[row]), int(index.heights[row])
    if (width, height) != expected:
        raise DataError(
            f"{where}: is {width} x {height} pixels, but its index says {expected[0]} x {expected[1]}. "
            "Build the shards again."
        )
