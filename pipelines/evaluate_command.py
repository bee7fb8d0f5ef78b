"""`aweigh evaluate`: AP of a run's checkpoint on any shards of its classes."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cluster.checkpoint import Checkpoint, CheckpointFolder, open_checkpoint
from data_shards.manifest import load_manifest
from data_shards.plan import World
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.evaluate import evaluate
from pipelines.loop import build_detector, check_classes
from pipelines.pictures import prediction_page
from pipelines.recipe import differences, from_dict, to_dict, with_flags
from pipelines.report import figures
from pipelines.train import check_input_size


def evaluate_run(
    path: Path, *, data: str | None, newest: bool, pictures: Path | None, as_json: bool, flags: Sequence[str]
) -> None:
    """Evaluate a checkpoint in this process and print its table.

    Args:
        path: a run's folder or a checkpoint's.
        data: shards to evaluate on; None takes those of the run's recipe.
        newest: of a run, the newest checkpoint instead of the best.
        pictures: where to draw predictions beside the truth.
        as_json: print the figures as one JSON object.
        flags: change the run's recipe, such as --evaluation.geometry keep.

    Raises:
        ConfigError: there is no checkpoint, or the shards have other classes.
    """
    checkpoint = find_checkpoint(path, newest)
    recorded = from_dict(checkpoint.facts["recipe"])
    recipe = with_flags(recorded, flags)
    if fixed := [line for line in differences(to_dict(recorded), to_dict(recipe)) if not line.startswith("data.")]:
        raise ConfigError(f"{fixed[0]} belongs to the trained weights; only data.* and evaluation.* can be set here.")
    location = data or recipe.data.validation
    if not location:
        raise ConfigError(f"{path} was trained without data.validation; give --data LOCATION/SPLIT.")
    manifest = load_manifest(location)
    check_classes(checkpoint, manifest)
    device = torch.device("cuda" if torch.cuda.is_available() and recipe.cluster.device != "cpu" else "cpu")
    console.say("weights", f"{checkpoint.path}, step {checkpoint.step:,}")
    console.say("data", f"{location}, {manifest.num_samples:,} images, manifest {manifest.digest[:6]}")
    detector = build_detector(recipe, manifest, initial=False).to(device)
    check_input_size(recipe, detector)
    if pictures:
        pictures.parent.mkdir(parents=True, exist_ok=True)
    detector.load_state_dict(checkpoint.weights())
    wanted = recipe.evaluation.pictures if pictures else 0
    began = time.monotonic()
    evaluation = evaluate(
        detector,
        recipe.data.store(location),
        manifest,
        replace(recipe.evaluation, pictures=wanted),
        input_size=recipe.evaluation.input_size or recipe.data.input_size,
        max_objects=recipe.data.max_objects,
        boxes=recipe.data.box_rules,
        cache_folder=recipe.data.cache_folder or None,
        cache_bytes=recipe.data.cache_bytes,
        threads=recipe.data.threads,
        device=device,
        world=World(ranks=1, rank=0),
        progress=lambda done: console.progress_line("evaluate", done, manifest.num_samples, "images"),
    )
    assert evaluation is not None  # rank 0 of one
    if pictures:
        header = f"{path}   step {checkpoint.step:,}   AP {evaluation.coco.AP:.3f}"
        prediction_page(evaluation.pictures, manifest.class_names, pictures, header=header)
        console.say("pictures", str(pictures))
    if as_json:
        print(
            json.dumps({"checkpoint": str(checkpoint.path), "data": location, **figures(evaluation, checkpoint.step)})
        )
    else:
        print(evaluation.coco.table())
    console.say(
        "done",
        f"{evaluation.num_images:,} images in {console.duration(time.monotonic() - began)}, network and decoding "
        f"{evaluation.milliseconds_per_image:.1f} ms per image on {device}",
    )


def find_checkpoint(path: Path, newest: bool = False) -> Checkpoint:
    """The checkpoint at a path: itself, or of a run the best (else the newest).

    Raises:
        ConfigError: there is none.
    """
    if (path / "checkpoint.json").exists() or path.name.startswith("step-"):
        return open_checkpoint(path)
    folder = CheckpointFolder(path / "checkpoints", warn=lambda line: console.say("warning", line))
    found = folder.latest() if newest else folder.best() or folder.latest()
    if found is None:
        raise ConfigError(f"{path} has no checkpoint. Give a run's folder, such as runs/NAME, or one checkpoint's.")
    return found
