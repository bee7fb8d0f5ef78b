"""The best checkpoint becomes an MLflow model when a training ends: once, and never at the training's expense."""

import logging
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from pipelines.registering.log_best import log_best_model
from pipelines.registering.model_folder import REQUIREMENTS, pinned
from pipelines.tracking import Delivery, RunRecord, deliver_spool, end_run
from pipelines.tracking.models import MODEL_NAME, WEIGHTS
from pipelines.trained.trained import open_trained


def _models(uri: str) -> list[LoggedModel]:
    client = MlflowClient(uri)
    return list(client.search_logged_models([one.experiment_id for one in client.search_experiments()]))


def _deliver_once(folder: Path, timeout_seconds: float) -> bool:
    """Deliver as `deliver_spool` does, but do not try again."""
    try:
        return Delivery(folder).deliver(lambda: True)
    except Exception:
        return False


def test_the_best_checkpoint_is_logged_once_with_the_run(run: Path, uri: str) -> None:
    record = RunRecord.load(run / "tracking")
    end_run(uri, record.run_id, "FINISHED")
    assert log_best_model(run) == 2
    assert log_best_model(run) == 2
    client = MlflowClient(uri)
    (model,) = client.search_logged_models([record.experiment_id])
    assert (model.name, str(model.status), model.source_run_id) == (MODEL_NAME, "READY", record.run_id)
    assert model.params == {"detector": "centernet_resnet18", "classes": "2", "run": "cats", "step": "2"}
    found = client.get_run(record.run_id)
    assert [one.model_id for one in found.outputs.model_outputs] == [model.model_id]
    assert found.info.status == "FINISHED"
    # The spool keeps no copy of the weights.
    assert not list((run / "tracking" / "artifacts").iterdir())
    opened = open_trained(Path(model.artifact_location.removeprefix("file://")) / WEIGHTS)
    assert (opened.identity.run, opened.identity.step, opened.thresholds) == ("cats", 2, {"cat": 0.02})


def test_an_upload_that_ended_half_way_is_completed_by_the_next_delivery(
    run: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = MlflowClient.log_model_artifacts

    def cut(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", cut)
    monkeypatch.setattr("pipelines.tracking.deliver_spool", _deliver_once)
    assert log_best_model(run) is None
    (half,) = _models(uri)
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", whole)
    assert deliver_spool(run / "tracking")
    (model,) = _models(uri)
    assert (model.model_id, str(model.status)) == (half.model_id, "READY")


def test_without_a_server_the_model_waits_in_the_spool(run: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record = RunRecord.load(run / "tracking")
    record.uri = "http://127.0.0.1:9"  # the port that discards
    record.save(run / "tracking")
    monkeypatch.setattr("pipelines.tracking.deliver_spool", _deliver_once)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert log_best_model(run) is None
    assert (run / "tracking" / "artifacts" / "000000" / MODEL_NAME / "MLmodel").exists()
    record.uri = uri
    record.save(run / "tracking")
    assert deliver_spool(run / "tracking")
    assert [str(model.status) for model in _models(uri)] == ["READY"]


def test_a_run_without_a_checkpoint_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert log_best_model(tmp_path) is None
    (line,) = caplog.messages
    assert line.startswith("warning   the best checkpoint could not be logged as an MLflow model: ")


def test_requirements_name_versions_that_an_index_has() -> None:
    lines = pinned(REQUIREMENTS)
    assert len(lines) == len(REQUIREMENTS)
    assert all(line.count("==") == 1 and "+" not in line for line in lines)
