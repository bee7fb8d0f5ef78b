"""Delivery of a run's spool to MLflow, each point exactly once, from any process."""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data_shards.addresses import shown_address
from data_shards.counting import counted
from pipelines.files import read_json, write_json
from pipelines.tracking.mlflow_client import (
    LONGEST_PAUSE_SECONDS,
    LONGEST_TAG,
    brief,
    cause,
    open_client,
    quiet_retries,
)
from pipelines.tracking.models import send_model
from pipelines.tracking.run import RunRecord, open_run
from pipelines.tracking.spool import METRICS_PER_LINE, JsonLines, sole_delivery

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)


class _Point(NamedTuple):
    key: str
    value: float
    time_ms: int
    step: int
    since_ms: int


class ArtifactStoreError(RuntimeError):
    """The place of the artifacts cannot be written, although the tracking server answers."""


class Delivery:
    """Delivers a folder's spool; one pass at a time, from any process, each point once.

    Before the first point of a key, and again after any failure, MLflow is asked for the key's history. A point is left
    out if MLflow has its step already (a crash, or a lost answer, after delivery), or if an earlier attempt, by the
    time of its points, went further (a new attempt on another node, whose spool starts empty).

    Args:
        folder: the spool's folder, with the run.json of `start_run`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        record = RunRecord.load(folder)
        self.uri, self.run_id = record.uri, record.run_id
        self.metrics_offset, self.artifacts_offset = self._delivered()
        self._metrics = JsonLines(folder / "metrics.jsonl")
        self._artifacts = JsonLines(folder / "artifacts.jsonl")
        self._client: MlflowClient | None = None
        self._time_of_step: dict[str, dict[int, int]] = {}
        self._floor: dict[tuple[str, int], int | None] = {}
        self._keys: set[str] | None = None
        self._images: set[str] | None = None

    def deliver(self, go_on: Callable[[], bool]) -> bool:
        """Deliver the spool while `go_on()` is true; raises whatever MLflow raises.

        Returns:
            False, without a delivery, if another thread or process is delivering.
        """
        with sole_delivery(self.folder) as free, quiet_retries():
            if not free:
                return False
            try:
                client = self._open()
                while go_on() and (self._deliver_metrics(client) or self._deliver_artifact(client)):
                    pass
            except BaseException:
                # Whether the last request arrived is unknown now; ask MLflow before the next point.
                self._forget()
                raise
        return True

    def deliver_status(self) -> None:
        """Deliver an end status that `end_run` could not."""
        record = RunRecord.load(self.folder)
        if record.status and record.run_id and self._client:
            self._client.set_terminated(record.run_id, record.status)
            record.status = ""
            record.save(self.folder)

    def count_left(self) -> tuple[int, int]:
        """Return the numbers of points and artifacts that are not known to be delivered."""
        points = sum(
            len(record["metrics"]) for record, _ in self._metrics.read(self.metrics_offset) if record is not None
        )
        return points, sum(1 for _ in self._artifacts.read(self.artifacts_offset))

    def _open(self) -> "MlflowClient":
        record = RunRecord.load(self.folder)
        if not record.uri:
            raise RuntimeError(f"{self.folder} has no run.json, so its run is unknown")
        if record.pending:
            try:
                open_run(record)
            finally:
                record.save(self.folder)
        if self._client is None or self.uri != record.uri:
            self._client = open_client(record.uri)
        self.uri, self.run_id = record.uri, record.run_id
        offsets = self._delivered()
        # Another process has delivered since: what this one remembers of MLflow is out of date.
        if offsets != (self.metrics_offset, self.artifacts_offset):
            self._forget()
        self.metrics_offset, self.artifacts_offset = offsets
        return self._client

    def _delivered(self) -> tuple[int, int]:
        state = read_json(self.folder / "delivered.json")
        # A run that replaces the first one, which was deleted or whose server was replaced, receives everything.
        same = state.get("run_id") == self.run_id
        return (state.get("metrics", 0), state.get("artifacts", 0)) if same else (0, 0)

    def _forget(self) -> None:
        self._time_of_step.clear()
        self._floor.clear()
        self._keys = None
        self._images = None

    def _record(self) -> None:
        state = {"run_id": self.run_id, "metrics": self.metrics_offset, "artifacts": self.artifacts_offset}
        write_json(self.folder / "delivered.json", state)

    def _deliver_metrics(self, client: "MlflowClient") -> bool:
        points: list[_Point] = []
        end = self.metrics_offset
        for record, after in self._metrics.read(end):
            if record is None:
                logger.warning("tracking: a damaged line in %s is skipped", self._metrics.path)
            elif len(points) + len(record["metrics"]) > METRICS_PER_LINE:
                break
            else:
                points += [
                    _Point(key, value, record["time_ms"], record["step"], record["since_ms"])
                    for key, value in record["metrics"].items()
                ]
            end = after
        if end == self.metrics_offset:
            return False
        if new := [point for point in points if self._take(client, point)]:
            self._send(client, new)
        # After the request: a crash in between asks MLflow again, the other order would lose the points.
        self.metrics_offset = end
        self._record()
        return True

    def _take(self, client: "MlflowClient", point: _Point) -> bool:
        """Return whether MLflow needs a point, and remember it as delivered."""
        times = self._time_of_step.get(point.key)
        if times is None:
            times = self._time_of_step[point.key] = self._history(client, point.key)
        # Computed once for each attempt, before its own points are in the history.
        attempt = (point.key, point.since_ms)
        if attempt not in self._floor:
            earlier = (step for step, time_ms in times.items() if time_ms < point.since_ms)
            self._floor[attempt] = max(earlier, default=None)
        floor = self._floor[attempt]
        if point.step in times or (floor is not None and point.step <= floor):
            return False
        times[point.step] = point.time_ms
        return True

    def _history(self, client: "MlflowClient", key: str) -> dict[int, int]:
        """Return MLflow's points of a key, as times in ms by step; one request serves all keys of a new run."""
        if self._keys is None:
            self._keys = set(client.get_run(self.run_id).data.metrics)
        if key not in self._keys:
            return {}
        return {metric.step: metric.timestamp for metric in client.get_metric_history(self.run_id, key)}

    def _send(self, client: "MlflowClient", points: list[_Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in points]
        if self._refused(lambda: client.log_batch(self.run_id, metrics=metrics, synchronous=True), client):
            if len(points) == 1:
                logger.warning(
                    "tracking: %s refuses metric %r of step %d, which is skipped",
                    shown_address(self.uri),
                    points[0].key,
                    points[0].step,
                )
                return
            # One bad point would hold back all that follow: halve the batch until it is alone.
            self._send(client, points[: len(points) // 2])
            self._send(client, points[len(points) // 2 :])

    def _refused(self, request: Callable[[], object], client: "MlflowClient") -> bool:
        """Make a request and return whether MLflow will never accept it; raises if it may accept it later."""
        from mlflow.exceptions import MlflowException

        try:
            request()
        except MlflowException as error:
            # A run that was deleted refuses everything with the same code, but it may be restored.
            # MLflow 2 has no models of a run; its servers know no such request.
            active = error.error_code in ("INVALID_PARAMETER_VALUE", "ENDPOINT_NOT_FOUND") and (
                client.get_run(self.run_id).info.lifecycle_stage == "active"
            )
            if not active:
                raise
            return True
        return False

    def _deliver_artifact(self, client: "MlflowClient") -> bool:
        record, end = next(self._artifacts.read(self.artifacts_offset), (None, self.artifacts_offset))
        if end == self.artifacts_offset:
            return False
        if record and self._refused(lambda: self._send_artifact_or_blame(client, record), client):
            logger.warning("tracking: %s refuses artifact %s, which is skipped", shown_address(self.uri), record)
        self.artifacts_offset = end
        self._record()
        if record:
            shutil.rmtree(self.folder / "artifacts" / f"{record['number']:06d}", ignore_errors=True)
        return True

    def _send_artifact_or_blame(self, client: "MlflowClient", record: dict[str, Any]) -> None:
        """Send an artifact; if that fails while the server answers, say that its artifact store is at fault."""
        from mlflow.exceptions import MlflowException

        try:
            self._send_artifact(client, record)
        except MlflowException:
            raise
        except Exception as error:
            uri = client.get_run(self.run_id).info.artifact_uri
            raise ArtifactStoreError(
                f"the artifact store {shown_address(uri)} cannot be written from this machine ({brief(error)}): make "
                f"it reachable, or start `mlflow server` with --artifacts-destination, which passes artifacts on"
            ) from error

    def _send_artifact(self, client: "MlflowClient", record: dict[str, Any]) -> None:
        if record["kind"] == "tags":
            for key, value in record["tags"].items():
                client.set_tag(self.run_id, key, value[:LONGEST_TAG], synchronous=True)
            return
        path = self.folder / "artifacts" / f"{record['number']:06d}" / record["file"]
        if not path.exists():
            return
        if record["kind"] == "model":
            experiment_id = client.get_run(self.run_id).info.experiment_id
            send_model(
                client,
                experiment_id,
                self.run_id,
                path,
                name=record["file"],
                step=record["step"],
                params=record["params"],
            )
        elif record["kind"] == "file":
            client.log_artifact(self.run_id, str(path), record["artifact_path"] or None)
        elif not self._has_image(client, record["image_key"], record["step"]):
            import PIL.Image

            with PIL.Image.open(path) as image:
                client.log_image(
                    self.run_id,
                    image,
                    key=record["image_key"],
                    step=record["step"],
                    timestamp=record["time_ms"],
                    synchronous=True,
                )

    def _has_image(self, client: "MlflowClient", key: str, step: int) -> bool:
        # MLflow writes the preview last, so a picture with a preview is complete.
        if self._images is None:
            names = (Path(entry.path).name for entry in client.list_artifacts(self.run_id, "images"))
            self._images = {name.partition("+timestamp+")[0] for name in names if "+compressed" in name}
        name = f"{key.replace('/', '~')}+step+{step}"
        known = name in self._images
        self._images.add(name)
        return known


def deliver_spool(folder: Path, timeout_seconds: float = 60.0) -> bool:
    """Deliver what earlier processes left in a spool; never raises, warns once.

    Args:
        folder: the spool's folder.
        timeout_seconds: give up after this time.

    Returns:
        True if nothing is left.
    """
    delivery = Delivery(folder)
    deadline = time.monotonic() + timeout_seconds
    pause = 1.0
    while True:
        reason = "another process is delivering it"
        try:
            if delivery.deliver(lambda: time.monotonic() < deadline) and not any(delivery.count_left()):
                delivery.deliver_status()
                return True
        except ArtifactStoreError as error:
            reason = str(error)
        except Exception as error:
            reason = cause(error, delivery.uri)
        if time.monotonic() + pause > deadline:
            warn_of_rest(delivery, reason)
            return False
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def warn_of_rest(delivery: Delivery, reason: str) -> None:
    """Log in one line what is left in the spool, and its folder."""
    points, artifacts = delivery.count_left()
    logger.warning(
        "tracking: %s and %s could not be delivered to %s (%s); they stay in %s and are delivered when the run starts "
        "again",
        counted(points, "point"),
        counted(artifacts, "artifact"),
        shown_address(delivery.uri or RunRecord.load(delivery.folder).uri),
        reason,
        delivery.folder,
    )
