"""The facts beside a checkpoint's tensors: with a version, readable without one, refused from a later one."""

import json
from pathlib import Path

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointFolder, DamagedCheckpointError, open_checkpoint
from cluster.checkpoints.envelope import FACTS_VERSION, Envelope, aweigh_version
from cluster.engine.engine import TrainingState
from cluster.errors import ClusterError

STATE = TrainingState({"layer.weight": torch.ones(2)}, {}, {})


def _rewrite(path: Path, content: str) -> None:
    """Replace `state.json` and seal it again, as another version of aweigh would have written it."""
    import hashlib

    (path / "state.json").write_text(content)
    seal = json.loads((path / "checkpoint.json").read_text())
    seal["files"]["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content.encode()).hexdigest()}
    (path / "checkpoint.json").write_text(json.dumps(seal))


def test_a_checkpoint_records_its_version_and_writer(tmp_path: Path) -> None:
    saved = CheckpointFolder(tmp_path).save(STATE, {"step": 7, "detector": "toy"}, score=0.25)
    found = open_checkpoint(saved.path)
    assert found == saved
    expected = Envelope(
        step=7, score=0.25, version=FACTS_VERSION, written_by=aweigh_version(), facts={"detector": "toy"}
    )
    assert found.envelope == expected
    assert found.envelope.writer.startswith("aweigh ")


def test_a_checkpoint_without_a_version_is_read(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).save(STATE, {"step": 7}).path
    _rewrite(path, json.dumps({"step": 7, "score": None, "detector": "toy"}))
    found = open_checkpoint(path)
    assert (found.step, found.facts, found.envelope.version) == (7, {"detector": "toy"}, 0)
    assert found.envelope.writer == "an aweigh without version"


def test_facts_of_a_later_version_are_refused_with_its_writer(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).save(STATE, {"step": 7}).path
    _rewrite(path, json.dumps({"step": 7, "score": None, "version": FACTS_VERSION + 1, "written_by": "9.0"}))
    with pytest.raises(ClusterError, match=r"was written by aweigh 9\.0 with facts of version 2; .* Update aweigh"):
        CheckpointFolder(tmp_path).latest()


def test_facts_without_a_step_are_damaged(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).save(STATE, {"step": 7}).path
    _rewrite(path, json.dumps({"score": None}))
    with pytest.raises(DamagedCheckpointError, match=r"state\.json cannot be read: KeyError\('step'\)"):
        open_checkpoint(path)
