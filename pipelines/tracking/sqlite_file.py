"""MLflow's SQLite file: made in one step, so that a kill leaves none or a whole one, with its artifacts beside it.

Unusual here: MLflow makes a file in dozens of migrations, and never repairs one that was killed in between. So a new
file is made under another name and renamed. Rows of MLflow's tables are changed only after the folder has moved.
"""

import fcntl
import logging
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

logger = logging.getLogger(__name__)

ARTIFACTS = "mlartifacts"
"""Folder of the artifacts, beside the file."""

_BESIDE = ("-journal", "-wal", "-shm")
"""Suffixes of SQLite's own files, which must never meet a database that they do not belong to."""
_BUSY_SECONDS = 20.0


def database_of(uri: str) -> Path | None:
    """Return the file of an SQLite address; None for other addresses and databases in memory."""
    if urlsplit(uri).scheme.partition("+")[0] != "sqlite":
        return None
    name = uri.partition("://")[2].removeprefix("/").partition("?")[0]
    return None if name in ("", ":memory:") else Path(name)


def artifact_folder(database: Path, experiment: str) -> Path:
    """Return the folder of an experiment's artifacts beside the database."""
    return database.parent / ARTIFACTS / re.sub(r"[^\w.\-]", "_", experiment)


def prepare(database: Path) -> None:
    """Make the file unless it exists, make a half-made one again, and follow a folder that has moved.

    A file with experiments or runs, or of another program, is never replaced.

    Raises:
        OSError: the folder cannot be written.
    """
    if not _is_half_made(database):
        _follow(database)
        return
    with _locked(database):
        # Another process may have made it meanwhile.
        if _is_half_made(database):
            _make(database)


def _is_half_made(database: Path) -> bool:
    """Return True if nothing is lost by making the file again: it is missing, or MLflow has never finished it."""
    try:
        if not database.exists() or database.stat().st_size == 0:
            return True
        with closing(_open(database)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            # MLflow inserts its first experiment after all migrations.
            if "experiments" in tables:
                return not any(_has_rows(connection, table) for table in tables & {"experiments", "runs"})
            return tables <= {"alembic_version"}
    except sqlite3.Error:
        return False  # not a database, or busy: MLflow reports it


def _has_rows(connection: sqlite3.Connection, table: str) -> bool:
    return connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None


def _make(database: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    if database.exists():
        logger.warning("tracking: %s was half made, by a process that was killed; it is made again", database)
    # Only a killed process leaves such files behind: the lock is held by this one.
    for leftover in database.parent.glob(f".{database.name}.*.part*"):
        leftover.unlink(missing_ok=True)
    unfinished = database.with_name(f".{database.name}.{secrets.token_hex(4)}.part")
    try:
        store = SqlAlchemyStore(f"sqlite:///{unfinished}", (database.parent / ARTIFACTS).as_uri())
        store.engine.dispose()
        for suffix in _BESIDE:
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        unfinished.replace(database)
    finally:
        for suffix in ("", *_BESIDE):
            unfinished.with_name(unfinished.name + suffix).unlink(missing_ok=True)


def _follow(database: Path) -> None:
    """Point experiments whose artifacts were beside the file at the folder where the file is now."""
    with suppress(sqlite3.Error), closing(_open(database)) as connection:
        rows = connection.execute("SELECT experiment_id, name, artifact_location FROM experiments").fetchall()
        moved = []
        for number, name, location in rows:
            old, new = _local_path(location), artifact_folder(database, name)
            if old is None or old == new or (old.parent.name, old.name) != (ARTIFACTS, new.name):
                continue
            # If only the file was moved, the artifacts stay where they are.
            if new.exists() or not old.exists():
                moved.append((number, location.rstrip("/"), new))
        for number, location, new in moved:
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new.as_uri(), number)
            )
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (new.as_uri(), len(location) + 1, number, len(location) + 1, f"{location}/"),
            )
            _move_models(connection, location, new.as_uri())
        connection.commit()
        if moved:
            logger.warning(
                "tracking: the folder of %s has moved; artifacts are written to and shown from %s, no longer from %s",
                database.name,
                database.parent / ARTIFACTS,
                unquote(urlsplit(moved[0][1]).path).rpartition("/")[0],
            )


def _move_models(connection: sqlite3.Connection, old: str, new: str) -> None:
    """Point models, and their registered versions, at the new folder."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    # A file of an earlier MLflow has no models yet.
    for table, column in (("logged_models", "artifact_location"), ("model_versions", "storage_location")):
        if table in tables:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old) + 1, f"{old}/"),
            )


def _local_path(location: str | None) -> Path | None:
    parts = urlsplit(location or "")
    return Path(unquote(parts.path)) if parts.scheme == "file" and not parts.netloc else None


def _open(database: Path) -> sqlite3.Connection:
    # Not read-only: what a killed process left in the journal is rolled back first.
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, timeout=_BUSY_SECONDS)


@contextmanager
def _locked(database: Path) -> Iterator[None]:
    with database.with_name(f".{database.name}.lock").open("w") as file:
        # A file system without locks: two first runs at the same moment are rare, and one of them makes it again.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
