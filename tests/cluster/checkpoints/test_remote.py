"""Checkpoints in a bucket: current with their seal, verified on the way back, or the one before it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointFolder
from cluster.checkpoints.remote import RemoteCheckpoints
from cluster.checkpoints.writer import CheckpointWriter
from cluster.engine.engine import TrainingState
from cluster.errors import ClusterError
from data_shards.storage.open import open_store
from data_shards.storage.store import Sink, Store


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


class FlakyStore:
    """A store of which single answers are wrong, as the test orders."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.location = store.location
        self.wrong_downloads: dict[str, int] = {}
        self.wrong_uploads: dict[str, int] = {}
        self.lost_uploads: dict[str, int] = {}
        self.wrong_listings: list[Callable[[list[str]], list[str]]] = []
        self.uploaded: list[str] = []
        self.read: list[str] = []

    def stream(self, name: str, sink: Sink) -> None:
        self.read.append(name.partition("/")[2])
        self._store.stream(name, sink if not _counts_down(self.wrong_downloads, name) else _Flipping(sink))

    def upload(self, path: Path, name: str) -> None:
        self.uploaded.append(name.partition("/")[2])
        if _counts_down(self.lost_uploads, name):
            return
        self._store.upload(path, name)
        if _counts_down(self.wrong_uploads, name):
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            self._store.write_bytes(name, bytes(content))

    def list_names(self) -> list[str]:
        names = self._store.list_names()
        return self.wrong_listings.pop(0)(names) if self.wrong_listings else names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def _counts_down(counts: dict[str, int], name: str) -> bool:
    counts[name] = counts.get(name, 0) - 1
    return counts[name] >= 0


class _Flipping:
    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, data: bytes, /) -> object:
        return self._sink.write(bytes([data[0] ^ 1]) + data[1:])


@pytest.fixture
def flaky(s3: str, monkeypatch: pytest.MonkeyPatch) -> FlakyStore:
    monkeypatch.setattr("cluster.checkpoints.remote._FIRST_DELAY_SECONDS", 0.0)
    return FlakyStore(_store(s3))


def _uploaded(flaky: FlakyStore, folder: Path, steps: Sequence[int] = (1, 2, 3)) -> None:
    local, remote = CheckpointFolder(folder, keep=9), RemoteCheckpoints(flaky, keep=9)
    for step in steps:
        remote.upload(local.save(_state(step), {"step": step}))


@pytest.mark.parametrize("file", ["weights.safetensors", "state.json", "checkpoint.json"])
def test_one_wrong_download_never_costs_a_checkpoint(flaky: FlakyStore, tmp_path: Path, file: str) -> None:
    _uploaded(flaky, tmp_path / "one")
    flaky.wrong_downloads[f"step-00000003/{file}"] = 2
    warnings: list[str] = []
    found = RemoteCheckpoints(flaky, warn=warnings.append).newest(CheckpointFolder(tmp_path / "two"))
    assert found is not None
    assert (found.step, warnings) == (3, [])


def test_a_checkpoint_that_is_wrong_every_time_is_skipped_and_later_deleted_with_a_line(
    flaky: FlakyStore, tmp_path: Path
) -> None:
    _uploaded(flaky, tmp_path / "one")
    flaky.wrong_downloads["step-00000003/optimizer.safetensors"] = 1000
    warnings: list[str] = []
    remote, local = RemoteCheckpoints(flaky, warn=warnings.append), CheckpointFolder(tmp_path / "two")
    found = remote.newest(local)
    assert found is not None
    assert found.step == 2
    assert "It was downloaded 3 times" in warnings[0]
    # Between the steps of two checkpoints, as after a change of checkpoint.every.
    local.save(_state(2.5), {"step": 2})
    remote.upload(local.save(_state(2.5), {"step": 2}))
    assert "step-00000003 is damaged and newer than step-00000002: deleted" in warnings[-1]
    assert remote.complete()[-1] == "step-00000002"


def test_an_empty_listing_is_not_taken_for_a_fresh_start(flaky: FlakyStore, tmp_path: Path) -> None:
    _uploaded(flaky, tmp_path / "one")
    flaky.wrong_listings = [lambda names: []]
    found = RemoteCheckpoints(flaky).newest(CheckpointFolder(tmp_path / "two"))
    assert found is not None
    assert found.step == 3


def test_the_record_of_uploads_contradicts_a_short_listing(flaky: FlakyStore, tmp_path: Path) -> None:
    _uploaded(flaky, tmp_path / "one")
    for listing in (
        lambda names: [],
        lambda names: [name for name in names if not name.startswith("step-00000003")],
        lambda names: [name for name in names if name != "step-00000003/checkpoint.json"],
    ):
        flaky.wrong_listings = [listing] * 9
        remote = RemoteCheckpoints(flaky)
        assert remote.complete()[-1] == "step-00000003"
        remote.collect()
    flaky.wrong_listings = []
    found = RemoteCheckpoints(flaky).newest(CheckpointFolder(tmp_path / "two"))
    assert found is not None
    assert found.step == 3


