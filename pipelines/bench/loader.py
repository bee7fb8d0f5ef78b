"""`aweigh bench loader`: the cost of reading, beside decoding alone and beside other loaders.

The loaders take turns in one run, so that a busy machine slows all of them. CPU time of all their processes counts, and
the ratio within a round.
"""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch.utils.data

from data_shards.building.build import build_shards
from data_shards.counting import counted
from data_shards.demo.write import write_demo
from data_shards.format.manifest import Manifest
from data_shards.loading.random_draws import draw
from data_shards.loading.training_loader import TrainingLoader
from data_shards.order.plan import Plan, World, make_plan
from data_shards.reading.decode import image_extension
from data_shards.reading.reading import Reading
from data_shards.reading.split import open_split
from data_shards.settings import AugmentationSettings
from pipelines import console
from pipelines.bench.floor import Crop, crop_of, read_all
from pipelines.bench.memory import memory_growth
from pipelines.bench.plan import plan_of_a_billion
from pipelines.bench.published_loader import Example, PublishedDataset
from pipelines.bench.webdataset_loader import webdataset_loader
from pipelines.errors import ConfigError

SIDE = 512
BATCH = 32
# More batches than the loader prepares ahead.
_AHEAD = 8
_RESUMED_STEP = 10_000
_MEMORY_EPOCHS = 20


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    measured: float
    unit: str
    against: str
    ratio: float | None
    """The ratio that `reach` is about."""
    reach: str
    reached: bool | None
    """None if there is no target."""


@dataclass(frozen=True)
class _Photographs:
    """The images of the shards, in memory and as files, and the crops that augmentation makes of them."""

    location: str
    manifest: Manifest
    plan: Plan
    files: list[bytes]
    crops: list[Crop]
    examples: list[Example]
    pixels: float
    """Average number of pixels of an image."""
    largest: int
    """Pixels of the largest image."""


def bench_loader(location: str | None, *, rounds: int, images: int, as_json: bool) -> None:
    """Measure and print the table.

    Args:
        location: shards to read; None for the demo's photographs.
        rounds: turns of each loader.
        images: images per turn, approximately.
        as_json: print the rows as JSON.

    Raises:
        ConfigError: a number is too small to measure anything, or there are fewer photographs than a batch.
        DataError: there are no shards at the location.
    """
    if rounds < 1 or images < 2 * BATCH:
        raise ConfigError(f"--rounds is {rounds} and --images is {images}; give 1 or more, and {2 * BATCH} or more.")
    with tempfile.TemporaryDirectory(prefix="aweigh-bench-") as folder:
        photographs = _photographs(location or _demo(Path(folder)), Path(folder))
        side = round(photographs.pixels**0.5)
        console.say(
            "bench",
            f"{len(photographs.files):,} photographs of {side:,} × {side:,} pixels on average, to {SIDE} × {SIDE}, "
            f"{counted(rounds, 'round')} of about {images:,} images; load {os.getloadavg()[0]:.1f} on "
            f"{counted(os.cpu_count() or 1, 'core')}",
        )
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        with ExitStack() as stack, _one_core():
            rows = _costs(photographs, Path(folder), rounds, images, stack)
        rows.append(_resume(photographs, rounds))
        rows.append(_plan(Path(folder)))
        rows.append(_memory(photographs))
    if as_json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))
        return
    for row in rows:
        ratio = f"{row.ratio:6.2f} × {row.against}" if row.ratio is not None else f"       {row.against}"
        verdict = "" if row.reached is None else f"{row.reach:<9} {'reached' if row.reached else 'MISSED'}"
        print(f"{row.what:<52}{row.measured:9.2f} {row.unit:<13}{ratio:<26}{verdict}".rstrip())


