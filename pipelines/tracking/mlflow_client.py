"""How MLflow is reached: the client and its settings, addresses, names, limits, and errors in one line."""

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipelines.recipes.settings import Recipe

# MLflow's limits: params or tags in one request, and characters in a value or name.
PARAMS_PER_REQUEST = 100
LONGEST_PARAM = 6000
LONGEST_TAG = 5000
LONGEST_NAME = 250
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
LONGEST_PAUSE_SECONDS = 60.0
# MLflow itself would try for four minutes, send usage data, and print among our results. What the user set stays.
_MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def open_client(uri: str) -> "MlflowClient":
    """Open MLflow's client with short timeouts and no telemetry; imports MLflow, which takes 3 s."""
    for key, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(key, value)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def absolute_uri(uri: str) -> str:
    """Give the address of a tracking server or database that means the same in every process.

    Raises:
        ConfigError: the address is of a kind that MLflow does not serve, or its folder cannot be made.
    """
    scheme = uri if uri == "databricks" else urlsplit(uri).scheme.partition("+")[0]
    if scheme not in _SCHEMES:
        raise ConfigError(
            f"tracking.uri {uri!r} is no address that MLflow stores runs at. Write "
            "sqlite:////FOLDER/mlflow.db or http://HOST:PORT."
        )
    if scheme != "sqlite":
        return uri
    database, question, query = uri.partition("://")[2].removeprefix("/").partition("?")
    if not database:
        raise ConfigError(f"tracking.uri {uri!r} names no file. Write sqlite:////FOLDER/mlflow.db.")
    path = Path(database).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"tracking.uri {uri!r}: {path.parent} cannot be made ({error.strerror}). Name a folder you may write."
        ) from error
    return f"sqlite:///{path}{question}{query}"


def tracking_uri(recipe: "Recipe") -> str:
    """Where MLflow is: as the recipe says, else MLFLOW_TRACKING_URI, else SQLite beside the runs."""
    uri = recipe.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    return absolute_uri(uri or f"sqlite:///{Path(recipe.run.folder).resolve() / 'mlflow.db'}")


def metric_name(text: str) -> str:
    """Give the nearest name that MLflow takes: letters, digits and `_ - . : / space`, no empty path parts.

    `val/AP/cat (big)` becomes `val/AP/cat _big_`.
    """
    parts = re.sub(r"[^/\w.\- :]", "_", text).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:LONGEST_NAME].rstrip("/") or "_"


def class_metric_name(prefix: str, class_name: str) -> str:
    """Return the metric name of a class below `prefix`; a `/` in the class's name becomes `_`.

    MLflow draws a section of charts for each folder of names. With its `/` kept, class `Box/Square` would be moved
    from the other classes' section `val/AP` into a section of its own.
    """
    return metric_name(f"{prefix}/{class_name.replace('/', '_')}")


def shown(uri: str) -> str:
    """Give an address without the password in it."""
    return re.sub(r"://[^@/\s]+@", "://", uri)


def brief(error: BaseException) -> str:
    """Give an error in one line, without the password of an address.

    What the operating system said says it best: MLflow's own text of a refused connection fills four lines.
    """
    told, inner = error, error.__cause__ or error.__context__
    while inner is not None:
        told = inner if isinstance(inner, OSError) else told
        inner = inner.__cause__ or inner.__context__
    lines = str(told).splitlines()
    return shown(f"{type(told).__name__}: {lines[0][:200]}" if lines else type(told).__name__)


class _Quiet(threading.local):
    on = False


_quiet = _Quiet()


def _unless_quiet(record: logging.LogRecord) -> bool:
    return not _quiet.on


@contextmanager
def quiet_retries() -> Iterator[None]:
    """Keep urllib3 from warning of each retry of this thread: an outage of hours is one line, ours."""
    pool = logging.getLogger("urllib3.connectionpool")
    if _unless_quiet not in pool.filters:
        pool.addFilter(_unless_quiet)
    _quiet.on = True
    try:
        yield
    finally:
        _quiet.on = False


def logged_steps(uri: str, experiment_id: str, run_name: str, key: str) -> dict[str, list[int]]:
    """Ask MLflow for the steps at which a metric was logged, in their order, by the id of each run of a name."""
    client = open_client(uri)
    runs = client.search_runs([experiment_id], filter_string=f"attributes.run_name = '{run_name}'")
    return {run.info.run_id: [point.step for point in client.get_metric_history(run.info.run_id, key)] for run in runs}
