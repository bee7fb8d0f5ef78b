"""Runs to track in tests, and how to ask MLflow about them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from pipelines.tracking import Tracker, start_run

ROOT = Path(__file__).parents[3]
PATIENCE_SECONDS = 300.0
"""Bound of what a passing test never waits for."""


def start(uri: str, folder: Path, **settings: Any) -> str:
    return start_run(uri, "cells", "first", **({"params": {}, "tags": {}, "folder": folder} | settings))


def steps(uri: str, run_id: str, key: str) -> list[int]:
    """Every point of a key that MLflow holds, in the order of time."""
    history = MlflowClient(uri).get_metric_history(run_id, key)
    return [metric.step for metric in sorted(history, key=lambda metric: (metric.timestamp, metric.step))]


@contextmanager
def tracked(folder: Path, uri: str, run_id: str, **settings: Any) -> Iterator[Tracker]:
    """A tracker that delivers everything before the block ends, however busy the machine is."""
    with Tracker(folder, uri, run_id, **settings) as tracker:
        yield tracker
        assert tracker.close(PATIENCE_SECONDS)


def log(folder: Path, uri: str, run_id: str, steps: range, key: str = "train/loss") -> None:
    with tracked(folder, uri, run_id) as tracker:
        for step in steps:
            tracker.log_metrics(step, {key: step / 2})


def artifacts(uri: str, run_id: str, folder: str = "") -> list[str]:
    return sorted(entry.path for entry in MlflowClient(uri).list_artifacts(run_id, folder))
