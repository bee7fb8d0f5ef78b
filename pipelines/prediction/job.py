"""A job of predictions: images in numbered parts, each of which is done once, by this process or any other.

A part is a few images. Its files are written whole, those of its images first and its records last: a part whose
records exist is finished. A job that was killed is resumed by the same command, which does the parts that are missing.
The files that hold all images are assembled from the records at the end.
"""

import hashlib
import itertools
import json
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.counting import counted
from data_shards.storage.open import open_store
from data_shards.storage.store import Store
from pipelines.errors import ConfigError
from pipelines.prediction.cameras import Cameras
from pipelines.prediction.outputs.formats import OUTPUTS
from pipelines.prediction.outputs.output import Output, Subject
from pipelines.prediction.prediction import Prediction
from pipelines.prediction.predictor import Predictor
from pipelines.prediction.records import (
    ImageRecord,
    Records,
    finished_parts,
    part_name,
    record,
    threshold_array,
    unreadable,
)
from pipelines.prediction.sources import Loaded, SourceImage, UnreadableError
from pipelines.prediction.tiles import TiledPredictor, Tiling
from pipelines.prediction.videos import EndOfFramesError
from pipelines.recipes.recipe import flatten, to_dict
from pipelines.trained.trained import Trained, open_trained

JOB, PARTS, UNREADABLE = "job.json", "parts", "unreadable.txt"
_VERSION = 1
# In the order in which they are removed: without its records, a part is done again.
_OWN_FILES = (
    PARTS,
    "frames",
    "pictures",
    "coco",
    "yolo",
    "kitti",
    "video",
    "prelabels",
    "detections.csv",
    UNREADABLE,
    JOB,
)

_FEWEST_IN_PART, _MOST_IN_PART = 8, 64
_MOST_PARTS_OF_SMALL_JOBS = 64
# Each part is a file, which is listed and read at the end, and some milliseconds of a cluster's driver.
_MOST_PARTS = 4096
_CAMERA_PART = 16
# Images that are grouped by the size of their inputs, for each image of a batch; as `Predictor.predict` does.
_GROUPED = 4

