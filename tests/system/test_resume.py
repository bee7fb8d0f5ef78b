"""A run that is killed and resumed equals, bit for bit, a run that was never interrupted.

Everything is real: the command, Ray, its workers, DeepSpeed, MLflow on SQLite.
"""

import json
from pathlib import Path

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointFolder
from data_shards.storage.open import open_store
from pipelines.trained.trained import open_trained
from tests.system.commands import Command, final_weights, logged, train

pytestmark = pytest.mark.slow


def _same_as_whole(runs: Path, name: str) -> None:
    expected, found = final_weights(runs, "whole"), final_weights(runs, name)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    expected_metrics, metrics = logged(runs, "whole"), logged(runs, name)
    assert [step for step, _ in metrics["train/loss"]] == list(range(1, 41))  # none doubled, none rewound
    assert [step for step, _ in metrics["val/AP"]] == [20, 40]
    for key, points in expected_metrics.items():
        if key.startswith(("train/", "val/")) and "milliseconds" not in key:
            assert metrics[key] == points, key


def test_an_undisturbed_run_leaves_its_evaluation_and_metrics(whole: Path) -> None:
    import mlflow

    run = whole / "whole"
    assert {"ap.txt", "metrics.json", "precision_recall.png", "predictions.png"} <= {
        path.name for path in (run / "evaluation").iterdir()
    }
    metrics = logged(whole, "whole")
    for key in (
        *("train/loss", "train/loss_heatmap", "train/loss_size", "train/loss_offset", "train/learning_rate"),
        *("time/images_per_second", "time/data_seconds", "val/loss", "val/AP", "val/AP50", "val/AP_small"),
    ):
        assert metrics[key], key
    client = mlflow.MlflowClient(f"sqlite:///{whole / 'mlflow.db'}")
    found = client.search_runs(["1"], filter_string="attributes.run_name = 'whole'")[0]
    assert found.info.status == "FINISHED"
    assert found.data.params["schedule.epochs"] == "8"
    assert found.data.params["detector.settings.width"] == "8"
    artifacts = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert {"recipe.yaml", "evaluation"} <= artifacts
    # The best checkpoint as a model, and its file of weights, which rebuilds the detector alone.
    models = client.search_logged_models(["1"], filter_string=f"source_run_id = '{found.info.run_id}'")
    assert len(models) == 1
    best = CheckpointFolder(run / "checkpoints").best()
    assert best is not None
    alone = open_trained(best.path / "weights.safetensors")
    assert alone.class_names == open_trained(run).class_names
    assert alone.identity.run == "whole"
    assert alone.thresholds.keys() <= set(alone.class_names)


def test_a_worker_killed_with_9_is_replaced_and_nothing_is_lost(shards: Path, whole: Path) -> None:
    command = train(shards, whole, "worker")
    command.wait_for("step 18/40")
    command.kill_worker()
    command.finish()
    assert any(line.startswith("resumed ") for line in command.lines)
    _same_as_whole(whole, "worker")


def test_a_driver_killed_with_9_resumes_by_the_same_command(shards: Path, whole: Path) -> None:
    command = train(shards, whole, "driver")
    command.wait_for("step 10/40")
    command.kill_driver()
    again = train(shards, whole, "driver")
    assert "resumed   attempt 2 at step" in again.wait_for("resumed")
    again.finish()
    _same_as_whole(whole, "driver")


def test_ctrl_c_says_how_to_resume_and_the_run_resumes_with_one_worker(shards: Path, whole: Path) -> None:
    command = train(shards, whole, "interrupted")
    command.wait_for("step 14/40")
    command.interrupt()
    command.finish(status=130)
    assert "run the same command again to resume from the last checkpoint" in command.lines[-1]
    again = train(shards, whole, "interrupted", "--cluster.workers", "1", "--engine.zero_stage", "2")
    again.wait_for("resumed   attempt 2 at step")
    again.finish()
    steps = [step for step, _ in logged(whole, "interrupted")["train/loss"]]
    assert steps == list(range(1, 41))
    expected, found = final_weights(whole, "whole"), final_weights(whole, "interrupted")
    # The same samples, split over ranks differently: BatchNorm sees other batches, so the weights differ.
    assert {key for key in expected if key.startswith("weights/")} == {
        key for key in found if key.startswith("weights/")
    }


def test_shards_in_s3_train_the_same_weights(shards: Path, whole: Path, s3: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for path in (shards / split).iterdir():
            open_store(f"{s3}/set/{split}").upload(path, path.name)
    train(f"{s3}/set", whole, "bucket", AWEIGH_CACHE=str(tmp_path / "cache")).finish()
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == len(list(shards.rglob("*.tar")))
    _same_as_whole(whole, "bucket")


def test_a_finished_run_is_not_trained_again(shards: Path, whole: Path) -> None:
    before = final_weights(whole, "whole")
    command = train(shards, whole, "whole")
    out = command.finish()
    assert "AP50" in out
    assert any("ended before, at step 40" in line for line in command.lines)
    assert all(torch.equal(value, before[key]) for key, value in final_weights(whole, "whole").items())


def test_other_settings_under_the_same_name_are_refused(shards: Path, whole: Path) -> None:
    command = train(shards, whole, "whole", "--seed", "1")
    command.finish(status=2)
    assert "run whole was started with other settings (seed: 0 → 1)" in command.lines[-1]


def test_evaluate_reads_the_run(whole: Path) -> None:
    out = Command("evaluate", whole / "whole", "--newest", "--json").finish()

    figures = json.loads(out)
    recorded = json.loads((whole / "whole" / "evaluation" / "metrics.json").read_text())
    assert figures["AP50"] == pytest.approx(recorded["AP50"], abs=1e-6)
    assert figures["losses"]["loss"] == pytest.approx(recorded["losses"]["loss"], rel=1e-4)
