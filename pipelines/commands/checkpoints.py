"""`aweigh checkpoints`: list, show, verify and clean up what a run can be resumed from, in a folder or bucket."""

import argparse
import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines import console
from pipelines.commands.arguments import Commands, add_actions, add_json
from pipelines.errors import ConfigError


def add(commands: Commands) -> None:
    """Add `checkpoints` and its actions."""
    checkpoints = commands.add_parser(
        "checkpoints", help="list, show, verify and clean up what a run can be resumed from"
    )
    actions = add_actions(checkpoints, "ls|show|verify|gc")
    for name, meaning in (
        ("ls", "list checkpoints with step, score, size and age, and leftovers of killed processes; of a folder of "
         "runs, each run's newest and best"),
        ("show", "print the facts that a checkpoint records"),
        ("verify", "compare every file with its sha256"),
        ("gc", "remove leftovers of killed processes and, with --keep, all but the newest and the best"),
    ):  # fmt: skip
        action = actions.add_parser(name, help=meaning)
        action.add_argument("place", metavar="RUN", help="a run's folder, or s3://BUCKET/PREFIX/NAME")
        add_json(action, "the same")
        if name == "show":
            action.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
        if name == "gc":
            action.add_argument("--keep", type=int, metavar="N", help="keep the newest N, and the best")
        action.set_defaults(run=run)


def run(known: argparse.Namespace) -> None:
    """List, show, verify or remove checkpoints."""
    if known.action == "ls":
        list_checkpoints(known.place, as_json=known.json)
    elif known.action == "show":
        show_checkpoint(known.place, known.step, as_json=known.json)
    elif known.action == "gc":
        if known.keep is not None and known.keep < 1:
            raise ConfigError(f"--keep is {known.keep}; it must be 1 or more, or nothing could be resumed.")
        collect_garbage(known.place, known.keep, as_json=known.json)
    elif not verify_checkpoints(known.place, as_json=known.json):
        console.fail("at least one checkpoint is damaged; resuming skips it and takes an older one.", 1)


def list_checkpoints(place: str, *, as_json: bool) -> None:
    """Print every checkpoint of a run with epoch, score, size and age, and the leftovers of killed processes."""
    if runs := _runs(place):
        _list_runs(place, runs, as_json=as_json)
        return
    found = _open(place)
    rows = [_row(found, name) for name in found.names]
    if as_json:
        print(json.dumps({"place": place, "checkpoints": rows, "orphans": found.orphans}))
        return
    best = _best(rows)
    for row in rows:
        print(_line(row, [*(["newest"] if row is rows[-1] else []), *(["best"] if row is best else [])]))
    removal = shlex.join(["aweigh", "checkpoints", "gc", place])
    for orphan in found.orphans:
        print(f"{orphan:<18} orphan: left by a process that was killed; `{removal}` removes it")
    if not rows:
        print(_NONE)


_NONE = "no checkpoint yet; a training writes one after each checkpoint.every_epochs"


def _runs(place: str) -> list[Path]:
    """Return the runs in a folder of runs; empty if the place is something else."""
    path = Path(place)
    if "://" in place or not path.is_dir() or (path / "checkpoints").exists() or any(path.glob("step-*")):
        return []
    return sorted(run.parent for run in path.glob("*/checkpoints"))


def _list_runs(place: str, runs: list[Path], *, as_json: bool) -> None:
    """Print the newest and the best checkpoint of each run."""
    listed: dict[str, dict[str, Any]] = {}
    for run in runs:
        found = _open(str(run))
        rows = [_row(found, name) for name in found.names]
        listed[run.name] = {"newest": rows[-1] if rows else None, "best": _best(rows)}
    if as_json:
        print(json.dumps({"place": place, "runs": listed}))
        return
    for name, rows_by_mark in listed.items():
        print(name)
        newest, best = rows_by_mark["newest"], rows_by_mark["best"]
        if newest is None:
            print("  no checkpoint yet")
        elif newest is best:
            print(f"  {_line(newest, ['newest', 'best'])}")
        else:
            print(f"  {_line(newest, ['newest'])}")
            if best:
                print(f"  {_line(best, ['best'])}")


