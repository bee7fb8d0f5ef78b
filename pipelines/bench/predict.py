"""`aweigh bench predict`: the cost of a prediction, beside its parts measured alone: decode, network, decoding.

Parts and wholes take turns, image by image and batch by batch, so that a busy machine slows both. On a CPU, the CPU
time of all threads counts.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import detectors
from data_shards.counting import counted
from data_shards.demo.write import write_demo
from data_shards.format.manifest import CocoClass
from data_shards.loading.augment import augment
from data_shards.reading.decode import decode_jpeg
from data_shards.reading.pictures import PictureSamples
from detectors import Detector
from pipelines import console
from pipelines.bench.device import chosen_device, clock_name, clock_of, device_name, synchronize
from pipelines.errors import ConfigError
from pipelines.evaluation.views import read_views
from pipelines.prediction.predictor import Predictor
from pipelines.recipes.settings import Recipe
from pipelines.trained.trained import Identity, Trained

_CLASSES = 80
_ENDINGS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    milliseconds: float
    """Per image, the median of the rounds."""
    ratio: float | None = None
    """Against the sum of the three parts, the median of the rounds."""
    limit: float | None = None
    """The largest ratio that is fine."""


@dataclass
class _Round:
    """Seconds of all images of one round."""

    decode: float = 0.0
    network: float = 0.0
    decoding: float = 0.0
    whole: float = 0.0

    @property
    def parts(self) -> float:
        return self.decode + self.network + self.decoding


@dataclass
class _Way:
    """Predictions for this many images at a time."""

    name: str
    size: int
    limit: float
    rounds: list[_Round] = field(default_factory=list)


def bench_predict(recipe: Recipe, *, images: Path | None, count: int, rounds: int, device: str, as_json: bool) -> None:
    """Measure predictions of the recipe's detector, with random weights, and print the table.

    Args:
        recipe: its detector, and how images are shown to it; `evaluation.batch_size` is the size of batches.
        images: folder of photographs; None for the demo's.
        count: photographs in each round.
        rounds: rounds that are counted; one more warms up.
        device: "cpu", "cuda" or "auto".
        as_json: print the rows as JSON.

    Raises:
        ConfigError: there is nothing to measure, or the detector runs several times for an image.
        DataError: a photograph cannot be read.
    """
    batch = recipe.evaluation.batch_size
    if rounds < 1 or count < 1:
        raise ConfigError(f"--rounds is {rounds} and --count is {count}; give 1 or more of each.")
    with tempfile.TemporaryDirectory(prefix="aweigh-bench-") as folder:
        photographs = _photographs(images or _demo(Path(folder), count), count)
        predictor = _predictor(recipe, chosen_device(device))
        where = predictor.trained.device
        console.say(
            "bench",
            f"{recipe.detector.name} with random weights on {device_name(where)}, {clock_name(where)}; "
            f"{counted(len(photographs), 'photograph')}, {counted(rounds, 'round')}, load {os.getloadavg()[0]:.1f}",
        )
        ways = [_Way("one image at a time", 1, 1.15), _Way(f"batches of {batch}", batch, 1.05)]
        for turn in range(rounds + 1):
            for way in ways:
                measured = _measure(predictor, photographs, way.size)
                # The first turn is not counted: it allocates memory, and the files come from the disk.
                if turn:
                    way.rounds.append(measured)
            console.progress_line("rounds", turn, rounds, "")
    rows = [row for way in ways for row in _rows(way, len(photographs))]
    if as_json:
        print(json.dumps({"device": device_name(where), "rows": [asdict(row) for row in rows]}))
        return
    for row in rows:
        shown = ""
        if row.ratio is not None and row.limit is not None:
            verdict = "reached" if row.ratio <= row.limit else "MISSED"
            shown = f"{row.ratio:6.3f} × the parts   ≤ {row.limit:g}  {verdict}"
        print(f"{row.what:<44}{row.milliseconds:9.2f} ms an image{shown}".rstrip())


def _demo(folder: Path, count: int) -> Path:
    def progress(done: int, total: int) -> None:
        console.progress_line("images", done, total, "drawn")

    return write_demo(folder / "demo", train_images=count, val_images=1, progress=progress).images


def _photographs(folder: Path, count: int) -> list[str]:
    found = sorted(str(path) for path in folder.glob("**/*") if path.suffix.lower() in _ENDINGS)
    if not found:
        raise ConfigError(f"{folder} has no JPEG or PNG files; give a folder of photographs by --images.")
    return found[:count]


def _predictor(recipe: Recipe, device: torch.device) -> Predictor:
    detector = detectors.build(recipe.detector.name, _CLASSES, **recipe.detector.settings)
    if type(detector).detect is not Detector.detect:
        raise ConfigError(
            f"{recipe.detector.name} runs its network several times for an image, which has no parts to compare with; "
            "choose another recipe."
        )
    return Predictor(
        Trained(
            detector=detector.to(device).eval(),
            classes=tuple(CocoClass(number + 1, f"class {number + 1}") for number in range(_CLASSES)),
            recipe=recipe,
            identity=Identity(location="random weights"),
            device=device,
        )
    )


def _measure(predictor: Predictor, photographs: list[str], size: int) -> _Round:
    measured, device = _Round(), predictor.trained.device
    clock = clock_of(device)
    for first in range(0, len(photographs), size):
        some = photographs[first : first + size]
        inputs = _inputs(predictor, some)
        _measure_parts(predictor, some, inputs, measured)
        synchronize(device)
        start = clock()
        if size == 1:
            predictor.predict(some[0], tta="none")
        else:
            predictor.predict(some, tta="none", batch_size=size)
        measured.whole += clock() - start
    return measured


def _inputs(predictor: Predictor, photographs: Sequence[str]) -> list[Tensor]:
    """Return the network's inputs for these photographs, one for each size of input."""
    trained = predictor.trained
    batches = read_views(
        trained.detector,
        PictureSamples(photographs),
        predictor.settings(tta="none", batch_size=len(photographs)),
        input_size=trained.input_size,
        resizing=trained.recipe.data.resizing,
        rules=predictor.rules,
    )
    return [augment(views[0].to(trained.device), trained.detector.preprocessing) for views in batches]


@torch.no_grad()
def _measure_parts(
    predictor: Predictor, photographs: Sequence[str], inputs: Sequence[Tensor], measured: _Round
) -> None:
    detector, device = predictor.trained.detector, predictor.trained.device
    limit, clock = predictor.trained.recipe.evaluation.limit, clock_of(device)
    start = clock()
    for path in photographs:
        decode_jpeg(Path(path).read_bytes())
    measured.decode += clock() - start
    for images in inputs:
        synchronize(device)
        start = clock()
        outputs = detector(images)
        synchronize(device)
        middle = clock()
        for found in detector.decode(outputs, (images.shape[2], images.shape[3]), limit):
            found.cpu()
        measured.network += middle - start
        measured.decoding += clock() - middle


def _rows(way: _Way, images: int) -> list[Row]:
    def median(name: str) -> float:
        return 1000 * statistics.median(getattr(one, name) for one in way.rounds) / images

    parts = [Row(f"{way.name}: {name}", median(name)) for name in ("decode", "network", "decoding")]
    ratio = statistics.median(one.whole / one.parts for one in way.rounds)
    return [*parts, Row(f"{way.name}: from file to boxes", median("whole"), ratio, way.limit)]
