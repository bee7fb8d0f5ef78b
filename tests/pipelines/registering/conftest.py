"""A run with two checkpoints of a narrow detector, as training leaves it."""

import dataclasses
import shlex
import shutil
from pathlib import Path

import pytest
import torch

import detectors
from cluster.checkpoints.checkpoint import CheckpointFolder
from cluster.engine.engine import TrainingState
from data_shards.format.manifest import CocoClass
from pipelines import recipes
from pipelines.recipes.recipe import to_dict, with_flags
from pipelines.tracking import start_run
from pipelines.trained.checkpoint_facts import CheckpointFacts
from tests.pipelines.tracking.conftest import empty_database, uri

__all__ = ["empty_database", "uri"]

FLAGS = shlex.split(
    "--detector.settings.width 8 --detector.settings.deconv_channels 8 8 8 --detector.settings.head_channels 8 "
    "--data.input_size 64 64"
)
CLASSES = (CocoClass(3, "cat"), CocoClass(7, "dog"))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 2 (the best) and 4 (the newest)."""
    folder = tmp_path_factory.mktemp("trained") / "checkpoints"
    recipe = with_flags(recipes.get("demo"), FLAGS)
    for step, score in ((2, 0.5), (4, 0.25)):
        torch.manual_seed(step)
        weights = dict(detectors.build(recipe.detector.name, 2, **recipe.detector.settings).state_dict())
        facts = CheckpointFacts(
            detector=recipe.detector.name,
            classes=[dataclasses.asdict(one) for one in CLASSES],
            manifest="0" * 64,
            recipe=to_dict(recipe),
            run="cats",
            thresholds={"cat": 0.01 * step},
        )
        CheckpointFolder(folder).save(TrainingState(weights, {}, {}), {"step": step, **facts.as_dict()}, score)
    return folder


@pytest.fixture
def run(checkpoints: Path, uri: str, tmp_path: Path) -> Path:
    """The folder of a run whose MLflow is beside it."""
    folder = tmp_path / "mlflow" / "cats"
    start_run(uri, "cells", "cats", params={}, tags={}, folder=folder / "tracking")
    shutil.copytree(checkpoints, folder / "checkpoints")
    return folder
