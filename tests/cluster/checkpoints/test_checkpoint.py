"""Checkpoints on disk: complete or not there, verified when opened, the newest whole one chosen."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointFolder, open_checkpoint
from cluster.checkpoints.seal import DamagedCheckpointError
from cluster.engine.engine import TrainingState
from cluster.errors import ClusterError


def _state(value: float) -> TrainingState:
    weights = {"layer.weight": torch.full((3, 2), value), "norm.num_batches_tracked": torch.tensor(7)}
    return TrainingState(weights, {"layer.weight|exp_avg": torch.full((3, 2), -value)}, {"0|norm": torch.ones(2)})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    assert folder.latest() is None
    folder.save(_state(2.0), {"step": 40, "detector": "toy"})
    found = folder.latest()
    assert found is not None
    assert found.path.name == "step-00000040"
    assert (found.step, found.facts["detector"]) == (40, "toy")
    loaded = found.training_state()
    assert torch.equal(loaded.weights["layer.weight"], torch.full((3, 2), 2.0))
    assert loaded.weights["norm.num_batches_tracked"].item() == 7
    assert torch.equal(loaded.optimizer["layer.weight|exp_avg"], torch.full((3, 2), -2.0))
    assert torch.equal(found.weights()["layer.weight"], torch.full((3, 2), 2.0))


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (10, 20, 30, 40):
        folder.save(_state(step), {"step": step}, score={10: 0.5, 20: 0.3}.get(step))
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000010", "step-00000030", "step-00000040"]
    best = folder.best()
    assert best is not None
    assert best.step == 10
    folder.save(_state(50), {"step": 50}, score=0.6)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000040", "step-00000050"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "seal"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_chosen(damage: str, tmp_path: Path) -> None:
    warnings: list[str] = []
    folder = CheckpointFolder(tmp_path, warn=warnings.append)
    folder.save(_state(1.0), {"step": 1})
    folder.save(_state(2.0), {"step": 2})
    victim = tmp_path / "step-00000002" / ("checkpoint.json" if damage == "seal" else "optimizer.safetensors")
    if damage == "truncate":
        os.truncate(victim, victim.stat().st_size - 1)
    elif damage == "flip":
        content = bytearray(victim.read_bytes())
        content[-1] ^= 1
        victim.write_bytes(content)
    else:
        victim.unlink()
    found = folder.latest()
    assert found is not None
    assert found.step == 1
    assert len(warnings) == 1
    assert str(victim.parent) in warnings[0]
    with pytest.raises(ClusterError, match=victim.name):
        open_checkpoint(tmp_path / "step-00000002")
    # Training that comes by the same step again replaces it.
    folder.save(_state(3.0), {"step": 2})
    replaced = folder.latest()
    assert replaced is not None
    assert torch.equal(replaced.weights()["layer.weight"], torch.full((3, 2), 3.0))


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_checkpoints_never_push_out_the_one_just_written(keep: int, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=9)
    for step in (10, 20, 30):
        folder.save(_state(step), {"step": step}, score=step / 100)
    for step in (20, 30):
        (tmp_path / f"step-000000{step}" / "weights.safetensors").unlink()
    folder = CheckpointFolder(tmp_path, keep=keep)
    best = folder.best()
    assert best is not None
    assert best.step == 10  # the damaged ones scored higher
    folder.save(_state(15), {"step": 15})
    found = folder.latest()
    assert found is not None
    assert found.step == 15


def test_a_folder_without_a_whole_checkpoint_is_not_taken_for_a_fresh_start(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    path = folder.save(_state(1.0), {"step": 1}).path
    (path / "checkpoint.json").unlink()
    with pytest.raises(ClusterError, match=r"the only checkpoint in .* is damaged"):
        folder.latest()


def test_a_process_killed_while_it_writes_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path).save(_state(1.0), {"step": 1})
    # kill -9 of itself at the last moment: everything is written but the rename.
    program = (
        "import os, signal, pathlib; from tests.cluster.checkpoints.test_checkpoint import _state;"
        "from cluster.checkpoints.checkpoint import CheckpointFolder;"
        "pathlib.Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL);"
        f"CheckpointFolder(pathlib.Path({str(tmp_path)!r})).save(_state(2.0), {{'step': 2}})"
    )
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -9
    assert (tmp_path / ".step-00000002.partial").exists()
    folder = CheckpointFolder(tmp_path)
    found = folder.latest()
    assert found is not None
    assert found.step == 1
    folder.save(_state(2.0), {"step": 2})
    assert [path.name for path in tmp_path.glob(".step-*")] == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ClusterError, match=r"checkpoint step-00000001 could not be written to .*Not a directory"
    ) as caught:
        CheckpointFolder(tmp_path / "file" / "checkpoints").save(_state(1.0), {"step": 1})
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).save(_state(1.0), {"step": 1}).path
    seal = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps({**seal, "format": 99}))
    for read in (lambda: open_checkpoint(path), CheckpointFolder(tmp_path).latest):
        with pytest.raises(ClusterError, match="checkpoint format 99, this aweigh reads 1; update aweigh"):
            read()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "..", ""])
def test_a_seal_that_names_a_file_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).save(_state(1.0), {"step": 1}).path
    seal = json.loads((path / "checkpoint.json").read_text())
    seal["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    (path / "checkpoint.json").write_text(json.dumps(seal))
    with pytest.raises(ClusterError, match=r"checkpoint\.json lists .* which is not a plain file name"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "lists no files"),
        ("{}", "lists no files"),
        ('{"format": 1}', "lists no files"),
        ('{"format": 1, "files": []}', "lists no files"),
        ('{"format": 1, "files": {}}', r"does not list weights\.safetensors"),
        ('{"format": "one", "files": {}}', "its format is 'one'"),
        ('{"format": true, "files": {}}', "its format is 'True'"),
        ('{"format": 1, "files": {"weights.safetensors": 7}}', r"weights\.safetensors has no size and sha256"),
        (
            '{"format": 1, "files": {"weights.safetensors": {"bytes": -1, "sha256": "' + "0" * 64 + '"}}}',
            "no size and sha256",
        ),
        ("[" * 100_000, "cannot be read"),
        ("", "cannot be read"),
        ("\x00", "cannot be read"),
    ],
)
def test_a_seal_that_is_none_is_a_damaged_checkpoint(text: str, message: str, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(_state(1.0), {"step": 1})
    path = folder.save(_state(2.0), {"step": 2}).path
    (path / "checkpoint.json").write_text(text)
    with pytest.raises(DamagedCheckpointError, match=message):
        open_checkpoint(path)
    found = folder.latest()
    assert found is not None
    assert found.step == 1


def test_facts_of_another_step_or_nested_too_deeply_are_damage(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(_state(1.0), {"step": 1})
    path = folder.save(_state(2.0), {"step": 2}).path
    for text in ((tmp_path / "step-00000001" / "state.json").read_text(), "[" * 100_000, '{"step": 1e999}'):
        (path / "state.json").write_text(text)
        seal = json.loads((path / "checkpoint.json").read_text())
        digest = hashlib.sha256(text.encode()).hexdigest()
        seal["files"]["state.json"] = {"bytes": len(text.encode()), "sha256": digest}
        (path / "checkpoint.json").write_text(json.dumps(seal))
        with pytest.raises(DamagedCheckpointError, match=r"state\.json (is of step 1, not of|cannot be read)"):
            open_checkpoint(path)
        found = folder.latest()
        assert found is not None
        assert found.step == 1


def test_a_file_that_safetensors_cannot_read_is_one_line(tmp_path: Path) -> None:
    found = CheckpointFolder(tmp_path).save(_state(1.0), {"step": 1})
    (found.path / "weights.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(DamagedCheckpointError, match=r"weights\.safetensors cannot be read"):
        found.weights()


def test_a_newer_checkpoint_is_kept_if_whole_and_deleted_with_a_line_if_not(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path, keep=9).save(_state(5.0), {"step": 5})
    damaged = CheckpointFolder(tmp_path, keep=9).save(_state(6.0), {"step": 6}).path
    (damaged / "weights.safetensors").write_bytes(b"")
    warnings: list[str] = []
    CheckpointFolder(tmp_path, keep=1, warn=warnings.append).save(_state(2.0), {"step": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000005"]
    assert "step-00000006 is damaged and newer than step 2: deleted" in warnings[-1]
