"""Checkpoints that no engine, world size or ZeRO stage owns: safetensors by name and one JSON of facts.

    checkpoints/
      step-00000400/
        weights.safetensors     fp32 parameters and buffers, usable alone
        optimizer.safetensors   "parameter|state"
        per_rank.safetensors    "rank|buffer"
        state.json              step, epoch, score, samples seen, class list, manifest digest, recipe, MLflow run, …
        checkpoint.json         size and sha256 of the files above, written last

A folder is written under another name, flushed to disk, and made current in one rename; a torn one has no
`checkpoint.json`, or one that does not fit, and is never chosen.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cluster.engine import TrainingState
from cluster.errors import ClusterError

FORMAT_VERSION = 1
_TENSOR_FILES = ("weights", "optimizer", "per_rank")
_SEAL = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint on disk, verified when it was opened."""

    path: Path
    facts: dict[str, Any]
    """What `state.json` says."""

    @property
    def step(self) -> int:
        """Optimizer steps done when it was written."""
        return int(self.facts["step"])

    def training_state(self) -> TrainingState:
        """Load the complete state onto the CPU."""
        return TrainingState(*(self._tensors(name) for name in _TENSOR_FILES))

    def weights(self) -> dict[str, Tensor]:
        """Load the weights alone, fp32 on the CPU."""
        return self._tensors("weights")

    def _tensors(self, name: str) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        return load_file(self.path / f"{name}.safetensors")


class HarmedCheckpointError(ClusterError):
    """A checkpoint that is incomplete or not what was written; the one before it may be whole."""


class CheckpointFolder:
    """The checkpoints of one run, in a folder that every node sees.

    Args:
        folder: made when the first checkpoint is written.
        keep: how many of the newest stay; the one of the highest score stays beside them.
        warn: told, in one line, about a checkpoint that is passed over.
    """

    def __init__(self, folder: Path, keep: int = 2, warn: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder
        self.keep = keep
        self._warn = warn

    def save(self, state: TrainingState, facts: Mapping[str, Any], score: float | None = None) -> Checkpoint:
        """Write one checkpoint, make it current in one rename, then drop those no longer kept.

        Args:
            state: as `Engine.state` gives it to rank 0.
            facts: JSON-able; "step" names the folder.
            score: how good these weights are, where that was measured; more is better.

        Raises:
            ClusterError: the folder cannot be written; the checkpoints there before are untouched.
        """
        from safetensors.torch import save_file

        facts = {**facts, "score": score}
        name = f"step-{int(facts['step']):08d}"
        partial = self.folder / f".{name}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for file in _TENSOR_FILES:
                tensors = {key: value.contiguous() for key, value in getattr(state, file).items()}
                save_file(tensors, partial / f"{file}.safetensors")
            (partial / "state.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
            files = {path.name: _fingerprint(path) for path in sorted(partial.iterdir())}
            seal = {"format": FORMAT_VERSION, "files": files}
            (partial / _SEAL).write_text(json.dumps(seal, indent=1))
            for path in (*partial.iterdir(), partial):
                _flush(path)
            final = self.folder / name
            for later in self._folders():
                # Of this step or a later one, yet training came from before: they were harmed and passed over.
                if later.name >= name:
                    later.rename(self.folder / f".{later.name}.harmed")
            partial.rename(final)
            _flush(self.folder)
        except OSError as error:
            raise ClusterError(
                f"checkpoint {name} could not be written to {self.folder}: {error.strerror or error}. "
                f"Earlier checkpoints are untouched; make room or set run.folder elsewhere."
            ) from error
        self._collect()
        return Checkpoint(final, dict(facts))

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is complete and unharmed, or None where there is none at all.

        A harmed one is passed over with a warning, and the one before it is taken.

        Raises:
            ClusterError: there are checkpoints, but none of them is whole, or one is of a later format.
        """
        folders = sorted(self._folders(), reverse=True)
        found = self._first_whole(folders)
        if folders and found is None:
            raise ClusterError(
                f"none of the {len(folders)} checkpoints in {self.folder} is whole. Restore one from a copy, or delete "
                f"the folder to begin at step 0."
            )
        return found

    def best(self) -> Checkpoint | None:
        """The unharmed checkpoint of the highest score, or None where none was scored."""
        return self._first_whole(self._by_score())

    def _first_whole(self, folders: list[Path]) -> Checkpoint | None:
        for path in folders:
            try:
                return open_checkpoint(path)
            except HarmedCheckpointError as error:
                self._warn(f"passed over: {error}")
        return None

    def _by_score(self) -> list[Path]:
        """Scored checkpoints, the best and then the newest first."""
        scored = []
        for path in self._folders():
            try:
                score = json.loads((path / "state.json").read_text())["score"]
            except (OSError, ValueError, KeyError):
                continue  # harmed: whoever opens it is told
            if score is not None:
                scored.append((score, path))
        return [path for _, path in sorted(scored, reverse=True)]

    def _folders(self) -> list[Path]:
        return list(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def _collect(self) -> None:
        kept = {path.name for path in [*sorted(self._folders())[-self.keep :], *self._by_score()[:1]]}
        for path in self._folders():
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)


def open_checkpoint(path: Path, *, verify: bool = True) -> Checkpoint:
    """Open one checkpoint folder after comparing every file with the sizes and sha256 sealed with it.

    Args:
        path: the folder.
        verify: False where another rank has compared the files just now.

    Raises:
        HarmedCheckpointError: it is no checkpoint, incomplete, or harmed.
        ClusterError: it is of a later format.
    """
    try:
        seal = json.loads((path / _SEAL).read_text())
    except FileNotFoundError:
        raise HarmedCheckpointError(
            f"{path} is not a complete checkpoint: {_SEAL} is missing. Choose another, or delete it."
        ) from None
    except (OSError, ValueError) as error:
        raise HarmedCheckpointError(f"{path / _SEAL} cannot be read: {error}. Choose another checkpoint.") from error
    if seal.get("format") != FORMAT_VERSION:
        raise ClusterError(
            f"{path} has checkpoint format {seal.get('format')}, this aweigh reads {FORMAT_VERSION}; update aweigh."
        )
    for name, expected in seal["files"].items() if verify else ():
        found = _fingerprint(path / name) if (path / name).is_file() else None
        if found != expected:
            state = "missing" if found is None else f"{found['bytes']:,} bytes with another sha256"
            raise HarmedCheckpointError(
                f"{path / name} is {state}, expected {expected['bytes']:,} bytes with sha256 "
                f"{expected['sha256'][:12]}…. Delete {path.name} and use an earlier checkpoint."
            )
    return Checkpoint(path, json.loads((path / "state.json").read_text()))


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
