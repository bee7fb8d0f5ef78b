"""MLflow's client: its settings, addresses, names, limits, and its errors in one line."""

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from data_shards.addresses import proxy_hint, shown_address
from pipelines.errors import ConfigError
from pipelines.recipes.secrets import full_address, hide_tracking
from pipelines.tracking.sqlite_file import database_of, prepare

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
# By default MLflow retries for four minutes, sends usage data, and prints among our results. Variables that the user
# has set are kept.
_MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def open_client(uri: str) -> "MlflowClient":
    """Open MLflow's client with short timeouts and no telemetry; the import of MLflow takes 3 s.

    An SQLite file is made first if it is missing.
    """
    for key, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(key, value)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    if database := database_of(uri):
        prepare(database)
    return MlflowClient(uri)


def absolute_uri(uri: str) -> str:
    """Return the address of a tracking server or database as every process finds it, whatever its working directory.

    Raises:
        ConfigError: MLflow cannot store runs at such an address, or the folder of a database cannot be created.
    """
    scheme = uri if uri == "databricks" else urlsplit(uri).scheme.partition("+")[0]
    if scheme not in _SCHEMES:
        raise ConfigError(
            f"tracking.uri {shown_address(uri)!r} is not an address at which MLflow stores runs. Write "
            "sqlite:////FOLDER/mlflow.db or http://HOST:PORT."
        )
    if scheme != "sqlite":
        return uri
    database, question, query = uri.partition("://")[2].removeprefix("/").partition("?")
    if not database:
        raise ConfigError(f"tracking.uri {shown_address(uri)!r} names no file. Write sqlite:////FOLDER/mlflow.db.")
    path = Path(database).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"tracking.uri {shown_address(uri)!r}: folder {path.parent} cannot be created ({error.strerror}). Name a "
            f"folder that you can write."
        ) from error
    return f"sqlite:///{path}{question}{query}"


def tracking_uri(recipe: "Recipe") -> str:
    """Return MLflow's address: the recipe's, else MLFLOW_TRACKING_URI, else an SQLite file beside the runs.

    Raises:
        ConfigError: as `absolute_uri`.
    """
    uri = full_address(recipe.tracking.uri or hide_tracking(os.environ.get("MLFLOW_TRACKING_URI", "")))
    return absolute_uri(uri or f"sqlite:///{Path(recipe.run.folder).resolve() / 'mlflow.db'}")


def metric_name(text: str) -> str:
    """Return the nearest name that MLflow accepts: letters, digits and `_ - . : / space`, no empty path parts.

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


def brief(error: BaseException) -> str:
    """Return an error in one line, without the password of an address.

    An error of the operating system behind it is preferred: MLflow's own text of a refused connection has four lines.
    """
    told, inner = error, error.__cause__ or error.__context__
    while inner is not None:
        told = inner if isinstance(inner, OSError) else told
        inner = inner.__cause__ or inner.__context__
    lines = str(told).splitlines()
    return shown_address(f"{type(told).__name__}: {lines[0][:200]}" if lines else type(told).__name__)


def cause(error: BaseException, uri: str) -> str:
    """Return an error of the server at `uri` in one line, with the proxy variable that its requests obey, if any."""
    from mlflow.exceptions import MlflowException, RestException
    from requests import RequestException

    # A RestException is MLflow's own answer, so it came through.
    of_the_way = isinstance(error, (MlflowException, RequestException)) and not isinstance(error, RestException)
    hint = proxy_hint(uri, like_requests=True) if of_the_way else ""
    return f"{brief(error)}; {hint.removesuffix('.')}" if hint else brief(error)


# Of this thread only: what the user's other threads retry is still reported.
class _Quiet(threading.local):
    on = False


_quiet = _Quiet()


def _unless_quiet(record: logging.LogRecord) -> bool:
    return not _quiet.on


@contextmanager
def quiet_retries() -> Iterator[None]:
    """Silence urllib3's warning of each retry of this thread: an outage of hours is one line, which is ours."""
    pool = logging.getLogger("urllib3.connectionpool")
    if _unless_quiet not in pool.filters:
        pool.addFilter(_unless_quiet)
    _quiet.on = True
    try:
        yield
    finally:
        _quiet.on = False


def logged_steps(uri: str, experiment_id: str, run_name: str, key: str) -> dict[str, list[int]]:
    """Return the steps at which a metric was logged, in order, by the id of each run with this name."""
    client = open_client(uri)
    runs = client.search_runs([experiment_id], filter_string=f"attributes.run_name = '{run_name}'")
    return {run.info.run_id: [point.step for point in client.get_metric_history(run.info.run_id, key)] for run in runs}
