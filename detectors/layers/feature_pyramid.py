"""Feature pyramids P3 to P7: coarse features, which tell what, are added to fine ones, which tell where.

FCOS computes P6 from P5, and P7 from P6 after a ReLU; FoveaBox computes P6 from the trunk, and P7 without a ReLU. The
two pyramids of FCOS compute the same and differ in the names of their parameters.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from detectors.errors import DetectorError
from detectors.shapes import Float

STRIDES = (8, 16, 32, 64, 128)
"""Input pixels per cell of P3 to P7."""


def grid_sizes(input_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width in cells of P3 to P7, rounded up."""
    height, width = input_size
    # ONNX rounds the quotient of a negative number up, so there is none here.
    return [((height + stride - 1) // stride, (width + stride - 1) // stride) for stride in STRIDES]


def check_levels(maps: Sequence[Float[Tensor, "batch _ _ _"]], input_size: tuple[int, int]) -> None:
    """Refuse maps of P3 to P7 that are not those of an input of this size.

    Raises:
        DetectorError: with the size of the first level that differs.
    """
    for of_level, grid in zip(maps, grid_sizes(input_size), strict=True):
        if of_level.shape[-2:] != grid:
            height, width = of_level.shape[-2:]
            raise DetectorError(
                f"a level has {height} x {width} cells, but an input of {input_size[0]} x {input_size[1]} has "
                f"{grid[0]} x {grid[1]}. Pass the size of the tensor that was run."
            )


class FeaturePyramid(nn.Module, ABC):
    """Five levels at strides 8, 16, 32, 64 and 128, all with the same number of channels.

    Convolutions have a bias and no normalisation; biases start from 0.

    Args:
        in_channels: of the trunk's stages at strides 8, 16 and 32.
        channels: of every level.

    Source:
        Lin et al., Feature Pyramid Networks (arXiv:1612.03144); tianzhi0549/FCOS,
        fcos_core/modeling/backbone/fpn.py; torchvision/ops/feature_pyramid_network.py.
    """

    p6_from_trunk: ClassVar[bool] = False
    """P6 is computed from the trunk's last stage, not from P5."""
    relu_before_p7: ClassVar[bool] = True
    """P7 is computed from P6 after a ReLU."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        laterals = [nn.Conv2d(of_stage, channels, 1) for of_stage in in_channels]
        outputs = [nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels]
        below_p6 = in_channels[-1] if self.p6_from_trunk else channels
        coarse = [nn.Conv2d(below, channels, 3, stride=2, padding=1) for below in (below_p6, channels)]
        for convolution in (*laterals, *outputs, *coarse):
            self.start(convolution.weight)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)
        self.register(laterals, outputs, coarse)

    @abstractmethod
    def register(self, laterals: list[nn.Conv2d], outputs: list[nn.Conv2d], coarse: list[nn.Conv2d]) -> None:
        """Keep the layers under their published names."""

    @abstractmethod
    def layer_names(self) -> tuple[list[str], list[str], list[str]]:
        """Paths of the lateral convolutions, of the output convolutions (fine to coarse) and of P6 and P7."""

    def start(self, weight: Tensor) -> None:
        """Initialise a convolution: He's uniform initialisation for a linear layer."""
        nn.init.kaiming_uniform_(weight, a=1)

    def forward(self, stages: Sequence[Float[Tensor, "batch _ _ _"]]) -> list[Float[Tensor, "batch channels _ _"]]:
        """Levels P3 to P7, fine to coarse.

        Args:
            stages: the trunk's features at strides 8, 16 and 32; finer ones before them are not used.
        """
        laterals, outputs, coarse = self.layer_names()
        used = stages[-len(laterals) :]
        merged = self.get_submodule(laterals[-1])(used[-1])
        levels = [self.get_submodule(outputs[-1])(merged)]
        for stage, lateral, output in zip(used[-2::-1], laterals[-2::-1], outputs[-2::-1], strict=True):
            fine = self.get_submodule(lateral)(stage)
            # To the finer level's size, since twice the coarser one is a cell too large if a side was rounded up.
            merged = fine + functional.interpolate(merged, size=fine.shape[-2:], mode="nearest")
            levels.insert(0, self.get_submodule(output)(merged))
        p6 = self.get_submodule(coarse[0])(used[-1] if self.p6_from_trunk else levels[-1])
        p7 = self.get_submodule(coarse[1])(p6.relu() if self.relu_before_p7 else p6)
        return [*levels, p6, p7]


class AuthorsPyramid(FeaturePyramid):
    """The pyramid under the names of FCOS's authors."""

    def register(self, laterals: list[nn.Conv2d], outputs: list[nn.Conv2d], coarse: list[nn.Conv2d]) -> None:
        """Keep the layers as `fpn_inner2`, `fpn_layer2` to 4 (the trunk's stages) and `top_blocks`."""
        for stage, (lateral, output) in enumerate(zip(laterals, outputs, strict=True), start=2):
            self.add_module(f"fpn_inner{stage}", lateral)
            self.add_module(f"fpn_layer{stage}", output)
        self.top_blocks = nn.ModuleDict({"p6": coarse[0], "p7": coarse[1]})

    def layer_names(self) -> tuple[list[str], list[str], list[str]]:
        """Paths of the lateral convolutions, of the output convolutions (fine to coarse) and of P6 and P7."""
        laterals, outputs = ([f"fpn_{kind}{stage}" for stage in (2, 3, 4)] for kind in ("inner", "layer"))
        return laterals, outputs, ["top_blocks.p6", "top_blocks.p7"]


class TorchvisionPyramid(FeaturePyramid):
    """The pyramid under torchvision's names."""

    def register(self, laterals: list[nn.Conv2d], outputs: list[nn.Conv2d], coarse: list[nn.Conv2d]) -> None:
        """Keep the layers as `inner_blocks.0.0`, `layer_blocks.0.0` to 2 and `extra_blocks`."""
        self.inner_blocks = nn.ModuleList(nn.Sequential(convolution) for convolution in laterals)
        self.layer_blocks = nn.ModuleList(nn.Sequential(convolution) for convolution in outputs)
        self.extra_blocks = nn.ModuleDict({"p6": coarse[0], "p7": coarse[1]})

    def layer_names(self) -> tuple[list[str], list[str], list[str]]:
        """Paths of the lateral convolutions, of the output convolutions (fine to coarse) and of P6 and P7."""
        laterals, outputs = ([f"{kind}_blocks.{i}" for i in range(3)] for kind in ("inner", "layer"))
        return laterals, outputs, ["extra_blocks.p6", "extra_blocks.p7"]


class MMDetectionPyramid(FeaturePyramid):
    """The pyramid of FoveaBox under mmdetection's names.

    Weights start from Glorot's uniform initialisation.

    Source:
        open-mmlab/mmdetection, mmdet/models/necks/fpn.py.
    """

    p6_from_trunk = True
    relu_before_p7 = False

    def register(self, laterals: list[nn.Conv2d], outputs: list[nn.Conv2d], coarse: list[nn.Conv2d]) -> None:
        """Keep the layers as `lateral_convs.0.conv` to 2, and `fpn_convs.0.conv` to 4 with P6 and P7 at the end."""
        self.lateral_convs, self.fpn_convs = (
            nn.ModuleList(nn.Sequential(OrderedDict(conv=convolution)) for convolution in convolutions)
            for convolutions in (laterals, [*outputs, *coarse])
        )

    def layer_names(self) -> tuple[list[str], list[str], list[str]]:
        """Paths of the lateral convolutions, of the output convolutions (fine to coarse) and of P6 and P7."""
        every = [f"fpn_convs.{i}" for i in range(5)]
        return [f"lateral_convs.{i}" for i in range(3)], every[:3], every[3:]

    def start(self, weight: Tensor) -> None:
        """Initialise a convolution."""
        nn.init.xavier_uniform_(weight)
