"""The weights that a fine-tuning starts from, and what to expect of them."""

from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path

import detectors
import detectors.weights.published
from data_shards.addresses import shown_address
from data_shards.counting import counted
from detectors import Detector
from detectors.errors import DetectorError
from detectors.weights.published import Receipt
from pipelines.console import duration
from pipelines.errors import ConfigError
from pipelines.finetuning.derive import STEPS, Start, largest_input
from pipelines.finetuning.machine import Cost, Machine
from pipelines.recipes.recipe import from_dict
from pipelines.recipes.settings import IMAGENET, DetectorSettings, Recipe
from pipelines.trained.checkpoint_facts import facts_of
from pipelines.trained.find import find_checkpoint
from pipelines.training.initial_weights import fetch_weights

# Too few images to measure an AP well.
_FEW_VALIDATION_IMAGES = 30


@dataclass(frozen=True)
class Source:
    """The weights that the user named with `--from`."""

    weights: str
    """A file or an address."""
    detector: DetectorSettings | None = None
    """The detector, if the weights are of a run."""


def source_of(words: str) -> Source:
    """Find the weights that `--from` names: a file, an address, or a run or checkpoint of one's own.

    Raises:
        ConfigError: a folder is neither.
    """
    path = Path(words).expanduser()
    if "://" in words or not path.is_dir():
        return Source(words if words in (IMAGENET, "none") or "://" in words else str(path))
    checkpoint = find_checkpoint(path)
    recipe = from_dict(facts_of(checkpoint).recipe)
    return Source(str(checkpoint.path / "weights.safetensors"), recipe.detector)


def with_start(recipe: Recipe, source: Source | None, chosen: Set[str]) -> Recipe:
    """Let a recipe start from the weights of `--from`; layers for other classes start anew.

    Raises:
        ConfigError: `--detector.weights` names others.
    """
    settings = recipe.detector
    if source is not None:
        if "detector.weights" in chosen:
            raise ConfigError("--from and --detector.weights both name initial weights; give one of them.")
        settings = replace(settings, weights=source.weights)
    if settings.weights not in (None, IMAGENET) and "detector.skip_mismatched" not in chosen:
        settings = replace(settings, skip_mismatched=True)
    return replace(recipe, detector=settings)


def load_start(recipe: Recipe, detector: Detector) -> tuple[Start, str]:
    """Fetch the initial weights and load them, before anything takes long.

    Returns:
        The kind of start, and a line about it.

    Raises:
        ConfigError: the weights cannot be fetched; with what to do.
        DetectorError: they do not fit the detector.
    """
    weights = recipe.detector.weights
    if not weights:
        return (
            "random",
            "random weights, because the detector has no published ones for its backbone or you asked for them",
        )
    path = fetch_weights(recipe.detector, detector, recipe.data.cache_folder)
    if weights == IMAGENET:
        detectors.weights.published.load(detector, path, skip_mismatched=recipe.detector.skip_mismatched)
        return "imagenet", "the backbone's ImageNet weights; the layers that find objects start from random weights"
    try:
        receipt = detectors.weights.published.load(detector, path, skip_mismatched=recipe.detector.skip_mismatched)
    except DetectorError as error:
        raise DetectorError(f"{error} If the weights are of another detector, name it with --detector.name.") from error
    _refuse_another_detector(weights, detector, receipt)
    loaded = len(receipt.loaded) + len(receipt.renamed)
    anew = {name.rsplit(".", 1)[0] for name in receipt.missing if not name.endswith("num_batches_tracked")}
    text = f"{shown_address(weights)}: {loaded} of {loaded + len(receipt.missing)} tensors fit"
    if anew:
        some = ", ".join(sorted(anew)[:4]) + (", …" if len(anew) > 4 else "")
        text += f"; {counted(len(anew), 'layer')} for other classes or of other parts start anew: {some}"
    of_backbone = detector.published.backbone_prefix
    only_backbone = bool(of_backbone) and all(
        name.startswith(of_backbone) for name in (*receipt.loaded, *receipt.renamed.values())
    )
    return ("imagenet" if only_backbone else "detector"), text


def _refuse_another_detector(weights: str, detector: Detector, receipt: Receipt) -> None:
    """Refuse a file whose layers have other shapes for another reason than the number of classes."""
    of_classes = detector.published.class_layers
    odd = [
        name
        for name, reason in receipt.missing.items()
        if "another shape" in reason and not any(name.startswith(f"{layer}.") for layer in of_classes)
    ]
    if odd:
        raise DetectorError(
            f"{shown_address(weights)} is of another detector than {detector.name}, or of one with other settings: "
            f"{odd[0]} has another shape there ({counted(len(odd), 'such tensor')}). Name its detector with "
            "--detector.name."
        )


def expectations(
    recipe: Recipe, detector: Detector, start: Start, machine: Machine, cost: Cost, images: int, validation_images: int
) -> list[str]:
    """Say in plain words what quality and what duration to expect."""
    quality = {
        "detector": "a useful detector after a few epochs, since it already knows what objects look like",
        "imagenet": "a useful detector, if there are a few hundred images; weights of the same detector, trained on "
        "COCO (--from FILE), need fewer images and get further",
        "random": "little from less than some ten thousand images; give weights with --from FILE",
    }[start]
    lines = [f"{quality} ({counted(images, 'image')} to train on)"]
    if validation_images and validation_images < _FEW_VALIDATION_IMAGES:
        lines.append(
            f"the AP will be rough: it is measured on {counted(validation_images, 'image')}, so compare runs by a few "
            "hundredths at least"
        )
    steps = recipe.schedule.last_step(max(1, images // recipe.batch.global_size))
    if steps < STEPS[start] / 2:
        lines.append(f"less than that: {counted(steps, 'step')} are few, and about {STEPS[start]:,} are usual")
    if machine.device == "cuda":
        lines.append(f"{counted(steps, 'step')}; the time left is on every line of the log")
        return lines
    height, width = largest_input(recipe, detector)
    seconds = steps * recipe.batch.global_size * height * width * cost.seconds_per_pixel
    lines.append(
        f"about {duration(seconds)} on this CPU for {counted(steps, 'step')}"
        + ("; a smaller --data.input_size or fewer --schedule.epochs take less" if seconds > 3600 else "")
    )
    return lines
