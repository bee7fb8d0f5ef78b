"""The story of `aweigh train finetune --data FOLDER`, up to the recipe that is trained."""

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import detectors
from data_shards.building.annotated_folder import read_annotated_folder
from data_shards.checking.examine import examine
from data_shards.counting import counted
from data_shards.format.manifest import load_manifest
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.files import read_json, write_json
from pipelines.finetuning.base_recipe import base_recipe
from pipelines.finetuning.data_facts import data_facts
from pipelines.finetuning.derive import derive, stride
from pipelines.finetuning.findings import Findings, sort_findings
from pipelines.finetuning.machine import this_machine, training_cost
from pipelines.finetuning.shards import BuiltShards, built_shards, content_digest
from pipelines.finetuning.start import Source, expectations, load_start, source_of, with_start
from pipelines.recipes.recipe import absolute, decides_what_is_learnt, flag_names, from_dict, with_flags
from pipelines.recipes.settings import Recipe, Schedule
from pipelines.trained.checkpoint_facts import facts_of
from pipelines.training.checkpoints import checkpoint_places, newest_checkpoint
from pipelines.training.checks import check_run_name


@dataclass(frozen=True)
class Request:
    """The arguments of the command."""

    data: str = ""
    """The folder of annotated images; empty for shards that `--data.train` names."""
    weights: str = ""
    """`--from`."""
    shards: str = ""
    """`--shards`: the folder for built shards."""
    share: float = 0.2
    """`--validation-share`."""
    split_seed: int = 0
    """`--split-seed`."""
    flags: tuple[str, ...] = ()
    """Fields of the recipe."""


def finetuning_recipe(request: Request) -> Recipe:
    """Find the data, build its shards, derive every number and print the plan; return the recipe to train.

    A run that was begun keeps the numbers that were derived then, whatever memory is free today.

    Raises:
        ConfigError, DataError, DetectorError: with what to do.
    """
    _check(request)
    chosen = flag_names(request.flags)
    source = source_of(request.weights) if request.weights else None
    recipe, published = _given(request, source, chosen)
    built = None
    if request.data:
        recipe, built = _with_data(recipe, request)
    check_run_name(recipe.run.name)
    recipe = absolute(replace(recipe, run=replace(recipe.run, name=_run_name(recipe, request, built))))
    recorded = _recorded(recipe)
    if recorded is not None:
        return _resumed(recorded, recipe, request)
    return _planned(recipe, published, chosen, built)


def _check(request: Request) -> None:
    named = flag_names(request.flags)
    if request.data and named & {"data.train", "data.validation"}:
        raise ConfigError("--data builds shards from a folder, and --data.train names built ones; give one of them.")
    if not request.data and "data.train" not in named:
        raise ConfigError(
            "give --data FOLDER, the folder with your images and their annotations (YOLO, COCO or Pascal VOC); or "
            "--data.train LOCATION/SPLIT, if their shards are built."
        )
    if not 0 <= request.share < 1:
        raise ConfigError(
            f"--validation-share is {request.share:g}; give a number from 0 (validate on nothing) to below 1."
        )


def _given(request: Request, source: Source | None, chosen: set[str]) -> tuple[Recipe, Recipe]:
    """Return the recipe as the user's fields leave it, and the published one that it is based on."""
    # The fields are read once to learn which detector they mean; its recipe is then what they change.
    probe = with_flags(Recipe(recipe="finetune", schedule=Schedule(drops_at=())), request.flags).detector
    name, settings = probe.name, probe.settings
    if source is not None and source.detector is not None:
        if "detector.name" not in chosen:
            name = source.detector.name
        if name == source.detector.name:
            settings = {**source.detector.settings, **settings}
    published = base_recipe(name, settings)
    return with_start(with_flags(published, request.flags), source, chosen), published


def _with_data(recipe: Recipe, request: Request) -> tuple[Recipe, BuiltShards]:
    """Read the folder and build its shards, or find them built."""
    folder, runs = Path(request.data).expanduser(), Path(recipe.run.folder).expanduser()
    cache = Path(request.shards).expanduser() if request.shards else runs / "shards"
    # Both may be inside the folder of the data, as when a command is typed there.
    found = read_annotated_folder(folder, without=[runs, cache])
    console.say("found", found.describe())
    for note in found.notes:
        console.say("", note)
    digest = content_digest(found, request.share, request.split_seed)
    built = built_shards(found, folder.resolve().name, digest, cache, share=request.share, seed=request.split_seed)
    if built.split:
        console.say("split", built.split)
    console.say(
        "shards", f"{built.folder}, {'built' if built.built else 'built by an earlier command for the same files'}"
    )
    for note in built.notes:
        console.say("", note)
    if not built.location("val"):
        console.say("warning", "there are no images to validate on, so no AP will be measured")
    data = replace(recipe.data, train=built.location("train"), validation=built.location("val"))
    return replace(recipe, data=data), built


def _run_name(recipe: Recipe, request: Request, built: BuiltShards | None) -> str:
    """Return the run's name: as given, or one that the same command on the same data has again.

    It does not depend on what is derived, since that follows the machine.
    """
    if recipe.run.name:
        return recipe.run.name
    deciding = [
        word
        for group in _groups(request.flags)
        if decides_what_is_learnt(next(iter(flag_names(group[:1]))))
        for word in group
    ]
    manifest = load_manifest(recipe.data.train).digest
    text = "\0".join([manifest, request.weights, *deciding])
    name = built.folder.name.rpartition("-")[0] if built else load_manifest(recipe.data.train).split
    return f"finetune-{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _groups(flags: Sequence[str]) -> list[list[str]]:
    """Divide flags into names with their values."""
    groups: list[list[str]] = []
    for word in flags:
        if word.startswith("--"):
            groups.append([word])
        else:
            groups[-1].append(word)
    return groups


