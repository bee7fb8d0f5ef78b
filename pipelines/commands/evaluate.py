"""`aweigh evaluate`: AP of a run's checkpoint on any shards of its classes."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines import console
from pipelines.commands.arguments import Commands, add_json, check_picture, takes_fields
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from data_shards.format.manifest import Manifest
    from data_shards.reading.reading import Reading
    from detectors.detector import TestMode
    from pipelines.evaluation.evaluate import Evaluation
    from pipelines.evaluation.test_time_table import ModeResult
    from pipelines.recipes.settings import EvaluationSettings
    from pipelines.trained.trained import Trained

_CLOCK = "network, decoding and merging"


def add(commands: Commands) -> None:
    """Add `evaluate`."""
    evaluate = commands.add_parser("evaluate", help="AP of a run, checkpoint or exported file on validation shards")
    evaluate.add_argument(
        "run_folder",
        metavar="RUN",
        type=Path,
        help="a run's folder (its best checkpoint), a checkpoint's, a weights or exported file, or a registered model",
    )
    evaluate.add_argument("--data", help="shards to evaluate on (default: the run's data.validation)")
    evaluate.add_argument("--newest", action="store_true", help="the newest checkpoint instead of the best")
    evaluate.add_argument(
        "--pictures", type=Path, metavar="PNG", help="draw predictions beside the truth in this file, .png or .jpg"
    )
    evaluate.add_argument(
        "--detections", type=Path, metavar="JSON", help="write every detection to this file, as COCO results"
    )
    evaluate.add_argument(
        "--kitti", type=Path, metavar="FOLDER", help="in 3D: write KITTI's result files, one for each image"
    )
    add_json(evaluate)
    evaluate.add_argument(
        "--tta",
        nargs="+",
        choices=("none", "flip", "multiscale", "all"),
        default=[],
        metavar="MODE",
        help="compare modes of test-time augmentation: none, flip, multiscale, or all that the detector has",
    )
    evaluate.add_argument(
        "--nms", action="store_true", help="soft-NMS for a single scale too, the published --nms of CenterNet"
    )
    evaluate.add_argument(
        "--timed-images", type=int, default=20, help="images timed one by one for each mode of --tta (default: 20)"
    )
    takes_fields(evaluate, run)


def run(known: argparse.Namespace) -> None:
    """Evaluate a run or checkpoint."""
    evaluate_run(
        known.run_folder,
        data=known.data,
        newest=known.newest,
        pictures=known.pictures,
        detections=known.detections,
        kitti=known.kitti,
        as_json=known.json,
        flags=[*known.rest, *(["--evaluation.soft_nms", "true"] if known.nms else [])],
        modes=known.tta,
        timed_images=known.timed_images,
    )


def evaluate_run(
    path: Path,
    *,
    data: str | None,
    newest: bool,
    pictures: Path | None,
    as_json: bool,
    flags: Sequence[str],
    modes: Sequence[TestMode | Literal["all"]] = (),
    timed_images: int = 20,
    detections: Path | None = None,
    kitti: Path | None = None,
) -> None:
    """Evaluate a checkpoint in this process and print its table.

    Args:
        path: a run's folder or a checkpoint's.
        data: shards to evaluate on; None takes those of the run's recipe.
        newest: of a run, take the newest checkpoint instead of the best.
        pictures: file in which predictions are drawn beside the truth.
        as_json: print the figures as one JSON object.
        flags: change the run's recipe, such as --evaluation.geometry keep.
        modes: modes of test-time augmentation to compare, "all" for those that the detector was published with; if
            empty, the recipe's own mode is evaluated.
        timed_images: images timed one by one for each of `modes`.
        detections: file for every detection, as COCO results; of the last of `modes`.
        kitti: folder for KITTI's result files, of detectors in 3D; of the last of `modes`.

    Raises:
        ConfigError: there is no checkpoint, the shards have other classes, or KITTI's files cannot be written.
        DetectorError: the detector was not published with a mode.
    """
    if pictures:
        check_picture(pictures, "--pictures")
    from data_shards.counting import counted
    from pipelines.evaluation.report import figures, tables
    from pipelines.evaluation.test_time_table import NAMES, ModeResult, mode_table
    from pipelines.evaluation.views import milliseconds_one_by_one
    from pipelines.pictures.prediction_page import prediction_page

    if timed_images < 1:
        raise ConfigError(f"--timed-images is {timed_images}; it must be 1 or more.")
    judged = _open(path, data, newest, flags)
    own = judged.trained.recipe.evaluation
    # Before the evaluation, which may take hours.
    kitti_names = _kitti_names(judged) if kitti else {}
    compared = judged.trained.detector.test_time.modes if "all" in modes else [mode for mode in modes if mode != "all"]
    settings = [replace(own, tta=mode) for mode in dict.fromkeys(compared)] or [own]
    for one in settings:
        judged.trained.detector.check_test_mode(one.tta, one.soft_nms)
    if pictures:
        pictures.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    results: dict[str, ModeResult] = {}
    for one in settings:
        # If there are several modes, the last one is drawn.
        shown = own.pictures if pictures and one is settings[-1] else 0
        evaluation = _evaluated(
            judged,
            replace(one, pictures=shown),
            NAMES[one.tta] if modes else "evaluate",
            keep_results=bool(detections or kitti) and one is settings[-1],
        )
        milliseconds = evaluation.milliseconds_per_image
        if modes:
            milliseconds = milliseconds_one_by_one(
                judged.trained.detector,
                judged.reading,
                one,
                judged.trained.device,
                input_size=judged.trained.input_size,
                images=timed_images,
            )
        results[one.tta] = ModeResult(evaluation, milliseconds)
    if pictures:
        header = f"{path}   step {judged.trained.identity.step:,}   AP {evaluation.coco.AP:.3f}"
        drawn, names = evaluation.drawn, judged.manifest.class_names
        prediction_page(drawn.fixed, names, pictures, header=header, worst=drawn.worst)
        console.say("pictures", str(pictures))
    if detections:
        _write_detections(detections, evaluation)
    if kitti:
        _write_kitti(kitti, kitti_names, judged, evaluation)
    took = f"{counted(evaluation.num_images, 'image')} in {console.duration(time.monotonic() - began)}"
    about = {"checkpoint": str(judged.trained.identity.location), "data": judged.location}
    step = judged.trained.identity.step
    if not modes:
        print(json.dumps({**about, **figures(evaluation, step)}) if as_json else tables(evaluation))
        console.say("done", f"{took}, {_CLOCK} {milliseconds:.1f} ms per image on {judged.trained.device}")
        return
    table = mode_table(results)
    print(json.dumps({**about, "modes": _as_json(results, step)}) if as_json else table)
    _track(judged, results, table)
    console.say("done", took)
    console.say(
        "",
        f"ms: {_CLOCK}, on {judged.trained.device}, images one by one, mean of {timed_images} after 3 to warm up; "
        "reading, resizing and normalising are not included",
    )


def _write_detections(path: Path, evaluation: Evaluation) -> None:
    from data_shards.counting import counted
    from pipelines.files import write_json

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, evaluation.results)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}. Choose another file.") from error
    console.say("found", f"{path}, {counted(len(evaluation.results), 'detection')}")


def _kitti_names(judged: _Judged) -> dict[int, str]:
    """Return the names of KITTI's result files, by image id."""
    from data_shards.loading.ground_truth import coco_ground_truth
    from pipelines.evaluation.kitti_results import file_names

    if "depth" not in judged.trained.detector.needs:
        raise ConfigError(f"--kitti is for detectors in 3D, unlike {judged.trained.detector.name}; leave it out.")
    names = file_names(coco_ground_truth(judged.reading.split)["images"])
    if not names:
        raise ConfigError(
            f"no image of {judged.location} has a camera, without which the places of objects are unknown; leave out "
            f"--kitti, or build the shards from annotations whose images have calib, the camera's projection matrix."
        )
    return names


