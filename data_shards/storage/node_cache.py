"""The node's cache: files named by their sha256 in one folder that all ranks and runs of a machine share.

There is no server and no list of files: the folder is the state, and the kernel's file locks tell which processes are
alive.

- A process that fetches a file holds the lock of its `.part` file; a `.part` file of a dead process is taken over.
- A process that reads holds the lock of a file in `readers/`, which names the shards in use and those fetched ahead.
- Space is freed under the lock of the folder. Shards that no living reader names go first, the one with the farthest
  next use before others; for a reader that waits, also shards that others only fetched ahead; never shards in use.
"""

import fcntl
import json
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import UnavailableError

# Shards that count as in use for a reader without a schedule.
_RECENT = 16
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


def default_cache_folder() -> Path:
    """Return the folder for shards from S3: `AWEIGH_CACHE`, or `aweigh` in the user's cache folder."""
    if folder := os.environ.get("AWEIGH_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "aweigh"


@dataclass(frozen=True)
class _Kept:
    """A file that counts towards the budget."""

    path: Path
    bytes: int
    modified: float


class NodeCache:
    """One reader's view of the cache. Safe to use from several threads, processes and runs.

    Args:
        folder: the same for all processes that share the cache.
        budget: most bytes of shards in it; 0 for no limit. Each reader enforces its own.
    """

    def __init__(self, folder: str | os.PathLike[str], budget: int = 0) -> None:
        self.folder = Path(folder).expanduser()
        self.budget = budget
        self._shards = self.folder / "shards"
        self._indexes = self.folder / "indexes"
        self._readers = self.folder / "readers"
        self._claims: int | None = None
        self._claims_path = self._readers / f"{os.getpid()}-{uuid.uuid4().hex}"
        self._lock = threading.Lock()
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._next_use: dict[str, int] = {}

    def shard_path(self, sha256: str) -> Path:
        """Return the path of a shard, whether it is cached or not."""
        return self._shards / f"{sha256}.tar"

    def index_path(self, sha256: str) -> Path:
        """Return the path of a shard's index, whether it is cached or not. Indexes are small and stay."""
        return self._indexes / f"{sha256}.npz"

    def present(self) -> set[str]:
        """Return the sha256 of every cached shard."""
        try:
            return {name[:-4] for name in os.listdir(self._shards) if name.endswith(".tar")}
        except FileNotFoundError:
            return set()

    def obtain(
        self,
        path: Path,
        size: int,
        fill: Callable[[int], None],
        *,
        waiting: bool = True,
        damaged: int | None = None,
    ) -> bool:
        """Make sure that a file is cached. However many processes ask for it, one of them fetches it.

        Args:
            path: from `shard_path` or `index_path`.
            size: bytes to free space for; 0 for a file that does not count towards the budget.
            fill: writes the file into a descriptor; raises if the bytes are not the expected ones.
            waiting: True for a reader that needs the file now: wait while another process fetches it, and take space
                from shards fetched ahead.
            damaged: inode of a damaged file at `path`, which is replaced.

        Returns:
            True if the file is now cached; always True when `waiting`.

        Raises:
            DataError: raised by `fill`.
            UnavailableError: the folder cannot be written.
        """
        part_path = path.with_name(f"{path.name}.part")
        with self.explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            while not _is_there(path, damaged):
                part = os.open(part_path, _FLAGS, 0o644)
                try:
                    if not _lock(part, wait=waiting):
                        return False
                    # While this process waited, the file may have been renamed into place, or abandoned and removed.
                    if not _is_file(part, part_path):
                        continue
                    if _is_there(path, damaged):
                        # It was renamed into place just before this process opened the part, which is a new, empty one.
                        part_path.unlink(missing_ok=True)
                    elif not self._make(part, part_path, path, size, fill, waiting):
                        return False
                finally:
                    os.close(part)
        return True

    def claim(self, in_use: Iterable[str], ahead: Iterable[str] = (), order: Sequence[str] = ()) -> None:
        """Declare the shards that this reader needs. They stay until its next claim or the end of its process.

        Args:
            in_use: never evicted.
            ahead: fetched before their use; evicted only for a reader that waits.
            order: all shards of this reader, next use first; the last of them are evicted first.
        """
        self._next_use = {sha256: place for place, sha256 in enumerate(order)}
        text = json.dumps({"in_use": list(in_use), "ahead": list(ahead)}).encode()
        with self.explained(), self._locked():
            if self._claims is None:
                self._readers.mkdir(exist_ok=True)
                self._claims = os.open(self._claims_path, _FLAGS, 0o644)
                _lock(self._claims, wait=True)
            os.ftruncate(self._claims, 0)
            os.pwrite(self._claims, text, 0)

    def touch(self, sha256: str) -> None:
        """Note that a reader without a schedule reads this shard; it and the last few count as in use."""
        if sha256 in self._recent:
            return
        with self._lock:
            self._recent[sha256] = None
            while len(self._recent) > _RECENT:
                self._recent.popitem(last=False)
            self.claim(list(self._recent))

    def close(self) -> None:
        """Withdraw all claims."""
        if self._claims is not None:
            self._claims_path.unlink(missing_ok=True)
            os.close(self._claims)
            self._claims = None

    def _make(
        self, part: int, part_path: Path, path: Path, size: int, fill: Callable[[int], None], waiting: bool
    ) -> bool:
        try:
            os.ftruncate(part, 0)
            if size and not self._reserve(part, part_path, size, waiting):
                part_path.unlink(missing_ok=True)
                return False
            fill(part)
            # Not `atomic.replacing`: the part's name is what processes lock, and no flush is needed, since every
            # reader checks the sha256.
            os.replace(part_path, path)
        except BaseException:
            part_path.unlink(missing_ok=True)
            raise
        return True

    def _reserve(self, part: int, part_path: Path, size: int, waiting: bool) -> bool:
        """Free space and allocate it at once, before another process takes it. Return False if there is not enough."""
        with self._locked():
            if self.budget:
                kept = list(self._kept(part_path))
                excess = sum(file.bytes for file in kept) + size - self.budget
                victims = list(self._victims(kept, waiting, excess))
                if not waiting and sum(file.bytes for file in victims) < excess:
                    return False
                for file in victims:
                    file.path.unlink(missing_ok=True)
            os.posix_fallocate(part, 0, size)
        return True

    def _kept(self, own: Path) -> Iterator[_Kept]:
        """Yield every file in the folder except our own part; remove parts of dead processes on the way."""
        with os.scandir(self._shards) as entries:
            for entry in entries:
                path = Path(entry.path)
                if path == own or path.suffix not in (".tar", ".part"):
                    continue
                if path.suffix == ".part" and _remove_if_abandoned(path):
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                yield _Kept(path, status.st_size, status.st_mtime)

    def _victims(self, kept: list[_Kept], waiting: bool, excess: int) -> Iterator[_Kept]:
        """Yield the files to evict, in order, until `excess` bytes are free."""
        in_use, ahead = self._all_claims()

        def farthest_first(file: _Kept) -> tuple[bool, int, float]:
            place = self._next_use.get(file.path.stem)
            return place is not None, -(place or 0), file.modified

        files = [file for file in kept if file.path.suffix == ".tar" and file.path.stem not in in_use]
        unclaimed = sorted((file for file in files if file.path.stem not in ahead), key=farthest_first)
        spared = sorted((file for file in files if file.path.stem in ahead), key=farthest_first)
        for file in [*unclaimed, *(spared if waiting else ())]:
            if excess <= 0:
                return
            excess -= file.bytes
            yield file

    def _all_claims(self) -> tuple[set[str], set[str]]:
        """Return the shards that living readers use, and those fetched ahead; remove files of dead readers."""
        in_use: set[str] = set()
        ahead: set[str] = set()
        for path in self._readers.iterdir() if self._readers.is_dir() else ():
            if _remove_if_abandoned(path):
                continue
            try:
                claims = json.loads(path.read_bytes() or b"{}")
            except (FileNotFoundError, ValueError):
                # A reader that ended just now, or was killed while it wrote.
                continue
            in_use.update(claims.get("in_use", ()))
            ahead.update(claims.get("ahead", ()))
        return in_use, ahead - in_use

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the folder, for milliseconds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self.folder / ".lock", _FLAGS, 0o644)
        try:
            _lock(file, wait=True)
            yield
        finally:
            os.close(file)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise an error of the system as an UnavailableError."""
        try:
            yield
        except OSError as error:
            cause = os.strerror(error.errno) if error.errno else str(error)
            raise UnavailableError(
                f"cannot keep shards in {self._shards}: {cause}. Free some space there, set data.cache_gb "
                "to less than the free space, or choose another cache folder (data.cache_folder or AWEIGH_CACHE)."
            ) from error


def _lock(file: int, *, wait: bool) -> bool:
    """Take a lock, which the kernel releases when the descriptor is closed or its process dies."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _is_there(path: Path, damaged: int | None) -> bool:
    try:
        return path.stat().st_ino != damaged
    except FileNotFoundError:
        return False


def _is_file(file: int, path: Path) -> bool:
    """Return True if a descriptor is still the file of that name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _remove_if_abandoned(path: Path) -> bool:
    """Remove a file if its owner is dead, so that nobody holds its lock."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not _lock(file, wait=False):
            return False
        if _is_file(file, path):
            path.unlink(missing_ok=True)
        return True
    finally:
        os.close(file)
