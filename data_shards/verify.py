"""Verifying shards: every file against its manifest and, if asked, every image against its index and its decoder."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from data_shards.decode import decode_jpeg
from data_shards.errors import DataError
from data_shards.manifest import Manifest, load_manifest
from data_shards.shards import Shards


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

    def describe(self) -> str:
        """One line for people, of a set without problems."""
        decoded = f", {self.decoded_images:,} images decoded" if self.decoded_images else ""
        return (
            f"{self.location}: {len(self.manifest.shards):,} shards with {self.manifest.num_samples:,} images and "
            f"{self.boxes:,} boxes match manifest {self.manifest.digest[:6]}, "
            f"{self.manifest.num_bytes / 1e6:,.1f} MB{decoded}"
        )


def verify_shards(
    location: str,
    *,
    decode: bool = False,
    threads: int = 2,
    cache_folder: str | os.PathLike[str] | None = None,
    progress: Callable[[VerifyProgress], None] = lambda _: None,
) -> VerifyReport:
    """Compare every shard and index with the manifest, byte for byte; shards in S3 are fetched for it.

    All shards are looked at, whatever is wrong with some. Memory holds an image for each thread.

    Args:
        location: where the manifest lies.
        decode: also check each image's CRC, decode it, and compare its size, its id and its number of annotations
            with the index.
        threads: so many shards at the same time.
        cache_folder: where shards from S3 are kept.
        progress: called after each shard.

    Raises:
        DataError: there is no manifest, or it cannot be read. What is wrong with shards stands in the report.
    """
    if threads < 1:
        raise DataError(f"threads is {threads}; set it to 1 or more.")
    manifest = load_manifest(location)
    shards = Shards(location, manifest, cache_folder)
    problems: dict[int, str] = {}
    boxes = done = images = decoded = 0
    pool = ThreadPoolExecutor(threads)
    try:
        running = {pool.submit(_verify, shards, number, decode): number for number in range(len(manifest.shards))}
        for future in as_completed(running):
            number = running[future]
            try:
                boxes += future.result()
                decoded += manifest.shards[number].samples if decode else 0
            except DataError as error:
                problems[number] = str(error)
            done, images = done + 1, images + manifest.shards[number].samples
            progress(VerifyProgress(done, len(manifest.shards), images, manifest.num_samples))
    finally:
        pool.shutdown(cancel_futures=True)
        shards.close()
    if not problems and boxes != manifest.source.boxes:
        problems[0] = (
            f"{location}: its indexes hold {boxes:,} boxes, the manifest says {manifest.source.boxes:,}. "
            "Build the shards again."
        )
    return VerifyReport(location, manifest, boxes, decoded, tuple(problems[number] for number in sorted(problems)))


def _verify(shards: Shards, shard: int, decode: bool) -> int:
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
