"""Exported files as detectors: `.onnx` through onnxruntime, `.pt2` through torch.

A file holds normalisation, network and decoding, so its detector receives pixels from 0 to 255 and only moves what it
finds to the image frame. Evaluation and prediction use it like any other detector.

A file may come from a stranger, so it is screened before the library that runs it sees it.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from detectors.detections import Detections, in_image
from detectors.detector import Detector, Preprocessing, TestMode, View
from detectors.errors import DetectorError
from detectors.shapes import Float, Int
from detectors.shared import boxes as box
from pipelines.errors import ConfigError
from pipelines.trained.file_description import FileDescription, from_metadata
from pipelines.trained.fixed_size import FixedSize
from pipelines.trained.pt2_screening import metadata_of, screened

SUFFIXES = (".onnx", ".pt2")
"""Endings of the names of exported files."""
EXTRA = 'pip install "aweigh[export]"'
"""The command that installs what ONNX files need."""


class Program(Protocol):
    """A file, ready to run."""

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """Run the file on as many images as it takes.

        Args:
            images: of the file's type, on any device.

        Returns:
            Its outputs, in their order.
        """


class ExportedDetector(Detector):
    """A detector that lives in a file. It only detects: it has no targets, losses or maps.

    Args:
        description: of the file.
        program: runs the file.
        path: of the file, for messages.
    """

    # Pixels as they are: the file normalises them.
    preprocessing = Preprocessing(channel_order="rgb", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0)

    def __init__(self, description: FileDescription, program: Program, path: Path) -> None:
        super().__init__()
        self.name = description.detector
        self.description = description
        self.path = path
        self.num_classes = len(description.classes)
        self.needs = description.needs
        self.box_corners = description.box_corners
        size = description.input.fixed_size
        sizes = description.sizes.as_input_sizes()
        self.sizes = FixedSize(sizes.divisor, *size) if size else sizes
        self._program = program

    @torch.no_grad()
    def detect(
        self,
        views: Sequence[View],
        *,
        mode: TestMode = "none",
        soft: bool = False,
        limit: int = 100,
        watch: Callable[[int, Any], None] = lambda number, outputs: None,
    ) -> list[Detections]:
        """Find objects in a batch of images; see `Detector.detect`. `watch` is not called: the maps stay in the file.

        Raises:
            DetectorError: the file cannot do what is asked for, or does not take the images.
        """
        self.check_test_mode(mode, soft)
        self.check_limit(limit)
        (view,) = views
        self.check_input_size(view.input_size)
        transforms = view.transforms.cpu().double()
        found = []
        for row, one in enumerate(self.run(self.pixels(view))):
            clipped = self._clipped(one, view, row)
            found.append(in_image(clipped.rows(torch.arange(min(limit, len(clipped.scores)))), transforms[row]))
        return found

    def pixels(self, view: View) -> Tensor:
        """Return the images of a view as the file takes them.

        The padding of detectors such as FCOS is 0 after normalisation, so here it is the mean, which uint8 rounds.
        """
        images = view.images
        if view.content_sizes is not None:
            ours = self.description.preprocessing
            mean = torch.tensor(ours.mean, dtype=torch.float32) / ours.scale
            mean = (mean if ours.channel_order == "rgb" else mean.flip(0)).to(images.device)[:, None, None]
            height, width = images.shape[-2:]
            rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
            content = view.content_sizes.to(images.device)
            inside = (rows < content[:, :1])[:, :, None] & (columns < content[:, 1:])[:, None]
            images = torch.where(inside[:, None], images, mean)
        if self.description.input.dtype == "uint8":
            return images.round().clamp(0, 255).to(torch.uint8)
        return images.contiguous()

    def run(self, images: Tensor) -> list[Detections]:
        """Run the file, in batches of its own size. Returns the objects of each image, in the input frame.

        Raises:
            DetectorError: the file does not take images of this size, or fails.
        """
        self.check_input_size((images.shape[-2], images.shape[-1]))
        batch = self.description.input.batch or max(len(images), 1)
        found: list[Detections] = []
        for first in range(0, len(images), batch):
            part = images[first : first + batch]
            if missing := (self.description.input.batch or 0) - len(part):
                # A file with a fixed batch computes the missing images, too.
                part = torch.cat((part, part[-1:].expand(max(missing, 0), -1, -1, -1)))
            outputs = dict(zip(self.description.outputs, self._program(part), strict=True))
            self._check(outputs, len(part))
            found += [_objects({name: values[row] for name, values in outputs.items()}) for row in range(len(part))]
        return found[: len(images)]

    def check_input_size(self, input_size: tuple[int, int]) -> None:
        """Refuse an input that the file does not take.

        Raises:
            DetectorError: with the sizes that it takes.
        """
        super().check_input_size(input_size)
        least = self.description.input.least_side
        if min(input_size) < least:
            raise DetectorError(
                f"the input is {input_size[0]} x {input_size[1]} pixels; {self.path} takes height and width from "
                f"{least} on. Enlarge it."
            )

    def check_limit(self, limit: int) -> None:
        """Refuse to return more detections of an image than the file does.

        Raises:
            DetectorError: with both numbers.
        """
        if limit > self.description.limit:
            raise DetectorError(
                f"{self.path} returns at most {self.description.limit} detections of an image; set evaluation.limit to "
                f"that or less, or export the run again with --limit {limit}."
            )

    def check_test_mode(self, mode: str, soft: bool = False) -> None:
        """Refuse test-time augmentation: a file holds one pass over one image.

        Raises:
            DetectorError: a mode or soft-NMS was asked for.
        """
        if mode != "none" or soft:
            what = f"test-time augmentation ({mode})" if mode != "none" else "soft-NMS"
            raise DetectorError(
                f"{self.path} holds one pass over one image, without {what}. Leave it off, or use the run that the "
                "file was exported from."
            )

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Any:
        """Refuse, because the maps stay in the file."""
        raise self._no("maps")

    def encode(
        self,
        boxes: Float[Tensor, "batch objects 4"],
        labels: Int[Tensor, "batch objects"],
        input_size: tuple[int, int],
        **extra: Tensor,
    ) -> Any:
        """Refuse, because a file is not trained."""
        raise self._no("targets")

    def losses(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        """Refuse, because a file is not trained."""
        raise self._no("losses")

    def decode(self, outputs: Any, input_size: tuple[int, int], limit: int = 100) -> list[Detections]:
        """Refuse, because the maps stay in the file."""
        raise self._no("maps")

    def _no(self, what: str) -> DetectorError:
        return DetectorError(f"{self.path} is an exported file, which has no {what}. Use the run it was exported from.")

    def _clipped(self, found: Detections, view: View, row: int) -> Detections:
        """Move boxes that leave the photograph onto its border, as the detector does where it knows the photograph."""
        clipping = self.description.clipping
        if clipping.to == "content" and view.content_sizes is not None:
            height, width = view.content_sizes[row].tolist()
            found.boxes = box.clip(found.boxes, height - clipping.last_pixel, width - clipping.last_pixel)
        elif clipping.to == "photograph" and view.image_sizes is not None:
            transform = view.transforms[row].cpu().float()
            border = transform[:, 2]
            # As `detectors.cornernet.placement` has it: resizing truncates the sides.
            last = (view.image_sizes[row].cpu().flip(0) * transform[:, :2].diagonal() + 1e-3).floor()
            corners = (found.boxes.view(-1, 2, 2) - border).clamp_min(0)
            found.boxes = (torch.minimum(corners, last) + border).view(-1, 4)
        if clipping.drops_empty:
            return found.rows((box.sizes(found.boxes) > 0).all(dim=-1).nonzero()[:, 0])
        return found

    def _check(self, outputs: Mapping[str, Tensor], images: int) -> None:
        """Refuse outputs of another form than the description says.

        Raises:
            DetectorError: with the output and its shape.
        """
        limit = self.description.limit
        last = {"boxes": (4,), "scores": (), "labels": (), "box3d": (7,)}
        for name, values in outputs.items():
            wanted = (images, limit, *last.get(name, values.shape[2:]))
            if tuple(values.shape) != wanted:
                raise DetectorError(
                    f"{self.path} returned {name} of shape {list(values.shape)}, not {list(wanted)}, as it says of "
                    "itself. Export the run again."
                )
        highest = int(outputs["labels"].max()) if outputs["labels"].numel() else -1
        if highest >= self.num_classes:
            raise DetectorError(
                f"{self.path} returned label {highest}, but it lists {self.num_classes} classes. Export the run again."
            )


def _objects(outputs: Mapping[str, Tensor]) -> Detections:
    """Return the objects in the places of one image that are used."""
    used = outputs["labels"] >= 0
    further = {name: outputs[name][used].float() for name in ("keypoints", "box3d") if outputs.get(name) is not None}
    return Detections(
        boxes=outputs["boxes"][used].float(),
        scores=outputs["scores"][used].float(),
        labels=outputs["labels"][used].long(),
        **further,
    )


def is_exported(source: str | Path) -> bool:
    """Return True for the name of an exported file."""
    return Path(source).suffix.lower() in SUFFIXES


def open_exported(path: Path, device: torch.device | None = None) -> tuple[ExportedDetector, torch.device]:
    """Open an exported file.

    Args:
        path: ends in `.onnx` or `.pt2`.
        device: where a `.pt2` file runs; None takes a GPU if there is one. onnxruntime takes a GPU if it can use one,
            and is handed images on the CPU.

    Returns:
        The detector, and the device for its images.

    Raises:
        ConfigError: the file is missing, damaged, not one of ours or not to be trusted, or onnxruntime is missing.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; `aweigh export RUN --output {path.name}` writes such a file.")
    if path.suffix.lower() == ".onnx":
        detector = _open_onnx(path, device)
        return detector, torch.device("cpu")
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return _open_pt2(path, device), device


