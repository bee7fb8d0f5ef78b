"""`aweigh evaluate`: AP of a run's checkpoint on any shards of its classes."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointFolder, open_checkpoint
from data_shards.format.manifest import Manifest, load_manifest
from data_shards.order.plan import World
from detectors import Detector
from detectors.shared.test_time_augmentation import TestMode
from pipelines import console, tracking
from pipelines.errors import ConfigError
from pipelines.evaluation.evaluate import Evaluation, evaluate
from pipelines.evaluation.report import figures, tables
from pipelines.evaluation.test_time_table import NAMES, ModeResult, mode_table
from pipelines.evaluation.views import Reading, milliseconds_one_by_one
from pipelines.pictures.drawing import prediction_page
from pipelines.recipes.recipe import differences, from_dict, to_dict, with_flags
from pipelines.recipes.settings import EvaluationSettings, Recipe
from pipelines.training.checkpoint_facts import facts_of
from pipelines.training.from_recipe import build_detector
from pipelines.training.resuming import check_classes
from pipelines.training.train import check_input_size

_CLOCK = "network, decoding and merging"


def evaluate_run(
    path: Path,
    *,
    data: str | None,
    newest: bool,
    pictures: Path | None,
    as_json: bool,
    flags: Sequence[str],
    modes: Sequence[TestMode] = (),
    timed_images: int = 20,
) -> None:
    """Evaluate a checkpoint in this process and print its table.

    Args:
        path: a run's folder or a checkpoint's.
        data: shards to evaluate on; None takes those of the run's recipe.
        newest: of a run, the newest checkpoint instead of the best.
        pictures: where to draw predictions beside the truth.
        as_json: print the figures as one JSON object.
        flags: change the run's recipe, such as --evaluation.geometry keep.
        modes: modes of test-time augmentation to compare; empty evaluates in the recipe's own.
        timed_images: images timed one by one for each of `modes`.

    Raises:
        ConfigError: there is no checkpoint, or the shards have other classes.
        DetectorError: the detector was not published with a mode.
    """
    if timed_images < 1:
        raise ConfigError(f"--timed-images is {timed_images}; it must be 1 or more.")
    judged = _open(path, data, newest, flags)
    own = judged.recipe.evaluation
    settings = [replace(own, tta=mode) for mode in dict.fromkeys(modes)] or [own]
    for one in settings:
        judged.detector.check_test_mode(one.tta, one.soft_nms)
    if pictures:
        pictures.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    results: dict[str, ModeResult] = {}
    for one in settings:
        # Of several modes, the last one is drawn.
        shown = own.pictures if pictures and one is settings[-1] else 0
        evaluation = _evaluated(judged, replace(one, pictures=shown), NAMES[one.tta] if modes else "evaluate")
        milliseconds = evaluation.milliseconds_per_image
        if modes:
            milliseconds = milliseconds_one_by_one(
                judged.detector, judged.reading, one, judged.device, images=timed_images
            )
        results[one.tta] = ModeResult(evaluation, milliseconds)
    if pictures:
        header = f"{path}   step {judged.checkpoint.step:,}   AP {evaluation.coco.AP:.3f}"
        prediction_page(evaluation.pictures, judged.manifest.class_names, pictures, header=header)
        console.say("pictures", str(pictures))
    took = f"{evaluation.num_images:,} images in {console.duration(time.monotonic() - began)}"
    about = {"checkpoint": str(judged.checkpoint.path), "data": judged.location}
    step = judged.checkpoint.step
    if not modes:
        print(json.dumps({**about, **figures(evaluation, step)}) if as_json else tables(evaluation))
        console.say("done", f"{took}, {_CLOCK} {milliseconds:.1f} ms per image on {judged.device}")
        return
    table = mode_table(results)
    print(json.dumps({**about, "modes": _as_json(results, step)}) if as_json else table)
    _track(judged, results, table)
    console.say("done", took)
    console.say(
        "",
        f"ms: {_CLOCK}, on {judged.device}, images one by one, mean of {timed_images} after 3 to warm up; without "
        "reading, resizing and normalising",
    )


def _evaluated(judged: "_Judged", settings: EvaluationSettings, topic: str) -> Evaluation:
    reading, num_samples = judged.reading, judged.manifest.num_samples
    evaluation = evaluate(
        judged.detector,
        reading.location,
        judged.manifest,
        settings,
        input_size=reading.input_size,
        max_objects=reading.max_objects,
        cache_folder=reading.cache_folder,
        cache_bytes=reading.cache_bytes,
        threads=reading.threads,
        device=judged.device,
        world=reading.world,
        boxes=reading.boxes,
        undecodable=reading.undecodable,
        progress=lambda done: console.progress_line(topic, done, num_samples, "images"),
    )
    assert evaluation is not None  # rank 0 of one
    return evaluation


@dataclass(frozen=True)
class _Judged:
    """What is evaluated, on what and where."""

    checkpoint: Checkpoint
    recipe: Recipe
    detector: Detector
    manifest: Manifest
    location: str
    reading: Reading
    device: torch.device


def _open(path: Path, data: str | None, newest: bool, flags: Sequence[str]) -> _Judged:
    checkpoint = find_checkpoint(path, newest)
    recorded = from_dict(facts_of(checkpoint).recipe)
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
    detector.load_state_dict(checkpoint.weights())
    reading = Reading(
        recipe.data.store(location),
        recipe.evaluation.input_size or recipe.data.input_size,
        recipe.data.max_objects,
        recipe.data.cache_folder or None,
        recipe.data.cache_bytes,
        recipe.data.threads,
        World(ranks=1, rank=0),
        recipe.data.box_rules,
        recipe.data.undecodable,
    )
    return _Judged(checkpoint, recipe, detector.eval(), manifest, location, reading, device)


def _as_json(results: Mapping[str, ModeResult], step: int) -> dict[str, Any]:
    return {
        mode: {
            **figures(result.evaluation, step),
            "milliseconds_per_image": result.milliseconds,
            "frames_per_second": result.frames_per_second,
        }
        for mode, result in results.items()
    }


def _track(judged: _Judged, results: Mapping[str, ModeResult], table: str) -> None:
    """Tell the MLflow run that trained the checkpoint, where there is one."""
    checkpoint, location = judged.checkpoint, judged.location
    folder = checkpoint.path.parent.parent / "tracking"
    if not (folder / "run.json").exists():
        return
    metrics = {key: value for mode, result in results.items() for key, value in result.as_metrics(mode).items()}
    text = f"{checkpoint.path}, {location}\n\n{table}\n"
    if tracking.log_afterwards(folder, checkpoint.step, metrics, {"evaluation/test_time.txt": text}):
        console.say("tracked", "test_time/* and evaluation/test_time.txt in the run's MLflow")


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
