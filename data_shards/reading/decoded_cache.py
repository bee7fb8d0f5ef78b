"""The decode-once tier: decoded images kept on the node, so that from the second epoch on no JPEG is decoded.

One sparse file for each shard holds the pixels of its images at places known from the index, and before them a checksum
for each image, written after its pixels: an image is there when its checksum says so. Processes write the same bytes at
the same places, so none has to wait for another; what a kill or a full disk left half-written fails its checksum, is
decoded again and written over. Files belong to a shard's sha256 and to the decoder's version, and serve every run.
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
from numpy.typing import NDArray

from data_shards.errors import DataError
from data_shards.reading.shards import Shards
from data_shards.storage.atomic import replacing

_SUFFIX = ".pixels"
_PAGE = 4096
_CHECKSUM_BYTES = 8
# Never 0, which is what a sparse file holds where nothing was written.
_PRESENT = 1 << 32


class DecodedImages:
    """Decoded images of a data set in a folder of the node, at most so many bytes with those of other data sets.

    Safe to use from several threads, processes and runs at once.

    Args:
        shards: whose images.
        folder: where the files lie; made where it is missing.
        budget_bytes: room for all files in the folder. Shards for which there is no room are decoded every time; files
            of other data sets that no process has open make room, the oldest first.

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

    def read(self, shard: int, row: int, buffer: NDArray[np.uint8]) -> bool:
        """Put the pixels of one image into the buffer, which has their size; whether they were there, and whole."""
        file = self._file(shard)
        if file is None:
            return False
        expected = int.from_bytes(os.pread(file.descriptor, _CHECKSUM_BYTES, row * _CHECKSUM_BYTES), "little")
        if not expected or os.preadv(file.descriptor, [buffer.data], file.offsets[row]) != len(buffer):
            return False
        return checksum(buffer) == expected

    def write(self, shard: int, row: int, image: NDArray[np.uint8]) -> None:
        """Keep the pixels of one image, where there is room for its shard."""
        file = self._file(shard)
        if file is None or self._full:
            return
        pixels = image.reshape(-1)
        try:
            if os.pwrite(file.descriptor, pixels.data, file.offsets[row]) == len(pixels):
                stamp = checksum(pixels).to_bytes(_CHECKSUM_BYTES, "little")
                os.pwrite(file.descriptor, stamp, row * _CHECKSUM_BYTES)
        except OSError as error:
            # A disk that others filled is no reason to stop: what is not kept is decoded again.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise _cannot_write(self._folder, error) from error
            self._full = True
            self._notes.append(f"{self._folder} is full before the budget is: no more decoded images are kept")

    def close(self) -> None:
        """Let go of the files. Closing twice is fine."""
        files, self._files = self._files, {}
        for file in files.values():
            if file is not None:
                os.close(file.descriptor)

    def take_notes(self) -> list[str]:
        """What there is to tell since the last call."""
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
                if not self._make_room(offsets[-1]):
                    return None
                with replacing(path) as part, open(part, "wb") as file:
                    file.truncate(offsets[-1])
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            # Shared by all that use the file; `_make_room` takes away only what nobody holds.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        return _File(descriptor, offsets)

    def _name(self, sha256: str) -> str:
        return f"{sha256}-{self._decoder}{_SUFFIX}"

    def _make_room(self, wanted: int) -> bool:
        """Whether so many bytes fit the budget, after old files of others were removed; called under the lock."""
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
    """Where the pixels of each image begin."""


def checksum(pixels: NDArray[np.uint8]) -> int:
    """A checksum of `(bytes,)` uint8 that costs a twentieth of CRC-32: the CRC-32 of the sums of its pages.

    It notices any changed word, and pages that are missing, torn, or at each other's places.
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
