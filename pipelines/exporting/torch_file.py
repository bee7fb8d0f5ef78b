"""Portable detectors as `torch.export` programs, which PyTorch runs without this package (`.pt2`)."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.export import Dim, ExportedProgram

from detectors.layers.deformable_convolution import traceable_deformable_convolution
from detectors.portable import PortableDetector

METADATA = "metadata.json"
"""Name of the extra file in a `.pt2` that has its metadata: a JSON object of texts."""


@dataclass(frozen=True, kw_only=True)
class FileInput:
    """The images that a file takes: red, green and blue, 0 to 255, `(batch, 3, height, width)`."""

    height: int
    width: int
    batch: int | None = None
    """Images of a batch; None for any number."""
    any_size: bool = False
    """Any height and width that fit the detector's `sizes`, from `least_side` on, not only the two above."""
    pixels: Literal["uint8", "float32"] = "uint8"


def to_torch_export(portable: PortableDetector, path: Path, given: FileInput, metadata: Mapping[str, str]) -> None:
    """Write a portable detector as a `.pt2`; `torch.export.load(path).module()` runs it.

    Args:
        portable: on the CPU.
        path: ends in `.pt2`.
        given: the images that the file takes.
        metadata: kept in the extra file `METADATA`.

    Raises:
        DetectorError: the detector does not take inputs of this size, or cannot be exported.
    """
    program = exported_program(portable, given)
    # Whoever loads the program has PyTorch's operators only.
    with torch.no_grad():
        program = program.run_decompositions(
            {torch.ops.aweigh.deformable_convolution.default: traceable_deformable_convolution}
        )
    torch.export.save(program, path, extra_files={METADATA: json.dumps(dict(metadata), indent=1)})


def exported_program(portable: PortableDetector, given: FileInput) -> ExportedProgram:
    """Trace a portable detector for the images that a file takes.

    Raises:
        DetectorError: the detector does not take inputs of this size, or cannot be exported.
    """
    portable.detector.check_input_size((given.height, given.width))
    # A batch of one would be taken for a constant.
    images = torch.zeros(given.batch or 2, 3, given.height, given.width, dtype=getattr(torch, given.pixels))
    with torch.no_grad():
        program = torch.export.export(portable, (images,), dynamic_shapes=(_dynamic_dimensions(portable, given),))
    # Lines of source code with the paths of this machine.
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def least_side(portable: PortableDetector) -> int:
    """Least height and width of a file for any size, with as many cells as detections are wanted."""
    sizes = portable.detector.sizes
    return sizes.side(_least_multiple(portable))


def _least_multiple(portable: PortableDetector) -> int:
    # At stride 8, the coarsest at which a detector chooses all of its candidates. And more than a cell at the deepest
    # stride of networks, 128, because torch.export takes a side of one cell for a constant.
    side = max(8 * math.sqrt(portable.limit), 129)
    return math.ceil(side / portable.detector.sizes.divisor)


def _dynamic_dimensions(portable: PortableDetector, given: FileInput) -> dict[int, Any]:
    dimensions: dict[int, Any] = {} if given.batch else {0: Dim("batch")}
    if given.any_size:
        # The program is valid for sides that are these multiples, so symbols stand for the factors.
        for axis, name in ((2, "height"), (3, "width")):
            factor: Any = Dim(f"{name}_factor", min=_least_multiple(portable))
            dimensions[axis] = portable.detector.sizes.side(factor)
    return dimensions
