"""Models in MLflow: logged with the run that trained them, registered under a name, and fetched by their address.

A model is a folder in MLflow's format. Its upload may end half-way, so a model counts only once it is READY, and the
same step of a run is never logged twice.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.addresses import shown_address
from pipelines.errors import ConfigError
from pipelines.hints import did_you_mean
from pipelines.tracking.mlflow_client import brief, open_client
from pipelines.tracking.run import artifact_location
from pipelines.tracking.sqlite_file import database_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

MODEL_NAME = "detector"
"""Name of the models that runs log."""

WEIGHTS = "data/weights.safetensors"
"""The weights in a model's folder, in a file that describes itself."""

_STEP_TAG = "aweigh.step"
_ADDRESS = re.compile(r"models:/+(?P<name>[^/@]+)(?:/(?P<version>\d+|latest)|@(?P<alias>[^/@]+))?")
_MODEL_ID = re.compile(r"models:/+(?P<id>m-[0-9a-f]{32})")


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    number: int
    model_id: str
    is_new: bool
    """False if this model was registered under this name before."""
    alias: str
    previous: int
    """Version to which the alias pointed before; 0 if there was none."""


def model_of_step(client: "MlflowClient", experiment_id: str, run_id: str, step: int) -> "LoggedModel | None":
    """Return the model that a run has logged at a step, whole or half uploaded."""
    found = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    return next((model for model in found if model.tags.get(_STEP_TAG) == str(step)), None)


def send_model(
    client: "MlflowClient",
    experiment_id: str,
    run_id: str,
    folder: Path,
    *,
    name: str,
    step: int,
    params: Mapping[str, str],
) -> str:
    """Log a model's folder; a model of the same run and step that is whole is not sent again.

    Args:
        client: of the server.
        experiment_id: the experiment of the run.
        run_id: the run that trained the model; empty for weights of no run.
        folder: the model, in MLflow's format.
        name: name of the model.
        step: steps that its weights were trained.
        params: shown with the model.

    Returns:
        MLflow's id of the model.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    model = model_of_step(client, experiment_id, run_id, step) if run_id else None
    if model is None:
        model = client.create_logged_model(
            experiment_id,
            name,
            source_run_id=run_id or None,
            tags={_STEP_TAG: str(step)},
            params=dict(params),
            model_type="object-detection",
        )
    elif str(model.status) == "READY":
        return model.model_id
    # The folder was written before the server knew of it.
    described = Model.load(folder)
    described.run_id, described.artifact_path = run_id or None, model.artifact_location
    described.model_uuid = described.model_id = model.model_id
    described.save(folder / "MLmodel")
    client.log_model_artifacts(model.model_id, str(folder))
    if run_id:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id


def find_experiment(client: "MlflowClient", uri: str, name: str) -> str:
    """Return the id of an experiment; it is created if it is missing."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    return client.create_experiment(name, artifact_location=artifact_location(uri, name))


def register_model(client: "MlflowClient", uri: str, model_id: str, run_id: str, name: str, alias: str) -> Version:
    """Register a logged model under a name, and let the alias point to its version.

    A model that the name has already keeps its version.

    Args:
        client: of the server.
        uri: address of the server.
        model_id: the model.
        run_id: the run that trained it; empty for none.
        name: name of the registered model, which is created if it is missing.
        alias: moved from another version; empty moves none.

    Raises:
        ConfigError: MLflow accepts no such name or alias.
    """
    from mlflow.exceptions import MlflowException

    try:
        registered = _registered(client, name) or client.create_registered_model(name)
        known = client.search_model_versions(f"name = '{_quoted(name)}'")
        version = next((one for one in known if one.source == f"models:/{model_id}"), None)
        is_new = version is None
        if version is None:
            with _used_by_default(uri):
                version = client.create_model_version(
                    name, f"models:/{model_id}", run_id or None, model_id=model_id, await_creation_for=60
                )
        previous = int(registered.aliases.get(alias, 0))
        if alias and previous != int(version.version):
            client.set_registered_model_alias(name, alias, version.version)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        raise ConfigError(f"{name!r} with alias {alias!r} cannot be registered: {brief(error)}") from error
    return Version(name, int(version.version), model_id, is_new, alias, previous)


