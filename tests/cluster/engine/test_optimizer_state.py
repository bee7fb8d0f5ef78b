"""The complete state: saved on any number of ranks, loaded on another number at another ZeRO stage."""

from pathlib import Path

import torch

from cluster.checkpoints.checkpoint import CheckpointFolder
from cluster.settings import EngineSettings
from tests.cluster.engine.toy import train
from tests.cluster.processes import run_processes

# In bf16 stage 1 rounds gradients where the others do not.
PLAIN = EngineSettings(zero_stage=0, precision="fp32")


def _continue_on_one(rank: int, folder: str, stage: int) -> None:
    saved = CheckpointFolder(Path(folder)).latest()
    assert saved is not None
    settings = EngineSettings(zero_stage=stage, precision="fp32")  # type: ignore[arg-type]
    state = saved.training_state()
    engine = train(rank, 1, settings, torch.optim.Adam, range(3, 3), state)
    loaded = engine.state()
    assert loaded is not None
    for name, value in state.weights.items():
        assert torch.equal(value, loaded.weights[name]), name
    for name, value in state.optimizer.items():
        assert torch.equal(value, loaded.optimizer[name]), name
    # And it trains on: one more step at the new stage is the step that stage 0 takes from here.
    one_more = train(rank, 1, settings, torch.optim.Adam, range(3, 4), state).state()
    reference = train(rank, 1, PLAIN, torch.optim.Adam, range(3, 4), state).state()
    assert one_more is not None
    assert reference is not None
    for name, value in reference.weights.items():
        torch.testing.assert_close(one_more.weights[name], value, rtol=1e-6, atol=1e-7)


def _save_on_two(rank: int, folder: str, stage: int) -> None:
    settings = EngineSettings(zero_stage=stage, precision="fp32")  # type: ignore[arg-type]
    state = train(rank, 2, settings, torch.optim.Adam, range(3), None).state()
    if rank == 0:
        assert state is not None
        CheckpointFolder(Path(folder)).save(state, {"step": 3})


CHANGES = [(0, 2), (1, 0), (2, 1), (2, 3), (3, 1)]


def _save_each(rank: int, folder: str) -> None:
    for before, after in CHANGES:
        _save_on_two(rank, f"{folder}/{before}-{after}", before)


def _continue_each(rank: int, folder: str) -> None:
    for before, after in CHANGES:
        _continue_on_one(rank, f"{folder}/{before}-{after}", after)


def test_a_state_of_two_ranks_loads_on_one_at_another_zero_stage(tmp_path: Path) -> None:
    run_processes(_save_each, 2, str(tmp_path))
    run_processes(_continue_each, 1, str(tmp_path))
