"""Log metrics to the MLflow run of a training that has ended: directly, without a spool, since no step waits for it."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from data_shards.addresses import shown_address
from pipelines.tracking.mlflow_client import cause, metric_name, open_client, quiet_retries
from pipelines.tracking.run import RunRecord
from pipelines.tracking.spool import now_ms

logger = logging.getLogger(__name__)


def log_afterwards(folder: Path, step: int, metrics: Mapping[str, float], texts: Mapping[str, str]) -> bool:
    """Add metrics and texts to the run of `folder`/run.json; a value that the run already has is not logged again.

    Args:
        folder: the run's tracking folder.
        step: steps done by the weights that were measured.
        metrics: values by name; NaN is left out.
        texts: contents by artifact file; a file of the same name is replaced.

    Returns:
        False, after one warning, if the server cannot be reached or the run does not exist.
    """
    record = RunRecord.load(folder)
    try:
        if not record.run_id:
            raise RuntimeError("the run was never created there")
        from mlflow.entities import Metric

        with quiet_retries():
            client = open_client(record.uri)
            known = client.get_run(record.run_id).data.metrics
            new = []
            for name, value in ((metric_name(name), value) for name, value in metrics.items()):
                history = client.get_metric_history(record.run_id, name) if name in known else []
                if not math.isnan(value) and (step, value) not in {(point.step, point.value) for point in history}:
                    new.append(Metric(name, value, now_ms(), step))
            client.log_batch(record.run_id, metrics=new, synchronous=True)
            for file, text in texts.items():
                client.log_text(record.run_id, text, file)
    except Exception as error:
        logger.warning(
            "tracking: the metrics could not be logged to %s (%s); run the command again when it answers",
            shown_address(record.uri),
            cause(error, record.uri),
        )
        return False
    return True