def _write_kitti(folder: Path, names: Mapping[int, str], judged: _Judged, evaluation: Evaluation) -> None:
    from data_shards.counting import counted
    from pipelines.evaluation import kitti_results

    threshold = judged.trained.recipe.evaluation.kitti_score_threshold
    class_names = {item.id: item.name for item in judged.manifest.classes}
    kitti_results.write(folder, names, evaluation.results, class_names, score_threshold=threshold)
    without = judged.manifest.num_samples - len(names)
    console.say(
        "kitti",
        f"{folder}, {counted(len(names), 'file')}, scores above {threshold:g}"
        + (f"; {counted(without, 'image')} without a camera left out" if without else ""),
    )


def _evaluated(judged: _Judged, settings: EvaluationSettings, topic: str, *, keep_results: bool = False) -> Evaluation:
    from data_shards.order.plan import World
    from pipelines.evaluation.evaluate import evaluate

    reading, num_samples = judged.reading, judged.manifest.num_samples
    evaluation = evaluate(
        judged.trained.detector,
        reading,
        settings,
        input_size=judged.trained.input_size,
        device=judged.trained.device,
        world=World(ranks=1, rank=0),
        progress=lambda done: console.progress_line(topic, done, num_samples, "images"),
        keep_results=keep_results,
    )
    assert evaluation is not None  # rank 0 of one
    return evaluation


