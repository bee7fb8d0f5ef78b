"""Checkpoints that depend on no engine, world size or ZeRO stage: safetensors by name and one JSON file of facts.

    checkpoints/
      step-00000400/
        weights.safetensors     fp32 parameters and buffers, usable alone
        optimizer.safetensors   "parameter|state"
        ema.safetensors         the average of the weights if one is kept, usable alone
        per_rank.safetensors    "rank|buffer"
        state.json              step, score, version of aweigh, and the facts of whoever trains
        checkpoint.json         size and sha256 of the files above, written last

A folder is written under another name, flushed to disk, and made current in one rename. A damaged one has no
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

from cluster.checkpoints import retention
from cluster.checkpoints.envelope import FACTS_VERSION, Envelope, aweigh_version
from cluster.engine.engine import TrainingState
from cluster.errors import ClusterError

FORMAT_VERSION = 1
_TENSOR_FILES = ("weights", "optimizer", "per_rank")
_AVERAGE = "ema"
SEAL = "checkpoint.json"
"""The seal, a file that is written last: with it a checkpoint is complete."""


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint on disk, verified when it was opened."""

    path: Path
    envelope: Envelope

    @property
    def step(self) -> int:
        """Optimizer steps done when it was written."""
        return self.envelope.step

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that the caller saved with it."""
        return self.envelope.facts

    def training_state(self) -> TrainingState:
        """Load the complete state onto the CPU."""
        average = self._tensors(_AVERAGE) if self.has_average else {}
        weights, optimizer, per_rank = (self._tensors(name) for name in _TENSOR_FILES)
        return TrainingState(weights, optimizer, per_rank, average)

    @property
    def has_average(self) -> bool:
        """True if it also contains an average of the weights."""
        return (self.path / f"{_AVERAGE}.safetensors").exists()

    def weights(self) -> dict[str, Tensor]:
        """Load the weights that were evaluated, fp32 on the CPU: the average if one is kept."""
        return self._tensors(_AVERAGE if self.has_average else "weights")

    def _tensors(self, name: str) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        return load_file(self.path / f"{name}.safetensors")


class DamagedCheckpointError(ClusterError):
    """A checkpoint is incomplete, or differs from what was written; the one before it may be whole."""


class CheckpointFolder:
    """The checkpoints of one run, in a folder that every node sees.

    Args:
        folder: created when the first checkpoint is written.
        keep: number of newest checkpoints that stay; the one with the highest score stays as well.
        warn: receives one line about each damaged checkpoint that is skipped.
    """

    def __init__(self, folder: Path, keep: int = 2, warn: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder
        self.keep = keep
        self._warn = warn

    def save(self, state: TrainingState, facts: Mapping[str, Any], score: float | None = None) -> Checkpoint:
        """Write one checkpoint, make it current in one rename, then delete those no longer kept.

        Args:
            state: the state that `Engine.state` returned on rank 0.
            facts: JSON values by name; "step" is required, and names the folder.
            score: how good these weights are, if that was measured; more is better.

        Raises:
            ClusterError: the folder cannot be written; earlier checkpoints are untouched.
        """
        own = {key: value for key, value in facts.items() if key != "step"}
        envelope = Envelope(
            step=int(facts["step"]), score=score, version=FACTS_VERSION, written_by=aweigh_version(), facts=own
        )
        name = step_name(envelope.step)
        partial = self.folder / f".{name}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _write_files(partial, state, envelope)
            final = self.folder / name
            for later in self.complete():
                # Training resumed from before these, so they were damaged and skipped. They must not count as newest.
                if later.name >= name:
                    later.rename(self.folder / f".{later.name}.damaged")
            partial.rename(final)
            _flush(self.folder)
        except OSError as error:
            raise ClusterError(
                f"checkpoint {name} could not be written to {self.folder}: {error.strerror or error}. "
                f"Earlier checkpoints are untouched; free some space, or set run.folder or checkpoint.location to "
                f"another disk."
            ) from error
        # Only now: an older one is never deleted before the new one is safe.
        self.collect()
        return Checkpoint(final, envelope)

    def latest(self) -> Checkpoint | None:
        """Open the newest whole checkpoint, or return None if there is no checkpoint at all.

        A damaged one is skipped with a warning, and the one before it is taken.

        Raises:
            ClusterError: there are checkpoints, but none of them is whole, or one is of a later format.
        """
        folders = sorted(self.complete(), reverse=True)
        found = self._first_whole(folders)
        if folders and found is None:
            raise none_is_whole(len(folders), str(self.folder))
        return found

    def best(self) -> Checkpoint | None:
        """Open the whole checkpoint with the highest score, or return None if none was scored."""
        return self._first_whole([self.folder / name for name in retention.best_first(self._scores())])

    def _first_whole(self, folders: list[Path]) -> Checkpoint | None:
        for path in folders:
            try:
                return open_checkpoint(path)
            except DamagedCheckpointError as error:
                self._warn(f"skipped: {error}")
        return None

    def _scores(self) -> dict[str, float | None]:
        scores: dict[str, float | None] = {}
        for path in self.complete():
            try:
                scores[path.name] = retention.read_score((path / "state.json").read_text())
            except (OSError, ValueError):
                continue  # whoever opens this checkpoint reports the damage
        return scores

    def complete(self) -> list[Path]:
        """List every checkpoint that was made current, the oldest first, without verifying it."""
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def orphans(self) -> list[Path]:
        """List folders that a killed process left half-written, or that were set aside as damaged."""
        return sorted(self.folder.glob(".step-*")) if self.folder.is_dir() else []

    def collect(self) -> list[Path]:
        """Delete orphans and checkpoints that are no longer kept; returns what was deleted."""
        complete = self.complete()
        staying = retention.kept([path.name for path in complete], self._scores(), self.keep)
        removed = [path for path in complete if path.name not in staying] + self.orphans()
        for path in removed:
            shutil.rmtree(path, ignore_errors=True)
        return removed


def step_name(step: int) -> str:
    """Return the name of a checkpoint of this step; names sort as steps do."""
    return f"step-{step:08d}"


def none_is_whole(count: int, place: str) -> ClusterError:
    """Return the error for checkpoints that are all damaged; starting at step 0 would hide the loss."""
    which = "the only checkpoint" if count == 1 else f"each of the {count} checkpoints"
    return ClusterError(f"{which} in {place} is damaged. Restore one from a copy, or delete them to start at step 0.")


def read_seal(path: Path, shown: str) -> dict[str, Any]:
    """Read a seal: `format`, and size and sha256 of each of the checkpoint's files.

    Args:
        path: the file.
        shown: its location, for messages.

    Raises:
        DamagedCheckpointError: it is missing or damaged, or names a file outside of the checkpoint.
    """
    try:
        seal = dict(json.loads(path.read_text()))
        files = dict(seal.get("files", {}))
    except FileNotFoundError:
        raise DamagedCheckpointError(
            f"{shown} is missing, so this checkpoint is not complete. Choose another, or delete it."
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise DamagedCheckpointError(f"{shown} cannot be read: {error}. Choose another checkpoint.") from error
    # A seal may come from a bucket that others can write to.
    if outside := [name for name in files if Path(name).name != name or name in ("", ".", "..")]:
        raise DamagedCheckpointError(
            f"{shown} lists {outside[0]!r}, which is not a plain file name. Choose another checkpoint."
        )
    return seal


def open_checkpoint(path: Path, *, verify: bool = True) -> Checkpoint:
    """Open one checkpoint folder after comparing every file with its sealed size and sha256.

    Args:
        path: the folder.
        verify: False if another rank has just compared the files.

    Raises:
        DamagedCheckpointError: it is not a checkpoint, incomplete or damaged.
        ClusterError: it is of a later format.
    """
    seal = read_seal(path / SEAL, str(path / SEAL))
    if seal.get("format") != FORMAT_VERSION:
        raise ClusterError(
            f"{path} has checkpoint format {seal.get('format')}, this aweigh reads {FORMAT_VERSION}; update aweigh."
        )

    for name, expected in seal["files"].items() if verify else ():
        found = _fingerprint(path / name) if (path / name).is_file() else None
        if found != expected:
            state = "missing" if found is None else f"damaged ({found['bytes']:,} bytes)"
            raise DamagedCheckpointError(
                f"{path / name} is {state}; expected {expected['bytes']:,} bytes with sha256 "
                f"{expected['sha256'][:12]}…. Delete {path.name} and use an earlier checkpoint."
            )
    try:
        envelope = Envelope.from_json((path / "state.json").read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{path / 'state.json'} cannot be read: {error!r}. Choose another.") from error
    if envelope.version > FACTS_VERSION:
        raise ClusterError(
            f"{path} was written by {envelope.writer} with facts of version {envelope.version}; this aweigh reads "
            f"versions up to {FACTS_VERSION}. Update aweigh."
        )
    return Checkpoint(path, envelope)


def _write_files(folder: Path, state: TrainingState, envelope: Envelope) -> None:
    """Write every file, compare it with what is in memory, seal them all, and flush them to disk."""
    from safetensors.torch import save_file

    parts = {name: getattr(state, name) for name in _TENSOR_FILES}
    if state.ema:
        parts[_AVERAGE] = state.ema
    for name, tensors in parts.items():
        contiguous = {key: value.contiguous() for key, value in tensors.items()}
        save_file(contiguous, folder / f"{name}.safetensors")
        _compare(folder / f"{name}.safetensors", contiguous)
    (folder / "state.json").write_text(envelope.to_json())
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
