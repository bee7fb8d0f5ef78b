"""The tracker of rank 0: calls that only write to disk, and a thread that delivers."""

import importlib.metadata
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from data_shards.addresses import shown_address
from pipelines.files import read_json
from pipelines.tracking.delivery import ArtifactStoreError, Delivery, warn_of_rest
from pipelines.tracking.mlflow_client import LONGEST_PAUSE_SECONDS, brief, cause, metric_name, open_client
from pipelines.tracking.run import RunRecord
from pipelines.tracking.spool import SpoolWriter

logger = logging.getLogger(__name__)


class Tracker:
    """Logs metrics, files and pictures of one run; only rank 0 has one.

    Every call returns as soon as the spool on disk has the data, and no failure of the disk or the server is raised. A
    thread delivers every `interval_seconds` at most, and after failures 1, 2, 4 … 60 seconds later. A key's steps only
    increase (see `SpoolWriter`).

    Args:
        folder: the spool's folder; the folder of `start_run` if driver and rank 0 share a disk.
        uri: MLflow's address, as `absolute_uri` returns it.
        run_id: the id that `start_run` returned; "" if the run was not created yet.
        run_record: text of `start_run`'s run.json, for a rank 0 that does not share the driver's disk.
        interval_seconds: longest time that a point waits while the server answers.
    """

    def __init__(
        self, folder: Path, uri: str, run_id: str, *, run_record: str = "", interval_seconds: float = 5.0
    ) -> None:
        self.folder = folder
        self.uri = uri
        self._spool = SpoolWriter(folder)
        if run_record and not (folder / "run.json").exists():
            (folder / "run.json").write_text(run_record, encoding="utf-8")
        record = RunRecord.load(folder)
        if run_id and (record.uri, record.run_id) != (uri, run_id):
            record.uri, record.run_id = uri, run_id
            record.save(folder)
        # A machine that lost power may have kept the offsets and lost lines. Without offsets everything is delivered
        # again, and MLflow is asked for the steps that it has.
        state = read_json(folder / "delivered.json")
        sizes = (self._spool.metrics.size_bytes, self._spool.artifacts.size_bytes)
        if state and (state.get("metrics", 0) > sizes[0] or state.get("artifacts", 0) > sizes[1]):
            (folder / "delivered.json").unlink(missing_ok=True)
        self._delivery = Delivery(folder)
        self._interval_seconds = interval_seconds
        self._changed = threading.Condition()
        self._urgent = False
        self._closing = False
        self._reason = "no time was left"
        self._disk_failed = False
        self._thread = threading.Thread(target=self._work, name="aweigh-tracking", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def run_id(self) -> str:
        """MLflow's run id; "" until the run is created."""
        return RunRecord.load(self.folder).run_id

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of one step; a key that has reached `step` already is skipped."""
        values = {metric_name(key): float(value) for key, value in metrics.items()}
        self._keep(lambda: self._spool.add_metrics(int(step), values))

    def log_artifact(self, path: Path, artifact_path: str = "") -> None:
        """Log a copy of a file or folder, as it is now, to the run's folder `artifact_path`."""
        self._keep(lambda: self._spool.add_file(Path(path), artifact_path))

    def log_text(self, text: str, artifact_file: str) -> None:
        """Log a text as the run's file `artifact_file`; it replaces an earlier one."""
        self._keep(lambda: self._spool.add_text(text, artifact_file))

    def log_image(self, key: str, step: int, path: Path) -> None:
        """Log a PNG under `key`, which MLflow shows with a slider over its steps."""
        name = re.sub(r"[^a-zA-Z0-9_\-./ ]", "_", key)
        self._keep(lambda: self._spool.add_image(name, int(step), Path(path)))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        named = {metric_name(key): str(value) for key, value in tags.items()}
        self._keep(lambda: self._spool.add_tags(named))

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything logged before this call is delivered; False if `timeout` seconds pass first."""
        metrics, artifacts = self._spool.metrics.size_bytes, self._spool.artifacts.size_bytes

        def delivered() -> bool:
            return self._delivery.metrics_offset >= metrics and self._delivery.artifacts_offset >= artifacts

        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            return self._changed.wait_for(delivered, timeout)

    def close(self, timeout: float = 30.0) -> bool:
        """Flush and stop the thread; if something is left in the spool, log one line and return False."""
        if self._closing:
            return not any(self._delivery.count_left())
        complete = self.flush(timeout)
        with self._changed:
            self._closing = self._urgent = True
            self._changed.notify_all()
        # A request that hangs is abandoned: it is a daemon thread, and the spool keeps what it was sending.
        self._thread.join(1.0)
        if not complete:
            warn_of_rest(self._delivery, self._reason)
        return complete

    def _keep(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self._disk_failed:
                logger.warning("tracking: metrics cannot be written to %s (%s) and are lost", self.folder, error)
            self._disk_failed = True
        else:
            self._disk_failed = False

    def _work(self) -> None:
        """Deliver until closed; the first failure of an outage is one warning, its end one line."""
        pause, failing = 0.0, False
        while not self._closing:
            with self._changed:
                self._changed.wait_for(lambda: self._urgent or self._closing, pause or self._interval_seconds)
                self._urgent = False
            if self._closing:
                return
            try:
                mine = self._delivery.deliver(lambda: not self._closing)
                if mine and failing:
                    logger.info("tracking: %s answers again", shown_address(self.uri))
                    failing = False
                if not mine:
                    self._reason = "another process is delivering it"
                pause = 0.0 if mine else 1.0
            except Exception as error:  # whatever the server, its client or the disk raise: training continues
                at_store = isinstance(error, ArtifactStoreError)
                self._reason = str(error) if at_store else cause(error, self.uri)
                if not failing and at_store:
                    logger.warning(
                        "tracking: %s; training continues, metrics are delivered, and artifacts are kept in %s",
                        self._reason,
                        self.folder,
                    )
                elif not failing:
                    logger.warning(
                        "tracking: %s cannot be reached (%s); training continues, and metrics are kept in %s",
                        shown_address(self.uri),
                        self._reason,
                        self.folder,
                    )
                failing = True
                pause = min(max(1.0, 2 * pause), LONGEST_PAUSE_SECONDS)
            with self._changed:
                self._changed.notify_all()


def log_recipe_and_versions(tracker: Tracker, recipe_yaml: str, manifests: Mapping[str, str]) -> None:
    """Log what is needed to repeat the run: the recipe, the versions of libraries, the digests of manifests.

    Args:
        tracker: the run's tracker.
        recipe_yaml: the resolved recipe; logged as recipe.yaml.
        manifests: digest of each split's manifest; logged as tags `manifest.SPLIT`.
    """
    tracker.log_text(recipe_yaml, "recipe.yaml")
    tags = {f"manifest.{split}": digest for split, digest in manifests.items()}
    for library in ("torch", "ray", "deepspeed", "mlflow", "webdataset", "numpy"):
        with suppress(importlib.metadata.PackageNotFoundError):
            tags[f"version.{library}"] = importlib.metadata.version(library)
    tracker.set_tags(tags)


def start_system_metrics(tracker: Tracker, interval_seconds: float = 10.0, node: str = "") -> Callable[[], None]:
    """Log this node's CPU, memory, disk, network and GPU use as `system/…`.

    MLflow's own monitor measures, and the tracker's spool delivers: MLflow's delivery ends at the first request that
    fails. The step is the Unix time in seconds, which increases over attempts and nodes without being remembered. A
    failure is one warning.

    Args:
        tracker: the run's tracker.
        interval_seconds: time between two samples; each is the mean since the one before.
        node: part of the names if several nodes log, `system/NODE/…`.

    Returns:
        A function that logs a last sample and stops.
    """
    stopped = threading.Event()

    def watch() -> None:
        try:
            logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
            open_client(tracker.uri)
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            monitor = SystemMetricsMonitor(tracker.run_id, tracking_uri=tracker.uri)
            prefix = f"system/{node}/" if node else "system/"
            while True:
                last = stopped.wait(interval_seconds)
                monitor.collect_metrics()
                sample = monitor.aggregate_metrics()
                tracker.log_metrics(int(time.time()), {prefix + key: value for key, value in sample.items()})
                for each in monitor.monitors:
                    each.clear_metrics()
                if last:
                    return
        except Exception as error:
            logger.warning("tracking: no more system metrics are logged (%s); training continues", brief(error))

    thread = threading.Thread(target=watch, name="aweigh-system-metrics", daemon=True)
    thread.start()

    def stop() -> None:
        stopped.set()
        thread.join(10.0)

    return stop
