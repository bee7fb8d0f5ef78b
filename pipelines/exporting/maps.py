"""The raw maps of a file's network, before decoding.

A file returns boxes only. So its network is converted once more, in the same way, with its maps as the outputs.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from detectors.portable import PortableDetector
from pipelines.exporting.onnx_file import OPSET
from pipelines.exporting.torch_file import FileInput, exported_program
from pipelines.trained.exported_file import OnnxProgram, Program


class PortableMaps(PortableDetector):
    """The network of a portable detector, from pixels to raw maps."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps, in the order in which a file of torch flattens them."""
        return tuple(leaf for leaf in tree_leaves(self.detector(self.normalised(images))) if isinstance(leaf, Tensor))


def maps_program(portable: PortableDetector, given: FileInput, to: str) -> tuple[Program, tuple[int, ...]]:
    """Convert the network of a portable detector.

    Args:
        portable: as it is written to the file.
        given: the images that the file takes.
        to: "onnx" or "torch".

    Returns:
        Runs the network, and the input pixels per cell of its maps.
    """
    program = exported_program(PortableMaps(portable.detector, portable.limit), given)
    (outputs,) = (node.args[0] for node in program.graph.nodes if node.op == "output")
    assert isinstance(outputs, Sequence)
    heights = [int(one.meta["val"].shape[2]) for one in outputs if one.meta["val"].dim() == 4]
    # Sides that are one less than a multiple still have the multiple's maps.
    strides = tuple(sorted({round(given.height / height) for height in heights}))
    if to == "torch":
        module = program.module()
        return lambda images: list(module(images)), strides
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.getLogger("torch.onnx").level
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            converted: Any = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, external_data=False, verbose=False
            )
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
    import onnxruntime

    return OnnxProgram(onnxruntime, converted.model_proto.SerializeToString()), strides