def _best(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the checkpoint of the highest score; of equals the newest, which is the one that stays."""
    scored = [row for row in rows if row["score"] is not None]
    return max(scored, key=lambda row: (row["score"], row["name"]), default=None)


def show_checkpoint(place: str, step: int | None, *, as_json: bool) -> None:
    """Print the facts that one checkpoint records."""
    found = _open(place)
    name = _chosen(found, step)
    row = _row(found, name)
    if "problem" in row:
        raise ConfigError(f"{name} of {place} cannot be read ({row['problem']}); show another one with --step N.")
    facts = found.facts(name)
    if as_json:
        print(json.dumps({"name": name, "bytes": found.size(name), **facts}))
        return
    print(_line(row, []))
    for key in ("detector", "run", "attempt", "world_size", "zero_stage", "precision", "samples_seen", "skipped_steps"):
        if key in facts:
            print(f"  {key:<14} {facts[key]}")
    if initial := facts.get("weights_sha256"):
        print(f"  {'started from':<14} weights of sha256 {initial}")
    print(f"  {'manifest':<14} {facts['manifest'][:12]}")
    print(f"  {'classes':<14} {len(facts['classes'])}: {', '.join(item['name'] for item in facts['classes'][:6])}")
    print(f"  {'mlflow_run':<14} {facts['mlflow_run'] or 'none yet'}")


def verify_checkpoints(place: str, *, as_json: bool) -> bool:
    """Compare every file with the size and sha256 sealed with it; return True if all are whole."""
    from cluster.checkpoints.seal import DamagedCheckpointError
    from data_shards.errors import DataError

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
        print(_NONE)
    return all(result == "whole" for result in results.values())


def collect_garbage(place: str, keep: int | None, *, as_json: bool) -> None:
    """Remove leftovers of killed processes and, if `keep` is set, all but the newest `keep` and the best."""
    from data_shards.counting import counted

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
    """Checkpoints of a folder or a bucket behind one interface."""

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
        from cluster.checkpoints.seal import SEAL

        files = json.loads(self._read(name, SEAL))["files"]
        return sum(file["bytes"] for file in files.values())


def _open(place: str, keep: int = 1_000_000) -> _Found:
    import tempfile

    from cluster.checkpoints.checkpoint import CheckpointFolder, open_checkpoint
    from cluster.checkpoints.remote import RemoteCheckpoints
    from data_shards.storage.open import open_store

    if "://" in place:
        store = open_store(place)
        remote = RemoteCheckpoints(store, keep)

        def verify(name: str) -> None:
            # Files of a bucket are compared while they are fetched.
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
        raise ConfigError(
            f"{place} is not a folder of a run or checkpoint. Give runs/NAME, or s3://BUCKET/PREFIX/NAME."
        )
    return _Found(
        [path.name for path in folder.complete()],
        [path.name for path in folder.orphans()],
        lambda name, file: (folder.folder / name / file).read_bytes(),
        lambda name: open_checkpoint(folder.folder / name),
        lambda: [path.name for path in folder.collect()],
    )


def _chosen(found: _Found, step: int | None) -> str:
    if not found.names:
        raise ConfigError("the run has no checkpoint yet; `aweigh train` with its --run.name continues it.")
    if step is None:
        return found.names[-1]
    name = f"step-{step:08d}"
    if name not in found.names:
        raise ConfigError(f"there is no checkpoint of step {step}; there are {', '.join(found.names)}.")
    return name


def _row(found: _Found, name: str) -> dict[str, Any]:
    from data_shards.errors import DataError

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
        return f"{row['name']:<18} cannot be read ({row['problem']}); resuming skips it"
    score = "AP -    " if row["score"] is None else f"AP {row['score']:.3f}"
    age = f"{console.duration(time.time() - row['saved_at'])} ago" if row["saved_at"] else "age unknown"
    size = f"{row['bytes'] / 2**20:9.1f} MiB"
    return f"{row['name']:<18} epoch {row['epoch']:<5} {score}  {size}  {age}  {' '.join(marks)}".rstrip()