def _open_onnx(path: Path, device: torch.device | None) -> ExportedDetector:
    onnx, onnxruntime = _onnx_packages(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # protobuf has errors of its own
        raise ConfigError(f"{path} is damaged, or not an ONNX file. Export the run again.") from error
    description = from_metadata({entry.key: entry.value for entry in model.metadata_props}, path)
    for name in external_files(model):
        _check_inside(path, name)
    del model
    return ExportedDetector(description, OnnxProgram(onnxruntime, path, device), path)


def _onnx_packages(path: Path) -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f"{path} needs the package {error.name}, which is not installed; {EXTRA} installs it."
        ) from error
    return onnx, onnxruntime


def external_files(model: Any) -> Iterator[str]:
    """Names of the files that an ONNX model keeps tensors in, as it writes them."""
    from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

    for tensor in _get_all_tensors(model):
        if uses_external_data(tensor):
            yield ExternalDataInfo(tensor).location


def _check_inside(path: Path, name: str) -> None:
    """Refuse a file of tensors that is not beside the ONNX file: it could be any file of this machine."""
    folder = path.parent.resolve()
    target = folder / name
    if not name or Path(name).is_absolute() or folder not in target.resolve().parents:
        raise ConfigError(
            f"{path} keeps tensors in {name!r}, outside of its folder, which is refused: it could be any file of this "
            "machine. Export the run again."
        )
    if not target.is_file():
        raise ConfigError(f"{path} keeps tensors in {name}, which is missing; copy both files into one folder.")


