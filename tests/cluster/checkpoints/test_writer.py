"""Checkpoints written in the background: training ends when two in a row cannot be written."""

from pathlib import Path

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointFolder
from cluster.checkpoints.writer import CheckpointWriter
from cluster.engine.engine import TrainingState
from cluster.errors import ClusterError


def _state(value: float) -> TrainingState:
    return TrainingState({"layer.weight": torch.full((3, 2), value)}, {}, {"0|norm": torch.ones(2)})


def test_training_ends_when_two_checkpoints_in_a_row_cannot_be_written(tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    place.write_text("a file where the folder should be")
    writer = CheckpointWriter(CheckpointFolder(place))
    writer.save(_state(1), {"step": 1})
    with pytest.raises(ClusterError, match="step-00000002 could not be written"):
        writer.save(_state(2), {"step": 2})
    writer.save(_state(3), {"step": 3})
    writer.close()
    place.unlink()
    writer.save(_state(4), {"step": 4})
    writer.wait()
    assert [path.name for path in place.glob("step-*")] == ["step-00000004"]
    place.rename(tmp_path / "elsewhere")
    place.write_text("again")
    writer.save(_state(5), {"step": 5})
    with pytest.raises(ClusterError, match="step-00000005 could not be written"):
        writer.wait()
