"""Reading samples out of shards in a folder or in S3, and never a wrong byte.

A shard in a folder is read in place. A shard in S3 is fetched into the cache, once for all processes of the machine
(`node_cache.py`), and ahead of its use if the order is known (`prefetch.py`). Either way a process checks the whole
file against the manifest when it first opens it, and again only if the file has changed; every image also has a CRC of
its own.
"""

import hashlib
import json
import math
import os
import threading
import zlib
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from data_shards.counting import counted
from data_shards.errors import DataError, LargerError
from data_shards.format.manifest import Manifest, Shard
from data_shards.format.shard_index import ShardIndex
from data_shards.order.node_schedule import NodeSchedule
from data_shards.order.plan import Plan, World
from data_shards.reading.prefetch import FetchAhead, Wanted
from data_shards.storage.node_cache import NodeCache, default_cache_folder
from data_shards.storage.store import Store, write_at

# Attempts to fetch the right bytes.
_FETCHES = 3
# Parts of a shard that somebody waits for, requested at the same time.
_HURRIED_RANGES = 4
# A process may usually have 1,024 files open.
_KEPT_FILES = 256

_Identity = tuple[int, int, int, int]

# Files that this process has compared with their sha256, by their identity in the file system.
_verified: dict[tuple[_Identity, str], None] = {}
_verifying = threading.Lock()


