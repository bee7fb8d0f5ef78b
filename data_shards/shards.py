"""Reading samples out of shards, wherever they lie, and never a wrong byte.

A shard in a folder is read in place; one in S3 is fetched once for all processes of the machine into a cache
folder, where its name is its sha256. Either way the whole file is checked against the manifest when a process
first opens it, and again only if the file has changed since; every image is also checked by its own CRC.
"""

import hashlib
import json
import os
import threading
import zlib
from pathlib import Path
from typing import Any

import filelock

from data_shards.errors import DataError
from data_shards.index import ShardIndex
from data_shards.manifest import Manifest, Shard
from data_shards.store import Store, open_store

_DOWNLOADS = 2

_Identity = tuple[int, int, int, int]

# Files of this process that match their sha256, by what the file system says of them.
_verified: dict[tuple[_Identity, str], None] = {}
_verifying = threading.Lock()


def default_cache_folder() -> Path:
    """Where shards from S3 are kept: `AWEIGH_CACHE`, or `aweigh` in the user's cache folder."""
    if folder := os.environ.get("AWEIGH_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "aweigh"


class Shards:
    """The samples of a data set, by shard and row. Safe to use from several threads."""

    def __init__(
        self, location: str | Store, manifest: Manifest, cache_folder: str | os.PathLike[str] | None = None
    ) -> None:
        self.store = location if isinstance(location, Store) else open_store(location)
        self.manifest = manifest
        self.cache_folder = Path(cache_folder) if cache_folder is not None else default_cache_folder()
        self._indexes: dict[int, ShardIndex] = {}
        self._locks = [threading.Lock() for _ in manifest.shards]

    def index(self, shard: int) -> ShardIndex:
        """The index of one shard, kept in memory once it was asked for."""
        known = self._indexes.get(shard)
        if known is None:
            with self._locks[shard]:
                known = self._indexes.get(shard) or self._read_index(shard)
                self._indexes[shard] = known
        return known

    def size(self, shard: int, row: int) -> tuple[int, int]:
        """Height and width of one image, in pixels, without reading it."""
        index = self.index(shard)
        return int(index.heights[row]), int(index.widths[row])

    def read_image(self, shard: int, row: int) -> bytes:
        """The encoded bytes of one image.

        Raises:
            DataError: the shard or the image is not what the manifest and the index say.
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
        """The JSON of one sample, as `build_shards` wrote it."""
        index = self.index(shard)
        return json.loads(self._read(shard, int(index.json_offsets[row]), int(index.json_sizes[row])))

    def verify(self) -> None:
        """Compare every shard and index with the manifest, byte for byte; shards in S3 are fetched for it.

        Raises:
            DataError: names the first that is not what was built.
        """
        for shard in range(len(self.manifest.shards)):
            self.verify_shard(shard)

    def verify_shard(self, shard: int) -> None:
        """The same for one shard and its index; the shard is read even if this process found it whole before."""
        self.index(shard)
        os.close(self._open(shard, again=True))

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        file = self._open(shard)
        try:
            data = os.pread(file, size, offset)
        finally:
            os.close(file)
        if len(data) != size:
            raise DataError(f"{self._where(shard)} ends inside a sample. Build or fetch it again.")
        return data

    def _open(self, shard: int, *, again: bool = False) -> int:
        """A descriptor of the shard's verified file."""
        record = self.manifest.shards[shard]
        in_place = self.store.local_path(record.name)
        file = self._descriptor(shard, in_place or self._cached(record))
        try:
            self._verify(shard, file, again=again)
        except DataError:
            damaged = os.fstat(file).st_ino
            os.close(file)
            if in_place is not None:
                raise
            file = self._descriptor(shard, self._cached(record, damaged))
            try:
                self._verify(shard, file)
            except DataError:
                os.close(file)
                raise
        return file

    def _descriptor(self, shard: int, path: Path) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(
                f"{self._where(shard)} cannot be opened ({os.strerror(error.errno or 0)}). Build or fetch it again."
            ) from error

    def _verify(self, shard: int, file: int, *, again: bool = False) -> None:
        status = os.fstat(file)
        record = self.manifest.shards[shard]
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if not again and (identity, record.sha256) in _verified:
            return
        with self._locks[shard]:
            if not again and (identity, record.sha256) in _verified:
                return
            self._check(record, file)
            with _verifying:
                _verified[(identity, record.sha256)] = None

    def _check(self, record: Shard, file: int) -> None:
        where = f"{self.store.location}/{record.name}"
        found_bytes = os.fstat(file).st_size
        if found_bytes != record.bytes:
            raise DataError(
                f"shard {where} has {found_bytes:,} bytes, the manifest says {record.bytes:,}. "
                "It is not the shard that was built; build or copy it again."
            )
        found = _sha256(file)
        if found != record.sha256:
            raise DataError(
                f"shard {where} does not match the manifest: sha256 {found}, expected {record.sha256}. "
                "It is not the shard that was built; build or copy it again."
            )

    def _cached(self, record: Shard, damaged: int | None = None) -> Path:
        """The cache's file for a shard, fetched where it is missing or is still the damaged inode."""
        path = self.cache_folder / "shards" / f"{record.sha256}.tar"
        if damaged is None and path.exists():
            return path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(f"{path}.lock"):
                # While we waited for the lock, another process may have fetched it.
                if not path.exists() or path.stat().st_ino == damaged:
                    self._fetch(record, path)
        except OSError as error:
            raise DataError(
                f"cannot keep shards in {path.parent}: {error}. Choose another cache folder (AWEIGH_CACHE)."
            ) from error
        return path

    def _fetch(self, record: Shard, path: Path) -> None:
        part = path.with_name(f"{path.name}.part")
        try:
            for attempt in range(_DOWNLOADS):
                self.store.download(record.name, part)
                try:
                    with open(part, "rb") as file:
                        self._check(record, file.fileno())
                    break
                except DataError:
                    # Bytes can be damaged on the way, and no S3 client notices.
                    if attempt == _DOWNLOADS - 1:
                        raise
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _read_index(self, shard: int) -> ShardIndex:
        record = self.manifest.shards[shard]
        where = f"{self.store.location}/{record.index}"
        data = self.store.read_bytes(record.index)
        found = hashlib.sha256(data).hexdigest()
        if found != record.index_sha256:
            raise DataError(
                f"index {where} does not match the manifest: sha256 {found}, expected {record.index_sha256}. "
                "Build or copy it again."
            )
        return ShardIndex.from_bytes(data, where)

    def _where(self, shard: int) -> str:
        return f"shard {self.store.location}/{self.manifest.shards[shard].name}"


def _sha256(file: int) -> str:
    digest = hashlib.sha256()
    offset = 0
    while block := os.pread(file, 1 << 20, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()
