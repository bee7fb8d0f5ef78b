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
    # With gradients, the exporter would also trace a backward pass of the loops, and fail.
    with _quiet(), torch.no_grad():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
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


def _deformable_convolution(
    features: Any, offset: Any, mask: Any, weight: Any, bias: Any, stride: int, padding: int
) -> Any:
    """ONNX's own operator for `deformable_convolution_operator`."""
    import onnxscript

    kernel_size = list(weight.shape[2:])
    return onnxscript.opset20.DeformConv(
        features,
        weight,
        offset,
        bias,
        mask,
        kernel_shape=kernel_size,
        offset_group=offset.shape[1] // (2 * kernel_size[0] * kernel_size[1]),
        pads=[padding] * 4,
        strides=[stride] * 2,
    )


def _stable_sort(values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """PyTorch's stable sort: the first of equal values comes first in ONNX's TopK."""
    import onnxscript

    operators = onnxscript.opset20
    axis = dim % len(values.shape)
    count = operators.Gather(operators.Shape(values), operators.Constant(value_ints=[axis]))
    return operators.TopK(values, count, axis=axis, largest=int(descending), sorted=1)


TRANSLATIONS: dict[Any, Any] = {
    torch.ops.aweigh.deformable_convolution.default: _deformable_convolution,
    torch.ops.aten.sort.stable: _stable_sort,
}
"""Operators that the exporter does not know, in ONNX's operators."""


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