@dataclass(frozen=True)
class _Judged:
    """A trained detector with the shards it is evaluated on."""

    trained: Trained
    manifest: Manifest
    location: str
    reading: Reading


def _open(path: Path, data: str | None, newest: bool, flags: Sequence[str]) -> _Judged:
    from data_shards.counting import counted
    from pipelines.trained.trained import check_classes, open_trained
    from pipelines.training.checks import check_input_size

    trained = open_trained(path, flags=flags, newest=newest)
    recipe, identity = trained.recipe, trained.identity
    location = data or recipe.data.validation
    if not location:
        raise ConfigError(f"{path} names no validation shards; give --data LOCATION/SPLIT.")
    split = recipe.data.split(location)
    manifest = split.manifest
    check_classes(identity.location, trained.classes, manifest)
    console.say("weights", f"{identity.location}, step {identity.step:,}")
    console.say("data", f"{location}, {counted(manifest.num_samples, 'image')}, manifest {manifest.digest[:6]}")
    check_input_size(recipe, trained.detector)
    reading = recipe.data.reading(split, trained.detector.box_corners)
    return _Judged(trained, manifest, location, reading)


def _as_json(results: Mapping[str, ModeResult], step: int) -> dict[str, Any]:
    from pipelines.evaluation.report import figures

    return {
        mode: {
            **figures(result.evaluation, step),
            "milliseconds_per_image": result.milliseconds,
            "frames_per_second": result.frames_per_second,
        }
        for mode, result in results.items()
    }


def _track(judged: _Judged, results: Mapping[str, ModeResult], table: str) -> None:
    """Log to the MLflow run that trained the checkpoint, if it is known."""
    from pipelines import tracking

    checkpoint, location = judged.trained.identity, judged.location
    folder = Path(checkpoint.location).parent.parent / "tracking"
    # A weights file beside a run may be of another one.
    if not Path(checkpoint.location).is_dir() or not (folder / "run.json").exists():
        return
    metrics = {key: value for mode, result in results.items() for key, value in result.as_metrics(mode).items()}
    text = f"{checkpoint.location}, {location}\n\n{table}\n"
    if tracking.log_afterwards(folder, checkpoint.step, metrics, {"evaluation/test_time.txt": text}):
        console.say("tracked", "test_time/* and evaluation/test_time.txt in the run's MLflow")
