"""The facts of a training: fields of earlier versions take defaults, fields of later ones are reported."""

from pathlib import Path

import torch

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointFolder
from cluster.checkpoints.envelope import aweigh_version
from cluster.engine.engine import TrainingState
from pipelines.trained.checkpoint_facts import CheckpointFacts, facts_of, unknown_facts

FACTS = {"detector": "toy", "classes": [{"id": 1, "name": "cat"}], "manifest": "9f31c2", "recipe": {"seed": 3}}


def _checkpoint(folder: Path, **more: object) -> Checkpoint:
    state = TrainingState({"layer.weight": torch.ones(2)}, {}, {})
    CheckpointFolder(folder).save(state, {"step": 7, **FACTS, **more})
    found = CheckpointFolder(folder).latest()
    assert found is not None
    return found


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    facts = CheckpointFacts.from_dict({**FACTS, "skipped_steps": 2, "mlflow_run": "abc"})
    assert facts_of(_checkpoint(tmp_path, **facts.as_dict())) == facts
    assert unknown_facts(_checkpoint(tmp_path)) == ""


def test_fields_that_an_earlier_version_did_not_write_take_their_defaults(tmp_path: Path) -> None:
    facts = facts_of(_checkpoint(tmp_path))
    assert (facts.skipped_steps, facts.evaluation_due, facts.saved_at) == (0, False, 0.0)
    assert facts.weights_sha256 == ""


def test_fields_of_a_later_version_are_reported_with_checkpoint_and_writer(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, tilt=3, angle=1)
    assert facts_of(checkpoint).detector == "toy"
    assert unknown_facts(checkpoint) == (
        f"{checkpoint.path} was written by aweigh {aweigh_version()}; ignored unknown facts: angle, tilt"
    )
