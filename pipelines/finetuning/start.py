"""The weights that a fine-tuning starts from, and the quality and time to expect."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from data_shards.addresses import shown_address
from data_shards.counting import counted
from detectors import Detector
from detectors.errors import DetectorError
from detectors.weights.published import Receipt, load
from pipelines.console import duration
from pipelines.errors import ConfigError
from pipelines.finetuning.derive import STEPS, Start, largest_input
from pipelines.finetuning.machine import Cost, Machine
from pipelines.recipes.settings import IMAGENET, DetectorSettings, Recipe
from pipelines.trained.find import find_checkpoint
from pipelines.trained.weights_file import find_description
from pipelines.training.initial_weights import class_names_of_file, fetch_weights

# Too few images to measure an AP well.
_FEW_VALIDATION_IMAGES = 30


# In the receipt's reasons, in contrast to tensors that the file does not have.
_OTHER_SHAPE = "another shape"


@dataclass(frozen=True)
class Source:
    """The weights that the user named with `--from`."""

    weights: str
    """A file or an address."""
    detector: DetectorSettings | None = None
    """The detector, if the weights describe it."""


def source_of(words: str) -> Source:
    """Find the weights that `--from` names: a file, an address, or a run or checkpoint of one's own.

    Raises:
        ConfigError: there is nothing, or a folder that is neither.
    """
    if "://" in words or words in (IMAGENET, "none"):
        return Source(words)
    path = Path(words).expanduser()
    if path.is_dir():
        path = find_checkpoint(path).path / "weights.safetensors"
    if not path.is_file():
        raise ConfigError(f"--from {words}: there is no such file or run; give weights of the detector, or imagenet.")
    described = find_description(path)
    if described is None:
        return Source(str(path))
    return Source(str(path), DetectorSettings(name=described.detector, settings=described.settings))


def with_start(recipe: Recipe, source: Source | None, chosen: Set[str]) -> Recipe:
    """Let a recipe start from the weights of `--from`.

    Raises:
        ConfigError: `--detector.weights` names others.
    """
    if source is None:
        return recipe
    if "detector.weights" in chosen:
        raise ConfigError("--from and --detector.weights both name initial weights; give one of them.")
    return replace(recipe, detector=replace(recipe.detector, weights=source.weights))


@dataclass(frozen=True)
class Loaded:
    """The initial weights, loaded into the detector."""

    start: Start
    recipe: Recipe
    """Says how the class layers were loaded, so that workers load them alike."""
    text: str
    """The origin of the weights and the part of them that fits, in words."""


def load_start(recipe: Recipe, detector: Detector, class_names: Sequence[str], chosen: Set[str]) -> Loaded:
    """Fetch the initial weights and load them, before anything takes long.

    Layers that count classes keep what the file knows of classes with the same name, and random weights for the others.

    Args:
        recipe: names the weights.
        detector: receives them.
        class_names: in the order of the labels.
        chosen: names of the fields that the user set.

    Raises:
        ConfigError: the weights cannot be fetched; with what to do.
        DetectorError: they do not fit the detector.
    """
    weights = recipe.detector.weights
    if not weights:
        return Loaded("random", recipe, "random weights")
    path = fetch_weights(recipe.detector, detector, recipe.data.cache_folder)
    if weights == IMAGENET:
        load(detector, path, skip_mismatched=recipe.detector.skip_mismatched)
        text = "the backbone's ImageNet weights; the layers that find objects start from random weights"
        return Loaded("imagenet", recipe, text)
    if chosen & {"detector.skip_mismatched", "detector.match_classes"}:
        receipt = _load_as_set(recipe, detector, path, class_names)
    else:
        recipe, receipt = _load_by_name(recipe, detector, path, class_names)
    return _described(recipe, detector, receipt)


def _load_as_set(recipe: Recipe, detector: Detector, path: Path, class_names: Sequence[str]) -> Receipt:
    return load(
        detector,
        path,
        skip_mismatched=recipe.detector.skip_mismatched,
        class_names=class_names if recipe.detector.match_classes else (),
        class_names_of_file=class_names_of_file(path),
    )


def _load_by_name(recipe: Recipe, detector: Detector, path: Path, class_names: Sequence[str]) -> tuple[Recipe, Receipt]:
    """Match classes by name if the file's are known; otherwise class layers of another shape keep random weights."""
    matching, skipping = (
        replace(recipe, detector=replace(recipe.detector, skip_mismatched=True, match_classes=match))
        for match in (True, False)
    )
    try:
        receipt = _load_as_set(matching, detector, path, class_names)
    except DetectorError:
        # Nothing was loaded. If the reason is another one than unknown names, it comes again.
        return skipping, _load_as_set(skipping, detector, path, class_names)
    return (matching if receipt.class_source else skipping), receipt


def _described(recipe: Recipe, detector: Detector, receipt: Receipt) -> Loaded:
    weights = shown_address(str(recipe.detector.weights))
    _refuse_another_detector(weights, detector, receipt)
    fitting = (*receipt.loaded, *receipt.renamed.values())
    reasons = [receipt.missing.get(f"{layer}.weight", "") for layer in detector.published.class_layers]
    if reasons and all(reason and _OTHER_SHAPE not in reason for reason in reasons):
        text = f"{weights}, the backbone alone; the layers that find objects start from random weights"
        return Loaded("imagenet", recipe, text)
    text = f"{weights}: {len(fitting)} of {len(fitting) + len(receipt.missing)} tensors fit"
    if receipt.class_source:
        known, new = ", ".join(receipt.matched_classes) or "none", ", ".join(receipt.new_classes) or "none"
        text += f"; classes it knows by name: {known}; classes that are new to it: {new}"
    if anew := sorted({name.rpartition(".")[0] for name in receipt.missing}):
        some = ", ".join(anew[:4]) + (", …" if len(anew) > 4 else "")
        text += f"; {counted(len(anew), 'layer')} not in it or for other classes, from random weights: {some}"
    return Loaded("detector", recipe, text)


def _refuse_another_detector(weights: str, detector: Detector, receipt: Receipt) -> None:
    """Refuse a file whose layers have other shapes for another reason than the number of classes."""
    of_classes = detector.published.class_layers
    odd = [
        name
        for name, reason in receipt.missing.items()
        if _OTHER_SHAPE in reason and not any(name.startswith(f"{layer}.") for layer in of_classes)
    ]
    if odd:
        raise DetectorError(
            f"{weights} is of another detector than {detector.name}, or of one with other settings: "
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
        "random": "little, unless there are tens of thousands of images; give weights with --from FILE",
    }[start]
    steps = recipe.schedule.last_step(max(1, images // recipe.batch.global_size))
    lines = [f"{quality} ({counted(images, 'image')} to train on)"]
    if steps < STEPS[start] / 2:
        lines.append(f"less than that: {counted(steps, 'step')} are few, and about {STEPS[start]:,} are usual")
    if validation_images and validation_images < _FEW_VALIDATION_IMAGES:
        lines.append(
            f"the AP will be rough: it is measured on {counted(validation_images, 'image')}, so compare runs by a few "
            "hundredths at least"
        )
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
