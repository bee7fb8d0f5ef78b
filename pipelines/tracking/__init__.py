"""The only folder that knows MLflow: one run over all attempts, and each point in it exactly once.

A tracking server that is slow or down never stops training. The trainer's thread only appends to a spool on disk
(`spool`); a background thread (`tracker`) delivers it (`delivery`) to the run that the driver found or created (`run`).
When it cannot know what arrived, it asks MLflow which steps it has. Importing this package does not import MLflow.
"""

from pipelines.tracking.delivery import Delivery, deliver_spool
from pipelines.tracking.late_metrics import log_afterwards
from pipelines.tracking.mlflow_client import absolute_uri, class_metric_name, logged_steps, metric_name, tracking_uri
from pipelines.tracking.run import RUN_TAG, RunRecord, end_run, start_run
from pipelines.tracking.tracker import Tracker, log_recipe_and_versions, start_system_metrics

__all__ = [
    "RUN_TAG",
    "Delivery",
    "RunRecord",
    "Tracker",
    "absolute_uri",
    "class_metric_name",
    "deliver_spool",
    "end_run",
    "log_afterwards",
    "log_recipe_and_versions",
    "logged_steps",
    "metric_name",
    "start_run",
    "start_system_metrics",
    "tracking_uri",
]
