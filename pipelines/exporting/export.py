"""`aweigh export`: write a trained detector as one portable file, and keep it only if it computes the same."""

import copy
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from data_shards.counting import counted
from data_shards.reading.reading import Reading
from detectors import Detector
from detectors.portable import PortableDetector
from pipelines.errors import ConfigError
from pipelines.exporting.comparison import BOUNDS, Bounds
from pipelines.exporting.describe import Format, Precision, describe, shown_recipe
from pipelines.exporting.half_precision import in_half_precision
from pipelines.exporting.maps import PortableMaps, maps_program
from pipelines.exporting.onnx_file import to_onnx
from pipelines.exporting.receipt import Receipt, check_file, data_facts, write_receipt
from pipelines.exporting.torch_file import FileInput, least_side, to_torch_export
from pipelines.trained.exported_file import EXTRA, SUFFIXES, Program, open_exported
from pipelines.trained.file_description import FileDescription
from pipelines.trained.trained import Trained


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """The file to write, and the bounds of its receipt."""

    to: Format
    output: Path
    input_size: tuple[int, int] | None = None
    """Height and width of the input; None takes the run's, or any size for geometries without a fixed one."""
    dynamic: bool = False
    """Take any height and width that the network does."""
    batch: int | None = 1
    """Images of a call; None for any number."""
    pixels: Literal["uint8", "float"] | None = None
    """Type of the input; None takes uint8, or float for geometries that pad with the mean."""
    half: bool = False
    """The network in float16."""
    limit: int | None = None
    """Detections of an image; None takes the recipe's."""
    images: int = 32
    """Images whose detections are compared."""
    bound: float | None = None
    """Largest difference of a box, in pixels; None takes that of the precision."""

    @property
    def precision(self) -> Precision:
        """Precision of the network."""
        return "float16" if self.half else "float32"

    @property
    def bounds(self) -> Bounds:
        """Largest differences that a file may have."""
        bounds = BOUNDS[self.precision]
        return bounds if self.bound is None else replace(bounds, pixels=self.bound)

    def check(self) -> None:
        """Refuse settings that contradict each other, before anything is opened.

        Raises:
            ConfigError: with the argument.
        """
        suffix = dict(zip(("onnx", "torch"), SUFFIXES, strict=True))[self.to]
        if self.output.suffix.lower() != suffix:
            raise ConfigError(f"--output {self.output}: a file of --to {self.to} ends in {suffix}; change its name.")
        if self.output.is_dir():
            raise ConfigError(f"--output {self.output} is a folder; give the name of a file in it.")
        if self.dynamic and self.input_size:
            raise ConfigError("--dynamic takes any size, so --input-size has no use; leave one of them out.")
        for name, value in (("batch", self.batch), ("limit", self.limit), ("images", self.images)):
            if value is not None and value < 1:
                raise ConfigError(f"--{name} is {value}; it must be 1 or more.")
        if self.bound is not None and not 0 < self.bound < math.inf:
            raise ConfigError(f"--bound is {self.bound:g}; it must be above 0.")
        if self.to == "onnx":
            _require_onnx()


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--to onnx needs the package {error.name}, which is not installed; {EXTRA} installs it. --to torch does "
            "without."
        ) from error


def input_of(trained: Trained, settings: ExportSettings) -> FileInput:
    """Choose the images that the file takes.

    Raises:
        ConfigError: the network does not take the size.
    """
    evaluation = trained.recipe.evaluation
    varies = evaluation.geometry in ("keep", "shorter_side")
    any_size = settings.dynamic or (varies and settings.input_size is None)
    sizes = trained.detector.sizes
    size = settings.input_size or trained.input_size
    if any_size and not sizes.fits(*size):
        # Only traced with; the file takes others.
        size = sizes.nearest(*size)
    if not sizes.fits(*size):
        height, width = sizes.nearest(*size)
        raise ConfigError(
            f"the input is {size[0]} x {size[1]} pixels, but {trained.detector.name} needs {sizes}: set "
            f"--input-size {height} {width}."
        )
    # Padding that is 0 after normalisation is the mean, which is not a whole number.
    pads_with_mean = evaluation.geometry == "shorter_side" and any_size
    pixels = settings.pixels or ("float" if pads_with_mean else "uint8")
    return FileInput(
        height=size[0],
        width=size[1],
        batch=settings.batch,
        any_size=any_size,
        pixels="uint8" if pixels == "uint8" else "float32",
    )


