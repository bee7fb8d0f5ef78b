"""The receipt of an export: what the file computes beside what the run computes, on real images."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from data_shards.addresses import shown_address
from data_shards.counting import counted
from data_shards.loading.augment import augment
from data_shards.loading.batch import Batch
from data_shards.order.plan import World
from data_shards.reading.reading import Reading
from detectors import Detections, Detector, View
from pipelines.errors import ConfigError
from pipelines.evaluation.evaluate import Evaluation, evaluate
from pipelines.evaluation.views import milliseconds_one_by_one, open_views
from pipelines.exporting.comparison import UNITS, Bounds, Comparison, Difference, compare
from pipelines.files import write_text
from pipelines.recipes.settings import EvaluationSettings
from pipelines.trained.exported_file import ExportedDetector, Program

_ALONE = World(ranks=1, rank=0)
_TIMED_IMAGES = 20
"""Most images that are timed, one by one."""


@dataclass(frozen=True)
class Receipt:
    """All figures of an export."""

    path: Path
    facts: dict[str, Any]
    """Origin, input and versions, as JSON values by name."""
    comparison: Comparison
    maps: Difference | None
    """Of the raw maps; None if no maps of a whole image exist."""
    evaluations: tuple[Evaluation, Evaluation]
    """Of the file and of the run."""
    milliseconds: tuple[float, float]
    """Of an image, likewise."""

    @property
    def ap_difference(self) -> float:
        """AP of the file less that of the run; NaN if there was nothing to find."""
        file, run = self.evaluations
        return file.score - run.score

    def as_dict(self) -> dict[str, Any]:
        """Return the receipt as JSON values."""
        figures = [
            {
                "AP": _number(one.coco.AP),
                "AP50": _number(one.coco.AP50),
                **({"AP_keypoints": _number(one.keypoints.AP)} if one.keypoints else {}),
                "images": one.num_images,
                "milliseconds_per_image": milliseconds,
            }
            for one, milliseconds in zip(self.evaluations, self.milliseconds, strict=True)
        ]
        return {
            "receipt": 1,
            **self.facts,
            "raw_maps": None if self.maps is None else self.maps.as_dict(),
            "comparison": self.comparison.as_dict(),
            "file_figures": figures[0],
            "run_figures": figures[1],
        }

    def metrics(self, prefix: str) -> dict[str, float]:
        """Figures by their names in MLflow."""
        file, run = self.evaluations
        boxes = self.comparison.differences.get("boxes", Difference())
        return {
            f"{prefix}/AP": file.score,
            f"{prefix}/AP_of_the_run": run.score,
            f"{prefix}/largest_difference_pixels": boxes.largest,
            f"{prefix}/without_counterpart": float(self.comparison.unmatched),
            f"{prefix}/milliseconds_per_image": self.milliseconds[0],
            f"{prefix}/milliseconds_per_image_of_the_run": self.milliseconds[1],
            f"{prefix}/megabytes": self.facts["bytes"] / 1e6,
        }

    def text(self) -> str:
        """Format the receipt for people."""
        compared, facts = self.comparison, self.facts
        lines = [f"{'':<18}{'largest':>12}{'mean':>12}{'bound':>12}"]
        if self.maps is not None:
            lines.append(_row("raw maps", self.maps, None))
        for name, one in compared.differences.items():
            lines.append(_row(name.replace("_", " "), one, getattr(compared.bounds, UNITS[name])))
        lines += [
            "",
            f"{counted(compared.compared, 'detection')} of {counted(compared.images, 'image')} compared, scores from "
            f"{compared.threshold:.3g}: {compared.unmatched} without a counterpart within the bounds, "
            f"{compared.allowed} allowed",
            "",
            f"{'':<18}{'file':>12}{'run':>12}",
        ]
        for name, read in _FIGURES.items():
            values = [read(one) for one in self.evaluations]
            if None not in values:
                lines.append(f"{name:<18}" + "".join(f"{value:>12.4f}" for value in values))
        lines += [
            f"{'ms per image':<18}" + "".join(f"{value:>12.1f}" for value in self.milliseconds),
            "",
            f"{facts['bytes'] / 1e6:.1f} MB, {facts['precision']}, {facts['input']}",
            ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        ]
        return "\n".join(lines)


_FIGURES: dict[str, Callable[[Evaluation], float | None]] = {
    "AP": lambda one: one.coco.AP,
    "AP50": lambda one: one.coco.AP50,
    "AP of keypoints": lambda one: None if one.keypoints is None else one.keypoints.AP,
}


def check_file(
    path: Path,
    file: ExportedDetector,
    run: Detector,
    reading: Reading,
    settings: EvaluationSettings,
    *,
    input_size: tuple[int, int],
    devices: tuple[torch.device, torch.device],
    maps: Program | None,
    bounds: Bounds,
    num_images: int,
    facts: dict[str, Any],
    progress: Callable[[str, int, int], None] = lambda topic, total, done: None,
) -> Receipt:
    """Compare a file with the run that it was made of.

    Args:
        path: of the file.
        file: the opened file.
        run: the detector of the run, on its device.
        reading: the images, whose classes are the detector's.
        settings: geometry and batch; without test-time augmentation.
        input_size: height and width of the input, in pixels, for the fixed geometry.
        devices: of the images for the file and for the run.
        maps: computes the raw maps as the file does; None if the detector has no maps of a whole image.
        bounds: largest differences.
        num_images: images whose detections are compared; the first ones.
        facts: become part of the receipt.
        progress: called with a topic, the number of images and of those done.

    Raises:
        ConfigError: the detections differ, or there are none.
        EvaluationError, DataError, DetectorError: as `evaluate`.
    """
    total = min(num_images, reading.split.manifest.num_samples)
    comparison, difference = _compared(file, run, reading, settings, input_size, devices, maps, bounds, total, progress)
    check_comparison(file.path, comparison)
    evaluations = []
    for detector, device, topic in ((file, devices[0], "AP, file"), (run, devices[1], "AP, run")):
        every = reading.split.manifest.num_samples
        evaluation = evaluate(
            detector,
            reading,
            replace(settings, pictures=0),
            input_size=input_size,
            device=device,
            world=_ALONE,
            progress=partial(progress, topic, every),
        )
        assert evaluation is not None  # rank 0 of one
        evaluations.append(evaluation)
    timed = min(_TIMED_IMAGES, total)
    milliseconds = [
        milliseconds_one_by_one(detector, reading, settings, device, input_size=input_size, images=timed)
        for detector, device in ((file, devices[0]), (run, devices[1]))
    ]
    facts = {**facts, "bytes": path.stat().st_size, "sha256": _sha256(path), "threads": torch.get_num_threads()}
    return Receipt(
        path, facts, comparison, difference, (evaluations[0], evaluations[1]), (milliseconds[0], milliseconds[1])
    )


def check_comparison(path: Path, comparison: Comparison) -> None:
    """Refuse a file that finds something else than the run.

    Raises:
        ConfigError: with the differences.
    """
    if comparison.passed:
        return
    bounds = comparison.bounds
    if not comparison.compared:
        raise ConfigError(
            f"nothing was found on {counted(comparison.images, 'image')}, so nothing can be compared and {path} is not "
            "kept. Give shards with objects (--data), or train the run further."
        )
    if comparison.at_limit > comparison.compared:
        raise ConfigError(
            f"the {comparison.at_limit} lowest detections tie for the last places of full lists, so too few can be "
            f"compared and {path} is not kept. Raise --limit."
        )
    boxes = comparison.differences.get("boxes", Difference())
    first = f" The first: {comparison.examples[0]}." if comparison.examples else ""
    raise ConfigError(
        f"{path} is not kept, because its boxes differ from the run's: {comparison.unmatched} of "
        f"{counted(comparison.compared, 'detection')} on {counted(comparison.images, 'image')} have no counterpart "
        f"within {bounds.pixels:g} pixels and a score of {bounds.score:g} ({comparison.allowed} may); the largest "
        f"difference of a corner is {boxes.largest:.3g} pixels.{first} --bound PIXELS allows more."
    )


def write_receipt(receipt: Receipt, path: Path) -> Path:
    """Write a receipt next to a file. Returns its path."""
    beside = path.with_name(f"{path.name}.receipt.json")
    write_text(beside, json.dumps(receipt.as_dict(), indent=1, ensure_ascii=False) + "\n")
    return beside


def data_facts(location: str, reading: Reading) -> dict[str, Any]:
    """Describe the shards of a receipt."""
    manifest = reading.split.manifest
    shown = shown_address(location) if "://" in location else os.path.basename(os.path.normpath(location))
    return {"shards": shown, "manifest": manifest.digest, "images": manifest.num_samples}


def _compared(
    file: ExportedDetector,
    run: Detector,
    reading: Reading,
    settings: EvaluationSettings,
    input_size: tuple[int, int],
    devices: tuple[torch.device, torch.device],
    maps: Program | None,
    bounds: Bounds,
    total: int,
    progress: Callable[[str, int, int], None],
) -> tuple[Comparison, Difference | None]:
    """Run both on the same inputs; what is compared is in the input frame, before any way back to the photograph."""
    wanted: list[Detections] = []
    found: list[Detections] = []
    difference = None if maps is None else Difference()
    kept: list[Any] = []
    opened = open_views(run, reading, settings, input_size=input_size, world=_ALONE, limit=total)
    with opened as batches, torch.no_grad():
        for (batch,) in batches:
            images = file.pixels(_view(batch, file))
            found += file.run(images.to(devices[0]))
            kept.clear()
            view = replace(_view(batch.to(devices[1]), run), content_sizes=None)
            wanted += run.detect(
                [view], limit=file.description.limit, watch=lambda number, outputs: kept.append(outputs)
            )
            if difference is not None and maps is not None:
                leaves = [one for one in tree_leaves(kept) if isinstance(one, Tensor)]
                _add_maps(difference, maps, images, leaves, file)
            progress("compare", total, len(wanted))
    names = [one.name for one in file.description.classes]
    return compare(wanted, found, bounds, file.description.limit, names), difference


def _view(batch: Batch, detector: Detector) -> View:
    """Return the images as a detector receives them, in a frame of their own: that of the input."""
    count = len(batch.images)
    identity = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).expand(count, 2, 3)
    return View(augment(batch, detector.preprocessing), identity, batch.content_sizes)


def _add_maps(
    difference: Difference, maps: Program, images: Tensor, wanted: Sequence[Tensor], file: ExportedDetector
) -> None:
    for row in range(len(images)):
        size = file.description.input.batch or 1
        # A fixed batch is filled with the same image.
        found = maps(images[row : row + 1].expand(size, -1, -1, -1).cpu())
        for ours, theirs in zip(wanted, found, strict=True):
            difference.add((ours[row].double().cpu() - theirs[0].double().cpu()).numpy())


def _row(name: str, difference: Difference, bound: float | None) -> str:
    shown = "" if bound is None else f"{bound:>12.3g}"
    return f"{name:<18}{difference.largest:>12.3g}{difference.mean:>12.3g}{shown}"


def _number(value: float) -> float | None:
    return None if value != value else value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
