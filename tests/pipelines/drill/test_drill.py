"""The drill's comparison: a trace of one bit, one sample or one metric is found and named."""

import json
from pathlib import Path

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointFolder
from cluster.engine.engine import TrainingState
from data_shards.building.build import build_shards
from data_shards.order.plan import Plan
from pipelines import tracking
from pipelines.cli import main
from pipelines.drill.verdict import compare_runs
from pipelines.training.sample_ledger import Ledger
from tests.data_shards.samples import document, write_coco

PLAN = Plan(shard_samples=(8,), seed=1, global_batch_size=4, streams=1, window_shards=1)  # 2 steps an epoch


def _run(folder: Path, *, weight: float = 1.0, loss: float = 3.0, steps: int = 4, resumed_at: int = 0) -> Path:
    folder.mkdir()
    for step in (2, 4):
        state = TrainingState({"head.weight": torch.tensor([0.0, weight if step == 4 else 1.0])}, {}, {})
        CheckpointFolder(folder / "checkpoints", keep=9).save(state, {"step": step})
    for life, (start, end) in enumerate([(0, resumed_at), (resumed_at, steps)]):
        with Ledger(folder, life, 0, start=start, world_size=1, attempt=1) as ledger:
            for step in range(start + 1, end + 1):
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
    unseen = compare_runs(whole, _run(tmp_path / "unseen", steps=3), PLAN, 4)
    assert unseen.problems == ("samples: step 4 was never trained",)
    (tmp_path / "same" / "tracking" / "run.json").write_text(
        json.dumps({**json.loads((whole / "tracking" / "run.json").read_text()), "run_name": "another"})
    )
    assert "MLflow: 0 runs of this name" in compare_runs(whole, tmp_path / "same", PLAN, 4).problems[0]


def test_another_world_is_compared_to_rounding_from_its_start_on(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole")
    near = compare_runs(whole, _run(tmp_path / "near", weight=1.000002, resumed_at=2), PLAN, 4, rounding=True)
    assert near.summary == (
        "same samples, weights apart by 2e-06 of a tensor's largest value after 2 steps; no step trained again"
    )
    assert near.equal
    far = compare_runs(whole, _run(tmp_path / "far", weight=1.01, resumed_at=2), PLAN, 4, rounding=True)
    assert "weights head.weight are apart by 0.01 of a tensor's largest value" in far.problems[0]
    # The steps before the change have to be the same bits.
    before = compare_runs(whole, _run(tmp_path / "before", weight=1.000002, resumed_at=4), PLAN, 4, rounding=True)
    assert "weights head.weight in checkpoint step-00000004" in before.problems[0]


def test_a_recipe_that_counts_steps_can_be_drilled_if_it_has_enough(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    annotations, images = write_coco(tmp_path, document(8))
    location = build_shards(annotations, images, str(tmp_path), split="train").location
    words = [
        "drill",
        "cornernet_squeeze",
        "--data.train",
        location,
        "--batch.global_size",
        "4",
        "--folder",
        str(tmp_path),
    ]
    small = ["--data.input_size", "127", "127", "--detector.settings.width", "4"]
    with pytest.raises(SystemExit):
        main([*words, *small, "--schedule.steps", "7", "--schedule.drops_at_steps", "[]"])
    assert "the recipe has 7 steps with these flags; a drill needs 8 or more" in capsys.readouterr().err


def test_faults_are_listed_and_an_unknown_one_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["drill", "--faults"])
    listed = capsys.readouterr().out
    names = (
        "worker-kill worker-hang driver-kill sigterm raylet-kill preemption supervisor-kill two-nodes more-workers "
        "fewer-workers zero-stage kill-in-checkpoint-write kill-in-checkpoint-upload checkpoint-truncated "
        "checkpoint-disk-full store-503 cached-shard-corrupted mlflow-down "
        "sigterm-everyone sighup kill-while-tracking-database-is-made "
        "corrupt-checkpoint-download empty-listing"
    )
    assert {line.split()[0] for line in listed.splitlines()} == set(names.split())
    with pytest.raises(SystemExit):
        main(["drill", "demo", "--folder", str(tmp_path), "--fault", "worker-kil"])
    assert "unknown fault 'worker-kil'" in capsys.readouterr().err
