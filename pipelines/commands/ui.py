"""`aweigh ui`: MLflow's own server on the database beside the runs."""

import os
import sys
from pathlib import Path

from pipelines.console import say
from pipelines.errors import ConfigError


def open_ui(folder: Path, port: int) -> None:
    """Become MLflow's server for the runs of a folder.

    Raises:
        ConfigError: there is no MLflow database in the folder.
    """
    database = (folder / "mlflow.db").resolve()
    if not database.exists():
        raise ConfigError(
            f"{folder} has no mlflow.db: no run was tracked there. Name the folder of your runs with --folder, or open "
            f"the MLflow server that tracking.uri names."
        )
    say("ui", f"http://127.0.0.1:{port}  (Ctrl-C ends it)")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # The job runner serves MLflow features that no training uses, with processes of its own.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    arguments = ["--backend-store-uri", f"sqlite:///{database}", "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *arguments, "--workers", "1"])
