"""What rank 0 holds while it trains: calls that only write to disk, and the thread that delivers."""

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

from pipelines.files import read_json
from pipelines.tracking.delivery import Delivery, warn_of_rest
from pipelines.tracking.mlflow_client import LONGEST_PAUSE_SECONDS, brief, metric_name, open_client, shown
from pipelines.tracking.run import RunRecord
from pipelines.tracking.spool import SpoolWriter

logger = logging.getLogger(__name__)


class Tracker:
    """Logs metrics, files and pictures of one run; held by rank 0 only.

    Every call returns as soon as the spool on disk has it and raises nothing that disk or server bring about.
    A thread delivers at most every `interval_seconds`, and after failures 1, 2, 4 … 60 seconds later. A metric
    of a key goes only forward (see `SpoolWriter`).

    Args:
        folder: the run's folder, the one of `start_run` where both are on one disk; holds the spool.
        uri: MLflow's address, as `absolute_uri` gives it.
        run_id: what `start_run` returned; "" where the run has yet to be created.
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
        # A machine that lost power may have kept the mark and lost the lines; then MLflow is asked for all of them.
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
        """MLflow's run id; "" until the run could be created."""
        return RunRecord.load(self.folder).run_id

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log figures of one step; a key that has reached `step` before is skipped."""
        values = {metric_name(key): float(value) for key, value in metrics.items()}
        self._keep(lambda: self._spool.add_metrics(int(step), values))

    def log_artifact(self, path: Path, artifact_path: str = "") -> None:
        """Log a copy of a file or folder as it is now into the run's folder `artifact_path`."""
        self._keep(lambda: self._spool.add_file(Path(path), artifact_path))

    def log_text(self, text: str, artifact_file: str) -> None:
        """Log a text as the run's file `artifact_file`, which replaces an earlier one."""
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
        """Wait until all that was logged before this call is delivered; False after `timeout` seconds."""
        metrics, artifacts = self._spool.metrics.size_bytes, self._spool.artifacts.size_bytes

        def delivered() -> bool:
            return self._delivery.metrics_offset >= metrics and self._delivery.artifacts_offset >= artifacts

        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            return self._changed.wait_for(delivered, timeout)

    def close(self, timeout: float = 30.0) -> bool:
        """Flush, stop the thread, and say in one line what is left in the spool; False where something is."""
        if self._closing:
            return not any(self._delivery.count_left())
        complete = self.flush(timeout)
        with self._changed:
            self._closing = self._urgent = True
            self._changed.notify_all()
        self._thread.join(1.0)
        if not complete:
            warn_of_rest(self._delivery, self._reason)
        return complete

    def _keep(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self._disk_failed:
                logger.warning("tracking: what is logged cannot be kept in %s (%s) and is lost", self.folder, error)
            self._disk_failed = True
        else:
            self._disk_failed = False

    def _work(self) -> None:
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
                    logger.info("tracking: %s answers again", shown(self.uri))
                    failing = False
                if not mine:
                    self._reason = "another process is delivering it"
                pause = 0.0 if mine else 1.0
            except Exception as error:  # whatever the server, its client or the disk bring: training goes on
                self._reason = brief(error)
                if not failing:
                    logger.warning(
                        "tracking: %s cannot be reached (%s); training goes on, points are kept in %s",
                        shown(self.uri),
                        self._reason,
                        self.folder,
                    )
                failing = True
                pause = min(max(1.0, 2 * pause), LONGEST_PAUSE_SECONDS)
            with self._changed:
                self._changed.notify_all()


def log_recipe_and_versions(tracker: Tracker, recipe_yaml: str, manifests: Mapping[str, str]) -> None:
    """Log what makes the run repeatable: the recipe, the libraries' versions, each split's manifest digest.

    Args:
        tracker: the run.
        recipe_yaml: the resolved recipe; kept as recipe.yaml.
        manifests: digest by split; kept as tags `manifest.SPLIT`.
    """
    tracker.log_text(recipe_yaml, "recipe.yaml")
    tags = {f"manifest.{split}": digest for split, digest in manifests.items()}
    for library in ("torch", "ray", "deepspeed", "mlflow", "webdataset", "numpy"):
        with suppress(importlib.metadata.PackageNotFoundError):
            tags[f"version.{library}"] = importlib.metadata.version(library)
    tracker.set_tags(tags)


def start_system_metrics(tracker: Tracker, interval_seconds: float = 10.0, node: str = "") -> Callable[[], None]:
    """Log this node's processor, memory, disk, network and GPU use as `system/…`; call what is returned to stop.

    MLflow's own monitor measures, but through the tracker's spool: by itself it ends at the first request that
    fails. The step is the Unix time in seconds, which needs no memory to go only forward over attempts and
    nodes. What fails is said in one warning line.

    Args:
        tracker: the run.
        interval_seconds: time from one sample to the next; each is the mean since the one before.
        node: put into the names where several nodes log, `system/NODE/…`.
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
            logger.warning("tracking: system metrics end here (%s)", brief(error))

    thread = threading.Thread(target=watch, name="aweigh-system-metrics", daemon=True)
    thread.start()

    def stop() -> None:
        stopped.set()
        thread.join(10.0)

    return stop
