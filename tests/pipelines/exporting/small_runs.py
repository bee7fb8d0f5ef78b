"""Runs with random weights, without a training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import detectors
from cluster.checkpoints.checkpoint import CheckpointFolder
from cluster.engine.engine import TrainingState
from data_shards.format.manifest import load_manifest
from detectors import Detector
from detectors.layers.head import Head
from pipelines import recipes
from pipelines.recipes.recipe import to_dict
from pipelines.recipes.settings import Recipe
from pipelines.trained.checkpoint_facts import CheckpointFacts


def lively(detector: Detector, seed: int = 0) -> Detector:
    """Give the last layers such weights that every place of an image has another score and size."""
    draw = torch.Generator().manual_seed(seed)
    heads = [module for module in detector.modules() if isinstance(module, Head)]
    with torch.no_grad():
        # Without statistics of their own, random layers let an image fade into a constant.
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        coarse = torch.rand(8, 3, 6, 6, generator=draw)
        images = (nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic") - 0.45) / 0.28
        detector.train()(images)
        detector.eval()
        for head in heads:
            head.last.weight.copy_(torch.randn(head.last.weight.shape, generator=draw))
        maps: dict[int, Tensor] = {}
        handles = [head.register_forward_hook(lambda layer, _, map_: maps.update({id(layer): map_})) for head in heads]
        detector(images)
        for head in heads:
            assert head.last.bias is not None
            deviation, mean = torch.std_mean(maps[id(head)], dim=(0, 2, 3))
            head.last.weight /= deviation.view(-1, 1, 1, 1)
            head.last.bias.copy_(head.last.bias / deviation - mean / deviation)
        for handle in handles:
            handle.remove()
    return detector


def small_recipe(shards: Path, **evaluation: Any) -> Recipe:
    """A narrow CenterNet that sees 64 x 64 pixels."""
    recipe = recipes.get("demo")
    settings = {"width": 8, "deconv_channels": [8, 8, 8], "head_channels": 8}
    return replace(
        recipe,
        detector=replace(recipe.detector, settings=settings),
        data=replace(recipe.data, validation=str(shards / "val"), input_size=(64, 64)),
        evaluation=replace(recipe.evaluation, limit=20, **evaluation),
    )


def write_run(folder: Path, shards: Path, recipe: Recipe) -> Path:
    """Write a run with one checkpoint; returns its folder."""
    manifest = load_manifest(str(shards / "val"))
    torch.manual_seed(1)
    detector = detectors.build(recipe.detector.name, len(manifest.classes), **recipe.detector.settings)
    weights = {name: value.clone() for name, value in lively(detector).state_dict().items()}
    facts = CheckpointFacts(
        detector=recipe.detector.name,
        classes=manifest.as_json()["classes"],
        manifest=manifest.digest,
        recipe=to_dict(recipe),
        run="small",
    )
    CheckpointFolder(folder / "checkpoints").save(TrainingState(weights, {}, {}), {"step": 5, **facts.as_dict()})
    return folder
