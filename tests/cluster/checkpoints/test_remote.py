"""Checkpoints in a bucket: current with their seal, verified on the way back, or the one before it."""

from pathlib import Path

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointFolder
from cluster.checkpoints.remote import RemoteCheckpoints
from cluster.checkpoints.writer import CheckpointWriter
from cluster.engine.engine import TrainingState
from cluster.errors import ClusterError
from data_shards.storage.open import open_store
from data_shards.storage.store import Store


def _state(value: float) -> TrainingState:
    return TrainingState({"layer.weight": torch.full((3, 2), value)}, {}, {"0|norm": torch.ones(2)})


def _store(s3: str) -> Store:
    return open_store(f"{s3}/runs/first")


def test_a_checkpoint_comes_back_from_the_bucket_when_the_machine_is_gone(s3: str, tmp_path: Path) -> None:
    local = CheckpointFolder(tmp_path / "one")
    remote = RemoteCheckpoints(_store(s3), keep=2)
    writer = CheckpointWriter(local, remote)
    for step in (1, 2, 3, 4):
        writer.save(_state(step), {"step": step}, score={1: 0.5}.get(step))
    writer.wait()
    # The newest two, and the best beside them.
    assert remote.complete() == ["step-00000001", "step-00000003", "step-00000004"]
    found = RemoteCheckpoints(_store(s3)).newest(CheckpointFolder(tmp_path / "two"))
    assert found is not None
    assert (found.step, found.path.parent) == (4, tmp_path / "two")
    assert torch.equal(found.weights()["layer.weight"], torch.full((3, 2), 4.0))


@pytest.mark.parametrize("damage", ["unsealed", "flipped", "missing"])
def test_what_is_not_whole_in_the_bucket_is_skipped(damage: str, s3: str, tmp_path: Path) -> None:
    store, local = _store(s3), CheckpointFolder(tmp_path / "one")
    writer = CheckpointWriter(local, RemoteCheckpoints(store))
    for step in (1, 2):
        writer.save(_state(step), {"step": step})
    writer.wait()
    if damage == "unsealed":
        store.delete("step-00000002/checkpoint.json")
    elif damage == "missing":
        store.delete("step-00000002/weights.safetensors")
    else:
        content = bytearray(store.read_bytes("step-00000002/weights.safetensors"))
        content[-1] ^= 1
        store.write_bytes("step-00000002/weights.safetensors", bytes(content))
    warnings: list[str] = []
    remote = RemoteCheckpoints(store, warn=warnings.append)
    found = remote.newest(CheckpointFolder(tmp_path / "two"))
    assert found is not None
    assert found.step == 1
    assert (warnings == []) == (damage == "unsealed")
    assert (remote.orphans() != []) == (damage == "unsealed")
    remote.collect()
    assert remote.orphans() == []


def test_of_folder_and_bucket_the_newer_is_taken(s3: str, tmp_path: Path) -> None:
    local = CheckpointFolder(tmp_path)
    remote = RemoteCheckpoints(_store(s3))
    remote.upload(local.save(_state(1), {"step": 1}))
    local.save(_state(2), {"step": 2})  # killed before its upload
    found = remote.newest(local)
    assert found is not None
    assert found.step == 2
    for file in found.path.iterdir():
        file.unlink()
    found = remote.newest(local)
    assert found is not None
    assert found.step == 1


def test_a_bucket_without_a_whole_checkpoint_is_not_taken_for_a_fresh_start(s3: str, tmp_path: Path) -> None:
    store = _store(s3)
    RemoteCheckpoints(store).upload(CheckpointFolder(tmp_path / "one").save(_state(1), {"step": 1}))
    store.delete("step-00000001/state.json")
    with pytest.raises(ClusterError, match=r"the only checkpoint in s3://.* is damaged"):
        RemoteCheckpoints(store).newest(CheckpointFolder(tmp_path / "two"))


def test_a_checkpoint_that_lost_its_facts_does_not_keep_later_ones_from_the_bucket(s3: str, tmp_path: Path) -> None:
    store, local = _store(s3), CheckpointFolder(tmp_path / "one")
    remote = RemoteCheckpoints(store)
    remote.upload(local.save(_state(1), {"step": 1}, score=0.5))
    remote.upload(local.save(_state(2), {"step": 2}))
    store.delete("step-00000002/state.json")
    remote.upload(local.save(_state(3), {"step": 3}))
    remote.upload(local.save(_state(4), {"step": 4}))
    assert remote.complete() == ["step-00000001", "step-00000003", "step-00000004"]


def test_uploads_and_downloads_report_progress(s3: str, tmp_path: Path) -> None:
    waited: list[int] = []
    remote = RemoteCheckpoints(_store(s3))
    writer = CheckpointWriter(CheckpointFolder(tmp_path / "one"), remote, waiting=lambda: waited.append(1))
    writer.save(_state(1), {"step": 1})
    writer.wait()
    assert waited
    blocks: list[int] = []
    remote.progress = lambda: blocks.append(1)
    remote.fetch("step-00000001", tmp_path / "two")
    assert len(blocks) >= 5  # four files and the seal
