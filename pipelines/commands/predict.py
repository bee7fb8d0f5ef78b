"""`aweigh predict`: the objects in new images, in the files that people and other tools read."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import console
from pipelines.commands.arguments import Commands, add_json, takes_fields
from pipelines.errors import ConfigError
from pipelines.hints import did_you_mean

if TYPE_CHECKING:
    from pipelines.prediction.job import Done, Job, PartWorker
    from pipelines.prediction.workers import ClusterWorkers
    from pipelines.trained.trained import Trained

_FORMATS = ("pictures", "coco", "yolo", "csv", "kitti", "video", "prelabels")
"""Words of `--as`: the keys of `prediction.outputs.formats`, which imports torch."""

_DESCRIPTION = """\
Find objects in images, videos, shards or S3, and write them as pictures, tables or annotations.

  aweigh predict runs/cells photos --output found
  aweigh predict runs/cells clip.mp4 'more/*.jpg' --output found --as pictures video csv
"""
_EPILOG = """\
The same command resumes a job that was stopped. Images that cannot be read are listed in
unreadable.txt and do not stop the job. Exit status: 0 done; 1 no image could be read;
2 something given cannot be used; 130 Ctrl-C.
"""


def add(commands: Commands) -> None:
    """Add `predict`."""
    predict = commands.add_parser(
        "predict",
        help="objects in images, videos, shards or S3",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predict.add_argument("model", metavar="RUN", help="a run's folder (its best checkpoint) or a checkpoint's")
    predict.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="a file, folder, 'pattern', video, number of a camera, shards, or s3:// prefix of images or shards",
    )
    predict.add_argument(
        "--output", required=True, metavar="FOLDER", help="where results are written: a folder or s3://BUCKET/PREFIX"
    )
    predict.add_argument(
        "--as",
        dest="formats",
        nargs="+",
        choices=_FORMATS,
        default=[],
        metavar="FORMAT",
        help=f"what is written: {', '.join(_FORMATS)} (default: pictures; video for videos)",
    )
    predict.add_argument(
        "--threshold",
        nargs="+",
        default=[],
        metavar="SCORE",
        help="least score: a number, CLASS=NUMBER for some classes, or both (default: the best of each class in the "
        "run's evaluation, or 0.3)",
    )
    predict.add_argument(
        "--tta", choices=("none", "flip", "multiscale"), help="test-time augmentation (default: the recipe's)"
    )
    predict.add_argument(
        "--batch", type=int, metavar="N", help="images that go through the network together (default: the recipe's)"
    )
    predict.add_argument(
        "--tiles", type=int, metavar="SIZE", help="also look at square tiles of this size, for small objects"
    )
    predict.add_argument(
        "--overlap", type=float, metavar="PIXELS", help="of tiles, or a fraction below 1 of their size (default: 0.2)"
    )
    predict.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    predict.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="share the images among N workers of the Ray cluster at RAY_ADDRESS, or of one started on this machine; "
        "each takes a GPU if there is any (default: work in this process)",
    )
    predict.add_argument(
        "--calibration",
        type=Path,
        metavar="PATH",
        help="in 3D: a KITTI calibration file of the camera, or a folder with one for each image",
    )
    predict.add_argument("--newest", action="store_true", help="the newest checkpoint instead of the best")
    predict.add_argument("--overwrite", action="store_true", help="remove another job's results from --output first")
    add_json(predict, "a summary")
    takes_fields(predict, run)
    predict.set_defaults(when_stopped="run the same command again to resume")


def run(known: argparse.Namespace) -> None:
    """Predict on all images of the sources."""
    flags = [
        *known.rest,
        *(["--evaluation.tta", known.tta] if known.tta else []),
        *(["--evaluation.batch_size", str(known.batch)] if known.batch is not None else []),
    ]
    _check(known)
    import torch

    from data_shards.counting import counted
    from pipelines.prediction.job import begin, describe_objects, facts, finish
    from pipelines.trained.trained import open_trained

    began = time.monotonic()
    # The GPUs belong to the workers.
    device = torch.device("cpu") if known.workers else None
    trained = open_trained(known.model, flags=flags, newest=known.newest, device=device)
    job = _job(known, trained, flags)
    sources = job.subject.sources
    job, finished = begin(job, facts(job, trained), overwrite=known.overwrite)
    if finished:
        done_before = sum(len(range(part * job.part_size, _end(job, part))) for part in finished)
        console.say("resumed", f"{done_before:,} of {counted(len(sources), 'image')} were done")
    try:
        _work(job, _worker(job, trained, known.workers), finished, starts_slowly=known.workers is not None)
        done = finish(job)
    finally:
        sources.close()
    seconds = time.monotonic() - began
    for name, problem in done.problems[:3]:
        console.say("warning", f"{name}: {problem}")
    if done.problems:
        console.say("warning", f"{counted(len(done.problems), 'image')} could not be read: {job.output}/unreadable.txt")
    if done.repeated:
        console.say("warning", f"two images are named {done.repeated[0]}; only one has output files of that name")
    for name in done.files:
        console.say("written", f"{job.output}/{name}")
    if known.json:
        print(json.dumps(_summary(job, done, seconds), indent=1))
    if not done.num_images:
        console.fail(f"no image could be read; {job.output}/unreadable.txt says why.", 1)
    console.say(
        "done",
        f"{describe_objects(done.num_objects)} in {counted(done.num_images, 'image')}, {console.duration(seconds)}",
    )


def thresholds(words: Sequence[str], trained: Mapping[str, float], class_names: Sequence[str]) -> dict[str, float]:
    """Return the least score of each class.

    Args:
        words: of `--threshold`.
        trained: the best threshold of each class in the run's evaluation, as far as it is known.
        class_names: names of all classes.

    Raises:
        ConfigError: a word is not a score, or names an unknown class.
    """
    from pipelines.prediction.predictor import UNKNOWN_THRESHOLD

    everywhere: float | None = None
    by_class: dict[str, float] = {}
    for word in words:
        # A class name may contain an equals sign; a number does not.
        name, equals, number = word.rpartition("=")
        try:
            score = float(number)
        except ValueError:
            score = -1.0
        if not 0 <= score <= 1:
            raise ConfigError(f"--threshold {word}: give a number from 0 to 1, or CLASS=NUMBER.")
        if not equals:
            everywhere = score
        elif name not in class_names:
            hint = did_you_mean(name, class_names, f"the classes are {', '.join(class_names)}.")
            raise ConfigError(f"--threshold {word}: the detector has no class {name!r}; {hint}")
        else:
            by_class[name] = score
    return {
        name: by_class.get(name, everywhere if everywhere is not None else trained.get(name, UNKNOWN_THRESHOLD))
        for name in class_names
    }


def _check(known: argparse.Namespace) -> None:
    """Refuse what can be refused before torch is imported."""
    if known.batch is not None and known.batch < 1:
        raise ConfigError(f"--batch is {known.batch}; it must be 1 or more.")
    if known.workers is not None and known.workers < 1:
        raise ConfigError(f"--workers is {known.workers}; it must be 1 or more.")
    if known.overlap is not None and known.tiles is None:
        raise ConfigError("--overlap is of tiles; give --tiles SIZE, too.")


def _job(known: argparse.Namespace, trained: Trained, flags: Sequence[str]) -> Job:
    """Find the sources, check that everything fits together, and say what will be done."""
    from data_shards.settings import ReadSettings
    from data_shards.storage.open import open_store
    from pipelines.prediction.cameras import Cameras
    from pipelines.prediction.job import Job, part_size_of
    from pipelines.prediction.outputs.output import Subject
    from pipelines.prediction.sources import find_sources
    from pipelines.prediction.tiles import Tiling

    in_3d = "depth" in trained.detector.needs
    tiling = None if known.tiles is None else Tiling.of(known.tiles, 0.2 if known.overlap is None else known.overlap)
    if tiling is not None and in_3d:
        raise ConfigError(
            f"--tiles cannot be used with {trained.detector.name}: it estimates distances from the size of objects in "
            f"the whole image."
        )
    if "kitti" in known.formats and not in_3d:
        raise ConfigError(f"--as kitti is for detectors in 3D, unlike {trained.detector.name}; leave it out.")
    if known.calibration is not None and not in_3d:
        raise ConfigError(f"--calibration is for detectors in 3D, unlike {trained.detector.name}; leave it out.")
    data = trained.recipe.data
    reading = ReadSettings(timeout_seconds=data.read_timeout_seconds, deadline_seconds=data.read_deadline_seconds)
    output = str(known.output).rstrip("/") or "/"
    sources = find_sources(
        known.sources,
        limit=known.limit,
        without=None if "://" in output else Path(output),
        open_split=data.split,
        open_location=lambda location: open_store(location, reading),
        counting=lambda path, done: _say_counting(path, done),
    )
    formats = known.formats or ["video" if sources.has_videos_only else "pictures"]
    if not known.formats and sources.has_videos and not sources.has_videos_only:
        formats = ["pictures", "video"]
    if "video" in formats and not sources.has_videos:
        raise ConfigError("--as video draws on the videos among the sources, and there is none; use pictures.")
    scores = thresholds(known.threshold, trained.thresholds, trained.class_names)
    identity = trained.identity
    console.say("weights", identity.location + (f", step {identity.step:,}" if identity.step else ""))
    console.say("images", sources.describe())
    for note in sources.notes:
        console.say("warning", note)
    console.say("threshold", _describe_thresholds(known.threshold, scores, trained))
    if tiling is not None:
        console.say("tiles", f"{tiling.size} pixels, overlapping by {tiling.overlap} or more, and the whole image")
    console.say("output", f"{output}: {', '.join(formats)}")
    batch = trained.recipe.evaluation.batch_size
    return Job(
        model=str(known.model),
        flags=tuple(flags),
        newest=known.newest,
        subject=Subject(classes=trained.classes, sources=sources, origin=identity.location),
        thresholds=scores,
        formats=tuple(dict.fromkeys(formats)),
        tiling=tiling,
        cameras=None if known.calibration is None else Cameras(known.calibration),
        output=output,
        part_size=part_size_of(len(sources), batch, endless=sources.is_endless),
    )


def _worker(job: Job, trained: Trained, workers: int | None) -> PartWorker | ClusterWorkers:
    """Return what does the parts: this process, or a cluster's."""
    from pipelines.prediction.job import PartWorker
    from pipelines.prediction.workers import ClusterWorkers

    return PartWorker(job, trained) if workers is None else ClusterWorkers(job, trained, workers)