# Fields of `evaluation` that do not change what is found, and those of `data` that do.
_WITHOUT_EFFECT = ("every_epochs", "batch_size", "pictures", "kitti_score_threshold", "published_rounding")
_WITH_EFFECT = ("input_size", "box_ends", "resizing")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a process needs to do a part. It can be pickled."""

    model: str
    """The run, checkpoint or file, as `open_trained` takes it."""
    flags: tuple[str, ...]
    """Fields of the recipe to change."""
    newest: bool
    subject: Subject
    thresholds: Mapping[str, float]
    """Least score of each class, by its name."""
    formats: tuple[str, ...]
    """Words of `OUTPUTS`."""
    tiling: Tiling | None
    cameras: Cameras | None
    output: str
    """Location of everything that is written: a folder, or `s3://BUCKET/PREFIX`."""
    part_size: int
    """Images of a part; the last one may have fewer."""

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return -(-len(self.subject.sources) // self.part_size)

    def images(self, part: int) -> Iterator[SourceImage]:
        """Yield the images of a part."""
        first = part * self.part_size
        for number in range(first, min(first + self.part_size, len(self.subject.sources))):
            yield self.subject.sources[number]

    def store(self) -> Store:
        """Return the store of the output."""
        return open_store(self.output)

    def parts_store(self) -> Store:
        """Return the store of the records."""
        return open_store(f"{self.output}/{PARTS}")

    def outputs(self) -> list[Output]:
        """Return a writer for each format."""
        return [OUTPUTS[name](self.subject) for name in self.formats]


class PartWorker:
    """Does parts of a job in this process.

    Args:
        job: the job.
        trained: its detector, opened; None opens it here.
    """

    def __init__(self, job: Job, trained: Trained | None = None) -> None:
        self.job = job
        trained = trained or open_trained(job.model, flags=job.flags, newest=job.newest)
        self._predictor = Predictor(trained)
        self._thresholds = threshold_array(job.thresholds, trained.class_names)
        # Detections from half the threshold on count as doubts.
        self._floor = {name: score / 2 for name, score in job.thresholds.items()}
        self._batch_size = trained.recipe.evaluation.batch_size
        self._threads = trained.recipe.data.threads
        one_size = trained.recipe.evaluation.geometry == "fixed"
        self._chunk = 1 if job.tiling else self._batch_size * (1 if one_size else _GROUPED)
        self._outputs = job.outputs()

    def run(self, parts: Iterable[int]) -> Generator[tuple[int, int], None, None]:
        """Do parts one after the other; yields each with its number of images when its records are written.

        Images are decoded ahead of their use, across parts. If the camera ends, or Ctrl-C is pressed while its frames
        are read, the last part is shorter and no other follows.
        """
        store, records = self.job.store(), self.job.parts_store()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="aweigh-images")
        # Frames are read one after the other, whichever thread is free.
        in_order = ThreadPoolExecutor(1, thread_name_prefix="aweigh-frames")
        try:
            loaded = self._loaded(parts, pool, in_order)
            for part, images in itertools.groupby(loaded, key=lambda item: item[0]):
                lines: list[str] = []
                stopped = False
                try:
                    while chunk := list(itertools.islice(images, self._chunk)):
                        found = self._predicted([(source, one) for _, source, one in chunk])
                        list(pool.map(lambda item: self._write(store, *item), found))
                        lines += [one.line() for one, _ in found]
                except KeyboardInterrupt:
                    if not self.job.subject.sources.has_camera:
                        raise
                    stopped = True
                if lines:
                    records.write_bytes(part_name(part), "".join(lines).encode())
                    yield part, len(lines)
                if stopped:
                    return
        finally:
            pool.shutdown(cancel_futures=True)
            in_order.shutdown(cancel_futures=True)

    def _loaded(
        self, parts: Iterable[int], pool: Executor, in_order: Executor
    ) -> Iterator[tuple[int, SourceImage, Loaded | UnreadableError]]:
        """Yield every image of the parts with its pixels, or the reason why it has none."""
        images = ((part, source) for part in parts for source in self.job.images(part))
        waiting: deque[tuple[int, SourceImage, Future[Loaded]]] = deque()
        ahead = 2 if self.job.tiling else self._chunk + self._batch_size
        while True:
            for part, source in itertools.islice(images, ahead - len(waiting)):
                executor = in_order if source.origin.in_order else pool
                waiting.append((part, source, executor.submit(source.load)))
            if not waiting:
                return
            part, source, future = waiting.popleft()
            try:
                yield part, source, future.result()
            except UnreadableError as error:
                yield part, source, error
            except EndOfFramesError:
                return

    def _predicted(
        self, chunk: Sequence[tuple[SourceImage, Loaded | UnreadableError]]
    ) -> list[tuple[ImageRecord, NDArray[np.uint8] | None]]:
        """Return the record and the pixels of each image."""
        read = [one for _, one in chunk if isinstance(one, Loaded)]
        predictions = iter(self._predict([one.image for one in read]))
        found: list[tuple[ImageRecord, NDArray[np.uint8] | None]] = []
        for source, one in chunk:
            if isinstance(one, UnreadableError):
                found.append((unreadable(source, " ".join(str(one).split())), None))
                continue
            camera = one.camera
            if self.job.cameras is not None:
                camera = self.job.cameras.of(one.name) or camera
            found.append((record(source, one.name, next(predictions), self._thresholds, camera), one.image))
        return found

    def _predict(self, images: list[NDArray[np.uint8]]) -> list[Prediction]:
        if not images:
            return []
        if self.job.tiling is None:
            return self._predictor.predict(images, threshold=self._floor, batch_size=self._batch_size)
        tiled = TiledPredictor(
            _WithThreshold(self._predictor, self._floor), self.job.tiling, batch_size=self._batch_size
        )
        return tiled.predict_batch(images)

    def _write(self, store: Store, record: ImageRecord, image: NDArray[np.uint8] | None) -> None:
        if not record.problem:
            for output in self._outputs:
                output.write_image(store, record, image)


@dataclass(frozen=True)
class _WithThreshold:
    """A predictor that leaves out low scores."""

    predictor: Predictor
    threshold: Mapping[str, float]

    def predict_batch(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        return self.predictor.predict_batch(images, threshold=self.threshold)


@dataclass(frozen=True)
class Done:
    """A finished job."""

    num_images: int
    """Images that were read."""
    problems: list[tuple[str, str]]
    """Names of images that could not be read, with the reasons."""
    num_objects: dict[str, int]
    """Objects found, by class; classes without any are left out."""
    files: list[str]
    """Files and folders to look at, relative to the output."""
    repeated: list[str]
    """Names of output files that two images share."""


def part_size_of(num_images: int, batch_size: int, *, endless: bool = False) -> int:
    """Return how many images a part has: whole batches, little to lose, and enough parts for several workers."""
    if endless:
        return _CAMERA_PART
    wanted = min(_MOST_IN_PART, max(_FEWEST_IN_PART, -(-num_images // _MOST_PARTS_OF_SMALL_JOBS)))
    wanted = max(wanted, -(-num_images // _MOST_PARTS))
    return -(-wanted // batch_size) * batch_size


def facts(job: Job, trained: Trained) -> dict[str, Any]:
    """Return what decides the results: a job with other facts does not write into the same output."""
    recipe = to_dict(trained.recipe)
    evaluation = {name: value for name, value in recipe["evaluation"].items() if name not in _WITHOUT_EFFECT}
    return {
        "version": _VERSION,
        "detector": {"location": trained.identity.location, "sha256": _digest(trained)},
        "sources": {"images": len(job.subject.sources), "digest": job.subject.sources.digest()},
        "threshold": dict(job.thresholds),
        "as": sorted(job.formats),
        "tiles": None if job.tiling is None else [job.tiling.size, job.tiling.overlap],
        "calibration": None if job.cameras is None else str(job.cameras.path),
        "evaluation": evaluation,
        "data": {name: recipe["data"][name] for name in _WITH_EFFECT},
    }


def begin(job: Job, described: dict[str, Any], *, overwrite: bool) -> tuple[Job, list[int]]:
    """Make the output ready; returns the job with the parts of its first run, and the numbers of the finished parts.

    Args:
        job: the job.
        described: its `facts`.
        overwrite: remove what another job wrote there.

    Raises:
        ConfigError: the output has something else in it, or cannot be written.
        DataError: S3 does not answer.
    """
    store = job.store()
    if store.exists(JOB):
        before = _read_job(store)
        changed = _changes(before, described)
        if overwrite and (changed or job.subject.sources.has_camera or not before):
            _remove(store)
        elif not before or before.get("version") != _VERSION:
            raise ConfigError(
                f"{store.location}/{JOB} is damaged or from another version; choose another --output, or pass "
                f"--overwrite to start again."
            )
        elif changed:
            raise ConfigError(
                f"{store.location} has the predictions of another job ({changed}); choose another --output, or pass "
                f"--overwrite to start again."
            )
        elif job.subject.sources.has_camera:
            raise ConfigError(
                f"{store.location} has predictions already, and a camera's frames do not come again; choose another "
                f"--output, or pass --overwrite to start again."
            )
        else:
            job = _with_part_size(job, before["part_size"])
            return job, sorted(finished_parts(job.parts_store()))
    elif store.list_names():
        raise ConfigError(f"{store.location} has files of something else; choose another --output.")
    store.write_bytes(JOB, (json.dumps({**described, "part_size": job.part_size}, indent=1) + "\n").encode())
    return job, []


def finish(job: Job) -> Done:
    """Assemble the files that hold all images, from the records of all parts.

    Raises:
        ConfigError: a part is missing.
    """
    store, parts = job.store(), job.parts_store()
    numbers = sorted(finished_parts(parts))
    if not job.subject.sources.is_endless and not job.subject.sources.has_camera and len(numbers) < job.num_parts:
        missing = next(number for number in range(job.num_parts) if number not in numbers)
        raise ConfigError(f"{parts.location}/{part_name(missing)} is missing; run the same command again.")
    with Records(parts, numbers) as records:
        files = [name for output in job.outputs() for name in output.finish(store, records)]
        if records.problems:
            text = "".join(f"{name}: {problem}\n" for name, problem in records.problems)
            store.write_bytes(UNREADABLE, text.encode("utf-8", "surrogateescape"))
        else:
            store.delete(UNREADABLE)
        names = job.subject.class_names
        objects = {names[label]: count for label, count in sorted(records.num_objects.items())}
        return Done(len(records), records.problems, objects, files, records.repeated_stems)


def describe_objects(objects: Mapping[str, int]) -> str:
    """Say how many objects of which classes were found."""
    if not objects:
        return "no object"
    most = sorted(objects.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{count:,} {name}" for name, count in most[:8])
    return f"{counted(sum(objects.values()), 'object')} ({shown}{', …' if len(most) > 8 else ''})"


def _with_part_size(job: Job, part_size: Any) -> Job:
    if not isinstance(part_size, int) or part_size < 1:
        raise ConfigError(f"{job.output}/{JOB} is damaged; pass --overwrite to start again.")
    return replace(job, part_size=part_size)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the first difference between the facts of two jobs, for people; empty if there is none."""
    old, new = flatten(before), flatten(now)
    for name in sorted({*old, *new} - {"part_size", "detector.location", "detector.sha256", "sources.digest"}):
        if old.get(name) != new.get(name):
            return f"{name}: {_shown(old.get(name))} → {_shown(new.get(name))}"
    if old.get("sources.digest") != new.get("sources.digest"):
        return "its images differ"
    if old.get("detector.sha256") != new.get("detector.sha256"):
        return f"its detector was {old.get('detector.location')}, with other weights"
    return ""


def _shown(value: Any) -> str:
    return "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_job(store: Store) -> dict[str, Any]:
    try:
        content = json.loads(store.read_bytes(JOB))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _remove(store: Store) -> None:
    """Remove everything that a job wrote, and nothing else."""
    names = store.list_names()
    for own in _OWN_FILES:
        for name in names:
            if name == own or name.startswith(f"{own}/"):
                store.delete(name)


def _digest(trained: Trained) -> str:
    """Return the sha256 of the file, or of all tensors of a checkpoint."""
    path = Path(trained.identity.location)
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    for name, tensor in sorted(trained.detector.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
