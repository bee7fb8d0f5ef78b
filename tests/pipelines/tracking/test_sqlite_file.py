"""MLflow's SQLite file: whole or missing after a kill at any moment, and its artifacts where the file is."""

import logging
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from pipelines.tracking import absolute_uri
from pipelines.tracking.mlflow_client import open_client
from pipelines.tracking.sqlite_file import database_of, prepare
from tests.pipelines.tracking.runs import start


def _experiments(database: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT name, artifact_location FROM experiments").fetchall()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Ends itself by SIGKILL between MLflow's first tables and its migrations.
_KILLED = """
import os, signal, sys
from pathlib import Path
import mlflow.store.db.utils as utils
from pipelines.tracking.sqlite_file import prepare
utils._upgrade_db = lambda engine: os.kill(os.getpid(), signal.SIGKILL)
prepare(Path(sys.argv[1]))
"""


def test_a_kill_while_the_file_is_made_leaves_nothing_broken(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(database)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not database.exists()
    assert any(name.endswith(".part") for name in _names(tmp_path))
    client = open_client(f"sqlite:///{database}")
    assert client.get_experiment_by_name("none") is None
    assert _names(tmp_path) == [".mlflow.db.lock", "mlflow.db"]
    assert _experiments(database) == [("Default", f"{(tmp_path / 'mlartifacts').as_uri()}/0")]


def test_a_file_that_was_half_made_by_mlflow_itself_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = tmp_path / "mlflow.db"
    # What a kill in the middle of MLflow's migrations leaves: tables, a revision that is not the last, no rows.
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("CREATE TABLE runs (run_uuid TEXT PRIMARY KEY)")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('451aebb31d03')")
        connection.commit()
    (tmp_path / "mlflow.db-journal").write_bytes(b"of the half-made file")
    with caplog.at_level(logging.WARNING):
        prepare(database)
        prepare(database)
    assert [record.getMessage() for record in caplog.records] == [
        f"tracking: {database} was half made, by a process that was killed; it is made again"
    ]
    assert [name for name, _ in _experiments(database)] == ["Default"]
    assert not (tmp_path / "mlflow.db-journal").exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"not a database at all, but a text of the user" * 30])
def test_a_file_that_is_not_a_database_is_left_to_mlflow_unless_it_is_empty(content: bytes, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(content)
    if content:
        prepare(database)
        assert database.read_bytes() == content
    else:
        prepare(database)
        assert _experiments(database)


def test_a_database_of_another_program_or_with_runs_is_never_replaced(empty_database: Path, tmp_path: Path) -> None:
    other, own = tmp_path / "other.db", tmp_path / "own.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
        connection.commit()
    shutil.copy(empty_database, own)
    for database in (other, own):
        before = database.read_bytes()
        prepare(database)
        assert database.read_bytes() == before


def test_two_processes_make_one_file(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from pipelines.tracking.sqlite_file import prepare; "
    command = [sys.executable, "-c", f"{program}prepare(Path(sys.argv[1]))", str(tmp_path / "mlflow.db")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert _names(tmp_path) == [".mlflow.db.lock", "mlflow.db"]


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////runs/mlflow.db", Path("/runs/mlflow.db")),
        ("sqlite:////my runs/mlflow.db?timeout=5", Path("/my runs/mlflow.db")),
        ("sqlite+pysqlite:////runs/mlflow.db", Path("/runs/mlflow.db")),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("http://server:5000", None),
        ("postgresql://user@server/mlflow", None),
    ],
)
def test_the_file_of_an_address_is_known(uri: str, path: Path | None) -> None:
    assert database_of(uri) == path


def _runs_with_an_artifact(empty_database: Path, folder: Path) -> str:
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    uri = absolute_uri(f"sqlite:///{folder}/mlflow.db")
    run_id = start(uri, folder / "run")
    open_client(uri).log_text(run_id, "first", "first.txt")
    return run_id


def test_a_folder_that_moved_keeps_its_artifacts_with_it(
    empty_database: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = tmp_path / "old place", tmp_path / "new place"
    run_id = _runs_with_an_artifact(empty_database, old)
    shutil.move(old, new)
    # The next attempt is another process, which has not written to the old place.
    _artifact_repos_cache.clear()
    with caplog.at_level(logging.WARNING):
        client = open_client(absolute_uri(f"sqlite:///{new}/mlflow.db"))
    assert [record.getMessage() for record in caplog.records] == [
        f"tracking: the folder of mlflow.db has moved; artifacts are written to and shown from {new}/mlartifacts, "
        f"no longer from {old}/mlartifacts"
    ]
    client.log_text(run_id, "second", "second.txt")
    assert sorted(entry.path for entry in client.list_artifacts(run_id)) == ["first.txt", "second.txt"]
    assert client.get_run(run_id).info.artifact_uri.startswith((new / "mlartifacts" / "cells").as_uri())
    assert not old.exists()


def test_a_copy_writes_beside_itself_and_a_lone_file_beside_its_artifacts(empty_database: Path, tmp_path: Path) -> None:
    old, copy, lone = tmp_path / "old", tmp_path / "copy", tmp_path / "lone"
    run_id = _runs_with_an_artifact(empty_database, old)
    shutil.copytree(old, copy)
    lone.mkdir()
    shutil.copy(old / "mlflow.db", lone / "mlflow.db")
    for folder, place in ((old, old), (copy, copy), (lone, old)):
        info = MlflowClient(f"sqlite:///{folder}/mlflow.db").get_run(run_id).info if folder is lone else None
        client = open_client(absolute_uri(f"sqlite:///{folder}/mlflow.db"))
        assert client.get_run(run_id).info.artifact_uri.startswith((place / "mlartifacts").as_uri())
        assert info is None or info.artifact_uri.startswith(old.as_uri())


def test_artifacts_that_the_user_keeps_elsewhere_stay_there(empty_database: Path, tmp_path: Path) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    elsewhere = (tmp_path / "elsewhere" / "aweigh").as_uri()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    MlflowClient(uri).create_experiment("mine", artifact_location=elsewhere)
    prepare(tmp_path / "mlflow.db")
    experiment = MlflowClient(uri).get_experiment_by_name("mine")
    assert experiment is not None
    assert experiment.artifact_location == elsewhere