def _work(job: Job, worker: PartWorker | ClusterWorkers, finished: Sequence[int], *, starts_slowly: bool) -> None:
    """Do the parts that are missing, with the progress; the time in which workers start does not count in the rate."""
    sources = job.subject.sources
    left = [] if sources.is_endless else sorted({*range(job.num_parts)} - {*finished})
    total = len(sources)
    before = total - sum(_end(job, part) - part * job.part_size for part in left)
    done, pace = before, console.Pace()
    with closing(worker.run(_every(job) if sources.is_endless else left)) as parts:
        for place, (_, number) in enumerate(parts):
            done += number
            if place == 0 and starts_slowly:
                pace, before = console.Pace(), done
            if sources.is_endless:
                console.say("predict", f"{done:,} frames, Ctrl-C to end")
            else:
                console.progress_line("predict", done, total, "images", pace.note(done, total, before))
    console.end_progress_line()


def _every(job: Job) -> range:
    return range(job.num_parts)


def _end(job: Job, part: int) -> int:
    return min((part + 1) * job.part_size, len(job.subject.sources))


def _say_counting(path: Path, done: int) -> None:
    # A long video takes a while, and its number of frames is not known before.
    if done % 5000 == 0:
        console.say("count", f"{done:,} frames of {path} so far")


def _describe_thresholds(words: Sequence[str], scores: Mapping[str, float], trained: Trained) -> str:
    """Say which scores count, and where they come from."""
    if words:
        origin = "as given"
    elif not trained.thresholds:
        origin = "no evaluation of this file is known"
    else:
        origin = "best F1 of each class in the run's evaluation"
    values = sorted(set(scores.values()))
    if len(values) == 1:
        return f"{values[0]:g} ({origin})"
    shown = [f"{name} {score:.3g}" for name, score in scores.items()]
    return f"{', '.join(shown[:8])}{', …' if len(shown) > 8 else ''} ({origin})"


def _summary(job: Job, done: Done, seconds: float) -> dict[str, Any]:
    return {
        "output": job.output,
        "images": done.num_images,
        "unreadable": [{"image": name, "reason": problem} for name, problem in done.problems],
        "objects": sum(done.num_objects.values()),
        "classes": done.num_objects,
        "threshold": dict(job.thresholds),
        "files": done.files,
        "seconds": round(seconds, 3),
    }