def test_uploads_that_are_gone_end_the_start(flaky: FlakyStore, tmp_path: Path) -> None:
    _uploaded(flaky, tmp_path / "one")
    for name in flaky.list_names():
        if name.startswith("step-"):
            flaky.delete(name)
    with pytest.raises(ClusterError, match=r"lists no checkpoint, but its uploads\.json says that step-00000003 was"):
        RemoteCheckpoints(flaky).newest(CheckpointFolder(tmp_path / "two"))
    flaky.delete("uploads.json")
    assert RemoteCheckpoints(flaky).newest(CheckpointFolder(tmp_path / "two")) is None


def test_an_upload_is_read_back_before_it_counts_and_before_an_older_one_is_deleted(
    flaky: FlakyStore, tmp_path: Path
) -> None:
    local, remote = CheckpointFolder(tmp_path / "one"), RemoteCheckpoints(flaky, keep=1)
    remote.upload(local.save(_state(1), {"step": 1}))
    flaky.wrong_uploads["step-00000002/weights.safetensors"] = 1
    flaky.lost_uploads["step-00000002/state.json"] = 1
    remote.upload(local.save(_state(2), {"step": 2}))
    assert remote.complete() == ["step-00000002"]
    for fault in (flaky.wrong_uploads, flaky.lost_uploads):
        fault["step-00000003/weights.safetensors"] = 1000
        with pytest.raises(ClusterError, match=r"weights\.safetensors does not arrive as it was sent, 3 times"):
            remote.upload(local.save(_state(3), {"step": 3}))
        assert remote.complete() == ["step-00000002"]
        fault.clear()
    found = RemoteCheckpoints(flaky).newest(CheckpointFolder(tmp_path / "two"))
    assert found is not None
    assert found.step == 2


def _upload_twice(flaky: FlakyStore, folder: Path, between: Callable[[RemoteCheckpoints], RemoteCheckpoints]) -> None:
    """Upload a checkpoint, and again with its score; leaves in `flaky` what the second upload sends and reads."""
    local, remote = CheckpointFolder(folder / "one"), RemoteCheckpoints(flaky)
    remote.upload(local.save(_state(1), {"step": 1}))
    remote = between(remote)
    checkpoint = local.save(_state(1), {"step": 1}, score=0.5)
    flaky.uploaded.clear()
    flaky.read.clear()
    remote.upload(checkpoint)
    found = RemoteCheckpoints(flaky).newest(CheckpointFolder(folder / "two"))
    assert found is not None
    assert (found.step, found.envelope.score) == (1, 0.5)


TENSORS = ["optimizer.safetensors", "per_rank.safetensors", "weights.safetensors"]


def test_the_upload_with_the_score_sends_only_what_changed(flaky: FlakyStore, tmp_path: Path) -> None:
    _upload_twice(flaky, tmp_path, lambda remote: remote)
    assert flaky.uploaded == ["state.json", "checkpoint.json"]
    # The seal before, and both files after they were sent; then the download of the test.
    assert flaky.read[:3] == ["checkpoint.json", "state.json", "checkpoint.json"]


def test_another_process_reads_back_what_it_does_not_send_again(flaky: FlakyStore, tmp_path: Path) -> None:
    _upload_twice(flaky, tmp_path, lambda remote: RemoteCheckpoints(flaky))
    assert flaky.uploaded == ["state.json", "checkpoint.json"]
    assert sorted(flaky.read[1:4]) == TENSORS


@pytest.mark.parametrize("content", [b"", b"x" * 10_000])
def test_a_file_that_is_not_whole_in_the_bucket_is_sent_again(
    flaky: FlakyStore, tmp_path: Path, content: bytes
) -> None:
    def between(remote: RemoteCheckpoints) -> RemoteCheckpoints:
        flaky.write_bytes("step-00000001/weights.safetensors", content)
        return RemoteCheckpoints(flaky)

    _upload_twice(flaky, tmp_path, between)
    assert flaky.uploaded == ["state.json", "weights.safetensors", "checkpoint.json"]


