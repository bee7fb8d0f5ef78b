"""Build the parts of a training from its recipe: the detector, the optimizer's parameter groups, the loader."""

import logging
from typing import Any

import torch

import detectors
import detectors.weights.published
from data_shards.format.manifest import Manifest
from data_shards.loading.training_loader import TrainingLoader
from data_shards.order.plan import Plan, World, make_plan
from data_shards.reading.split import DataSplit
from data_shards.settings import Corners, InputSizes
from detectors import Detector
from pipelines.errors import ConfigError
from pipelines.recipes.settings import OptimizerSettings, Recipe
from pipelines.training.initial_weights import class_names_of_file, fetch_weights, sha256_of

logger = logging.getLogger("aweigh")

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def build_detector(recipe: Recipe, manifest: Manifest, *, initial: bool) -> Detector:
    """Build the recipe's detector for the classes of the data, on the CPU.

    Args:
        recipe: names the detector, its settings and its initial weights.
        manifest: its classes are learnt.
        initial: also load the initial weights; False if others are loaded anyway, as from a checkpoint.

    Raises:
        ConfigError: the initial weights cannot be fetched.
        DetectorError: the settings are wrong, or the weights do not fit.
    """
    # Random weights are drawn from the recipe's seed, the same on every rank, and no other random number changes.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        detector = detectors.build(recipe.detector.name, len(manifest.classes), **recipe.detector.settings)
    detector.freeze(recipe.detector.freeze)
    if initial:
        load_initial_weights(detector, recipe, manifest)
    return detector


def load_initial_weights(detector: Detector, recipe: Recipe, manifest: Manifest) -> str:
    """Load the weights that the recipe starts from; returns the sha256 of their file, "" if the recipe names none.

    Raises:
        ConfigError: the weights cannot be fetched.
        DetectorError: the weights do not fit.
    """
    if not recipe.detector.weights:
        return ""
    path = fetch_weights(recipe.detector, detector, recipe.data.cache_folder)
    receipt = detectors.weights.published.load(
        detector,
        path,
        skip_mismatched=recipe.detector.skip_mismatched,
        class_names=manifest.class_names if recipe.detector.match_classes else (),
        class_names_of_file=class_names_of_file(path),
    )
    logger.info("%s", receipt.summary())
    return sha256_of(path)


def stage_factors(detector: Detector, optimizer: OptimizerSettings) -> dict[str, float]:
    """Return the factor on the learning rate of each stage that is trained; that of heads is 1.

    Raises:
        ConfigError: a factor would have no effect.
        DetectorError: a factor is for a stage that the detector does not have.
    """
    detector.check_stages(optimizer.stage_learning_rate_factors)
    if optimizer.layer_decay != 1 and not detector.stages:
        raise ConfigError(
            f"optimizer.layer_decay is {optimizer.layer_decay:g}, but {detector.name} names no stages to which it "
            f"could apply. Set it to 1."
        )
    decayed = {
        stage: optimizer.layer_decay**distance
        for distance, stage in enumerate(reversed(list(detector.stages)), start=1)
    }
    factors = decayed | optimizer.stage_learning_rate_factors
    trained = {detector.stage_of(name) for name, one in detector.named_parameters() if one.requires_grad}
    if untrained := [stage for stage in optimizer.stage_learning_rate_factors if stage not in trained]:
        raise ConfigError(
            f"optimizer.stage_learning_rate_factors names {untrained[0]}, which is not trained (detector.freeze, or "
            f"frozen as published). Remove it."
        )
    return {stage: factors[stage] for stage in detector.stages if stage in trained}


def parameter_groups(detector: Detector, optimizer: OptimizerSettings) -> list[dict[str, Any]]:
    """Group the parameters for torch's optimizer: by the factor of their stage, and biases apart if they differ."""
    own = {"momentum": optimizer.momentum} if optimizer.name == "sgd" else {"betas": optimizer.betas}
    decay, factor = optimizer.bias_weight_decay, optimizer.bias_learning_rate_factor
    names_of_biases = set() if decay is None and factor == 1 else set(detector.biases())
    by_stage = stage_factors(detector, optimizer)
    # By (is a bias, factor of the stage). Others come before biases, each in the order of their first parameter.
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            key = (name in names_of_biases, by_stage.get(detector.stage_of(name), 1.0))
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": params,
            "lr": optimizer.learning_rate * scale,
            "lr_factor": scale,
            "weight_decay": weight_decay,
            **own,
        }
        for (is_bias, of_stage), params in sorted(groups.items(), key=lambda item: item[0][0])
        for scale in [of_stage * (factor if is_bias else 1.0)]
        for weight_decay in [decay if is_bias and decay is not None else optimizer.weight_decay]
    ]


def sample_order(recipe: Recipe, split: DataSplit) -> Plan:
    """Return the order in which a run takes the samples of its training split.

    Raises:
        DataError: there are fewer samples than in one global batch.
    """
    return make_plan(
        split.manifest,
        seed=recipe.seed,
        global_batch_size=recipe.batch.global_size,
        portraits=split.shards().portraits if recipe.data.group_by_aspect_ratio else None,
    )


def training_loader(
    recipe: Recipe,
    split: DataSplit,
    plan: Plan,
    world: World,
    *,
    sizes: InputSizes,
    corners: Corners,
    microbatches: int,
    steps: tuple[int, int],
) -> TrainingLoader:
    """Open the loader of this rank.

    Args:
        recipe: its data and augmentation.
        plan: the order of samples.
        world: this rank's place in it.
        sizes: sizes that the network takes.
        corners: meaning of a box's corners to the detector.
        microbatches: per step.
        steps: steps done before, and the last step; batches are those between.
    """
    return TrainingLoader(
        recipe.data.reading(split, corners),
        plan,
        world,
        input_size=recipe.data.input_size,
        augmentation=recipe.augmentation,
        sizes=sizes,
        start_step=steps[0],
        stop_step=steps[1],
        microbatches=microbatches,
    )
