"""Portable detectors as ONNX files."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from detectors.portable import PortableDetector
from pipelines.errors import ConfigError
from pipelines.exporting.torch_file import FileInput, exported_program

OPSET = 20
"""Version of ONNX's operators that files use; deformable convolution needs 19."""
INPUT = "images"
OUTPUTS = ("boxes", "scores", "labels")
"""Names of the first outputs. Detectors of joints have a fourth, "keypoints", and those in 3D "box3d"."""


def to_onnx(portable: PortableDetector, path: Path, given: FileInput, metadata: Mapping[str, str]) -> None:
    """Write a portable detector as one ONNX file.

    Args:
        portable: on the CPU.
        path: of the file.
        given: the images that the file takes.
        metadata: becomes the model's metadata properties.

    Raises:
        ConfigError: the packages for ONNX are missing.
        DetectorError: the detector does not take inputs of this size, or cannot be exported.
    """
    _require_packages()
    program = exported_program(portable, given)
    names = [*OUTPUTS, *_further_outputs(portable, len(program.graph_signature.user_outputs))]
    with _quiet():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=names,
            external_data=False,
            verbose=False,
        )
    assert converted is not None
    _name_dimensions(converted.model.graph, given)
    for key, value in metadata.items():
        converted.model.metadata_props[key] = value
    converted.save(path)


def _name_dimensions(graph: Any, given: FileInput) -> None:
    """Name the dimensions that vary, which the exporter leaves with symbols of its own."""
    batch = given.batch or "batch"
    sides = ("height", "width") if given.any_size else (given.height, given.width)
    images = graph.inputs[0]
    images.shape = type(images.shape)((batch, 3, *sides))
    for output in graph.outputs:
        output.shape = type(output.shape)((batch, *output.shape[1:]))


def _further_outputs(portable: PortableDetector, num_outputs: int) -> list[str]:
    if num_outputs == len(OUTPUTS):
        return []
    return ["keypoints" if "keypoints" in portable.detector.needs else "box3d"]


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"writing ONNX needs the package {error.name}. Install aweigh with its packages for exports: "
            "pip install 'aweigh[export]'."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the exporter's remarks on operators of torchvision and on its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
