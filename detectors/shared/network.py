"""The contract of networks: a part of a detector that makes its layers and runs them.

The layers themselves belong to the detector, because published state-dict keys have no prefix for the network.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from detectors.detector import Published
from detectors.file_layouts import AUTHORS_STATE_DICT, FileLayout
from detectors.shapes import Float
from detectors.sizes import InputSizes
from detectors.stages import Stages

Outputs = list[dict[str, Tensor]]
"""One dict per stack: a float32 map `(batch, channels, height / stride, width / stride)` for each head."""


class Network(ABC):
    """A network without weights of its own; see the module's docstring."""

    sizes: InputSizes
    """Input sizes that it takes."""
    stacks = 1
    """Hourglasses, one after the other, each with heads of its own."""
    stride = 4
    """Input pixels per cell of its maps."""
    imagenet_weights = ""
    """Address of the ImageNet weights that the publication starts from; empty if it starts from none."""
    backbone_prefix = ""
    """Prefix in the state dict of the keys of an ImageNet file."""
    class_layers: tuple[str, ...] = ()
    """Layers whose first dimension counts classes."""
    file_layouts: tuple[FileLayout, ...] = ()
    """Layouts of other libraries' files."""
    export_layouts: Mapping[str, FileLayout] = {"authors": AUTHORS_STATE_DICT}
    """Layouts that the weights can be written in, by the library's name."""

    @abstractmethod
    def stages(self) -> Stages:
        """The stages of the trunk and of the neck; see `Detector.stages`."""

    @abstractmethod
    def make_layers(self) -> dict[str, nn.Module]:
        """Make all layers, in the published order and with their published start."""

    @abstractmethod
    def run(self, detector: nn.Module, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """Run the layers, which are now children of `detector`.

        Args:
            detector: has what `make_layers` returned as its children.
            images: normalised.

        Returns:
            Raw maps of each stack.
        """

    def published(self) -> Published:
        """The weights that others published for this network, and the layouts of their files."""
        return Published(
            imagenet_weights=self.imagenet_weights,
            backbone_prefix=self.backbone_prefix,
            class_layers=self.class_layers,
            file_layouts=self.file_layouts,
            export_layouts=self.export_layouts,
        )
