"""The raw maps of a file's network, before decoding.

A file returns boxes only. So its network is written once more, in the same way, with its maps as the outputs.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from detectors.portable import PortableDetector
from pipelines.exporting.onnx_file import to_onnx
from pipelines.exporting.torch_file import FileInput, to_torch_export
from pipelines.trained.exported_file import OnnxProgram, Program, TorchProgram


class PortableMaps(PortableDetector):
    """The network of a portable detector, from pixels to raw maps."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps, in the order in which torch flattens the detector's outputs."""
        return tuple(leaf for leaf in tree_leaves(self.detector(self.normalised(images))) if isinstance(leaf, Tensor))

    @torch.no_grad()
    def strides(self, given: FileInput) -> tuple[int, ...]:
        """Input pixels per cell of the maps."""
        images = torch.zeros(1, 3, given.height, given.width, dtype=getattr(torch, given.pixels))
        heights = [maps.shape[2] for maps in self(images) if maps.dim() == 4]
        # Sides that are one less than a multiple have the maps of the multiple.
        return tuple(sorted({round(given.height / height) for height in heights}))


def maps_program(maps: PortableMaps, output: Path, given: FileInput) -> Program:
    """Write the network of a portable detector beside its file for a moment, and open it.

    Args:
        maps: of the detector that is written.
        output: the file of the detector; its suffix says whether onnxruntime or torch runs the network.
        given: the images that the file takes.
    """
    path = output.with_name(f"maps{output.suffix.lower()}")
    try:
        if path.suffix == ".pt2":
            to_torch_export(maps, path, given, {})
            return TorchProgram(path.read_bytes(), path, torch.device("cpu"))
        # The outputs get the names of others, which nobody reads.
        to_onnx(maps, path, given, {})
        import onnxruntime

        return OnnxProgram(onnxruntime, path)
    finally:
        path.unlink(missing_ok=True)
