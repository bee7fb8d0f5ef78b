"""`aweigh checkpoints`: what a run can be resumed from, in its folder or in a bucket."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.checkpoints.checkpoint import SEAL, CheckpointFolder, DamagedCheckpointError, open_checkpoint
from cluster.checkpoints.remote import RemoteCheckpoints
from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.storage.open import open_store
from pipelines import console
from pipelines.errors import ConfigError


def list_checkpoints(place: str, *, as_json: bool) -> None:
    """Print every checkpoint of a run with step, age, score and size, and what killed processes left behind."""
    found = _open(place)
    rows = [_row(found, name) for name in found.names]
    if as_json:
        print(json.dumps({"place": place, "checkpoints": rows, "orphans": found.orphans}))
        return
    scored = [row for row in rows if row["score"] is not None]
    best = max(scored, key=lambda row: (row["score"], row["name"]), default=None)  # of equals the newest is kept
    for row in rows:
        marks = [*(["newest"] if row is rows[-1] else []), *(["best"] if row is best else [])]
        print(_line(row, marks))
    for orphan in found.orphans:
        print(f"{orphan:<18} orphan: left by a process that was killed; `aweigh checkpoints gc {place}` removes it")
    if not rows:
        print("no checkpoint")


def show_checkpoint(place: str, step: int | None, *, as_json: bool) -> None:
    """Print what one checkpoint says of itself."""
    found = _open(place)
    name = _chosen(found, step)
    row = _row(found, name)
    if "problem" in row:
        raise ConfigError(f"{name} of {place} cannot be read ({row['problem']}); --step N shows another one.")
    facts = found.facts(name)
    if as_json:
        print(json.dumps({"name": name, "bytes": found.size(name), **facts}))
        return
    print(_line(row, []))
    for key in ("detector", "run", "attempt", "world_size", "zero_stage", "precision", "samples_seen", "skipped_steps"):
        if key in facts:
            print(f"  {key:<14} {facts[key]}")
    print(f"  {'manifest':<14} {facts['manifest'][:12]}")
    print(f"  {'classes':<14} {len(facts['classes'])}: {', '.join(item['name'] for item in facts['classes'][:6])}")
    print(f"  {'mlflow_run':<14} {facts['mlflow_run'] or 'none yet'}")


def verify_checkpoints(place: str, *, as_json: bool) -> bool:
    """Compare every file with the size and sha256 sealed with it; gives whether all are whole."""
    found = _open(place)
    results: dict[str, str] = {}
    for name in found.names:
        try:
            found.verify(name)
            results[name] = "whole"
        except (DamagedCheckpointError, DataError) as error:
            results[name] = str(error)
        if not as_json:
            print(f"{name}  {results[name]}")
    if as_json:
        print(json.dumps({"place": place, "checkpoints": results}))
    elif not results:
        print("no checkpoint")
    return all(result == "whole" for result in results.values())


def collect_garbage(place: str, keep: int | None, *, as_json: bool) -> None:
    """Remove orphans and, where `keep` is given, all but the newest `keep` and the best."""
    found = _open(place, keep=keep or 1_000_000)
    removed = found.collect()
    if as_json:
        print(json.dumps({"place": place, "removed": removed}))
        return
    for name in removed:
        print(f"removed {name}")
    left = counted(len(_open(place).names), "checkpoint")
    print(f"{counted(len(removed), 'item')} removed, {left} left")


class _Found:
    """Checkpoints of a folder or a bucket, under the same few questions."""

    def __init__(
        self,
        names: list[str],
        orphans: list[str],
        read: Callable[[str, str], bytes],
        verify: Callable[[str], object],
        collect: Callable[[], list[str]],
    ) -> None:
        self.names, self.orphans, self._read, self.verify, self.collect = names, orphans, read, verify, collect

    def facts(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self._read(name, "state.json")))

    def size(self, name: str) -> int:
        files = json.loads(self._read(name, SEAL))["files"]
        return sum(file["bytes"] for file in files.values())


def _open(place: str, keep: int = 1_000_000) -> _Found:
    if "://" in place:
        store = open_store(place)
        remote = RemoteCheckpoints(store, keep)

        def verify(name: str) -> None:
            with tempfile.TemporaryDirectory() as folder:
                remote.fetch(name, Path(folder))

        def collect() -> list[str]:
            orphans = remote.orphans()
            return [*remote.collect(), *orphans]

        orphans = sorted({name.split("/")[0] for name in remote.orphans()})
        return _Found(
            remote.complete(), orphans, lambda name, file: store.read_bytes(f"{name}/{file}"), verify, collect
        )
    path = Path(place)
    folder = CheckpointFolder(path / "checkpoints" if (path / "checkpoints").is_dir() else path, keep)
    if not folder.folder.is_dir():
        raise ConfigError(f"there is no run or checkpoint folder {place}. Give runs/NAME, or s3://BUCKET/PREFIX/NAME.")
    return _Found(
        [path.name for path in folder.complete()],
        [path.name for path in folder.orphans()],
        lambda name, file: (folder.folder / name / file).read_bytes(),
        lambda name: open_checkpoint(folder.folder / name),
        lambda: [path.name for path in folder.collect()],
    )


def _chosen(found: _Found, step: int | None) -> str:
    if not found.names:
        raise ConfigError("there is no checkpoint.")
    if step is None:
        return found.names[-1]
    name = f"step-{step:08d}"
    if name not in found.names:
        raise ConfigError(f"there is no checkpoint of step {step}; there are {', '.join(found.names)}.")
    return name


def _row(found: _Found, name: str) -> dict[str, Any]:
    try:
        facts, size = found.facts(name), found.size(name)
    except (OSError, ValueError, KeyError, DataError) as error:
        return {"name": name, "score": None, "problem": f"{type(error).__name__}: {error}"}
    return {
        "name": name,
        **{key: facts.get(key) for key in ("step", "epoch", "score", "saved_at", "world_size", "zero_stage")},
        "bytes": size,
    }


def _line(row: dict[str, Any], marks: list[str]) -> str:
    if "problem" in row:
        return f"{row['name']:<18} cannot be read ({row['problem']}); resuming passes it over"
    score = "AP -    " if row["score"] is None else f"AP {row['score']:.3f}"
    age = f"{console.duration(time.time() - row['saved_at'])} ago" if row["saved_at"] else "age unknown"
    size = f"{row['bytes'] / 2**20:9.1f} MiB"
    return f"{row['name']:<18} epoch {row['epoch']:<5} {score}  {size}  {age}  {' '.join(marks)}".rstrip()
