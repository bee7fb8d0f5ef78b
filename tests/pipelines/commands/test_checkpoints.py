"""`aweigh checkpoints`: the same answers for a run's folder and for a bucket."""

import json
import time
from pathlib import Path

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointFolder
from cluster.checkpoints.remote import RemoteCheckpoints
from cluster.engine.engine import TrainingState
from data_shards.storage.open import open_store
from pipelines.cli import main

SCORES = {4: 0.5, 8: 0.5, 12: None, 16: 0.375}


@pytest.fixture(params=["folder", "bucket"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Checkpoints of steps 4, 8 (as good, and newer), 12 and 16, and what a killed process left of step 20."""
    folder = CheckpointFolder(tmp_path / "cells" / "checkpoints", keep=9)
    place = str(tmp_path / "cells")
    remote = None
    if request.param == "bucket":
        place = f"{request.getfixturevalue('s3')}/runs/cells"
        remote = RemoteCheckpoints(open_store(place), keep=9)
    for step, score in SCORES.items():
        facts = {
            "step": step,
            "epoch": step // 4,
            "samples_seen": 8 * step,
            "saved_at": time.time() - 60,
            "detector": "fcos_resnet50",
            "run": "cells",
            "attempt": 2,
            "world_size": 2,
            "zero_stage": 1,
            "precision": "fp32",
            "skipped_steps": 0,
            "weights_sha256": "5c10" + "6" * 60,
            "manifest": "9f31c2" + "0" * 58,
            "mlflow_run": "abc",
            "classes": [{"id": 1, "name": "platelet"}],
        }
        state = TrainingState({"head.weight": torch.full((256,), float(step))}, {}, {"0|norm": torch.ones(1)})
        saved = folder.save(state, facts, score=score)
        if remote:
            remote.upload(saved)
    if remote:
        remote.store.upload(saved.path / "weights.safetensors", "step-00000020/weights.safetensors")
    else:
        (folder.folder / ".step-00000020.partial").mkdir()
    return place


def _said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    main(["checkpoints", *words])
    return capsys.readouterr().out


def test_the_newest_and_the_best_are_marked_and_orphans_named(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _said(capsys, "ls", run).splitlines()
    assert [line.split()[0] for line in lines[:4]] == [f"step-{step:08d}" for step in SCORES]
    assert [line.split()[-1] for line in lines[:4]] == ["ago", "best", "ago", "newest"]
    assert "epoch 2" in lines[1]
    assert "AP 0.500" in lines[1]
    assert "step-00000020" in lines[4]
    assert "orphan" in lines[4]


def test_a_folder_of_runs_lists_the_newest_and_the_best_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = TrainingState({"head.weight": torch.zeros(4)}, {}, {})
    for name, scores in (("cells", {4: 0.5, 8: 0.25}), ("fish", {4: 0.1}), ("new", {})):
        folder = CheckpointFolder(tmp_path / name / "checkpoints", keep=9)
        folder.folder.mkdir(parents=True, exist_ok=True)
        for step, score in scores.items():
            folder.save(state, {"step": step, "epoch": step, "saved_at": time.time()}, score=score)
    (tmp_path / "mlflow.db").touch()
    lines = _said(capsys, "ls", str(tmp_path)).splitlines()
    assert [line.split()[0] for line in lines] == [
        *("cells", "step-00000008", "step-00000004", "fish", "step-00000004", "new", "no"),
    ]
    assert lines[1].endswith("ago  newest")
    assert lines[2].endswith("ago  best")
    assert lines[4].endswith("ago  newest best")
    assert lines[6] == "  no checkpoint yet"
    runs = json.loads(_said(capsys, "ls", str(tmp_path), "--json"))["runs"]
    assert (runs["cells"]["newest"]["step"], runs["cells"]["best"]["step"], runs["new"]["newest"]) == (8, 4, None)


def test_show_prints_the_facts_of_a_checkpoint(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    newest = _said(capsys, "show", run)
    assert newest.startswith("step-00000016")
    for fact in (
        "fcos_resnet50",
        "samples_seen   128",
        "9f31c2000000",
        "1: platelet",
        "abc",
        "weights of sha256 5c10666",
    ):
        assert fact in newest
    shown = json.loads(_said(capsys, "show", run, "--step", "8", "--json"))
    assert (shown["step"], shown["score"], shown["world_size"]) == (8, 0.5, 2)
    assert shown["bytes"] > 256 * 4
    with pytest.raises(SystemExit) as ended:
        main(["checkpoints", "show", run, "--step", "5"])
    assert ended.value.code == 2
    assert "there is no checkpoint of step 5; there are step-00000004, step-00000008" in capsys.readouterr().err


def test_gc_takes_orphans_and_with_keep_all_but_the_newest_and_the_best(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _said(capsys, "gc", run)
    assert "step-00000020" in said
    assert said.endswith("1 item removed, 4 checkpoints left\n")
    removed = json.loads(_said(capsys, "gc", run, "--keep", "1", "--json"))["removed"]
    assert removed == ["step-00000004", "step-00000012"]
    left = json.loads(_said(capsys, "ls", run, "--json"))
    assert [row["name"] for row in left["checkpoints"]] == ["step-00000008", "step-00000016"]
    assert left["orphans"] == []
    assert _said(capsys, "verify", run).splitlines() == ["step-00000008  whole", "step-00000016  whole"]
    with pytest.raises(SystemExit):
        main(["checkpoints", "gc", run, "--keep", "0"])
    assert "--keep is 0; it must be 1 or more, or nothing could be resumed." in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_read_is_one_line(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = run if "://" in run else f"{run}/checkpoints"
    open_store(place).write_bytes("step-00000016/state.json", b'{"step": 16')
    assert "step-00000016      cannot be read" in _said(capsys, "ls", run)
    with pytest.raises(SystemExit) as ended:
        main(["checkpoints", "show", run])
    assert ended.value.code == 2
    assert f"step-00000016 of {run} cannot be read (JSONDecodeError" in capsys.readouterr().err
    assert "fcos_resnet50" in _said(capsys, "show", run, "--step", "12")
    with pytest.raises(SystemExit) as ended:
        main(["checkpoints", "verify", run])
    assert ended.value.code == 1


def test_a_place_without_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["checkpoints", "ls", str(tmp_path / "none")])
    assert ended.value.code == 2
    assert f"{tmp_path / 'none'} is not a folder of a run or checkpoint. Give runs/NAME" in capsys.readouterr().err
