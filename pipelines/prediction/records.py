"""Records of a job's images: what was found in each, one line of JSON an image, in files that are written whole.

The files of outputs that hold all images are assembled from records, by any process that can read them, and with the
records of one image in memory at a time.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data_shards.storage.store import Store
from pipelines.errors import ConfigError
from pipelines.prediction.prediction import Prediction
from pipelines.prediction.sources import SourceImage

_SUFFIX = ".jsonl"


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageRecord:
    """The result of one image."""

    number: int
    """Place among the images of the job, from 0."""
    name: str
    """File name, relative, as annotations and people write it."""
    stem: str
    """Name of the image's own output files, without their endings."""
    image_id: int
    """COCO's id."""
    height: int = 0
    width: int = 0
    boxes: NDArray[np.float32]
    """(objects, 4): x1, y1, x2, y2 in pixels of the image; they may leave it."""
    scores: NDArray[np.float32]
    """(objects,), best first."""
    labels: NDArray[np.int64]
    """(objects,)"""
    keypoints: NDArray[np.float32] | None = None
    """(objects, joints, 3): x, y and the joint's score."""
    box3d: NDArray[np.float32] | None = None
    """(objects, 7), as in `Prediction`."""
    camera: NDArray[np.float64] | None = None
    """(3, 4): the camera's projection matrix."""
    doubt: float = 0.0
    """See `doubt`."""
    problem: str = ""
    """The reason why the image could not be read; empty if it was."""

    def line(self) -> str:
        """Write the record as one line of JSON."""
        values: dict[str, Any] = {}
        for name, value in vars(self).items():
            if value is not None:
                values[name] = value.tolist() if isinstance(value, np.ndarray) else value
        return json.dumps(values, separators=(",", ":")) + "\n"

    @classmethod
    def from_line(cls, line: str | bytes) -> Self:
        """Read a record from its line."""
        values = json.loads(line)
        # In the precision of the detector: sizes of boxes are differences, which evaluations take in it.
        for name, columns in (("boxes", (4,)), ("scores", ()), ("box3d", (7,))):
            if name in values:
                values[name] = np.array(values[name], dtype=np.float32).reshape(-1, *columns)
        if "camera" in values:
            values["camera"] = np.array(values["camera"], dtype=np.float64)
        values["labels"] = np.array(values["labels"], dtype=np.int64)
        if "keypoints" in values:
            joints = np.array(values["keypoints"], dtype=np.float32)
            values["keypoints"] = joints if joints.size else joints.reshape(0, 0, 3)
        return cls(**values)

    def clipped_boxes(self) -> NDArray[np.float64]:
        """Return the boxes cut off at the sides of the image, as annotation tools want them."""
        sides = [self.width, self.height, self.width, self.height]
        return np.asarray(np.clip(self.boxes.astype(np.float64), 0, sides))


def record(
    source: SourceImage,
    name: str,
    prediction: Prediction,
    thresholds: NDArray[np.float64],
    camera: Any = None,
) -> ImageRecord:
    """Return the record of a prediction.

    Args:
        source: the image.
        name: its file name.
        prediction: with detections below the thresholds, too, which count as doubts.
        thresholds: least score of each class.
        camera: its projection matrix, if it is known.
    """
    kept = prediction.rows(prediction.scores >= thresholds[prediction.labels])
    height, width = prediction.size
    return ImageRecord(
        number=source.number,
        name=name,
        stem=source.stem,
        image_id=source.image_id,
        height=height,
        width=width,
        boxes=kept.boxes,
        scores=kept.scores,
        labels=kept.labels,
        keypoints=kept.keypoints,
        box3d=kept.box3d,
        camera=None if camera is None else np.array(camera, dtype=np.float64),
        doubt=doubt(prediction.scores, thresholds[prediction.labels]),
    )


def unreadable(source: SourceImage, problem: str) -> ImageRecord:
    """Return the record of an image that could not be read."""
    return ImageRecord(
        number=source.number,
        name=source.name,
        stem=source.stem,
        image_id=source.image_id,
        boxes=np.zeros((0, 4), dtype=np.float32),
        scores=np.zeros(0, dtype=np.float32),
        labels=np.zeros(0, dtype=np.int64),
        problem=problem,
    )


