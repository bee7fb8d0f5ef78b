"""The drill's comparison: a trace of one bit, one sample or one metric is found and named."""

import json
from pathlib import Path

import pytest
import torch

from cluster.checkpoint import CheckpointFolder
from cluster.engine import TrainingState
from data_shards.plan import Plan
from pipelines import tracking
from pipelines.cli import main
from pipelines.drill.compare import compare_runs
from pipelines.ledger import Ledger

PLAN = Plan(shard_samples=(8,), seed=1, global_batch_size=4, streams=1, window_shards=1)  # 2 steps an epoch


def _run(folder: Path, *, weight: float = 1.0, loss: float = 3.0, steps: int = 4) -> Path:
    folder.mkdir()
    for step in (2, 4):
        state = TrainingState({"head.weight": torch.tensor([0.0, weight if step == 4 else 1.0])}, {}, {})
        CheckpointFolder(folder / "checkpoints", keep=9).save(state, {"step": step})
    with Ledger(folder, 1, 0, start=0, world_size=1, attempt=1) as ledger:
        for step in range(1, steps + 1):
            ledger.add(step, PLAN.batch(*divmod(step - 1, 2)).tolist())
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    run_id = tracking.start_run(uri, "drill", folder.name, params={}, tags={}, folder=folder / "tracking")
    with tracking.Tracker(folder / "tracking", uri, run_id) as tracker:
        for step in range(1, 5):
            tracker.log_metrics(step, {"train/loss": loss if step == 3 else 1.0})
    return folder


def test_a_trace_is_named(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole")
    assert compare_runs(whole, _run(tmp_path / "same"), PLAN, 4).summary == "bitwise equal; no step trained again"
    found = compare_runs(whole, _run(tmp_path / "bit", weight=1.0000001, loss=3.5), PLAN, 4)
    assert not found.equal
    samples = ", ".join(map(str, PLAN.batch(1, 0).tolist()))
    assert found.problems == (
        f"first difference at step 3: weights head.weight in checkpoint step-00000004; its samples are {samples}",
    )
    assert compare_runs(whole, tmp_path / "bit", PLAN, 4, tolerance=0.2).equal
    unseen = compare_runs(whole, _run(tmp_path / "unseen", steps=3), PLAN, 4)
    assert unseen.problems == ("samples: step 4 was never trained",)
    (tmp_path / "same" / "tracking" / "run.json").write_text(
        json.dumps({**json.loads((whole / "tracking" / "run.json").read_text()), "run_name": "another"})
    )
    assert "MLflow: 0 runs of this name" in compare_runs(whole, tmp_path / "same", PLAN, 4).problems[0]


def test_faults_are_listed_and_an_unknown_one_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["drill", "--faults"])
    listed = capsys.readouterr().out
    for name in (
        *(
            "worker-kill",
            "raylet-kill",
            "worker-hang",
            "driver-kill",
            "sigterm",
            "more-workers",
            "fewer-workers",
            "zero-stage",
        ),
        *("kill-in-checkpoint-write", "kill-in-checkpoint-upload", "checkpoint-truncated", "checkpoint-disk-full"),
        *("store-503", "cached-shard-corrupted", "mlflow-down"),
    ):
        assert name in listed
    with pytest.raises(SystemExit):
        main(["drill", "demo", "--folder", str(tmp_path), "--fault", "worker-kil"])
    assert "unknown fault 'worker-kil'" in capsys.readouterr().err
