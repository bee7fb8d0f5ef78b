"""A run's folder with a small detector of random weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import detectors
from cluster.checkpoints.checkpoint import CheckpointFolder
from cluster.engine.engine import TrainingState
from pipelines import recipes
from pipelines.recipes.recipe import to_dict, with_flags
from pipelines.recipes.settings import DetectorSettings
from tests.data_shards.samples import CATEGORIES

SMALL = {"width": 8, "deconv_channels": [8, 8, 8], "head_channels": 8, "trunk_start": "he"}


def write_run(folder: Path, *flags: str, name: str = "centernet_resnet18", settings: dict[str, Any] = SMALL) -> Path:
    """Write a run with one checkpoint, whose recipe shows images of 64 x 96 pixels; give its folder."""
    recipe = replace(recipes.get("demo"), detector=DetectorSettings(name=name, settings=settings))
    recipe = with_flags(recipe, ["--data.input_size", "64", "96", "--evaluation.batch_size", "4", *flags])
    # As the manifest orders them: by id.
    classes = sorted(CATEGORIES, key=lambda one: int(str(one["id"])))
    generator = torch.random.get_rng_state()
    torch.manual_seed(1)
    detector = detectors.build(name, len(classes), **settings)
    torch.random.set_rng_state(generator)
    weights = {key: value.float() for key, value in detector.state_dict().items()}
    facts = {"detector": name, "classes": classes, "manifest": "", "recipe": to_dict(recipe), "run": folder.name}
    CheckpointFolder(folder / "checkpoints").save(TrainingState(weights, {}, {}), {"step": 7, **facts})
    return folder
