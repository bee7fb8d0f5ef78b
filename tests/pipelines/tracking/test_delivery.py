"""Delivery of a spool: each point once, whatever is lost on the way."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from pipelines.cli import main
from pipelines.tracking import RunRecord, Tracker, deliver_spool
from pipelines.tracking.delivery import Delivery
from pipelines.tracking.spool import SpoolWriter, sole_delivery
from tests.pipelines.tracking.runs import PATIENCE_SECONDS, ROOT, log, start, steps, tracked


def test_a_resumed_run_doubles_and_rewinds_no_step(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_id = start(uri, folder)
    log(folder, uri, run_id, range(1, 11))
    log(folder, uri, run_id, range(6, 16))  # resumed from the checkpoint of step 5
    assert steps(uri, run_id, "train/loss") == list(range(1, 16))
    assert Delivery(folder).count_left() == (0, 0)


def test_points_keep_the_time_at_which_they_were_logged(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_id = start(uri, folder)
    SpoolWriter(folder).add_metrics(1, {"train/loss": 1.5, "train/none": float("nan")})
    line = json.loads((folder / "metrics.jsonl").read_text())
    assert deliver_spool(folder, PATIENCE_SECONDS)
    client = MlflowClient(uri)
    (loss,) = client.get_metric_history(run_id, "train/loss")
    assert (loss.value, loss.step, loss.timestamp) == (1.5, 1, line["time_ms"])
    (none,) = client.get_metric_history(run_id, "train/none")
    assert np.isnan(none.value)


def test_more_than_one_request_holds_is_split(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_id = start(uri, folder)
    with tracked(folder, uri, run_id) as tracker:
        tracker.log_metrics(1, {f"many/{index}": index for index in range(1200)})
    metrics = MlflowClient(uri).get_run(run_id).data.metrics
    assert metrics == {f"many/{index}": index for index in range(1200)}


@pytest.fixture
def counted_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a millisecond later, so that one attempt is later than another without waiting."""
    clock = itertools.count(1_700_000_000_000)
    monkeypatch.setattr("pipelines.tracking.spool.now_ms", lambda: next(clock))


@pytest.fixture
def keeps_doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store that keeps a point twice when it is sent twice, unlike SQLite: MLflow's folder store."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlruns").as_uri()