class Shards:
    """The samples of a data set, by shard and row. Safe to use from several threads.

    Args:
        store: the location of the shards.
        manifest: their manifest.
        cache_folder: folder for shards that come from S3; None takes `default_cache_folder()`.
        cache_bytes: most bytes of shards in that folder; 0 for no limit.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        cache_folder: str | os.PathLike[str] | None = None,
        *,
        cache_bytes: int = 0,
    ) -> None:
        self.store = store
        self.manifest = manifest
        self.cache = NodeCache(cache_folder if cache_folder is not None else default_cache_folder(), cache_bytes)
        self._category_ids = {item.id for item in manifest.classes} | {item.id for item in manifest.ignored}
        self._ahead: FetchAhead | None = None
        self._stop = threading.Event()
        self._indexes: dict[int, ShardIndex] = {}
        self._locks = [threading.Lock() for _ in manifest.shards]
        self._kept: dict[int, int] = {}
        """Open descriptors of verified files that are read in place."""

    def fetch_ahead(self, plan: Plan, world: World, step: int, stop_step: int | None = None) -> None:
        """Begin to fetch the shards that this rank's node needs from a step on, and keep them while they are needed.

        Does nothing if shards are read in place. `reached` reports progress, `close` ends it.

        Args:
            plan: the order of samples.
            world: this rank's place.
            step: the first step, counted over all epochs.
            stop_step: the step before which reading stops; None never stops.

        Raises:
            DataError: the cache is smaller than the shards that the node needs at the same time.
        """
        schedule = self.schedule(plan, world, stop_step)
        if schedule is not None:
            self._ahead = FetchAhead(self.cache, self.manifest, schedule, world, self._bring, step)

    def schedule(self, plan: Plan, world: World, stop_step: int | None = None) -> NodeSchedule | None:
        """Return when this rank's node needs which shards; None if shards are read in place.

        Raises:
            DataError: the cache is smaller than the shards that the node needs at the same time.
        """
        if self.store.local_path("") is not None:
            return None
        sizes = np.array([shard.bytes for shard in self.manifest.shards], dtype=np.int64)
        schedule = NodeSchedule(plan, sizes, world, stop_step)
        budget = self.cache.budget
        if budget and budget < schedule.least_bytes:
            raise DataError(
                f"a cache of {budget / 1e9:,.3g} GB is too small for {self.store.location}: this node needs up to "
                f"{schedule.least_bytes / 1e9:,.3g} GB of shards at the same time. Set data.cache_gb to that or more "
                "(0 for no limit), or use more nodes; `aweigh shards plan` shows what each needs."
            )
        return schedule

    def reached(self, step: int) -> None:
        """Report that no sample of an earlier step will be read again."""
        if self._ahead is not None:
            self._ahead.reached(step)

    def close(self) -> None:
        """Stop fetching and withdraw all claims on the cache. Closing twice is fine."""
        self._stop.set()
        if self._ahead is not None:
            self._ahead.close()
        self.cache.close()
        kept, self._kept = self._kept, {}
        for file in kept.values():
            os.close(file)

    def index(self, shard: int) -> ShardIndex:
        """Return the index of one shard; it stays in memory."""
        known = self._indexes.get(shard)
        if known is None:
            with self._locks[shard]:
                # Another thread may have read it while this one waited for the lock.
                known = self._indexes.get(shard) or self._read_index(shard)
                self._indexes[shard] = known
        return known

    def size(self, shard: int, row: int) -> tuple[int, int]:
        """Return height and width of one image, in pixels, without reading it."""
        index = self.index(shard)
        return int(index.heights[row]), int(index.widths[row])

    def portraits(self, shard: int) -> Bool[np.ndarray, " samples"]:
        """Return which images of a shard are portraits: at least as high as wide.

        A square counts as one, as for FCOS's authors.

        Source:
            tianzhi0549/FCOS, fcos_core/data/build.py, `_compute_aspect_ratios` and `_quantize`.
        """
        index = self.index(shard)
        return index.heights >= index.widths

    def read_image(self, shard: int, row: int) -> bytes:
        """Return the encoded bytes of one image.

        Raises:
            DataError: the shard or the image differs from the manifest or the index.
        """
        index = self.index(shard)
        data = self._read(shard, int(index.image_offsets[row]), int(index.image_sizes[row]))
        if zlib.crc32(data) != index.image_crc32[row]:
            raise DataError(
                f"{self._where(shard)}, image {index.image_ids[row]}: its bytes do not match the index "
                f"(CRC-32 {zlib.crc32(data):08x}, expected {index.image_crc32[row]:08x}). The disk or the "
                "shard is damaged; build or fetch it again."
            )
        return data

    def read_json(self, shard: int, row: int) -> dict[str, Any]:
        """Return the JSON of one sample, as `build_shards` wrote it.

        Raises:
            DataError: it is not JSON, or is of another image than the index says.
        """
        index = self.index(shard)
        data = self._read(shard, int(index.json_offsets[row]), int(index.json_sizes[row]))
        image_id = int(index.image_ids[row])
        try:
            sample = json.loads(data)
            problem = _problem_of_sample(sample, index, row, self._category_ids)
        except RecursionError:
            problem = "it is nested too deeply"
        except ValueError as error:
            problem = str(error)
        if problem:
            raise DataError(
                f"{self._where(shard)}, image {image_id}: its JSON does not match the index: {problem}. Build the "
                "shards again."
            )
        return sample

    def verify(self) -> None:
        """Compare every shard and index with the manifest, byte for byte. Shards in S3 are fetched for it.

        Raises:
            DataError: names the first file that differs.
        """
        for shard in range(len(self.manifest.shards)):
            self.verify_shard(shard)

    def verify_shard(self, shard: int) -> None:
        """Compare one shard and its index; the shard is read even if this process has verified it before."""
        self.index(shard)
        os.close(self._open(shard, again=True))

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        kept = self._kept.get(shard)
        if kept is not None:
            data = os.pread(kept, size, offset)
        else:
            file = self._open(shard)
            try:
                data = os.pread(file, size, offset)
            finally:
                self._keep_or_close(shard, file)
        if len(data) != size:
            raise DataError(f"{self._where(shard)} ends inside a sample. Build or fetch it again.")
        return data

    def _keep_or_close(self, shard: int, file: int) -> None:
        # Files of the cache may be evicted, and an open file would still occupy the disk.
        in_place = self.store.local_path("") is not None
        if in_place and len(self._kept) < _KEPT_FILES and self._kept.setdefault(shard, file) == file:
            return
        os.close(file)

    def _open(self, shard: int, *, again: bool = False) -> int:
        """Return a descriptor of the shard's verified file."""
        in_place = self.store.local_path(self.manifest.shards[shard].name)
        if in_place is not None:
            file = self._descriptor(shard, in_place)
            self._verify_or_close(shard, file, again=again)
            return file
        file = self._cached(shard)
        damaged = os.fstat(file).st_ino
        try:
            self._verify_or_close(shard, file, again=again)
            return file
        except DataError:
            # A damaged file in the cache is fetched again once: the location may still have the right bytes.
            file = self._cached(shard, damaged)
            self._verify_or_close(shard, file)
            return file

    def _verify_or_close(self, shard: int, file: int, *, again: bool = False) -> None:
        try:
            self._verify(shard, file, again=again)
        except DataError:
            os.close(file)
            raise

    def _descriptor(self, shard: int, path: Path) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(
                f"{self._where(shard)} cannot be opened ({os.strerror(error.errno or 0)}). Build or fetch it again."
            ) from error

    def _verify(self, shard: int, file: int, *, again: bool = False) -> None:
        record = self.manifest.shards[shard]
        identity = _identity(file)
        if not again and (identity, record.sha256) in _verified:
            return
        with self._locks[shard]:
            if not again and (identity, record.sha256) in _verified:
                return
            self._check(record, file)
            self._remember(record, file)

    def _remember(self, record: Shard, file: int) -> None:
        with _verifying:
            _verified[(_identity(file), record.sha256)] = None

    def _check(self, record: Shard, file: int) -> None:
        where = f"{self.store.location}/{record.name}"
        found_bytes = os.fstat(file).st_size
        if found_bytes != record.bytes:
            raise _WrongBytesError(
                f"shard {where} has {counted(found_bytes, 'byte')}, but the manifest says {record.bytes:,}. "
                "It is not the shard that was built; build or copy it again."
            )
        found = _sha256(file)
        if found != record.sha256:
            raise _WrongBytesError(
                f"shard {where} does not match the manifest: sha256 {found}, expected {record.sha256}. "
                "It is not the shard that was built; build or copy it again."
            )

    def _cached(self, shard: int, damaged: int | None = None) -> int:
        """Return a descriptor of the cached file; fetch it if it is missing or still has the damaged inode."""
        record = self.manifest.shards[shard]
        path = self.cache.shard_path(record.sha256)
        if self._ahead is None:
            # Without a schedule nothing else protects the shard from being evicted.
            self.cache.touch(record.sha256)
        while True:
            if damaged is None:
                with self.cache.explained(), suppress(FileNotFoundError):
                    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.cache.obtain(path, record.bytes, lambda file: self._fetch(record, file, hurry=True), damaged=damaged)
            # The file is whole now, but may be evicted before it is opened: then fetch it again.
            damaged = None

    def _fetch(self, record: Shard, file: int, *, hurry: bool) -> None:
        """Write a whole shard into a descriptor. Bytes can be damaged on the way without any S3 client noticing."""
        for attempt in range(1, _FETCHES + 1):
            try:
                self._fetch_once(record, file, ranges=_HURRIED_RANGES if hurry else 1)
                return
            except _WrongBytesError as error:
                if attempt == _FETCHES:
                    raise DataError(f"{error} It was fetched {_FETCHES} times.") from None

    def _fetch_once(self, record: Shard, file: int, ranges: int) -> None:
        try:
            found = self.store.fetch(record.name, file, ranges=ranges, stop=self._stop, most_bytes=record.bytes)
        except LargerError as error:
            raise _WrongBytesError(
                f"shard {self.store.location}/{record.name} is larger than the {record.bytes:,} bytes that the "
                "manifest says. It is not the shard that was built; build or copy it again."
            ) from error
        os.ftruncate(file, found)
        self._check(record, file)
        self._remember(record, file)

    def _bring(self, item: Wanted, hurry: bool) -> bool:
        """Fetch one file ahead of its use. Return True if it is cached now."""
        record = self.manifest.shards[item.shard]
        if item.is_index:
            self.index(item.shard)
            return True
        path = self.cache.shard_path(record.sha256)
        return self.cache.obtain(path, record.bytes, lambda file: self._fetch(record, file, hurry=hurry), waiting=False)

    def _read_index(self, shard: int) -> ShardIndex:
        record = self.manifest.shards[shard]
        if self.store.local_path(record.index) is not None:
            data = self._load_index(record)
            self._check_index(record, data)
            return self._parse_index(record, data)
        path = self.cache.index_path(record.index_sha256)
        self.cache.obtain(path, 0, lambda file: self._fetch_index(record, file))
        with self.cache.explained():
            data, inode = path.read_bytes(), path.stat().st_ino
        try:
            self._check_index(record, data)
        except DataError:
            self.cache.obtain(path, 0, lambda file: self._fetch_index(record, file), damaged=inode)
            with self.cache.explained():
                data = path.read_bytes()
            self._check_index(record, data)
        return self._parse_index(record, data)

    def _parse_index(self, record: Shard, data: bytes) -> ShardIndex:
        where = f"{self.store.location}/{record.index}"
        index = ShardIndex.from_bytes(data, where)
        index.check(record, self.manifest, where)
        return index

    def _fetch_index(self, record: Shard, file: int) -> None:
        for attempt in range(1, _FETCHES + 1):
            try:
                data = self._load_index(record)
                self._check_index(record, data)
                write_at(file, data, 0)
                return
            except _WrongBytesError as error:
                if attempt == _FETCHES:
                    raise DataError(f"{error} It was fetched {_FETCHES} times.") from None

    def _load_index(self, record: Shard) -> bytes:
        most = self.manifest.most_index_bytes(record)
        try:
            return self.store.read_bytes(record.index, most_bytes=most)
        except LargerError as error:
            raise _WrongBytesError(
                f"index {self.store.location}/{record.index} is larger than {most >> 20:,} MiB, more than the index of "
                "its shard can be. Build or copy it again."
            ) from error

    def _check_index(self, record: Shard, data: bytes) -> None:
        found = hashlib.sha256(data).hexdigest()
        if found != record.index_sha256:
            raise _WrongBytesError(
                f"index {self.store.location}/{record.index} does not match the manifest: sha256 {found}, expected "
                f"{record.index_sha256}. Build or copy it again."
            )

    def _where(self, shard: int) -> str:
        return f"shard {self.store.location}/{self.manifest.shards[shard].name}"


