"""Recipes, commands, training, evaluation and tracking, built from the three packages below.

`load` opens a trained detector for predictions in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    import torch

    from pipelines.prediction.predictor import Predictor

__all__ = ["load"]


def load(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    newest: bool = False,
    flags: Sequence[str] = (),
) -> Predictor:
    """Open a trained detector, to find objects in images.

    Args:
        source: a run's folder (its best checkpoint), or a checkpoint's.
        device: where the network runs, such as "cpu" or "cuda:1"; None takes a GPU if there is one and the recipe
            allows it.
        newest: of a run, take the newest checkpoint instead of the best.
        flags: fields of `data` and `evaluation` to change, as on the command line: `["--evaluation.limit", "300"]`.

    Returns:
        Its `predict` takes a path, an array, a PIL image, or a list of these.

    Raises:
        ConfigError: there is no trained detector, the device does not exist, or a flag belongs to the weights.
        DetectorError: the weights do not fit the detector.
    """
    # Here, so that commands that predict nothing start without torch.
    from pipelines.prediction.predictor import load_predictor

    return load_predictor(source, device=device, newest=newest, flags=flags)