def test_a_file_that_is_gone_from_the_bucket_is_sent_again(flaky: FlakyStore, tmp_path: Path) -> None:
    def between(remote: RemoteCheckpoints) -> RemoteCheckpoints:
        flaky.delete("step-00000001/weights.safetensors")
        return remote

    _upload_twice(flaky, tmp_path, between)
    assert flaky.uploaded == ["state.json", "weights.safetensors", "checkpoint.json"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{" * 100_000, b"x" * (1 << 21)])
def test_a_damaged_seal_in_the_bucket_vouches_for_nothing(flaky: FlakyStore, tmp_path: Path, content: bytes) -> None:
    def between(remote: RemoteCheckpoints) -> RemoteCheckpoints:
        flaky.write_bytes("step-00000001/checkpoint.json", content)
        return RemoteCheckpoints(flaky)

    _upload_twice(flaky, tmp_path, between)
    assert sorted(flaky.uploaded) == sorted([*TENSORS, "state.json", "checkpoint.json"])


def test_a_wrong_answer_about_the_old_files_costs_only_time(flaky: FlakyStore, tmp_path: Path) -> None:
    def between(remote: RemoteCheckpoints) -> RemoteCheckpoints:
        flaky.wrong_downloads["step-00000001/weights.safetensors"] = 1
        return RemoteCheckpoints(flaky)

    _upload_twice(flaky, tmp_path, between)
    assert flaky.uploaded == ["state.json", "weights.safetensors", "checkpoint.json"]


def test_an_upload_that_failed_continues_with_the_files_that_did_not_arrive(flaky: FlakyStore, tmp_path: Path) -> None:
    remote = RemoteCheckpoints(flaky)
    checkpoint = CheckpointFolder(tmp_path / "one").save(_state(1), {"step": 1})
    flaky.lost_uploads["step-00000001/weights.safetensors"] = 3
    with pytest.raises(ClusterError, match="does not arrive"):
        remote.upload(checkpoint)
    flaky.uploaded.clear()
    remote.upload(checkpoint)
    assert flaky.uploaded == ["weights.safetensors", "checkpoint.json"]
    assert remote.complete() == ["step-00000001"]


def test_a_newer_checkpoint_that_nobody_examined_stays(flaky: FlakyStore, tmp_path: Path) -> None:
    _uploaded(flaky, tmp_path / "one", (1, 2, 9))
    warnings: list[str] = []
    remote = RemoteCheckpoints(flaky, keep=1, warn=warnings.append)
    remote.upload(CheckpointFolder(tmp_path / "two").save(_state(3), {"step": 3}))
    assert remote.complete() == ["step-00000003", "step-00000009"]
    assert "step-00000009 is newer than step-00000003, although training resumed from before it" in warnings[0]


def test_a_refused_upload_never_ends_training(flaky: FlakyStore, tmp_path: Path) -> None:
    local, remote = CheckpointFolder(tmp_path / "one"), RemoteCheckpoints(flaky)
    writer = CheckpointWriter(local, remote)
    for step in (1, 2, 3):
        flaky.lost_uploads[f"step-0000000{step}/weights.safetensors"] = 1000
        writer.save(_state(step), {"step": step})
    writer.wait()
    assert remote.complete() == []
    found = local.latest()
    assert found is not None
    assert found.step == 3
    flaky.lost_uploads.clear()
    writer.wait()  # tries once more
    assert remote.complete() == ["step-00000003"]


@pytest.mark.parametrize("name", ["../../escaped", "a/b", "..", "C:x", "nul", "x\\y", "x\0y", ".hidden", "x\ny"])
def test_a_resume_from_a_crafted_bucket_writes_nothing_outside(s3: str, tmp_path: Path, name: str) -> None:
    store = _store(s3)
    RemoteCheckpoints(store).upload(CheckpointFolder(tmp_path / "one").save(_state(1), {"step": 1}))
    seal = json.loads(store.read_bytes("step-00000001/checkpoint.json"))
    seal["files"][name] = {"bytes": 4, "sha256": hashlib.sha256(b"evil").hexdigest()}
    store.write_bytes("step-00000001/checkpoint.json", json.dumps(seal).encode())
    store.write_bytes("step-..%2f/checkpoint.json", b"{}")
    store.write_bytes("step-00000009x/checkpoint.json", b"{}")
    folder = tmp_path / "a" / "b" / "two"
    warnings: list[str] = []
    with pytest.raises(ClusterError, match="is damaged"):
        RemoteCheckpoints(store, warn=warnings.append).newest(CheckpointFolder(folder))
    assert "which is not a plain file name" in warnings[0]
    assert {path.name for path in (tmp_path / "a").rglob("*") if path.is_file()} <= {"checkpoint.json", ".fetch.lock"}


def test_an_object_larger_than_its_seal_says_is_not_stored(s3: str, tmp_path: Path) -> None:
    store = _store(s3)
    RemoteCheckpoints(store).upload(CheckpointFolder(tmp_path / "one").save(_state(1), {"step": 1}))
    store.write_bytes("step-00000001/weights.safetensors", bytes(3_000_000))
    with pytest.raises(ClusterError, match=r"weights\.safetensors is larger than its seal says"):
        RemoteCheckpoints(store).fetch("step-00000001", tmp_path / "two")
    assert sum(path.stat().st_size for path in (tmp_path / "two").rglob("*") if path.is_file()) < 1_000_000