class _WrongBytesError(DataError):
    """The bytes of a file differ from what the manifest says; fetched again, they may be right."""


def _problem_of_sample(sample: Any, index: ShardIndex, row: int, category_ids: Container[int]) -> str | None:
    """Describe what evaluation could not use in the JSON of a sample, or what contradicts the index."""
    if not isinstance(sample, dict) or not isinstance(sample.get("annotations"), list):
        return "it has no list of annotations"
    found = (sample.get("width"), sample.get("height"), sample.get("image_id"), len(sample["annotations"]))
    count = int(index.row_splits[row + 1] - index.row_splits[row])
    expected = (int(index.widths[row]), int(index.heights[row]), int(index.image_ids[row]), count)
    if found != expected or not isinstance(sample.get("file_name"), str):
        return f"width, height, id and number of annotations are {found}, but the index says {expected}"
    for item in sample["annotations"]:
        if not isinstance(item, dict) or not isinstance(item.get("id"), int):
            return "an annotation has no id"
        box, category = item.get("bbox"), item.get("category_id")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
            return f"annotation {item['id']} has a bbox that is not four finite numbers"
        if not isinstance(category, int) or category not in category_ids:
            return f"annotation {item['id']} has category {str(category)[:50]}, which the manifest does not list"
    return None


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def _identity(file: int) -> _Identity:
    status = os.fstat(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _sha256(file: int) -> str:
    digest = hashlib.sha256()
    offset = 0
    while block := os.pread(file, 1 << 20, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()