def download_weights(uri: str, address: str, folder: Path) -> tuple[Path, str]:
    """Fetch the weights of a model.

    Args:
        uri: address of the MLflow server or database, as `absolute_uri` returns it.
        address: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `models:/NAME/latest` or `models:/m-…`.
        folder: receives the file, unless it is on this machine already.

    Returns:
        The file, and the address with the version instead of an alias.

    Raises:
        ConfigError: there is no such model, MLflow does not answer, or the model is not one of ours.
    """
    where = shown_address(uri)
    if (database := database_of(uri)) and not database.exists():
        raise ConfigError(
            f"{address}: there is no MLflow database {database}. Name the one that has the model with --tracking.uri, "
            f"or in MLFLOW_TRACKING_URI."
        )
    client = open_client(uri)
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        location, exact = _location(client, address, where)
    except MlflowException as error:
        raise ConfigError(
            f"{address} cannot be looked up at {where} ({brief(error)}). Check --tracking.uri or MLFLOW_TRACKING_URI, "
            f"and that the server runs."
        ) from error
    try:
        path = Path(
            download_artifacts(artifact_uri=f"{location.rstrip('/')}/{WEIGHTS}", dst_path=str(folder), tracking_uri=uri)
        )
    except Exception as error:  # of whatever stores the artifacts
        raise ConfigError(
            f"{address} has no {WEIGHTS} at {shown_address(location)} ({brief(error)}). Give a model that `aweigh "
            f"register` registered, and check that this machine reaches the store of its artifacts."
        ) from error
    return path, exact


@contextmanager
def _used_by_default(uri: str) -> Iterator[None]:
    """Make an address MLflow's default: its registry in a database looks models up there, whatever its client uses."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def _location(client: "MlflowClient", address: str, where: str) -> tuple[str, str]:
    """Return where a model's folder is, and its exact address."""
    from mlflow.exceptions import MlflowException

    if match := _MODEL_ID.fullmatch(address):
        try:
            return client.get_logged_model(match["id"]).artifact_location, address
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
                raise
            raise ConfigError(f"{where} has no model {match['id']}. Give models:/NAME@ALIAS.") from error
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ConfigError(f"{address} is not the address of a model. Write models:/NAME@ALIAS or models:/NAME/VERSION.")
    name = match["name"]
    registered = _registered(client, name)
    if registered is None:
        known = [one.name for one in client.search_registered_models()]
        hint = did_you_mean(name, known, f"it has {', '.join(sorted(known)) or 'none yet'}.")
        raise ConfigError(f"{where} has no registered model {name!r}; {hint} `aweigh register RUN NAME` registers one.")
    versions = {str(one.version): one for one in client.search_model_versions(f"name = '{_quoted(name)}'")}
    number = match["version"]
    if match["alias"]:
        number = str(registered.aliases.get(match["alias"], ""))
    elif number == "latest":
        number = max(versions, key=int, default="")
    if number not in versions:
        aliases = ", ".join(f"@{alias}" for alias in sorted(registered.aliases)) or "none"
        what = f"alias {match['alias']!r}" if match["alias"] else f"version {match['version'] or '(which?)'}"
        raise ConfigError(
            f"registered model {name!r} has no {what}; it has versions "
            f"{', '.join(sorted(versions, key=int)) or 'none'} and aliases {aliases}. Write models:/{name}@ALIAS or "
            f"models:/{name}/VERSION."
        )
    version: Any = versions[number]
    exact = f"models:/{name}/{number}"
    if model_id := getattr(version, "model_id", None) or _id_in(version.source):
        return client.get_logged_model(model_id).artifact_location, exact
    return client.get_model_version_download_uri(name, number), exact


def _registered(client: "MlflowClient", name: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _id_in(source: str) -> str:
    match = _MODEL_ID.fullmatch(source or "")
    return match["id"] if match else ""


def _quoted(name: str) -> str:
    return name.replace("'", "''")
