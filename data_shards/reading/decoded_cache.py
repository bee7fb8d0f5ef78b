"""The cache of decoded images on the node: from the second epoch on, no JPEG is decoded.

Each shard has one sparse file. It holds the pixels of the images at offsets computed from the index, and before them a
checksum for each image, written after its pixels: an image is cached if its checksum is right. Processes write the same
bytes at the same offsets, so none waits for another. An image that a kill or a full disk left half-written fails its
checksum, is decoded again and overwritten. A file belongs to a shard's sha256 and the decoder's version, and serves
every run.
"""

import errno
import fcntl
import os
import threading
import zlib
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import cv2
import filelock
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from data_shards.errors import DataError
from data_shards.reading.shards import Shards
from data_shards.storage.atomic import replacing

_SUFFIX = ".pixels"
_PAGE = 4096
_CHECKSUM_BYTES = 8
# Set in every checksum, because unwritten parts of a sparse file read as 0.
_PRESENT = 1 << 32


class DecodedImages:
    """Decoded images of a split, in a folder of the node. Safe to use from several threads, processes and runs at once.

    Args:
        shards: the split's shards.
        folder: the folder of the files; created if it is missing.
        budget_bytes: most bytes of all files in the folder, also those of other data sets. To stay within it, files of
            other data sets that no process has open are removed, the oldest first; shards that still do not fit are
            decoded every time.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, shards: Shards, folder: Path, budget_bytes: int) -> None:
        self._shards = shards
        self._folder = folder
        self._budget_bytes = budget_bytes
        self._decoder = f"{simplejpeg.__version__}-{cv2.__version__}"
        self._files: dict[int, _File | None] = {}
        self._opening = threading.Lock()
        self._full = False
        self._notes: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(folder, error) from error

    def read(self, shard: int, row: int, buffer: UInt8[np.ndarray, " bytes"]) -> bool:
        """Read the pixels of one image into a buffer of their size. Return False if they are not cached, or damaged."""
        file = self._file(shard)
        if file is None:
            return False
        expected = int.from_bytes(os.pread(file.descriptor, _CHECKSUM_BYTES, row * _CHECKSUM_BYTES), "little")
        if not expected or os.preadv(file.descriptor, [buffer.data], file.offsets[row]) != len(buffer):
            return False
        return checksum(buffer) == expected

    def write(self, shard: int, row: int, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Cache the pixels of one image, if its shard has a file."""
        file = self._file(shard)
        if file is None or self._full:
            return
        pixels = image.reshape(-1)
        try:
            if os.pwrite(file.descriptor, pixels.data, file.offsets[row]) == len(pixels):
                stamp = checksum(pixels).to_bytes(_CHECKSUM_BYTES, "little")
                os.pwrite(file.descriptor, stamp, row * _CHECKSUM_BYTES)
        except OSError as error:
            # Other programs may fill the disk. Training can do without the cache.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise _cannot_write(self._folder, error) from error
            self._full = True
            self._notes.append(
                f"the disk of {self._folder} is full before the cache is: no more decoded images are kept"
            )

    def close(self) -> None:
        """Close the files. Closing twice is fine."""
        files, self._files = self._files, {}
        for file in files.values():
            if file is not None:
                os.close(file.descriptor)

    def take_notes(self) -> list[str]:
        """Return the lines to log since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def _file(self, shard: int) -> "_File | None":
        try:
            return self._files[shard]
        except KeyError:
            pass
        with self._opening:
            if shard not in self._files:
                try:
                    self._files[shard] = self._open(shard)
                except OSError as error:
                    raise _cannot_write(self._folder, error) from error
            return self._files[shard]

    def _open(self, shard: int) -> "_File | None":
        index = self._shards.index(shard)
        sizes = (index.heights * index.widths * 3).tolist()
        begin = -(-len(sizes) * _CHECKSUM_BYTES // _PAGE) * _PAGE
        offsets = list(accumulate(sizes, initial=begin))
        path = self._folder / self._name(self._shards.manifest.shards[shard].sha256)
        with filelock.FileLock(self._folder / ".lock"):
            if not path.exists():
                if not self._make_space(offsets[-1]):
                    return None
                with replacing(path) as part, open(part, "wb") as file:
                    file.truncate(offsets[-1])
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            # All users of a file share its lock; `_make_space` removes only files that nobody has locked.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        return _File(descriptor, offsets)

    def _name(self, sha256: str) -> str:
        return f"{sha256}-{self._decoder}{_SUFFIX}"

    def _make_space(self, wanted: int) -> bool:
        """Remove old files of other data sets until `wanted` bytes fit; return False if they do not.

        The caller holds the lock.
        """
        for part in self._folder.glob("*.part"):
            part.unlink()
        files = {path: path.stat() for path in self._folder.glob(f"*{_SUFFIX}")}
        free = self._budget_bytes - sum(status.st_size for status in files.values())
        ours = {self._name(shard.sha256) for shard in self._shards.manifest.shards}
        others = [path for path in files if path.name not in ours]
        if free + sum(files[path].st_size for path in others) < wanted:
            return False
        for path in sorted(others, key=lambda path: files[path].st_mtime):
            if free >= wanted:
                break
            if _remove_unused(path):
                free += files[path].st_size
        return free >= wanted


class _File(NamedTuple):
    descriptor: int
    offsets: list[int]
    """Offset of the first pixel of each image."""


def checksum(pixels: UInt8[np.ndarray, " bytes"]) -> int:
    """Return a checksum at a twentieth of the cost of CRC-32: the CRC-32 of the sums of the pages.

    It detects any changed word, and pages that are missing, half-written or swapped.
    """
    whole = len(pixels) // _PAGE * _PAGE
    sums = np.add.reduce(pixels[:whole].view(np.uint64).reshape(-1, _PAGE // 8), axis=1)
    return _PRESENT | zlib.crc32(pixels[whole:].data, zlib.crc32(sums.tobytes()))


def _remove_unused(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        path.unlink()
        return True
    finally:
        os.close(descriptor)


def _cannot_write(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot keep decoded images in {folder}: {error.strerror or error}. Choose another data.cache_folder, or set "
        "data.decoded_cache_gb to 0."
    )