class OnnxProgram:
    """An ONNX file in onnxruntime.

    Args:
        onnxruntime: the package.
        path: of the file.
        device: the CPU keeps onnxruntime from using a GPU.

    Raises:
        ConfigError: onnxruntime refuses the file.
    """

    def __init__(self, onnxruntime: Any, path: Path, device: torch.device | None = None) -> None:
        options = onnxruntime.SessionOptions()
        # As many threads as torch, so that times beside each other compare.
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; warnings name nodes of the graph
        providers = ["CPUExecutionProvider"]
        available = onnxruntime.get_available_providers()
        if "CUDAExecutionProvider" in available and (device is None or device.type == "cuda"):
            providers.insert(0, "CUDAExecutionProvider")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime has a dozen errors, all of Exception
            raise ConfigError(
                f"{path} is refused by onnxruntime: {_first_line(error)}. Export the run again, or update onnxruntime."
            ) from error
        self._input = self._session.get_inputs()[0].name
        self._path = path

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Run the file; see `Program`."""
        array = np.ascontiguousarray(images.cpu().numpy())
        try:
            outputs = self._session.run(None, {self._input: array})
        except Exception as error:
            raise DetectorError(f"{self._path} failed in onnxruntime: {_first_line(error)}.") from error
        return [torch.from_numpy(np.asarray(values)) for values in outputs]


def _open_pt2(path: Path, device: torch.device) -> ExportedDetector:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    description = from_metadata(metadata_of(content, path), path)
    return ExportedDetector(description, TorchProgram(screened(content, path), path, device), path)


class TorchProgram:
    """A program of torch.export.

    Args:
        content: bytes of the file, which were screened.
        path: of the file, for messages.
        device: where it runs.

    Raises:
        ConfigError: torch refuses the file.
    """

    def __init__(self, content: bytes, path: Path, device: torch.device) -> None:
        try:
            exported = torch.export.load(io.BytesIO(content))
            if device.type != "cpu":
                from torch.export.passes import move_to_device_pass

                exported = move_to_device_pass(exported, device)
            self._module = exported.module()
        except Exception as error:  # torch raises whatever it meets
            raise ConfigError(
                f"{path} is refused by torch {torch.__version__}: {_first_line(error)}. Export the run again."
            ) from error
        self._device = device
        self._path = path

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Run the file; see `Program`."""
        try:
            with torch.no_grad():
                outputs = self._module(images.to(self._device))
        except Exception as error:
            raise DetectorError(f"{self._path} failed in torch: {_first_line(error)}.") from error
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(".") if lines else type(error).__name__
