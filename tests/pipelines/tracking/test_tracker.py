"""The tracker with real parts: processes that are killed, a server that is killed and returns."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from pipelines.tracking import Tracker, deliver_spool, end_run, log_recipe_and_versions, start_system_metrics
from tests.pipelines.tracking.runs import PATIENCE_SECONDS, ROOT, artifacts, log, start, steps, tracked


def test_lines_lost_with_the_power_are_made_good(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_id = start(uri, folder)
    log(folder, uri, run_id, range(1, 11))
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(lines[:4]))  # delivered.json still counts ten lines
    log(folder, uri, run_id, range(5, 13), "train/rate")  # grows past the old count
    log(folder, uri, run_id, range(5, 13))
    assert steps(uri, run_id, "train/loss") == list(range(1, 13))
    assert steps(uri, run_id, "train/rate") == list(range(5, 13))


TRAINER = """
import sys
from pathlib import Path
from pipelines.tracking import Tracker
folder, uri, run_id, first = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
tracker = Tracker(folder, uri, run_id, interval_seconds=0.05)
tracker.flush(300)
for step in range(first, 10_000_000):
    tracker.log_metrics(step, {"train/loss": 1 / step, "train/rate": 0.1})
    if step % 100 == 0:
        print(step, flush=True)
"""


def test_kill_9_loses_and_doubles_no_step(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_id = start(uri, folder)
    command = [sys.executable, "-c", TRAINER, str(folder), uri, run_id, "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        last = 0
        while last < 2000:
            last = int(trainer.stdout.readline())
        trainer.kill()
    written = (folder / "metrics.jsonl").read_bytes()
    written_steps = [json.loads(line)["step"] for line in written[: written.rfind(b"\n")].splitlines()]
    end = max(written_steps) + 50
    log(folder, uri, run_id, range(last - 150, end))  # from the last checkpoint
    assert steps(uri, run_id, "train/loss") == list(range(1, end))
    assert steps(uri, run_id, "train/rate") == written_steps


def test_files_arrive_as_they_were_when_they_were_logged(uri: str, tmp_path: Path) -> None:
    folder, curves = tmp_path / "run", tmp_path / "curves"
    curves.mkdir()
    (curves / "pr.txt").write_text("early")
    run_id = start(uri, folder)
    with tracked(folder, uri, run_id) as tracker:
        tracker.log_artifact(curves / "pr.txt", "figures")
        tracker.log_artifact(curves)
        (curves / "pr.txt").write_text("late")
        tracker.log_text("a: 1\n", "recipe.yaml")
        tracker.log_text("b", "notes/deep/b.txt")
    assert artifacts(uri, run_id) == ["curves", "figures", "notes", "recipe.yaml"]
    client = MlflowClient(uri)
    for path, text in {"figures/pr.txt": "early", "curves/pr.txt": "early", "notes/deep/b.txt": "b"}.items():
        assert Path(client.download_artifacts(run_id, path, str(tmp_path))).read_text() == text
    assert list((folder / "artifacts").iterdir()) == []


def test_pictures_have_a_slider_and_come_once_a_step(uri: str, tmp_path: Path, png: Path) -> None:
    folder = tmp_path / "run"
    run_id = start(uri, folder)
    with tracked(folder, uri, run_id) as tracker:
        tracker.log_image("val/predictions", 10, png)
        tracker.log_image("val/predictions", 20, png)
    before = (folder / "delivered.json").read_text()
    with tracked(folder, uri, run_id) as tracker:
        tracker.log_image("val/predictions", 20, png)
        tracker.log_image("val/predictions", 30, png)
    (folder / "delivered.json").write_text(before)  # as after a crash before the record
    with tracked(tmp_path / "another node", uri, run_id) as tracker:
        tracker.log_image("val/predictions", 30, png)
        tracker.log_image("val/predictions", 40, png)
    assert deliver_spool(folder, PATIENCE_SECONDS)
    names = [Path(path).name for path in artifacts(uri, run_id, "images")]
    assert [name.split("+timestamp")[0] for name in names if name.endswith(".png")] == [
        f"val~predictions+step+{step}" for step in (10, 20, 30, 40)
    ]
    assert MlflowClient(uri).get_run(run_id).data.tags["mlflow.loggedImages"] == "True"


def test_recipe_versions_and_manifests_are_kept(uri: str, tmp_path: Path) -> None:
    run_id = start(uri, tmp_path / "run")
    with tracked(tmp_path / "run", uri, run_id) as tracker:
        log_recipe_and_versions(tracker, "seed: 1\n", {"train": "9f31c2", "val": "77aa01"})
    client = MlflowClient(uri)
    tags = client.get_run(run_id).data.tags
    assert (tags["manifest.train"], tags["manifest.val"]) == ("9f31c2", "77aa01")
    assert tags["version.numpy"] == np.__version__
    assert {f"version.{each}" for each in ("torch", "ray", "deepspeed", "mlflow", "webdataset")} <= tags.keys()
    assert Path(client.download_artifacts(run_id, "recipe.yaml", str(tmp_path))).read_text() == "seed: 1\n"


def test_system_metrics_are_logged_until_stopped(uri: str, tmp_path: Path) -> None:
    run_id = start(uri, tmp_path / "run")
    with tracked(tmp_path / "run", uri, run_id) as tracker:
        start_system_metrics(tracker, interval_seconds=3600, node="head")()  # a last sample is taken when it stops
    metrics = MlflowClient(uri).get_run(run_id).data.metrics
    assert {"system/head/cpu_utilization_percentage", "system/head/system_memory_usage_percentage"} <= metrics.keys()
    assert 0 < metrics["system/head/system_memory_usage_percentage"] < 100


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://user:secret@127.0.0.1:{listener.getsockname()[1]}"


def test_a_silent_server_holds_nothing_up(
    silent_server: str, tmp_path: Path, png: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(tmp_path, silent_server, "0" * 32, interval_seconds=0.01)
    for step in range(1, 1001):  # with one request in this thread the test would not end
        tracker.log_metrics(step, {"train/loss": 1.0, "train/rate": 0.1})
    tracker.log_image("val/predictions", 5, png)
    assert not tracker.close(timeout=0.01)
    assert "2,000 points and 1 artifact could not be delivered to http://127.0.0.1" in caplog.text
    assert f"they stay in {tmp_path} and are delivered when the run starts again" in caplog.text
    assert "secret" not in caplog.text
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1000


def test_a_disk_that_cannot_be_written_is_said_once_and_stops_nothing(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    run_id = start(uri, folder)
    with tracked(folder, uri, run_id, interval_seconds=3600) as tracker:
        (folder / "metrics.jsonl").mkdir()
        tracker.log_metrics(1, {"a": 1.0})
        tracker.log_metrics(2, {"a": 2.0})
        tracker.log_artifact(tmp_path / "missing.png")
        (folder / "metrics.jsonl").rmdir()
        tracker.log_metrics(3, {"a": 3.0})
    assert [record.message for record in caplog.records if "cannot be written to" in record.message] == [
        f"tracking: metrics cannot be written to {folder} ([Errno 21] Is a directory: '{folder}/metrics.jsonl') "
        "and are lost"
    ]
    assert steps(uri, run_id, "a") == [3]


@pytest.fixture
def mlflow_server(tmp_path: Path, empty_database: Path) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """A real server on a port of its own: address, a function that starts it, one that shoots it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    shutil.copy(empty_database, tmp_path / "server.db")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/art"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    running: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        with (tmp_path / "server.log").open("ab") as output:
            running.append(
                subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
            )
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert answer.read() == b"OK"
                return
            except OSError:
                threading.Event().wait(0.2)
        raise AssertionError((tmp_path / "server.log").read_text())

    def shoot() -> None:
        process = running.pop()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    yield f"http://127.0.0.1:{port}", begin, shoot
    if running:
        shoot()


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_has_every_point_once(
    mlflow_server: tuple[str, Callable[[], None], Callable[[], None]],
    tmp_path: Path,
    png: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the retries that count here are ours
    caplog.set_level(logging.INFO, "pipelines.tracking")
    uri, begin, shoot = mlflow_server
    folder = tmp_path / "run"
    assert start(uri, folder, params={"lr": "0.1"}) == ""  # not up yet
    begin()
    tracker = Tracker(folder, uri, "", interval_seconds=0.05)
    for step in range(1, 301):
        tracker.log_metrics(step, {"train/loss": 1 / step, "train/rate": 0.1})
    assert tracker.flush(PATIENCE_SECONDS)
    tracker.log_metrics(301, {"train/loss": 1.0, "train/rate": 0.1})  # on its way when the server dies
    shoot()
    for step in range(302, 601):
        tracker.log_metrics(step, {"train/loss": 1 / step, "train/rate": 0.1})
    tracker.log_image("val/predictions", 600, png)
    assert not tracker.flush(0.1)
    begin()
    assert tracker.flush(PATIENCE_SECONDS)
    assert tracker.close(PATIENCE_SECONDS)
    run_id = tracker.run_id
    end_run(uri, run_id, "FINISHED", folder)
    for key in ("train/loss", "train/rate"):
        assert steps(uri, run_id, key) == list(range(1, 601))
    run = MlflowClient(uri).get_run(run_id)
    assert (run.info.status, run.data.params) == ("FINISHED", {"lr": "0.1"})
    assert len(artifacts(uri, run_id, "images")) == 2  # the picture and its preview
    lines = [record.message for record in caplog.records if uri in record.message]
    assert f"tracking: the run cannot be opened at {uri} (ConnectionRefusedError: [Errno 111] Conn" in lines[0]
    assert sum("cannot be reached" in line for line in lines) == 1
    assert sum("answers again" in line for line in lines) == 1
