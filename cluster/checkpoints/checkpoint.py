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

import dataclasses
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
from cluster.checkpoints.seal import (
    FORMAT_VERSION,
    SEAL,
    DamagedCheckpointError,
    Fingerprint,
    is_step_name,
    read_seal,
)
from cluster.engine.engine import TrainingState
from cluster.errors import ClusterError

_TENSOR_FILES = ("weights", "optimizer", "per_rank")
_AVERAGE = "ema"


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
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.path / f"{name}.safetensors")
        except (SafetensorError, OSError) as error:
            raise DamagedCheckpointError(
                f"{self.path / name}.safetensors cannot be read: {error}. Delete {self.path.name} and use an earlier "
                "checkpoint."
            ) from error


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
        self._damaged: set[str] = set()
        """Names of checkpoints that were opened and are damaged."""

    def save(
        self,
        state: TrainingState,
        facts: Mapping[str, Any],
        score: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Checkpoint:
        """Write one checkpoint, make it current in one rename, then delete those no longer kept.

        Args:
            state: the state that `Engine.state` returned on rank 0.
            facts: JSON values by name; "step" is required, and names the folder.
            score: how good these weights are, if that was measured; more is better.
            metadata: texts by name, for the header of the files that are usable alone.

        Raises:
            ClusterError: the folder cannot be written; earlier checkpoints are untouched.
        """
        from safetensors import SafetensorError

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
            _write_files(partial, state, envelope, dict(metadata or {}))
            final = self.folder / name
            later = [path.name for path in self.complete() if path.name > name]
            for other in later:
                # Training resumed from before it. A damaged one must not count as newest.
                if self._is_damaged(other):
                    self._warn(f"{self.folder / other} is damaged and newer than step {envelope.step:,}: deleted")
                    self.set_aside(other)
            if final.exists():
                self.set_aside(name)
            partial.rename(final)
            _flush(self.folder)
        except (OSError, SafetensorError) as error:
            # safetensors reports a full disk as an error of its own.
            cause = getattr(error, "strerror", None) or error
            raise ClusterError(
                f"checkpoint {name} could not be written to {self.folder}: {cause}. "
                f"Earlier checkpoints are untouched; free some space, or set run.folder or checkpoint.location to "
                f"another disk."
            ) from error
        # Only now: an older one is never deleted before the new one is safe.
        self.collect(newest=name)
        return Checkpoint(final, envelope)

    def set_aside(self, name: str) -> None:
        """Rename a damaged or replaced checkpoint, so that it is never chosen; `collect` deletes it."""
        aside = self.folder / f".{name}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        (self.folder / name).rename(aside)

    def _is_damaged(self, name: str) -> bool:
        if name not in self._damaged:
            self._first_whole([self.folder / name])
        return name in self._damaged

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
                self._damaged.add(path.name)
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

    def collect(self, newest: str = "") -> list[Path]:
        """Delete orphans and checkpoints that are no longer kept; returns what was deleted.

        Args:
            newest: the checkpoint that was just written. Whole ones that are newer stay too, and do not push it out.
        """
        complete = self.complete()
        staying = retention.kept([path.name for path in complete], self._scores(), self.keep, newest)
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


def open_checkpoint(path: Path, *, verify: bool = True) -> Checkpoint:
    """Open one checkpoint folder after comparing every file with its sealed size and sha256.

    Args:
        path: the folder.
        verify: False if another rank has just compared the files.

    Raises:
        DamagedCheckpointError: it is not a checkpoint, incomplete or damaged.
        ClusterError: it is of a later format.
    """
    files = read_seal(path / SEAL, str(path / SEAL))
    for name, expected in files.items() if verify else ():
        compare(path / name, expected, str(path / name), path.name)
    try:
        envelope = Envelope.from_json((path / "state.json").read_text())
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path / 'state.json'} cannot be read: {error!r}. Choose another.") from error
    if is_step_name(path.name) and path.name != step_name(envelope.step):
        raise DamagedCheckpointError(
            f"{path / 'state.json'} is of step {envelope.step:,}, not of {path.name}. Choose another checkpoint."
        )
    if envelope.version > FACTS_VERSION:
        raise ClusterError(
            f"{path} was written by {envelope.writer} with facts of version {envelope.version}; this aweigh reads "
            f"versions up to {FACTS_VERSION}. Update aweigh."
        )
    return Checkpoint(path, envelope)


def compare(path: Path, expected: Fingerprint, shown: str, name: str) -> None:
    """Compare a file of checkpoint `name` with its size and sha256.

    Raises:
        DamagedCheckpointError: names the file as `shown`.
    """
    found = _fingerprint(path) if path.is_file() else None
    if found != expected:
        state = "missing" if found is None else f"damaged ({found.bytes:,} bytes)"
        raise DamagedCheckpointError(
            f"{shown} is {state}; expected {expected.bytes:,} bytes with sha256 {expected.sha256[:12]}…. Delete {name} "
            "and use an earlier checkpoint."
        )


def _write_files(folder: Path, state: TrainingState, envelope: Envelope, metadata: dict[str, str]) -> None:
    """Write every file, compare it with what is in memory, seal them all, and flush them to disk."""
    from safetensors.torch import save_file

    parts = {name: getattr(state, name) for name in _TENSOR_FILES}
    if state.ema:
        parts[_AVERAGE] = state.ema
    for name, tensors in parts.items():
        contiguous = {key: value.contiguous() for key, value in tensors.items()}
        save_file(contiguous, folder / f"{name}.safetensors", metadata if name in ("weights", _AVERAGE) else None)
        _compare(folder / f"{name}.safetensors", contiguous)
    (folder / "state.json").write_text(envelope.to_json())
    files = {path.name: dataclasses.asdict(_fingerprint(path)) for path in sorted(folder.iterdir())}
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


def _fingerprint(path: Path) -> Fingerprint:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Fingerprint(path.stat().st_size, digest)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