def test_a_crash_between_delivery_and_its_record_doubles_nothing(keeps_doubles: str, tmp_path: Path) -> None:
    client = MlflowClient(keeps_doubles)
    run_id = client.create_run("0").info.run_id
    folder = tmp_path / "run"
    log(folder, keeps_doubles, run_id, range(1, 6))
    before = (folder / "delivered.json").read_text()
    log(folder, keeps_doubles, run_id, range(6, 11))
    (folder / "delivered.json").write_text(before)  # killed after the request, before the rename
    log(folder, keeps_doubles, run_id, range(11, 13))
    assert steps(keeps_doubles, run_id, "train/loss") == list(range(1, 13))
    (folder / "delivered.json").unlink()
    log(folder, keeps_doubles, run_id, range(13, 15))
    assert steps(keeps_doubles, run_id, "train/loss") == list(range(1, 15))


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_a_lost_request_or_answer_loses_and_doubles_nothing(
    keeps_doubles: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    run_id = MlflowClient(keeps_doubles).create_run("0").info.run_id
    log_batch, calls = MlflowClient.log_batch, []

    def loses_the_first(self: MlflowClient, *arguments: Any, **settings: Any) -> None:
        calls.append(len(settings["metrics"]))
        if len(calls) > 1 or lost == "answer":
            log_batch(self, *arguments, **settings)
        if len(calls) == 1:
            raise ConnectionResetError("lost")

    monkeypatch.setattr(MlflowClient, "log_batch", loses_the_first)
    log(tmp_path / "run", keeps_doubles, run_id, range(1, 6))
    assert calls[0] >= 1
    assert steps(keeps_doubles, run_id, "train/loss") == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("counted_clock")
def test_an_attempt_on_another_node_goes_on_where_mlflow_is(keeps_doubles: str, tmp_path: Path) -> None:
    uri = keeps_doubles
    run_id = MlflowClient(uri).create_run("0").info.run_id
    log(tmp_path / "node a", uri, run_id, range(10, 101, 10))
    # Resumed from step 73 with an empty disk, now logging other steps: 83, 93, 103, 113; 83 and 93 would rewind.
    log(tmp_path / "node b", uri, run_id, range(83, 114, 10))
    assert steps(uri, run_id, "train/loss") == [*range(10, 101, 10), 103, 113]


@pytest.mark.usefixtures("counted_clock")
def test_what_an_earlier_node_left_fills_the_gap_later(keeps_doubles: str, tmp_path: Path) -> None:
    uri, node_a, node_b = keeps_doubles, tmp_path / "node a", tmp_path / "node b"
    run_id = MlflowClient(uri).create_run("0").info.run_id
    node_a.mkdir()
    RunRecord(uri=uri, run_id=run_id).save(node_a)
    writer = SpoolWriter(node_a)  # its server was down all the time
    for step in range(1, 11):
        writer.add_metrics(step, {"train/loss": step})
    log(node_b, uri, run_id, range(6, 16))  # resumed from the checkpoint of step 5
    assert steps(uri, run_id, "train/loss") == list(range(6, 16))
    assert deliver_spool(node_a, PATIENCE_SECONDS)
    assert steps(uri, run_id, "train/loss") == list(range(1, 16))


def test_a_line_torn_by_a_kill_is_cut_off_and_logged_again(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_id = start(uri, folder)
    log(folder, uri, run_id, range(1, 4))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step":4,"time_ms":17')
    log(folder, uri, run_id, range(4, 7))
    assert steps(uri, run_id, "train/loss") == [1, 2, 3, 4, 5, 6]
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [*range(1, 7)]


def test_flush_delivers_what_is_left_once_and_says_so(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "first"
    run_id = start(uri, run / "tracking")
    writer = SpoolWriter(run / "tracking")
    for step in (1, 2, 3):
        writer.add_metrics(step, {"train/loss": 4.0 - step, "train/epoch": step / 3})
    main(["tracking", "flush", str(run)])
    assert capsys.readouterr().out == "run first: 6 points and 0 artifacts delivered\n"
    assert steps(uri, run_id, "train/loss") == [1, 2, 3]
    main(["tracking", "flush", str(run)])
    assert capsys.readouterr().out == "run first: everything is delivered\n"
    assert steps(uri, run_id, "train/loss") == [1, 2, 3]
    with pytest.raises(SystemExit) as ended:
        main(["tracking", "flush", str(tmp_path)])
    assert ended.value.code == 2
    assert f"{tmp_path} has no tracking/run.json. Give a run's folder" in capsys.readouterr().err


def test_unreadable_and_refused_points_hold_nothing_back(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    run_id = start(uri, folder)
    writer = SpoolWriter(folder)
    writer.add_metrics(1, {"a": 1.0})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\0\0\0\0\n")
    writer.add_metrics(2, {"a": 2.0, "not, a name": 2.0, "b": 2.0})
    assert deliver_spool(folder, PATIENCE_SECONDS)
    assert MlflowClient(uri).get_run(run_id).data.metrics == {"a": 2.0, "b": 2.0}
    assert "a damaged line in" in caplog.text
    assert "refuses metric 'not, a name' of step 2, which is skipped" in caplog.text


def test_another_process_that_delivers_is_left_alone(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    start(uri, folder)
    SpoolWriter(folder).add_metrics(1, {"a": 1.0})
    code = f"""
from pathlib import Path
from pipelines.tracking.spool import sole_delivery
with sole_delivery(Path({str(folder)!r})) as free:
    print(free, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert not deliver_spool(folder, timeout_seconds=0)
        other.kill()
    assert "1 point and 0 artifacts could not be delivered" in caplog.text
    assert "another process is delivering it" in caplog.text
    with sole_delivery(folder) as free:
        assert free
    assert deliver_spool(folder, PATIENCE_SECONDS)


def test_an_artifact_store_that_cannot_be_written_is_told_apart_from_the_server(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = start(uri, tmp_path / "run")
    store = tmp_path / "mlflow" / "mlartifacts"
    store.parent.mkdir(exist_ok=True)
    store.write_text("a file where the folder should be, as on a machine that does not mount it")
    tracker = Tracker(tmp_path / "run", uri, run_id, interval_seconds=0.05)
    tracker.log_metrics(1, {"train/loss": 0.5})
    tracker.log_text("table", "ap.txt")
    assert not tracker.close(5.0)
    assert steps(uri, run_id, "train/loss") == [1]
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith(f"tracking: the artifact store {store.as_uri()}") for line in lines)
    assert any("metrics are delivered, and artifacts are kept in" in line for line in lines)
    assert not any("cannot be reached" in line for line in lines)
    store.unlink()
    assert deliver_spool(tmp_path / "run", PATIENCE_SECONDS)
