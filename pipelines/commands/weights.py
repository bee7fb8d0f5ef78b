"""`aweigh weights …`: load published weights with a receipt for every key, and write ours for other code."""

import argparse
import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.commands.arguments import (
    Commands,
    add_actions,
    add_json,
    completes,
    detector_names,
    recipe_names,
    takes_fields,
)
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from data_shards.format.manifest import CocoClass
    from detectors import Detector
    from detectors.weights.published import Receipt
    from pipelines.recipes.settings import DetectorSettings
    from pipelines.trained.weights_file import Description


def add(commands: Commands) -> None:
    """Add `weights` and its actions."""
    weights = commands.add_parser("weights", help="load published weights, or write ours for other code")
    actions = add_actions(weights, "import|export")

    bring = actions.add_parser(
        "import",
        help="load a published file, print what became of every key, and write it as .safetensors",
        description="Reads files of the authors, torchvision, mmdetection, AdelaiDet and ImageNet's, from a path, a "
        "URL or S3. Set the detector's settings with --detector.settings.NAME VALUE; a file of AdelaiDet, mmdetection "
        "or torchvision chooses the variant of FCOS itself. The file that --output writes describes its detector, "
        "classes and input, so that `aweigh evaluate` and `aweigh predict` need nothing else.",
    )
    bring.add_argument("file", help="a path, an https:// address, s3://BUCKET/KEY, or imagenet")
    _add_detector(bring, "the detector to load it into (default: the one that the file names)")
    bring.add_argument("--output", type=Path, metavar="SAFETENSORS", help="write the detector's weights to this file")
    bring.add_argument("--skip-mismatched", action="store_true", help="leave out tensors whose shape differs")
    bring.add_argument(
        "--averaged",
        action="store_true",
        help="load the moving average, where the file also has the last step's weights",
    )
    bring.add_argument("--keys", action="store_true", help="print a line for every key")
    add_json(bring, "the whole receipt")
    takes_fields(bring, _import)

    write = actions.add_parser(
        "export",
        help="write weights as their authors' code loads them, or as a .safetensors file that describes itself",
        description="Of a run, the best checkpoint is written. Every file describes its detector, classes and input, "
        "which other code does not notice. A weights file of other code does not name its detector: give --detector.",
    )
    write.add_argument("source", help="a run, a checkpoint, a registered model, or a weights file")
    write.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the file: .pth for other code, or .safetensors"
    )
    write.add_argument("--layout", help="of a .pth file: authors (default), torchvision, mmdetection or adelaidet")
    _add_detector(write, "detector of a weights file that does not name it")
    add_json(write, "what became of every key")
    takes_fields(write, _export)


