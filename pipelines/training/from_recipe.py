"""From a recipe to the parts that train: the detector, what the optimizer is given, the loader."""

import logging
from typing import Any

import torch

import detectors
import detectors.weights.published
from data_shards.format.manifest import Manifest
from data_shards.loading.training_loader import TrainingLoader
from data_shards.order.plan import Plan, World
from detectors import Detector
from pipelines.recipes.settings import OptimizerSettings, Recipe
from pipelines.training.initial_weights import fetch_weights

logger = logging.getLogger("aweigh")

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def build_detector(recipe: Recipe, manifest: Manifest, *, initial: bool) -> Detector:
    """The recipe's detector for the data's classes; `initial` reads the weights to start from, too."""
    with torch.random.fork_rng(devices=[]):  # the same weights on every rank, whatever was drawn before
        torch.manual_seed(recipe.seed)
        detector = detectors.build(recipe.detector.name, len(manifest.classes), **recipe.detector.settings)
    if initial and recipe.detector.weights:
        path = fetch_weights(recipe.detector, detector, recipe.data.cache_folder)
        receipt = detectors.weights.published.load(detector, path, skip_mismatched=recipe.detector.skip_mismatched)
        logger.info("%s", receipt.summary())
    return detector


def parameter_groups(detector: Detector, optimizer: OptimizerSettings) -> list[dict[str, Any]]:
    """What torch's optimizer is given: one group, or two where biases are trained otherwise."""
    own = {"momentum": optimizer.momentum} if optimizer.name == "sgd" else {"betas": optimizer.betas}
    learning = {name: parameter for name, parameter in detector.named_parameters() if parameter.requires_grad}
    names_of_biases = set(detector.biases())
    biases = [parameter for name, parameter in learning.items() if name in names_of_biases]
    others = [parameter for name, parameter in learning.items() if name not in names_of_biases]
    decay, factor = optimizer.bias_weight_decay, optimizer.bias_learning_rate_factor
    if decay is None and factor == 1:
        others, biases = list(learning.values()), []
    groups = [
        (others, 1.0, optimizer.weight_decay),
        (biases, factor, optimizer.weight_decay if decay is None else decay),
    ]
    return [
        {
            "params": params,
            "lr": optimizer.learning_rate * scale,
            "lr_factor": scale,
            "weight_decay": weight_decay,
            **own,
        }
        for params, scale, weight_decay in groups
        if params
    ]


def training_loader(
    recipe: Recipe, plan: Plan, world: World, *, size_divisor: int, microbatches: int, steps: tuple[int, int]
) -> TrainingLoader:
    """What gives this rank its microbatches of the steps after `steps[0]`, up to `steps[1]`."""
    data = recipe.data
    return TrainingLoader(
        data.store(data.train),
        plan,
        world,
        input_size=data.input_size,
        max_objects=data.max_objects,
        augmentation=recipe.augmentation,
        boxes=data.box_rules,
        size_divisor=size_divisor,
        start_step=steps[0],
        stop_step=steps[1],
        microbatches=microbatches,
        threads=data.threads,
        prefetch=data.prefetch,
        cache_folder=data.cache_folder or None,
        cache_bytes=data.cache_bytes,
        undecodable=data.undecodable,
        decoded_cache_bytes=round(data.decoded_cache_gb * 1e9),
    )
