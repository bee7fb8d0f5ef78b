"""One MLflow run over all attempts: found, made, refused, ended."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from pipelines.errors import ConfigError
from pipelines.tracking import RUN_TAG, RunRecord, deliver_spool, end_run, start_run
from tests.pipelines.tracking.runs import PATIENCE_SECONDS, log, start, steps, tracked


def test_a_run_is_made_with_its_params_and_tags(uri: str, tmp_path: Path) -> None:
    params = {f"model.{index}": str(index) for index in range(150)} | {"long": "x" * 7000}
    run_id = start(uri, tmp_path / "run", params=params, tags={"team": "cells"})
    run = MlflowClient(uri).get_run(run_id)
    assert run.data.params == params | {"long": "x" * 6000}  # MLflow takes 6,000 characters
    assert run.data.tags["team"] == "cells"
    assert run.data.tags[RUN_TAG] == run.info.run_name == "first"
    assert run.data.tags["attempt"] == "1"
    assert run.info.status == "RUNNING"
    assert run.info.artifact_uri.startswith((tmp_path / "mlflow" / "mlartifacts" / "cells").as_uri())
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (written["uri"], written["run_id"], written["attempt"]) == (uri, run_id, 1)


def test_the_record_has_no_password_and_finds_it_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "postgresql://trainer:s3cr3t@host:5432/ml"
    # Of this process the address is removed again, as for a later command in another shell.
    before = set(os.environ)
    RunRecord(uri=uri, run_name="first").save(tmp_path)
    for name in set(os.environ) - before:
        monkeypatch.delenv(name)
    written = (tmp_path / "run.json").read_text()
    assert "s3cr3t" not in written
    assert json.loads(written)["uri"] == "postgresql://host:5432/ml"
    assert RunRecord.load(tmp_path).uri == "postgresql://host:5432/ml"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert RunRecord.load(tmp_path).uri == uri
    for name in set(os.environ) - before - {"MLFLOW_TRACKING_URI"}:
        monkeypatch.delenv(name)


def test_a_later_attempt_is_the_same_run_and_changes_are_tags(uri: str, tmp_path: Path) -> None:
    params = {"lr": "0.1", "seed": "1", "long": "x" * 7000}
    run_id = start(uri, tmp_path / "run", params=params)
    end_run(uri, run_id, "FAILED")
    assert start(uri, tmp_path / "run", params=params | {"lr": "0.2", "new": "7"}) == run_id
    run = MlflowClient(uri).get_run(run_id)
    assert run.data.params == {"lr": "0.1", "seed": "1", "long": "x" * 6000, "new": "7"}
    changed = {key: value for key, value in run.data.tags.items() if "changed" in key}
    assert changed == {"attempt.2.changed.lr": "0.2"}
    assert run.data.tags["attempt"] == "2"
    assert {"attempt.1.started", "attempt.2.started"} <= run.data.tags.keys()
    assert run.info.status == "RUNNING"


def test_a_fresh_folder_is_a_new_run_unless_a_checkpoint_knows_it(uri: str, tmp_path: Path) -> None:
    run_id = start(uri, tmp_path / "one")
    # The same name after its folder was deleted: its curves start from zero, not behind the old ones.
    assert start(uri, tmp_path / "another") != run_id
    again = start_run(uri, "cells", "first", params={}, tags={}, folder=tmp_path / "lost", known_run_id=run_id)
    assert again == run_id
    assert MlflowClient(uri).get_run(run_id).data.tags["attempt"] == "2"


def test_a_deleted_run_is_made_anew_with_all_its_points(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_id = start(uri, folder)
    log(folder, uri, run_id, range(1, 4))
    MlflowClient(uri).delete_run(run_id)
    second = start(uri, folder)
    assert second != run_id
    log(folder, uri, second, range(3, 6))
    assert steps(uri, second, "train/loss") == [1, 2, 3, 4, 5]


def test_a_create_request_that_was_tried_twice_leaves_one_run(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = MlflowClient.create_run

    def twice(self: MlflowClient, *arguments: Any, **settings: Any) -> Run:
        create(self, *arguments, **settings)
        return create(self, *arguments, **settings)

    monkeypatch.setattr(MlflowClient, "create_run", twice)
    run_id = start(uri, tmp_path / "run")
    experiment = MlflowClient(uri).get_experiment_by_name("cells").experiment_id
    runs = MlflowClient(uri).search_runs([experiment], run_view_type=ViewType.ALL)
    assert len(runs) == 2
    assert [run.info.run_id for run in runs if run.info.lifecycle_stage == "active"] == [run_id]


def test_what_cannot_be_a_run_is_refused(uri: str, tmp_path: Path) -> None:
    start(uri, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"belongs to run 'first' of experiment 'cells', not to 'second'"):
        start_run(uri, "cells", "second", params={}, tags={}, folder=tmp_path / "run")
    named = start_run(uri, "cells", '"it\'s"', params={}, tags={}, folder=tmp_path / "quotes")
    assert MlflowClient(uri).get_run(named).info.run_name == '"it\'s"'
    client = MlflowClient(uri)
    client.delete_experiment(client.get_experiment_by_name("cells").experiment_id)
    with pytest.raises(ConfigError, match=r"experiment 'cells' was deleted .* experiments restore --experiment-id"):
        start(uri, tmp_path / "elsewhere")


def test_the_end_of_a_run_is_told(uri: str, tmp_path: Path) -> None:
    run_id = start(uri, tmp_path / "run")
    end_run(uri, run_id, "KILLED")
    run = MlflowClient(uri).get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.info.end_time >= run.info.start_time


def test_training_starts_without_the_server_and_the_run_is_made_later(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pipelines.tracking import run as run_module

    folder = tmp_path / "run"

    def no_server(uri: str) -> MlflowClient:
        raise ConnectionRefusedError("nobody listens")

    with monkeypatch.context() as down:
        down.setattr(run_module, "open_client", no_server)
        assert start(uri, folder, params={"lr": "0.1"}) == ""
        assert start(uri, folder, params={"lr": "0.1"}) == ""
        end_run(uri, "", "FAILED", folder)
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 3
    assert "cannot be opened at sqlite:" in warnings[0]
    assert "nobody listens" in warnings[0]
    assert "training continues" in warnings[0]
    assert "the end of the run, FAILED, could not be logged to" in warnings[2]
    with tracked(folder, uri, "") as tracker:
        tracker.log_metrics(1, {"train/loss": 1.0})
        assert tracker.flush(PATIENCE_SECONDS)
        run_id = tracker.run_id
    run = MlflowClient(uri).get_run(run_id)
    assert run.data.params == {"lr": "0.1"}
    assert run.data.metrics == {"train/loss": 1.0}
    assert run.data.tags["attempt"] == "2"
    assert run.info.start_time == json.loads((folder / "run.json").read_text())["started_ms"]
    end_run(uri, "", "FINISHED", folder)
    assert MlflowClient(uri).get_run(run_id).info.status == "FINISHED"


def test_the_run_made_late_on_another_node_is_ended_by_the_driver(uri: str, tmp_path: Path) -> None:
    driver, node = tmp_path / "driver", tmp_path / "node"
    record = RunRecord(uri=uri, experiment="cells", run_name="first", started_ms=1_700_000_000_000, pending=True)
    driver.mkdir()
    record.save(driver)
    with tracked(node, uri, "", run_record=(driver / "run.json").read_text()) as tracker:
        tracker.log_metrics(1, {"a": 1.0})
    end_run(uri, "", "FINISHED", driver)
    run = MlflowClient(uri).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"a": 1.0}


def test_an_end_that_could_not_be_told_is_told_later(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = tmp_path / "run"
    run_id = start(uri, folder)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dead = f"http://127.0.0.1:{listener.getsockname()[1]}"
    end_run(dead, run_id, "KILLED", folder)
    assert f"it is kept in {folder / 'run.json'}" in caplog.text
    assert MlflowClient(uri).get_run(run_id).info.status == "RUNNING"
    assert deliver_spool(folder, PATIENCE_SECONDS)
    assert MlflowClient(uri).get_run(run_id).info.status == "KILLED"
    end_run(dead, run_id, "FINISHED")  # without a folder: said, not raised