def _add_detector(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add what describes the detector of a file that does not do so itself."""
    completes(parser.add_argument("--detector", metavar="NAME", help=meaning), detector_names)
    parser.add_argument("--num-classes", type=int, help="classes of the file (default: the publication's)")
    parser.add_argument(
        "--classes-from", metavar="LOCATION", help="shards or COCO file that name them (default: the publication's)"
    )
    completes(
        parser.add_argument(
            "--recipe", metavar="NAME", help="recipe that says how images are shown (default: one of this detector)"
        ),
        recipe_names,
    )


def _import(known: argparse.Namespace) -> None:
    import torch

    import detectors
    import detectors.weights.published
    from pipelines import console
    from pipelines.recipes.settings import IMAGENET
    from pipelines.trained.weights_file import find_description, write_weights
    from pipelines.training.initial_weights import fetch_weights

    if known.output and known.output.suffix != ".safetensors":
        raise ConfigError(
            f"--output {known.output}: the weights are written as .safetensors, so end the file name in that. "
            f"`aweigh weights export` writes .pth."
        )
    if known.file == IMAGENET:
        if not known.detector:
            raise ConfigError("imagenet needs --detector NAME, because each detector has ImageNet weights of its own.")
        own, found = _settings(known.detector, known.rest), None
    else:
        path = fetch_weights(replace(_settings("", known.rest), weights=known.file), None)
        found = find_description(path) if path.is_file() else None
        own, found = _settings_of(path, found, known)
    settings = replace(own, weights=known.file)
    classes, num_classes = _classes(known, found)

    def build() -> "Detector":
        torch.manual_seed(0)
        return detectors.build(settings.name, num_classes, **settings.settings)

    detector = build()
    if known.file == IMAGENET:
        path = fetch_weights(settings, detector)
    # Files whose keys tell their variant choose it, unless the user has.
    if "variant" not in settings.settings and (variant := detectors.weights.published.variant_of(detector, path)):
        settings = replace(settings, settings={**settings.settings, "variant": variant})
        detector = build()
    receipt = detectors.weights.published.load(
        detector, path, skip_mismatched=known.skip_mismatched, averaged=known.averaged
    )
    if known.json:
        facts = {"detector": settings.name, "settings": settings.settings, "num_classes": detector.num_classes}
        print(json.dumps({**facts, **receipt.as_dict()}))
    else:
        print(receipt.summary())
        if known.keys:
            _print_keys(receipt)
    if known.output:
        description = replace(_described(detector, settings.settings, classes, found, known), source=path.name)
        write_weights(detector, known.output, description)
        console.say("weights", f"{known.output}, for --detector.weights and `aweigh weights export`")
        console.say("describes", _in_words(description))


def _export(known: argparse.Namespace) -> None:
    from data_shards.counting import counted
    from detectors.weights.save import save_as
    from pipelines import console
    from pipelines.trained.weights_file import write_weights

    if known.output.suffix == ".safetensors" and known.layout:
        raise ConfigError(
            f"--output {known.output}: other code loads what torch.save writes, so end it in .pth; or leave out "
            f"--layout, for a .safetensors file that describes itself."
        )
    detector, description = _detector_of(known)
    if known.output.suffix == ".safetensors":
        write_weights(detector, known.output, description)
        if known.json:
            written = {name: name for name in detector.state_dict()}
            parts: dict[str, Any] = {"written": written, "left_out": {}, "added": {}, "adjusted": {}}
            print(json.dumps({"detector": detector.name, "library": "", "path": str(known.output), **parts}))
            return
        print(f"{known.output}: {counted(len(detector.state_dict()), 'key')} of {detector.name}")
        console.say("describes", _in_words(description))
        return
    exported = save_as(detector, known.output, known.layout or "authors", description=description.to_json())
    if known.json:
        parts = {name: getattr(exported, name) for name in ("written", "left_out", "added", "adjusted")}
        print(json.dumps({"detector": detector.name, "library": exported.library, "path": str(exported.path), **parts}))
        return
    print(
        f"{exported.path}: {counted(len(exported.written), 'key')} of {detector.name} in the layout of "
        f"{exported.library}, "
        f"{len(exported.left_out)} left out, {len(exported.added)} added"
    )
    for what, keys in (("left out", exported.left_out), ("added", exported.added), ("adjusted", exported.adjusted)):
        for reason in dict.fromkeys(keys.values()):
            alike = [key for key in keys if keys[key] == reason]
            more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
            print(f"{what}  {alike[0]}{more}: {reason}")
    console.say("describes", _in_words(description))
    # The file says the rest itself.
    back = ["aweigh", "weights", "import", str(exported.path)]
    console.say("done", f"`{shlex.join(back)}` reads it back")


def _settings(name: str, flags: list[str]) -> Any:
    """Return the settings of a detector as a recipe has them."""
    from pipelines.recipes.recipe import with_flags
    from pipelines.recipes.settings import DetectorSettings, Recipe

    free = ("--detector.settings.", "--detector.weights_sha256", "--detector.weights-sha256")
    if other := [flag for flag in flags if flag.startswith("--") and not flag.startswith(free)]:
        raise ConfigError(f"unknown argument {other[0]!r}; only fields of --detector.settings can be set here.")
    return with_flags(Recipe(recipe="weights", detector=DetectorSettings(name=name)), flags).detector


def _print_keys(receipt: "Receipt") -> None:
    from detectors.weights.plain_pickle import printable

    for key in receipt.loaded:
        print(f"loaded   {printable(key)}")
    for key, name in receipt.renamed.items():
        print(f"renamed  {printable(key)} → {name}")
    for key, reason in receipt.skipped.items():
        print(f"skipped  {printable(key)}: {reason}")
    for key, reason in receipt.missing.items():
        print(f"missing  {key}: {reason}")


def _detector_of(known: argparse.Namespace) -> tuple["Detector", "Description"]:
    """Build the detector of a run, a checkpoint, a registered model or a weights file; return it with its weights."""
    import torch

    import detectors
    from pipelines.trained.trained import is_model_address, open_trained
    from pipelines.trained.weights_file import find_description, load_whole

    path = Path(known.source)
    if path.is_dir() or is_model_address(known.source):
        trained = open_trained(known.source, device=torch.device("cpu"))
        return trained.detector, trained.describe()
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; give a run's folder, a checkpoint or a weights file.")
    own, found = _settings_of(path, find_description(path), known)
    classes, num_classes = _classes(known, found)
    detector = detectors.build(own.name, num_classes, **own.settings)
    load_whole(detector, path)
    return detector, _described(detector, own.settings, classes, found, known)


def _settings_of(
    path: Path, found: "Description | None", known: argparse.Namespace
) -> tuple["DetectorSettings", "Description | None"]:
    """Return the settings of a file's detector: those that it describes, changed by flags.

    The description is returned, too, unless the user loads the file into another detector.

    Raises:
        ConfigError: neither the file nor the user names a detector.
    """
    name = known.detector or (found.detector if found else "")
    if not name:
        if not path.is_file():
            raise ConfigError(f"weights file {path} is not there. Check the path.")
        raise ConfigError(f"{path} does not name its detector; give --detector NAME.")
    flagged: DetectorSettings = _settings(name, known.rest)
    if found is None or found.detector != name:
        return flagged, None
    return replace(flagged, settings={**found.settings, **flagged.settings}), found


def _classes(
    known: argparse.Namespace, found: "Description | None"
) -> tuple[tuple["CocoClass", ...] | None, int | None]:
    """Return the classes that the user or the file names, and their number; None for what nobody says."""
    if known.classes_from:
        from data_shards.building.build import classes_of

        classes = classes_of(known.classes_from)
        if known.num_classes not in (None, len(classes)):
            raise ConfigError(
                f"--num-classes is {known.num_classes}, but {known.classes_from} has {len(classes)}; leave out "
                f"--num-classes, or give other --classes-from."
            )
        return classes, len(classes)
    if found is None or (known.num_classes or found.num_classes) != found.num_classes:
        return None, known.num_classes
    return found.classes or None, found.num_classes or None


def _described(
    detector: "Detector",
    settings: Mapping[str, Any],
    classes: tuple["CocoClass", ...] | None,
    found: "Description | None",
    known: argparse.Namespace,
) -> "Description":
    """Describe the weights of a file: by the user's words, by its own, or as its publication does."""
    from pipelines import recipes
    from pipelines.trained.published_classes import published_classes
    from pipelines.trained.weights_file import described

    if found is not None and found.data and not known.recipe:
        recipe = found.as_recipe(known.file if "file" in known else known.source)
    else:
        recipe = recipes.get(known.recipe) if known.recipe else _recipe_of(detector.name, settings)
    recipe = replace(recipe, detector=replace(recipe.detector, name=detector.name, settings=dict(settings)))
    description = described(recipe, classes or published_classes(detector))
    same = found if found is not None and found.classes == description.classes else None
    return replace(
        description,
        num_classes=detector.num_classes,
        **{name: getattr(same, name) for name in ("run", "step", "mlflow_run", "thresholds", "source")} if same else {},
    )


def _recipe_of(name: str, settings: Mapping[str, Any]) -> Any:
    """Return a recipe of ours for a detector; one with the same settings rather than another."""
    from pipelines import recipes
    from pipelines.recipes.settings import DetectorSettings, Recipe

    ours = [recipe for recipe in map(recipes.get, recipes.names()) if recipe.recipe not in ("demo", "finetune")]
    ours = [recipe for recipe in ours if recipe.detector.name == name]
    same = [recipe for recipe in ours if recipe.detector.settings == dict(settings)]
    return next(iter(same or ours), Recipe(recipe="weights", detector=DetectorSettings(name=name)))


def _in_words(description: "Description") -> str:
    """Say what a file will tell whoever opens it."""
    names = [one.name for one in description.classes]
    if not names:
        return (
            f"{description.detector}, images as in recipe {description.recipe}; its classes have no names: give "
            f"--classes-from SHARDS for a file that `aweigh evaluate` and `aweigh predict` open"
        )
    more = f", … {len(names)} in all" if len(names) > 4 else ""
    return f"{description.detector}, classes {', '.join(names[:4])}{more}, images as in recipe {description.recipe}"
