"""A trained detector under a name in MLflow's registry, with an alias that people and servers refer to."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data_shards.addresses import shown_address
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import with_flags
from pipelines.registering.model_folder import model_params, write_model
from pipelines.tracking import RunRecord, absolute_uri, tracking_uri
from pipelines.tracking.mlflow_client import cause, open_client, quiet_retries
from pipelines.tracking.models import MODEL_NAME, Version, find_experiment, model_of_step, register_model, send_model
from pipelines.tracking.sqlite_file import database_of
from pipelines.trained.trained import Trained, open_trained

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DATABASE = "mlflow.db"


@dataclass(frozen=True)
class Registered:
    """A version that was registered."""

    version: Version
    uri: str
    """Address of MLflow, without a password."""
    trained: Trained

    @property
    def address(self) -> str:
        """Address of the model, by its alias if it has one."""
        version = self.version
        return f"models:/{version.name}" + (f"@{version.alias}" if version.alias else f"/{version.number}")


def register(source: str, name: str, *, alias: str = "", newest: bool = False, flags: Sequence[str] = ()) -> Registered:
    """Register a trained detector as a version of a model.

    The model that its run has logged is registered. If there is none (an earlier version trained it, the server was
    away, another checkpoint is meant, or the source is a file), it is logged first.

    Args:
        source: a run's folder (its best checkpoint), a checkpoint's, or a weights file that describes itself.
        name: of the registered model, which is created if it is missing.
        alias: points to the new version from now on; empty moves none.
        newest: of a run, take the newest checkpoint instead of the best.
        flags: `--tracking.uri` and `--tracking.experiment`.

    Raises:
        ConfigError: the source is not a trained detector, the name cannot be used, or MLflow cannot be reached.
    """
    if unknown := [flag for flag in flags if flag.startswith("--") and not flag.startswith("--tracking.")]:
        raise ConfigError(f"unknown argument {unknown[0]!r}; only --tracking.uri and --tracking.experiment fit here.")
    if not name or name != name.strip() or any(sign in name for sign in "/:@"):
        raise ConfigError(f"{name!r} cannot be the name of a model; leave out / : @ and spaces at its ends.")
    if any(sign in alias for sign in "/:@"):
        raise ConfigError(f"--alias is {alias!r}; leave out / : and @.")
    trained = open_trained(source, newest=newest, device=torch.device("cpu"))
    uri, run_id = _place(trained, flags)
    step, experiment = trained.identity.step, with_flags(trained.recipe, flags).tracking.experiment
    try:
        with quiet_retries():
            client = open_client(uri)
            run_id, experiment_id = _run(client, run_id) or ("", find_experiment(client, uri, experiment))
            model = model_of_step(client, experiment_id, run_id, step) if run_id else None
            if model is not None and str(model.status) == "READY":
                model_id = model.model_id
            else:
                with tempfile.TemporaryDirectory() as temporary:
                    folder = Path(temporary) / MODEL_NAME
                    write_model(folder, trained)
                    params = model_params(trained)
                    model_id = send_model(
                        client, experiment_id, run_id, folder, name=MODEL_NAME, step=step, params=params
                    )
            for receipt in _receipts(trained):
                client.log_model_artifact(model_id, str(receipt), "receipts")
            version = register_model(client, uri, model_id, run_id, name, alias)
    except ConfigError:
        raise
    except Exception as error:  # MLflow passes on whatever its HTTP client, database and stores raise
        raise ConfigError(
            f"{name} cannot be registered at {shown_address(uri)} ({cause(error, uri)}). Run the command again when it "
            f"can be reached, or name another MLflow with --tracking.uri."
        ) from error
    return Registered(version, shown_address(uri), trained)


def _place(trained: Trained, flags: Sequence[str]) -> tuple[str, str]:
    """Return the address of the MLflow that has a detector's run, and the id of the run; it may be unknown there."""
    run_id = trained.identity.mlflow_run
    given = with_flags(trained.recipe, flags)
    folder = run_folder(trained)
    record = RunRecord.load(folder / "tracking") if folder else RunRecord()
    if folder is None or given.tracking.uri != trained.recipe.tracking.uri or not record.uri:
        return tracking_uri(given), record.run_id or run_id
    database = database_of(record.uri)
    if database is not None and not database.exists():
        # The folder of all runs was moved, with its database; the record names the old place.
        moved = next(
            (parent / _DATABASE for parent in folder.absolute().parents if (parent / _DATABASE).exists()), None
        )
        if moved is not None:
            return f"sqlite:///{moved}", record.run_id or run_id
    return absolute_uri(record.uri), record.run_id or run_id


def run_folder(trained: Trained) -> Path | None:
    """Return the folder of the run that a checkpoint is in; None for a file."""
    place = Path(trained.identity.location)
    if not place.is_dir() or place.parent.name != "checkpoints":
        return None
    return place.parent.parent


def _run(client: "MlflowClient", run_id: str) -> tuple[str, str] | None:
    """Return the ids of a run and of its experiment, if this MLflow has the run."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return (run_id, run.info.experiment_id) if run.info.lifecycle_stage == "active" else None


def _receipts(trained: Trained) -> list[Path]:
    """Find the receipts of exported files in the run's folder."""
    folder = run_folder(trained)
    if folder is None:
        return []
    return sorted({*folder.glob("*receipt*.json"), *folder.glob("*/*receipt*.json")})