@contextmanager
def _one_core() -> Iterator[None]:
    """Keep this process and those that it starts on one core, so that sharing of cores is not compared too."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(everywhere)})
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create 2 worker processes")
            yield
    finally:
        os.sched_setaffinity(0, everywhere)


def _costs(photographs: _Photographs, folder: Path, rounds: int, images: int, stack: ExitStack) -> list[Row]:
    """Measure the CPU time per image of every loader."""
    ways: dict[str, Callable[[], float]] = {
        "floor": _floor(photographs, images, reused=False),
        "reused": _floor(photographs, images, reused=True),
        "ours": _ours(photographs, images, None, stack),
        "decoded": _ours(photographs, images, folder / "cache", stack),
        "webdataset": _webdataset(photographs, images),
        "published": _published(photographs, images),
    }
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            seconds = way()
            # The first turn is not counted: it starts processes and fills caches.
            if turn:
                costs[name].append(1000 * seconds)
            console.progress_line("turns", turn * len(ways) + list(ways).index(name) + 1, (rounds + 1) * len(ways), "")

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(costs[one], costs[other], strict=True))

    def row(what: str, name: str, against: str, factor: float | None, reach: str, reached: bool | None) -> Row:
        return Row(what, statistics.median(costs[name]), "ms an image", against, factor, reach, reached)

    over, strictly, faster = ratio("ours", "floor"), ratio("ours", "reused"), ratio("floor", "decoded")
    library, published = ratio("webdataset", "ours"), ratio("published", "ours")
    return [
        row("floor: decode, crop-resize, split", "floor", "", None, "", None),
        row("the same, reusing the decoder's memory", "reused", "", None, "", None),
        row("aweigh, up to the trainer", "ours", "floor", over, "≤ 1.10", over <= 1.10),
        row("aweigh, beside the floor that reuses memory", "ours", "that floor", strictly, "", None),
        row("aweigh, decode-once, second epoch", "decoded", "faster than floor", faster, "≥ 3", faster >= 3),
        row("the authors' data set, DataLoader of 2", "published", "aweigh", published, "≥ 5", published >= 5),
        row("webdataset, DataLoader of 2", "webdataset", "aweigh", library, "≥ 1.3", library >= 1.3),
    ]


def _floor(photographs: _Photographs, images: int, *, reused: bool) -> Callable[[], float]:
    count = len(photographs.files)
    order = np.arange(images) % count
    files, crops = [photographs.files[at] for at in order], [photographs.crops[at] for at in order]
    batch = np.zeros((BATCH, 3, SIDE, SIDE), np.uint8)
    buffer = np.empty(photographs.largest * 3, np.uint8) if reused else None

    def turn() -> float:
        before = time.process_time()
        read_all(files, crops, batch, buffer)
        return (time.process_time() - before) / images

    return turn


def _ours(photographs: _Photographs, images: int, cache: Path | None, stack: ExitStack) -> Callable[[], float]:
    steps = max(2, images // BATCH)
    start = 0
    if cache is not None:
        # Each epoch drops the images of an incomplete batch, different ones every time; four epochs see every image.
        start = 4 * photographs.plan.steps_per_epoch
        with _loader(photographs, 0, start, cache) as batches:
            for _ in batches:
                pass
    batches = stack.enter_context(_loader(photographs, start, None, cache))

    def turn() -> float:
        # Discard the batches that were prepared during the others' turns, so that all work for the next ones counts.
        for _ in range(_AHEAD):
            next(batches)
        before = cpu_seconds([batches.process_id])
        for _ in range(steps):
            next(batches)
        return (cpu_seconds([batches.process_id]) - before) / (steps * BATCH)

    return turn


def _loader(photographs: _Photographs, start: int, stop: int | None, cache: Path | None) -> TrainingLoader:
    return TrainingLoader(
        Reading(
            split=open_split(photographs.location, cache_folder=cache),
            # One for the one core, as the floor has; two would only take the cache from each other.
            threads=1,
            decoded_cache_bytes=0 if cache is None else 10**13,
        ),
        photographs.plan,
        World(1, 0),
        input_size=(SIDE, SIDE),
        start_step=start,
        stop_step=stop,
    )


def _webdataset(photographs: _Photographs, images: int) -> Callable[[], float]:
    root = Path(photographs.location)
    shards = [str(root / shard.name) for shard in photographs.manifest.shards]
    # Two processes take shards in turn, so an even number of them, with about as many images as the others read.
    copies = 2 * max(1, round(images / photographs.manifest.num_samples / 2))
    return _Passes(webdataset_loader(shards * copies, SIDE, BATCH))


def _published(photographs: _Photographs, images: int) -> Callable[[], float]:
    # It is so much slower that fewer images are enough.
    examples = [photographs.examples[at % len(photographs.examples)] for at in range(max(2 * BATCH, images // 2))]
    return _Passes(
        torch.utils.data.DataLoader(
            PublishedDataset(examples, len(photographs.manifest.classes), SIDE),
            batch_size=BATCH,
            shuffle=True,
            num_workers=2,
            drop_last=True,
            persistent_workers=True,
        )
    )


class _Passes:
    """Turns of a DataLoader, each a whole pass. Its processes stay, so that later turns count only reading."""

    def __init__(self, loader: "torch.utils.data.DataLoader[Any]") -> None:
        self._loader = loader
        self._processes: list[int] = []

    def __call__(self) -> float:
        before = cpu_seconds(self._processes)
        others = set(multiprocessing.active_children())
        batches = iter(self._loader)
        self._processes += [int(child.pid or 0) for child in set(multiprocessing.active_children()) - others]
        images = sum(len(batch["input"] if isinstance(batch, dict) else batch[0]) for batch in batches)
        return (cpu_seconds(self._processes) - before) / images


def cpu_seconds(processes: Sequence[int]) -> float:
    """Return the CPU time of this process and others, over all threads."""
    # Linux's clock id for the CPU time of another process, as clock_getcpuclockid(3) computes it.
    return time.process_time() + sum(time.clock_gettime((~process << 3) | 2) for process in processes)


def _resume(photographs: _Photographs, rounds: int) -> Row:
    """Compare the first batch of a run that resumes at a late step with that of a new run."""
    seconds: dict[int, list[float]] = {0: [], _RESUMED_STEP: []}
    for _ in range(max(3, rounds)):
        for step, measured in seconds.items():
            before = time.process_time()
            # One batch, and none prepared ahead.
            with _loader(photographs, step, step + 1, None) as batches:
                next(batches)
                measured.append(cpu_seconds([batches.process_id]) - before)
    # The minimum of each: other load on the machine can only add to it.
    first, resumed = min(seconds[0]), min(seconds[_RESUMED_STEP])
    return Row(
        f"from the start to the first batch at step {_RESUMED_STEP:,}",
        resumed,
        "s of CPU",
        "step 0",
        resumed / first,
        "≤ 1.2",
        resumed <= 1.2 * first,
    )


def _plan(folder: Path) -> Row:
    seconds, peak_bytes = plan_of_a_billion(folder)
    return Row(
        f"aweigh shards plan, 10⁹ samples in 100,000 shards, {peak_bytes / 1e6:.0f} MB",
        seconds,
        "s of CPU",
        "",
        None,
        "≤ 1 s, 200 MB",
        seconds <= 1 and peak_bytes <= 200e6,
    )


def _memory(photographs: _Photographs) -> Row:
    before, after = memory_growth(photographs.location, photographs.plan, SIDE, _MEMORY_EPOCHS)
    return Row(
        f"memory of 2 ranks after {_MEMORY_EPOCHS} epochs",
        after / 1e6,
        "MB",
        "epoch 2",
        after / before,
        "≤ 1.05",
        after <= 1.05 * before,
    )


def _demo(folder: Path) -> str:
    written = write_demo(
        folder / "demo",
        train_images=4 * BATCH,
        val_images=1,
        progress=lambda done, total: console.progress_line("images", done, total, "drawn"),
    )
    return build_shards(
        str(written.train_annotations),
        str(written.images),
        str(folder / "shards"),
        split="train",
        shard_bytes=1_000_000,
    ).location


def _photographs(location: str, folder: Path) -> _Photographs:
    split = open_split(location)
    manifest = split.manifest
    if manifest.num_samples < 2 * BATCH:
        raise ConfigError(
            f"{location} has {counted(manifest.num_samples, 'image')}; the benchmark needs {2 * BATCH} or more. Give "
            f"other shards by --data."
        )
    plan = make_plan(manifest, seed=0, global_batch_size=BATCH)
    shards = split.shards()
    most = min(manifest.num_samples, 1000)
    places = [(int(shard), int(row)) for shard, row in zip(*plan.locate(np.arange(most)), strict=True)]
    sizes = np.array([shards.size(*place) for place in places])
    draws = draw(AugmentationSettings(), 0, 0, np.arange(most), sizes)
    (folder / "images").mkdir()
    files, crops, examples = [], [], []
    for number, (shard, row) in enumerate(places):
        data = shards.read_image(shard, row)
        if image_extension(data) != "jpg" or simplejpeg.decode_jpeg_header(data)[:2] != tuple(sizes[number]):
            continue  # the floor decodes upright JPEGs only
        path = folder / "images" / f"{number}.jpg"
        path.write_bytes(data)
        index = shards.index(shard)
        objects = slice(*index.row_splits[row : row + 2])
        files.append(data)
        crops.append(crop_of(draws.matrix(number, (SIDE, SIDE)), (int(sizes[number, 0]), int(sizes[number, 1])), SIDE))
        examples.append(Example(path, index.boxes[objects], index.labels[objects]))
    pixels = sizes.prod(axis=1)
    return _Photographs(
        location, manifest, plan, files, crops, examples, pixels=float(pixels.mean()), largest=int(pixels.max())
    )
