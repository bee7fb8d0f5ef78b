"""One MLflow run over all attempts: found or created before training, ended after it, remembered in `run.json`."""

import getpass
import logging
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data_shards.addresses import shown_address
from pipelines.errors import ConfigError
from pipelines.files import read_json, write_json
from pipelines.recipes.secrets import full_address, hide, hide_tracking
from pipelines.tracking.mlflow_client import (
    LONGEST_NAME,
    LONGEST_PARAM,
    LONGEST_TAG,
    PARAMS_PER_REQUEST,
    absolute_uri,
    cause,
    metric_name,
    open_client,
    quiet_retries,
)
from pipelines.tracking.spool import now_ms
from pipelines.tracking.sqlite_file import artifact_folder, database_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

RUN_TAG = "aweigh.run"
"""The tag that holds the run's name."""

# A name may be used again after its folder was deleted, and is another run then; an identity is drawn only once.
_IDENTITY_TAG = "aweigh.identity"


@dataclass
class RunRecord:
    """Contents of `run.json`: the run of a folder, and what MLflow has not received of it."""

    uri: str = ""
    experiment: str = ""
    experiment_id: str = ""
    run_name: str = ""
    identity: str = ""
    """Drawn at random by the folder's first attempt; it finds the run again, and a run that was created twice."""
    run_id: str = ""
    """Empty until the run is created."""
    previous_attempts: int = 0
    attempt: int = 0
    """1 for the first attempt; 0 until MLflow has answered."""
    started_ms: int = 0
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pending: bool = False
    """MLflow has not received the params, tags and status of this attempt."""
    status: str = ""
    """An end status that could not be delivered."""

    @classmethod
    def load(cls, folder: Path) -> "RunRecord":
        """Read `folder`/run.json; an empty record if it does not exist."""
        content = read_json(folder / "run.json")
        # A field of a later version is ignored, a field that this file's version lacked takes its default.
        names = {each.name for each in fields(cls)}
        record = cls(**{name: value for name, value in content.items() if name in names})
        # The file has no password; it is in the environment, of a recipe that was read or as the user set it.
        hide_tracking(os.environ.get("MLFLOW_TRACKING_URI", ""))
        record.uri = full_address(record.uri)
        return record

    def save(self, folder: Path) -> None:
        """Replace `folder`/run.json in one rename; passwords in the address stay out of it."""
        write_json(folder / "run.json", asdict(self) | {"uri": hide(self.uri)})


