"""`aweigh ui`: MLflow's own server on the database beside the runs."""

import argparse
import os
import sys
from pathlib import Path

from pipelines.commands.arguments import Commands
from pipelines.console import say
from pipelines.errors import ConfigError


def add(commands: Commands) -> None:
    """Add `ui`."""
    ui = commands.add_parser("ui", help="open MLflow on the runs of a folder")
    ui.add_argument("--folder", type=Path, default="runs", help="folder of the runs (default: runs)")
    ui.add_argument("--port", type=int, default=5000, help="port on this machine (default: 5000)")
    ui.set_defaults(run=run)


def run(known: argparse.Namespace) -> None:
    """Replace this process by MLflow's server.

    Raises:
        ConfigError: there is no MLflow database in the folder.
    """
    database = (known.folder / "mlflow.db").resolve()
    if not database.exists():
        raise ConfigError(
            f"{known.folder} has no mlflow.db, so no run was tracked there. Give the folder of your runs as --folder, "
            f"or open the MLflow server that tracking.uri names."
        )
    from pipelines.tracking.sqlite_file import prepare

    prepare(database)
    say("ui", f"http://127.0.0.1:{known.port}  (Ctrl-C ends it)")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # The job runner serves MLflow features that no training uses, with processes of its own.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    arguments = ["--backend-store-uri", f"sqlite:///{database}", "--host", "127.0.0.1", "--port", str(known.port)]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *arguments, "--workers", "1"])
