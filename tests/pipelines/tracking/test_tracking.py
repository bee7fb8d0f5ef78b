"""Tracking with real parts: SQLite, processes that are killed, a server that is shot and comes back."""

import itertools
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from pipelines.cli import main
from pipelines.errors import ConfigError
from pipelines.tracking import (
    RUN_TAG,
    RunRecord,
    Tracker,
    absolute_uri,
    deliver_spool,
    end_run,
    log_afterwards,
    log_recipe_and_versions,
    metric_name,
    start_run,
    start_system_metrics,
)
from pipelines.tracking.delivery import Delivery
from pipelines.tracking.spool import SpoolWriter, sole_delivery

ROOT = Path(__file__).parents[3]
PATIENCE_SECONDS = 300.0
"""Bound of what a passing test never waits for."""


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, made once: making them takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").get_experiment_by_name("none")
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    (tmp_path / "mlflow").mkdir()
    shutil.copy(empty_database, tmp_path / "mlflow" / "mlflow.db")
    return absolute_uri(f"sqlite:///{tmp_path}/mlflow/mlflow.db")


def start(uri: str, folder: Path, **settings: Any) -> str:
    return start_run(uri, "cells", "first", **({"params": {}, "tags": {}, "folder": folder} | settings))


def steps(uri: str, run_id: str, key: str) -> list[int]:
    """Every point of a key that MLflow holds, in the order of time."""
    history = MlflowClient(uri).get_metric_history(run_id, key)
    return [metric.step for metric in sorted(history, key=lambda metric: (metric.timestamp, metric.step))]


@contextmanager
def tracked(folder: Path, uri: str, run_id: str, **settings: Any) -> Iterator[Tracker]:
    """A tracker that delivers everything before the block ends, however busy the machine is."""
    with Tracker(folder, uri, run_id, **settings) as tracker:
        yield tracker
        assert tracker.close(PATIENCE_SECONDS)


def log(folder: Path, uri: str, run_id: str, steps: range, key: str = "train/loss") -> None:
    with tracked(folder, uri, run_id) as tracker:
        for step in steps:
            tracker.log_metrics(step, {key: step / 2})


# --- the run --------------------------------------------------------------------------------------------------


def test_importing_it_does_not_import_mlflow() -> None:
    code = "import sys, pipelines.tracking, pipelines.evaluation.coco_metrics; print('mlflow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "False\n"


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


def test_addresses_mean_the_same_everywhere_or_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///deep/mlflow.db") == f"sqlite:///{tmp_path}/deep/mlflow.db"
    assert (tmp_path / "deep").is_dir()
    assert absolute_uri(f"sqlite:///{tmp_path}/a.db?timeout=3") == f"sqlite:///{tmp_path}/a.db?timeout=3"
    assert absolute_uri("https://host:5000") == "https://host:5000"
    assert absolute_uri("postgresql+psycopg2://host/db") == "postgresql+psycopg2://host/db"
    for bad in ("./mlruns", "file:///mlruns", "ftp://host", ""):
        with pytest.raises(ConfigError, match=r"is no address that MLflow stores runs at. Write sqlite:////FOLDER"):
            absolute_uri(bad)
    with pytest.raises(ConfigError, match="names no file"):
        absolute_uri("sqlite://")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/sub cannot be made \(Not a directory\)"):
        absolute_uri("sqlite:///file/sub/mlflow.db")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("val/AP/hot dog", "val/AP/hot dog"),
        ("val/AP/cat (big)", "val/AP/cat _big_"),
        ("val/AP/人", "val/AP/人"),
        ("/a//b/./../c/", "a/b/c"),
        ("..", "_"),
        ("", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_metric_names_are_ones_that_mlflow_takes(text: str, name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert metric_name(text) == name
    _validate_metric_name(metric_name(text))


def test_the_end_of_a_run_is_told(uri: str, tmp_path: Path) -> None:
    run_id = start(uri, tmp_path / "run")
    end_run(uri, run_id, "KILLED")
    run = MlflowClient(uri).get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.info.end_time >= run.info.start_time


# --- delivery -------------------------------------------------------------------------------------------------


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


def test_a_torn_line_longer_than_the_buffer_is_cut_off(tmp_path: Path) -> None:
    SpoolWriter(tmp_path).add_metrics(1, {"a": 1.0})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    for rest in (b"x" * 70_000, b"x" * 65_536, b"x"):
        (tmp_path / "metrics.jsonl").write_bytes(whole + rest)
        SpoolWriter(tmp_path)
        assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    (tmp_path / "metrics.jsonl").write_bytes(b"x" * 70_000)
    SpoolWriter(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


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
    assert "an unreadable line in" in caplog.text
    assert "does not take metric 'not, a name' of step 2, left out" in caplog.text


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


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=5))
def test_no_sequence_of_attempts_makes_the_spool_go_back(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    told: dict[str, list[int]] = {"a": [], "b": []}
    for attempt in attempts:
        writer = SpoolWriter(folder)
        for step in attempt:
            writer.add_metrics(step, {"a": 1.0} if step % 3 else {"a": 1.0, "b": 2.0})
            for key in told:
                if (key == "a" or step % 3 == 0) and step > max(told[key], default=-1):
                    told[key].append(step)
    lines = [record for record, _ in SpoolWriter(folder).metrics.read() if record]
    for key, expected in told.items():
        assert [line["step"] for line in lines if key in line["metrics"]] == expected


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
    assert "1 points and 0 artifacts are not delivered" in caplog.text
    assert "another process is delivering it" in caplog.text
    with sole_delivery(folder) as free:
        assert free
    assert deliver_spool(folder, PATIENCE_SECONDS)


# --- files, pictures, tags ------------------------------------------------------------------------------------


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "page.png"
    cv2.imwrite(str(path), np.full((30, 40, 3), 200, dtype=np.uint8))
    return path


def artifacts(uri: str, run_id: str, folder: str = "") -> list[str]:
    return sorted(entry.path for entry in MlflowClient(uri).list_artifacts(run_id, folder))


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


# --- outages --------------------------------------------------------------------------------------------------


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
    assert "2,000 points and 1 artifacts are not delivered to http://127.0.0.1" in caplog.text
    assert f"they stay in {tmp_path} and are delivered when the run starts again" in caplog.text
    assert "secret" not in caplog.text
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1000


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
    assert "training goes on" in warnings[0]
    assert "does not take the end of the run, FAILED" in warnings[2]
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
    assert [record.message for record in caplog.records if "cannot be kept" in record.message] == [
        f"tracking: what is logged cannot be kept in {folder} ([Errno 21] Is a directory: '{folder}/metrics.jsonl') "
        "and is lost"
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
    assert "http://127.0.0.1:9 does not take the figures" in caplog.text