def _recorded(recipe: Recipe) -> Recipe | None:
    """Return the recipe that the run's newest checkpoint was trained with; None if there is none.

    Raises:
        ConfigError: the run is of another recipe.
    """
    name = recipe.run.name
    folder = Path(recipe.run.folder) / name
    # A recipe.yaml without a checkpoint does not count: nothing was learnt with it, and the user may have changed a
    # flag because of the plan that was printed.
    checkpoint = newest_checkpoint(*checkpoint_places(recipe, name, folder, warn=lambda line: None))
    if checkpoint is None:
        return None
    recorded = from_dict(facts_of(checkpoint).recipe)
    if recorded.recipe != recipe.recipe:
        raise ConfigError(f"run {name} was begun with the recipe {recorded.recipe}. Choose another --run.name.")
    return recorded


def _resumed(recorded: Recipe, recipe: Recipe, request: Request) -> Recipe:
    """Take all numbers from the recorded recipe, and the fields that the user sets today.

    Those that decide what is learnt are compared with the last checkpoint before it is resumed.
    """
    console.say("numbers", f"as derived when run {recipe.run.name} was begun; the record is its recipe.yaml")
    today = with_flags(recorded, request.flags)
    data = replace(today.data, train=recipe.data.train, validation=recipe.data.validation)
    detector = replace(today.detector, weights=recipe.detector.weights) if request.weights else today.detector
    return replace(today, data=data, detector=detector, run=recipe.run)


def _planned(recipe: Recipe, published: Recipe, chosen: set[str], built: BuiltShards | None) -> Recipe:
    """Derive what the user left open, and print the plan."""
    train, validation = recipe.data.splits()
    classes = len(train.manifest.classes)
    facts = data_facts(train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        detector = detectors.build(recipe.detector.name, classes, **recipe.detector.settings)
    loaded = load_start(recipe, detector, train.manifest.class_names, chosen)
    recipe, start = loaded.recipe, loaded.start
    machine, cost = this_machine(recipe.cluster.device), training_cost(detector)
    recipe, lines = derive(recipe, chosen, published, facts, machine, cost, detector, start)
    if built is not None:
        _say_findings(built, recipe)
    console.say("detector", _detector_in_words(recipe, published, chosen, classes, start))
    console.say("start", loaded.text)
    for line in lines:
        console.say(line.topic, line.text)
    held_out = validation.manifest.num_samples if validation is not None else 0
    if built is not None and (test := built.location("test")):
        number = counted(load_manifest(test).num_samples, "image")
        console.say("test", f"{number} put aside: aweigh evaluate RUN --data {shlex.quote(test)}")
    for text in expectations(recipe, detector, start, machine, cost, facts.images, held_out):
        console.say("expect", text)
    return recipe


def _detector_in_words(recipe: Recipe, published: Recipe, chosen: set[str], classes: int, start: str) -> str:
    base = published.purpose.rpartition("recipe ")[2]
    text = f"{recipe.detector.name} for {counted(classes, 'class')}; geometry and augmentation of {base}"
    if "detector.name" not in chosen and start != "detector":
        text += "; --detector.name centernet_dla34 finds more and takes several times as long"
    return text


def _say_findings(built: BuiltShards, recipe: Recipe) -> None:
    """Print what the doctor found: serious findings in full, the others as a number."""
    size = recipe.data.input_size
    if recipe.augmentation.geometry == "shorter_side":
        # The doctor fits images into one size; photographs of 4 to 3 then have the shorter side that training sees.
        side = recipe.augmentation.largest_shorter_side
        size = (side * 4 // 3, side * 4 // 3)
    findings = _examined(built, stride(recipe), size, recipe.data.max_objects)
    for text in findings.serious:
        console.say("finding", text)
    if not findings.serious:
        console.say("findings", "none that is serious")
    if findings.lesser:
        against = f" --against {shlex.quote(built.location('val'))}" if built.location("val") else ""
        console.say(
            "",
            f"{counted(findings.lesser, 'lesser finding')}: aweigh shards examine "
            f"{shlex.quote(built.location('train'))}{against} --input-size {size[0]} {size[1]}",
        )


def _examined(built: BuiltShards, cell: int, size: tuple[int, int], most: int) -> Findings:
    """Examine the shards, or read what an earlier command with the same settings found."""
    settings = [cell, *size, most]
    place = built.folder / "findings.json"
    known = read_json(place)
    if known.get("settings") == settings:
        return Findings(tuple(known["serious"]), known["lesser"])
    found = []
    images = 0
    # Test images are compared with those to train on, and otherwise left alone.
    for number, other in enumerate(filter(None, (built.location("val"), built.location("test")))):
        report = examine(
            built.location("train"),
            against=other,
            stride=cell,
            input_size=size,
            max_objects=most,
            progress=lambda done, total: console.progress_line("examine", done, total, "images"),
        )
        images += report.numbers[other].images + (report.numbers[built.location("train")].images if not number else 0)
        found += [item for item in report.findings if not number or "across_splits" in item.kind]
    if not built.location("val"):
        report = examine(built.location("train"), stride=cell, input_size=size, max_objects=most)
        images, found = report.numbers[built.location("train")].images, list(report.findings)
    findings = sort_findings(found, images)
    write_json(place, {"settings": settings, "serious": findings.serious, "lesser": findings.lesser})
    return findings
