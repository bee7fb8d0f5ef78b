"""Metrics that are logged after the training."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.tracking import RunRecord, end_run, log_afterwards
from tests.pipelines.tracking.runs import start


def test_what_is_learnt_afterwards_is_told_once_and_to_the_same_run(uri: str, tmp_path: Path) -> None:
    run_id = start(uri, tmp_path / "tracking")
    end_run(uri, run_id, "FINISHED", tmp_path / "tracking")
    for table in ("first", "second"):
        figures = {"test_time/flip/AP": 0.3, "test_time/flip/AP_small": float("nan"), "test_time/flip/AP/a b": 0.1}
        assert log_afterwards(tmp_path / "tracking", 400, figures, {"evaluation/test_time.txt": table})
    client = MlflowClient(uri)
    points = client.get_metric_history(run_id, "test_time/flip/AP")
    assert [(point.step, point.value) for point in points] == [(400, 0.3)]
    assert set(client.get_run(run_id).data.metrics) == {"test_time/flip/AP", "test_time/flip/AP/a b"}
    artifact = client.download_artifacts(run_id, "evaluation/test_time.txt", str(tmp_path))
    assert Path(artifact).read_text() == "second"
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_server_that_is_gone_costs_one_line_afterwards(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(uri, tmp_path / "tracking")
    record = RunRecord.load(tmp_path / "tracking")
    record.uri = "http://127.0.0.1:9"
    record.save(tmp_path / "tracking")
    assert not log_afterwards(tmp_path / "tracking", 1, {"a": 1.0}, {})
    assert "the metrics could not be logged to http://127.0.0.1:9 (" in caplog.text