def plan_lines(trained: Trained, given: FileInput, settings: ExportSettings) -> list[tuple[str, str]]:
    """Say what will be done, a topic and a text for each line."""
    evaluation = trained.recipe.evaluation
    size = "any size that the network takes" if given.any_size else f"{given.height} x {given.width} pixels"
    batch = "any number of images" if given.batch is None else counted(given.batch, "image")
    shown = shown_recipe(trained.recipe, given, settings.limit or evaluation.limit).evaluation
    lines = [
        ("export", f"{trained.identity.location}, step {trained.identity.step:,}: {trained.detector.name}"),
        ("to", f"{settings.output}, {settings.to}, {settings.precision}"),
        ("input", f"{batch} of {size}, {given.pixels}, RGB from 0 to 255"),
        ("output", f"{shown.limit} detections an image, in pixels of the input"),
    ]
    if shown.geometry != evaluation.geometry:
        lines.append(
            ("geometry", f"{shown.geometry}, for the file and the run: {evaluation.geometry} has inputs of many sizes")
        )
    if evaluation.tta != "none" or evaluation.soft_nms:
        left_out = "soft-NMS" if evaluation.tta == "none" else f"test-time augmentation ({evaluation.tta})"
        lines.append(("left out", f"{left_out}: a file holds one pass over one image"))
    return lines


def export(
    trained: Trained,
    reading: Reading,
    location: str,
    settings: ExportSettings,
    progress: Callable[[str, int, int], None] = lambda topic, total, done: None,
    waiting: Callable[[str], None] = lambda text: None,
) -> Receipt:
    """Write a file and its receipt, or nothing.

    Args:
        trained: the detector of a run.
        reading: shards with its classes.
        location: of the shards.
        settings: what to write, and how to check it.
        progress: called with a topic, the number of images and of those done.
        waiting: called with what begins.

    Raises:
        ConfigError: the file cannot be written, or finds something else than the run.
        DetectorError: the detector cannot be exported.
        DataError: an image cannot be read.
    """
    given = input_of(trained, settings)
    limit = settings.limit or trained.recipe.evaluation.limit
    # Another copy of the weights: the run's detector stays as it is, on its device.
    detector = copy.deepcopy(trained.detector).cpu()
    if settings.half:
        detector = in_half_precision(detector)
    portable = PortableDetector(detector, limit)
    least = least_side(portable) if given.any_size else 1
    if given.any_size and min(given.height, given.width) < least:
        side = detector.sizes.padded(least, least)[0]
        given = replace(given, height=max(given.height, side), width=max(given.width, side))
    # A detector that looks twice has no maps of a whole image.
    has_maps = type(detector).detect_tensors is Detector.detect_tensors
    network = PortableMaps(detector, limit) if has_maps else None
    description = describe(
        trained,
        given,
        to=settings.to,
        precision=settings.precision,
        limit=limit,
        least_side=least,
        strides=network.strides(given) if network else (),
    )
    folder = _folder_beside(settings.output)
    try:
        unfinished = folder / settings.output.name
        waiting("converting the network with its decoding")
        write = to_onnx if settings.to == "onnx" else to_torch_export
        # Conversion traces parts of the program once more.
        with torch.no_grad():
            write(portable, unfinished, given, description.as_metadata())
            maps = None
            if network:
                waiting("converting the network alone, to compare its maps")
                maps = maps_program(network, unfinished, given)
        receipt = _checked(unfinished, trained, reading, location, description, settings, maps, progress)
        _keep(unfinished, settings.output)
        write_receipt(receipt, settings.output)
    except OSError as error:
        raise ConfigError(
            f"{settings.output} cannot be written: {error.strerror or error}. Choose another --output."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return receipt


def _checked(
    unfinished: Path,
    trained: Trained,
    reading: Reading,
    location: str,
    description: FileDescription,
    settings: ExportSettings,
    maps: Program | None,
    progress: Callable[[str, int, int], None],
) -> Receipt:
    """Open the file as anybody would, and compare."""
    file, device = open_exported(unfinished, trained.device)
    recipe = description.whole_recipe
    # By its final name in messages.
    file.path = settings.output
    facts = {
        "file": settings.output.name,
        "format": settings.to,
        "precision": description.precision,
        "detector": description.detector,
        "input": str(description.input),
        "limit": description.limit,
        "geometry": recipe.evaluation.geometry,
        "run": {"location": trained.identity.location, **description.as_dict()["identity"]},
        "data": data_facts(location, reading),
        "device": str(trained.device),
        "versions": description.versions,
    }
    return check_file(
        unfinished,
        file,
        trained.detector,
        reading,
        recipe.evaluation,
        input_size=recipe.evaluation.input_size or recipe.data.input_size,
        devices=(device, trained.device),
        maps=maps,
        bounds=settings.bounds,
        num_images=settings.images,
        facts=facts,
        progress=progress,
    )


def _folder_beside(output: Path) -> Path:
    """Make a folder on the same disk, so that the finished file only changes its name."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror or error}. Choose another --output.") from error


def _keep(unfinished: Path, output: Path) -> None:
    # On disk before the name points to it: after a power failure the file is the old or the new one.
    with unfinished.open("rb") as written:
        os.fsync(written.fileno())
    unfinished.replace(output)
