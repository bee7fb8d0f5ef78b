"""What is learnt of a run after it was trained, told to its MLflow run directly: nobody waits, nothing is spooled."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from pipelines.tracking.mlflow_client import brief, metric_name, open_client, quiet_retries, shown
from pipelines.tracking.run import RunRecord
from pipelines.tracking.spool import now_ms

logger = logging.getLogger(__name__)


def log_afterwards(folder: Path, step: int, metrics: Mapping[str, float], texts: Mapping[str, str]) -> bool:
    """Add figures and texts to the run of `folder`/run.json; a figure that stands there already is left alone.

    Args:
        folder: the run's tracking folder.
        step: of the weights that were looked at.
        metrics: by name; NaN is left out.
        texts: by artifact file; one of the same name is replaced.

    Returns:
        False where the server cannot be reached or the run is gone, which one warning says.
    """
    record = RunRecord.load(folder)
    try:
        if not record.run_id:
            raise RuntimeError("the run was never created")
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
        logger.warning("tracking: %s does not take the figures (%s)", shown(record.uri), brief(error))
        return False
    return True