def start_run(
    uri: str,
    experiment: str,
    run_name: str,
    *,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    folder: Path,
    known_run_id: str = "",
) -> str:
    """Find or create the run and log its params and tags; called once an attempt, before training.

    The run is the one in `folder`/run.json, else `known_run_id`; without either it is a new one, even if there are
    runs of that name. Params are logged once; a value that differs in a later attempt N becomes the tag
    `attempt.N.changed.KEY`. If MLflow cannot be reached, one warning says so, training may start, and the folder's
    `Tracker` or `deliver_spool` catches up later.

    Args:
        uri: MLflow's address, as `absolute_uri` returns it.
        experiment: name of the experiment; created if missing, with its artifacts beside an SQLite file.
        run_name: name of the run, the same in every attempt.
        params: the resolved recipe, flattened.
        tags: more tags of the run, set by every attempt.
        folder: the run's own folder, on a disk that outlives the attempt.
        known_run_id: MLflow's id of the run from a checkpoint, for a folder that was lost.

    Returns:
        MLflow's run id; "" if the run could not be created yet.

    Raises:
        ConfigError: MLflow cannot store runs at the address, the experiment was deleted, or the folder belongs to
            another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old = RunRecord.load(folder)
    if old.run_name and (old.experiment, old.run_name) != (experiment, run_name):
        raise ConfigError(
            f"{folder} belongs to run {old.run_name!r} of experiment {old.experiment!r}, not to {run_name!r} of "
            f"{experiment!r}. Choose another --run.name, or delete {folder / 'run.json'}."
        )
    uri = absolute_uri(uri)
    record = RunRecord(
        uri=uri,
        experiment=experiment,
        experiment_id=old.experiment_id if old.uri == uri else "",
        run_name=run_name,
        identity=old.identity or uuid.uuid4().hex,
        run_id=(old.run_id or known_run_id) if old.uri in ("", uri) else "",
        previous_attempts=old.attempt or old.previous_attempts + bool(old.started_ms),
        started_ms=now_ms(),
        params={metric_name(key): value[:LONGEST_PARAM] for key, value in params.items()},
        tags={metric_name(key): value for key, value in tags.items()},
        pending=True,
    )
    try:
        with quiet_retries():
            open_run(record)
    except ConfigError:
        raise
    except Exception as error:  # MLflow passes on whatever its HTTP client, database and stores raise
        logger.warning(
            "tracking: the run cannot be opened at %s (%s); training continues, and all metrics are kept in %s and "
            "delivered later",
            shown_address(uri),
            cause(error, uri),
            folder,
        )
    record.save(folder)
    return record.run_id


def end_run(uri: str, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"], folder: Path | None = None) -> None:
    """Set the run's end and status; a failure is one warning, never raised.

    Args:
        uri: MLflow's address, as `absolute_uri` returns it.
        run_id: MLflow's id of the run; empty if `start_run` could not create it.
        status: how the attempt ended.
        folder: the folder of `start_run`. With it, a status that could not be delivered stays in run.json for
            `deliver_spool`, and a run that the `Tracker` created later is found without its id.
    """
    record = RunRecord.load(folder) if folder else RunRecord()
    try:
        with quiet_retries():
            client = open_client(uri)
            if not (run_id or record.run_id) and record.run_name and (run := find_run(client, record)):
                record.run_id = run.info.run_id
            if not (run_id or record.run_id):
                raise RuntimeError("the run was never created there")
            client.set_terminated(run_id or record.run_id, status)
    except Exception as error:
        kept = ""
        if folder:
            record.status = status
            with suppress(OSError):
                record.save(folder)
                kept = f"; it is kept in {folder / 'run.json'} and delivered later"
        logger.warning(
            "tracking: the end of the run, %s, could not be logged to %s (%s)%s",
            status,
            shown_address(uri),
            cause(error, uri),
            kept,
        )


def open_run(record: RunRecord) -> None:
    """Do at the server what `start_run` promises, and complete the record; raises whatever MLflow raises."""
    from mlflow.entities import Param, RunTag

    client = open_client(record.uri)
    run = find_run(client, record) or _create_run(client, record)
    record.run_id, record.experiment_id = run.info.run_id, run.info.experiment_id
    if not record.attempt:
        # The folder may have been lost, and the server may never have seen an attempt: the larger number counts.
        told = run.data.tags.get("attempt", "")
        record.attempt = 1 + max(record.previous_attempts, int(told) if told.isdecimal() else 0)
    known = run.data.params
    attempt = f"attempt.{record.attempt}"
    tags = {key: value[:LONGEST_TAG] for key, value in record.tags.items()}
    for key, value in record.params.items():
        if key in known and known[key] != value:
            tags[f"{attempt}.changed.{key}"[:LONGEST_NAME]] = value[:LONGEST_TAG]
    tags[f"{attempt}.started"] = datetime.fromtimestamp(record.started_ms / 1000, UTC).isoformat(timespec="seconds")
    tags["attempt"] = str(record.attempt)
    new = [Param(key, value) for key, value in record.params.items() if key not in known]
    for start in range(0, len(new), PARAMS_PER_REQUEST):
        client.log_batch(record.run_id, params=new[start : start + PARAMS_PER_REQUEST], synchronous=True)
    set_tags = [RunTag(key, value) for key, value in tags.items()]
    for start in range(0, len(set_tags), PARAMS_PER_REQUEST):
        client.log_batch(record.run_id, tags=set_tags[start : start + PARAMS_PER_REQUEST], synchronous=True)
    client.update_run(record.run_id, status="RUNNING")
    record.pending = False


def find_run(client: "MlflowClient", record: RunRecord) -> "Run | None":
    """Find the record's run by its id, else by experiment and identity; None if it does not exist or was deleted.

    Raises:
        ConfigError: the experiment was deleted.
    """
    from mlflow.exceptions import MlflowException

    if record.run_id:
        try:
            run = client.get_run(record.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            if run.info.lifecycle_stage == "active":
                return run
    experiment = client.get_experiment_by_name(record.experiment)
    if experiment is None:
        return None
    if experiment.lifecycle_stage != "active":
        raise ConfigError(
            f"experiment {record.experiment!r} was deleted at {shown_address(record.uri)}. Restore it with mlflow "
            f"experiments restore --experiment-id {experiment.experiment_id}, or set tracking.experiment to another."
        )
    return next(iter(_runs_of_this_identity(client, experiment.experiment_id, record.identity)), None)


def _runs_of_this_identity(client: "MlflowClient", experiment_id: str, identity: str) -> "list[Run]":
    return list(
        client.search_runs(
            [experiment_id],
            filter_string=f"tags.`{_IDENTITY_TAG}` = '{identity}'",
            order_by=["attributes.start_time ASC"],
        )
    )


def _create_run(client: "MlflowClient", record: RunRecord) -> "Run":
    """Create the run; if a request that was retried created two, keep the first and delete the other."""
    experiment = client.get_experiment_by_name(record.experiment)
    experiment_id = (
        experiment.experiment_id
        if experiment
        else client.create_experiment(
            record.experiment, artifact_location=artifact_location(record.uri, record.experiment)
        )
    )
    tags = {
        RUN_TAG: record.run_name,
        _IDENTITY_TAG: record.identity,
        "mlflow.user": _user(),
        "mlflow.source.name": "aweigh",
        "mlflow.source.type": "LOCAL",
    }
    client.create_run(experiment_id, start_time=record.started_ms, tags=tags, run_name=record.run_name)
    # MLflow's client retries a request whose answer was lost, although the server may have carried it out.
    run, *ghosts = _runs_of_this_identity(client, experiment_id, record.identity)
    for ghost in ghosts:
        if ghost.info.start_time == record.started_ms and not ghost.data.metrics:
            client.delete_run(ghost.info.run_id)
    return run


def artifact_location(uri: str, experiment: str) -> str | None:
    """Return the artifact folder beside an SQLite file; None lets a server decide."""
    database = database_of(uri)
    return artifact_folder(database, experiment).as_uri() if database else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id in a container may have no name
        return str(os.getuid())