def doubt(scores: NDArray[np.floating], thresholds: NDArray[np.floating]) -> float:
    """Return how many detections of an image could as well be decided the other way.

    A detection counts 1 if its score is the threshold of its class, 0 if it is 1 or half the threshold, and in
    proportion between them; the sum over detections is what a person has to look at.

    Args:
        scores: of all detections, also of those below their threshold.
        thresholds: of the class of each detection.

    Source:
        Brust et al., Active Learning for Deep Object Detection (arXiv:1809.09875), section 3.3: the sum over the
        detections of an image serves best. Their margin between two classes is between object and background here.
    """
    above = (1 - scores) / np.maximum(1 - thresholds, 1e-6)
    below = (scores - thresholds / 2) / np.maximum(thresholds / 2, 1e-6)
    return float(np.clip(np.where(scores >= thresholds, above, below), 0, 1).sum())


def part_name(part: int) -> str:
    """Return the name of the file with the records of a part."""
    return f"{part:06d}{_SUFFIX}"


def finished_parts(store: Store) -> set[int]:
    """Return the numbers of the parts whose records are written."""
    names = (name.removesuffix(_SUFFIX) for name in store.list_names() if name.endswith(_SUFFIX))
    return {int(name) for name in names if name.isdecimal()}


class Records:
    """All records of a finished job, in a temporary file of this machine. A context manager.

    Args:
        store: location of the files of records.
        parts: numbers of the parts, in their order.

    Raises:
        ConfigError: a file of records is damaged.
    """

    def __init__(self, store: Store, parts: Sequence[int]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        starts, lengths, doubts, numbers = [], [], [], []
        self.problems: list[tuple[str, str]] = []
        """Names of the images that could not be read, with the reasons."""
        self.num_objects: dict[int, int] = {}
        """Objects found, by label."""
        self.repeated_stems: list[str] = []
        """Names of output files that two images share, of which only one is left."""
        seen: set[str] = set()
        at = 0
        for part in parts:
            for line in store.read_bytes(part_name(part)).splitlines(keepends=True):
                try:
                    one = ImageRecord.from_line(line)
                except (ValueError, TypeError, KeyError) as error:
                    raise ConfigError(
                        f"{store.location}/{part_name(part)} is damaged; delete it, and run the same command again."
                    ) from error
                self._file.write(line)
                if one.problem:
                    self.problems.append((one.name, one.problem))
                else:
                    starts.append(at)
                    lengths.append(len(line))
                    doubts.append(one.doubt)
                    numbers.append(one.number)
                    for label in one.labels.tolist():
                        self.num_objects[label] = self.num_objects.get(label, 0) + 1
                    if one.stem in seen:
                        self.repeated_stems.append(one.stem)
                    seen.add(one.stem)
                at += len(line)
        self._starts, self._lengths = np.array(starts, dtype=np.int64), np.array(lengths, dtype=np.int64)
        self._doubts, self._numbers = np.array(doubts), np.array(numbers, dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of images that were read."""
        return len(self._starts)

    def __iter__(self) -> Iterator[ImageRecord]:
        """Yield the record of every image that was read, in the order of the sources."""
        return self._at(range(len(self)))

    def count(self, first: int, end: int) -> int:
        """Return how many images of a range of numbers were read."""
        return len(self._range(first, end))

    def between(self, first: int, end: int) -> Iterator[ImageRecord]:
        """Yield the records of a range of numbers, in their order."""
        return self._at(self._range(first, end))

    def least_certain_first(self) -> Iterator[ImageRecord]:
        """Yield the same records, those with the largest doubt first."""
        return self._at(np.argsort(-self._doubts, kind="stable").tolist())

    def close(self) -> None:
        """Delete the temporary file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _range(self, first: int, end: int) -> range:
        return range(*np.searchsorted(self._numbers, (first, end)).tolist())

    def _at(self, places: Sequence[int]) -> Iterator[ImageRecord]:
        for place in places:
            # The file has one position, and two outputs may read it by turns.
            self._file.seek(int(self._starts[place]))
            yield ImageRecord.from_line(self._file.read(int(self._lengths[place])))


def threshold_array(thresholds: Mapping[str, float], class_names: Sequence[str]) -> NDArray[np.float64]:
    """Return the least score of each class, in the order of the labels."""
    return np.array([thresholds[name] for name in class_names], dtype=np.float64)
