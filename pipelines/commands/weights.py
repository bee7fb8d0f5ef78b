"""`aweigh weights …`: load published weights with a receipt for every key, and write ours for other code."""

import argparse
import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.commands.arguments import Commands, add_actions, add_json, completes, detector_names, takes_fields
from pipelines.errors import ConfigError
from pipelines.files import replacing

if TYPE_CHECKING:
    from detectors import Detector
    from detectors.weights.published import Receipt


def add(commands: Commands) -> None:
    """Add `weights` and its actions."""
    weights = commands.add_parser("weights", help="load published weights, or write ours for other code")
    actions = add_actions(weights, "import|export")

    bring = actions.add_parser(
        "import",
        help="load a published file, print what became of every key, and write it as .safetensors",
        description="Reads files of the authors, torchvision, mmdetection, AdelaiDet and ImageNet's, from a path, a "
        "URL or S3. Set the detector's settings with --detector.settings.NAME VALUE; a file of AdelaiDet, mmdetection "
        "or torchvision chooses the variant of FCOS itself.",
    )
    bring.add_argument("file", help="a path, an https:// address, s3://BUCKET/KEY, or imagenet")
    completes(
        bring.add_argument("--detector", required=True, metavar="NAME", help="the detector to load it into"),
        detector_names,
    )
    bring.add_argument("--num-classes", type=int, help="classes of the file (default: the publication's)")
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
        help="write weights as their authors' code loads them",
        description="Of a run, the best checkpoint is written. A weights file that `aweigh weights import` did not "
        "write does not name its detector: give --detector.",
    )
    write.add_argument("source", help="a run, a checkpoint, or a weights file")
    write.add_argument("--output", type=Path, required=True, metavar="PTH", help="the file to write")
    write.add_argument("--layout", default="authors", help="authors (default), torchvision, mmdetection or adelaidet")
    completes(
        write.add_argument("--detector", metavar="NAME", help="detector of a weights file that does not name it"),
        detector_names,
    )
    write.add_argument("--num-classes", type=int, help="classes of that file (default: the publication's)")
    add_json(write, "what became of every key")
    takes_fields(write, _export)


def _import(known: argparse.Namespace) -> None:
    import torch

    import detectors.weights.published
    from pipelines import console
    from pipelines.training.initial_weights import fetch_weights

    if known.output and known.output.suffix != ".safetensors":
        raise ConfigError(
            f"--output {known.output}: the weights are written as .safetensors, so end the file name in that. "
            f"`aweigh weights export` writes .pth."
        )
    settings = replace(_settings(known.detector, known.rest), weights=known.file)

    def build() -> "Detector":
        torch.manual_seed(0)
        return detectors.build(settings.name, known.num_classes, **settings.settings)

    detector = build()
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
        _write(detector, known.output, {"settings": json.dumps(settings.settings), "source": path.name})
        console.say("weights", f"{known.output}, for --detector.weights and `aweigh weights export`")


def _export(known: argparse.Namespace) -> None:
    from data_shards.counting import counted
    from detectors.weights.save import save_as
    from pipelines import console
    from pipelines.recipes.recipe import as_flags

    if known.output.suffix == ".safetensors":
        raise ConfigError(
            f"--output {known.output}: other code loads what torch.save writes, so end it in .pth. "
            f"`aweigh weights import` writes .safetensors."
        )
    detector, settings = _detector_of(Path(known.source), known)
    exported = save_as(detector, known.output, known.layout)
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
    # A .pth file names neither its classes nor the settings of its detector.
    back = ["aweigh", "weights", "import", str(exported.path), "--detector", detector.name]
    back += ["--num-classes", str(detector.num_classes), *as_flags(settings, "detector.settings")]
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


def _detector_of(source: Path, known: argparse.Namespace) -> tuple["Detector", dict[str, Any]]:
    """Build the detector of a run, a checkpoint or a weights file; return it with its weights, and its settings."""
    import detectors.weights.published

    if source.is_dir():
        from pipelines.trained.checkpoint_facts import facts_of
        from pipelines.trained.find import find_checkpoint

        checkpoint = find_checkpoint(source)
        facts = facts_of(checkpoint)
        settings = facts.recipe["detector"]["settings"]
        detector = detectors.build(facts.detector, len(facts.classes), **settings)
        detector.load_state_dict(checkpoint.weights())
        return detector, settings
    if not source.is_file():
        raise ConfigError(f"{source} does not exist; give a run's folder, a checkpoint or a weights file.")
    said = _metadata(source)
    name = known.detector or said.get("detector")
    if not name:
        raise ConfigError(f"{source} does not name its detector; give --detector NAME.")
    settings, num_classes = _recorded(source, said)
    settings |= _settings(name, known.rest).settings
    num_classes = known.num_classes or num_classes
    detector = detectors.build(name, num_classes, **settings)
    receipt = detectors.weights.published.load(detector, source)
    if lacking := [key for key, reason in receipt.missing.items() if reason == "not in the file"]:
        raise ConfigError(
            f"{source} has no {lacking[0]}: it does not hold all of {name}, so nothing is written. Give a file of the "
            f"whole detector, and the --detector.settings it was trained with."
        )
    return detector, settings


def _recorded(source: Path, metadata: Mapping[str, str]) -> tuple[dict[str, Any], int | None]:
    """Return the settings and the number of classes that `weights import` wrote into a file."""
    try:
        settings = json.loads(metadata.get("settings", "{}"))
        num_classes = int(metadata["num_classes"]) if "num_classes" in metadata else None
    except (ValueError, RecursionError):
        settings, num_classes = None, None
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{source} describes its detector in another form than `aweigh weights import` does. Import the original "
            f"file again."
        )
    return settings, num_classes


def _metadata(path: Path) -> Mapping[str, str]:
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}  # the caller loads the file and reports what is wrong with it


def _write(detector: "Detector", path: Path, facts: Mapping[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    metadata = {"detector": detector.name, "num_classes": str(detector.num_classes), **facts}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            save_file({name: value.contiguous() for name, value in detector.state_dict().items()}, unfinished, metadata)
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be written: {cause}. Choose another --output.") from error
