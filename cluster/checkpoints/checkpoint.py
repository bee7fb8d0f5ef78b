"""Checkpoints that no engine, world size or ZeRO stage owns: safetensors by name and one JSON of facts.

    checkpoints/
      step-00000400/
        weights.safetensors     fp32 parameters and buffers, usable alone
        optimizer.safetensors   "parameter|state"
        ema.safetensors         the average of the weights where one is kept, usable alone
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

import torch
from torch import Tensor

from cluster.engine.engine import TrainingState
from cluster.errors import ClusterError

FORMAT_VERSION = 1
_TENSOR_FILES = ("weights", "optimizer", "per_rank")
_AVERAGE = "ema"
SEAL = "checkpoint.json"
"""The file that is written last: with it a checkpoint is complete."""


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
        average = self._tensors(_AVERAGE) if self.has_average else {}
        weights, optimizer, per_rank = (self._tensors(name) for name in _TENSOR_FILES)
        return TrainingState(weights, optimizer, per_rank, average)

    @property
    def has_average(self) -> bool:
        """Whether it holds an average of the weights beside them."""
        return (self.path / f"{_AVERAGE}.safetensors").exists()

    def weights(self) -> dict[str, Tensor]:
        """Load the weights that were evaluated, fp32 on the CPU: the average where one is kept."""
        return self._tensors(_AVERAGE if self.has_average else "weights")

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
        facts = {**facts, "score": score}
        name = step_name(int(facts["step"]))
        partial = self.folder / f".{name}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _write_files(partial, state, facts)
            final = self.folder / name
            for later in self.complete():
                # Of this step or a later one, yet training came from before: they were harmed and passed over.
                if later.name >= name:
                    later.rename(self.folder / f".{later.name}.harmed")
            partial.rename(final)
            _flush(self.folder)
        except OSError as error:
            raise ClusterError(
                f"checkpoint {name} could not be written to {self.folder}: {error.strerror or error}. "
                f"Earlier checkpoints are untouched; make room, or set run.folder or checkpoint.location elsewhere."
            ) from error
        self.collect()
        return Checkpoint(final, dict(facts))

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is complete and unharmed, or None where there is none at all.

        A harmed one is passed over with a warning, and the one before it is taken.

        Raises:
            ClusterError: there are checkpoints, but none of them is whole, or one is of a later format.
        """
        folders = sorted(self.complete(), reverse=True)
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
                self._warn(f"skipped: {error}")
        return None

    def _by_score(self) -> list[Path]:
        """Scored checkpoints, the best and then the newest first."""
        scored = []
        for path in self.complete():
            try:
                score = json.loads((path / "state.json").read_text())["score"]
            except (OSError, ValueError, KeyError):
                continue  # harmed: whoever opens it is told
            if score is not None:
                scored.append((score, path))
        return [path for _, path in sorted(scored, reverse=True)]

    def complete(self) -> list[Path]:
        """Every checkpoint that was made current, the oldest first; whether it is unharmed is not looked at."""
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def orphans(self) -> list[Path]:
        """What a killed process left half-written, or set aside as harmed."""
        return sorted(self.folder.glob(".step-*")) if self.folder.is_dir() else []

    def collect(self) -> list[Path]:
        """Remove orphans and what is kept no longer; gives what was removed."""
        kept = {path.name for path in [*self.complete()[-self.keep :], *self._by_score()[:1]]}
        removed = [path for path in self.complete() if path.name not in kept] + self.orphans()
        for path in removed:
            shutil.rmtree(path, ignore_errors=True)
        return removed


def step_name(step: int) -> str:
    """What a checkpoint of this step is called."""
    return f"step-{step:08d}"


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
        seal = json.loads((path / SEAL).read_text())
    except FileNotFoundError:
        raise HarmedCheckpointError(
            f"{path} is not a complete checkpoint: {SEAL} is missing. Choose another, or delete it."
        ) from None
    except (OSError, ValueError) as error:
        raise HarmedCheckpointError(f"{path / SEAL} cannot be read: {error}. Choose another checkpoint.") from error
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


def _write_files(folder: Path, state: TrainingState, facts: Mapping[str, Any]) -> None:
    """Write every file, flush it to disk, compare what was written with what is in memory, and seal it."""
    from safetensors.torch import save_file

    parts = {name: getattr(state, name) for name in _TENSOR_FILES}
    if state.ema:
        parts[_AVERAGE] = state.ema
    for name, tensors in parts.items():
        contiguous = {key: value.contiguous() for key, value in tensors.items()}
        save_file(contiguous, folder / f"{name}.safetensors")
        _compare(folder / f"{name}.safetensors", contiguous)
    (folder / "state.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
    files = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    (folder / SEAL).write_text(json.dumps({"format": FORMAT_VERSION, "files": files}, indent=1))
    for path in (*folder.iterdir(), folder):
        _flush(path)


def _compare(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name, expected in tensors.items():
            # As bytes: NaN is not equal to itself.
            if not torch.equal(file.get_tensor(name).view(-1).view(torch.uint8), expected.view(-1).view(torch.uint8)):
                raise OSError(f"{path.name} does not hold what was written to it ({name})")


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
