"""The spool: what a run logs, on disk, until the tracking server has it. Nothing here uses the network.

A folder holds two append-only files of JSON lines, `metrics.jsonl` and `artifacts.jsonl`, the copied files in
`artifacts/`, and `delivered.json`: how many bytes of each file the server is known to have. A line is written with one
call to the operating system, so a killed process loses at most the line that it was writing.
"""

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

METRICS_PER_LINE = 1000  # MLflow's limit for a request; a line is delivered whole, so that one offset describes it


def now_ms() -> int:
    """Return the time as MLflow expects it, in milliseconds since 1970."""
    return int(time.time() * 1000)


class JsonLines:
    """An append-only file of JSON objects, one a line, that is read from a byte offset."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cut = False

    def append(self, record: dict[str, Any]) -> None:
        """Hand one line to the operating system; it survives this process, not a power cut."""
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        if self._cut:  # a full disk cut the line before: end that one, so that this one is a line of its own
            line = b"\n" + line
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._cut = True
        try:
            while line:
                line = line[os.write(file, line) :]
        finally:
            os.close(file)
        self._cut = False

    def read(self, offset: int = 0) -> Iterator[tuple[dict[str, Any] | None, int]]:
        """Yield each whole line from byte `offset` on, with the offset after it.

        A line that is not a JSON object is None: a machine that lost power may leave one. A last line without its
        newline is still being written, or was cut by a kill, and is not yielded.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                yield (record if isinstance(record, dict) else None), offset

    def mend(self) -> None:
        """Remove a last line that a killed process left unfinished; the next one would be appended to it."""
        if not self.path.exists():
            return
        with self.path.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            # Backwards in blocks, for the last newline: the file may be large, the line longer than a block.
            while end:
                start = max(0, end - 65536)
                file.seek(start)
                if newline := file.read(end - start).rfind(b"\n") + 1:
                    file.truncate(start + newline)
                    return
                end = start
            file.truncate(0)

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path.exists() else 0


class SpoolWriter:
    """The writing side of a run's spool: skips what is logged already, appends the rest.

    A key's steps only increase: a step that is not above the highest one in the spool is skipped, so a run that resumes
    from a checkpoint neither doubles a point nor rewinds a curve. Methods may be called from any thread.

    Args:
        folder: the spool's folder; created if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        self.metrics = JsonLines(folder / "metrics.jsonl")
        self.artifacts = JsonLines(folder / "artifacts.jsonl")
        self._lock = threading.Lock()
        # The same in every line of this process: it tells a delivery which points belong to one attempt.
        self._since_ms = now_ms()
        self._highest_step: dict[str, int] = {}
        self._highest_image_step: dict[str, int] = {}
        self.metrics.mend()
        self.artifacts.mend()
        for record, _ in self.metrics.read():
            step = record["step"] if record else 0
            for key in record["metrics"] if record else ():
                self._highest_step[key] = max(step, self._highest_step.get(key, step))
        # From folders and lines alike: a kill between the copy and its line leaves a folder without a line.
        numbers = [int(entry.name) for entry in (folder / "artifacts").iterdir() if entry.name.isdigit()]
        for record, _ in self.artifacts.read():
            if record:
                numbers.append(record["number"])
                if "image_key" in record:
                    self._highest_image_step[record["image_key"]] = record["step"]
        self._next_number = max(numbers, default=-1) + 1

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Append the metrics whose key has not reached `step`, with the current time."""
        with self._lock:
            new = {key: value for key, value in metrics.items() if step > self._highest_step.get(key, step - 1)}
            items = list(new.items())
            for start in range(0, len(items), METRICS_PER_LINE):
                self.metrics.append(
                    {
                        "step": step,
                        "time_ms": now_ms(),
                        "since_ms": self._since_ms,
                        "metrics": dict(items[start : start + METRICS_PER_LINE]),
                    }
                )
            self._highest_step.update(dict.fromkeys(new, step))

    def add_file(self, path: Path, artifact_path: str) -> None:
        """Copy a file or folder into the spool and queue it for the run's folder `artifact_path`."""
        with self._lock:
            self._queue_copy(path, {"kind": "file", "artifact_path": artifact_path})

    def add_text(self, text: str, artifact_file: str) -> None:
        """Queue a text as the run's file `artifact_file`."""
        folder, _, name = artifact_file.rpartition("/")
        with self._lock:
            target = self._new_folder() / name
            target.write_text(text, encoding="utf-8")
            self._queue({"kind": "file", "artifact_path": folder, "file": name})

    def add_image(self, key: str, step: int, path: Path) -> None:
        """Queue a picture under `key`, unless the key has reached `step`."""
        with self._lock:
            if step <= self._highest_image_step.get(key, step - 1):
                return
            self._queue_copy(path, {"kind": "image", "image_key": key, "step": step})
            self._highest_image_step[key] = step

    def add_model(self, name: str, step: int, params: dict[str, str], write: Callable[[Path], object]) -> None:
        """Queue a model that `write` writes into the folder that it is called with."""
        with self._lock:
            write(self._new_folder() / name)
            self._queue({"kind": "model", "file": name, "step": step, "params": params})

    def add_tags(self, tags: dict[str, str]) -> None:
        """Queue tags of the run."""
        with self._lock:
            self._queue({"kind": "tags", "tags": tags})

    def _new_folder(self) -> Path:
        folder = self.folder / "artifacts" / f"{self._next_number:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _queue_copy(self, path: Path, record: dict[str, Any]) -> None:
        target = self._new_folder() / path.name
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target)
        self._queue(record | {"file": path.name})

    def _queue(self, record: dict[str, Any]) -> None:
        # The line comes after the copy: a kill in between leaves a file that is never delivered, rather than a line
        # that promises a file.
        self.artifacts.append({"number": self._next_number, "time_ms": now_ms()} | record)
        self._next_number += 1


_in_delivery: set[Path] = set()
_in_delivery_lock = threading.Lock()


@contextmanager
def sole_delivery(folder: Path) -> Iterator[bool]:
    """Yield True if no other thread or process is delivering this folder's spool, else False.

    The kernel drops the lock with the process. It is a POSIX record lock, which children do not inherit: a loader
    process that outlives its killed trainer must not keep the next attempt waiting.
    """
    # A record lock belongs to the process and does not exclude its own threads, so they are kept apart here.
    place = folder.resolve()
    with _in_delivery_lock:
        free = place not in _in_delivery
        _in_delivery.add(place)
    if not free:
        yield False
        return
    try:
        with (folder / "delivery.lock").open("w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
            except OSError:
                pass  # a file system without locks: an unguarded delivery is better than none
            yield free
    finally:
        with _in_delivery_lock:
            _in_delivery.discard(place)
