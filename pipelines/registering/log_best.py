"""The best checkpoint of a run as an MLflow model, logged once the training has ended."""

import logging
from pathlib import Path

import torch

from pipelines import tracking
from pipelines.files import read_json, write_json
from pipelines.registering.model_folder import model_params, write_model
from pipelines.tracking.models import MODEL_NAME
from pipelines.tracking.spool import SpoolWriter
from pipelines.trained.find import find_checkpoint
from pipelines.trained.trained import open_trained

logger = logging.getLogger("aweigh")

_QUEUED = "model.json"
"""In the run's tracking folder: the step of the model that was queued last."""
_SECONDS = 10.0
"""For a server that does not answer; an upload that has begun is not cut off."""


def log_best_model(folder: Path) -> int | None:
    """Queue the best checkpoint in the run's spool as a model, unless it was queued before, and deliver the spool.

    A failure is one warning, never raised: the checkpoint is safe, and `aweigh register` tries again.

    Args:
        folder: the run's folder.

    Returns:
        The step of the model; None if it did not reach MLflow.
    """
    spool = folder / "tracking"
    try:
        checkpoint = find_checkpoint(folder)
        if read_json(spool / _QUEUED).get("step") != checkpoint.step:
            trained = open_trained(checkpoint.path, device=torch.device("cpu"))
            SpoolWriter(spool).add_model(
                MODEL_NAME, checkpoint.step, model_params(trained), lambda place: write_model(place, trained)
            )
            # After it is queued: a kill in between queues it twice, and MLflow keeps one model for each step.
            write_json(spool / _QUEUED, {"step": checkpoint.step})
    except Exception as error:  # of the disk or of MLflow
        logger.warning("warning   the best checkpoint could not be logged as an MLflow model: %s", error)
        return None
    return checkpoint.step if tracking.deliver_spool(spool, timeout_seconds=_SECONDS) else None
