"""Feature pyramids P3 to P7: coarse features, which tell what, are added to fine ones, which tell where.

P6 is computed from P5 (FCOS), not from the trunk (RetinaNet, FoveaBox), and P7 from P6 after a ReLU. The two classes
compute the same and differ in the names of their parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from detectors.shapes import Float


class FeaturePyramid(nn.Module, ABC):
    """Five levels at strides 8, 16, 32, 64 and 128, all with the same number of channels.

    Convolutions have a bias and no normalisation. They start from He's uniform initialisation for a linear layer, their
    biases from 0.

    Args:
        in_channels: of the trunk's stages at strides 8, 16 and 32.
        channels: of every level.

    Source:
        Lin et al., Feature Pyramid Networks (arXiv:1612.03144); tianzhi0549/FCOS,
        fcos_core/modeling/backbone/fpn.py; torchvision/ops/feature_pyramid_network.py.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        laterals = [nn.Conv2d(of_stage, channels, 1) for of_stage in in_channels]
        outputs = [nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels]
        coarse = [nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(2)]
        for convolution in (*laterals, *outputs, *coarse):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)
        self.register(laterals, outputs, nn.ModuleDict({"p6": coarse[0], "p7": coarse[1]}))

    @abstractmethod
    def register(self, laterals: list[nn.Conv2d], outputs: list[nn.Conv2d], coarse: nn.ModuleDict) -> None:
        """Keep the layers under their published names."""

    @abstractmethod
    def layer_names(self) -> tuple[list[str], list[str], str]:
        """Paths of the lateral convolutions, of the output convolutions (fine to coarse) and of P6 and P7."""

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
        p6 = self.get_submodule(f"{coarse}.p6")(levels[-1])
        p7 = self.get_submodule(f"{coarse}.p7")(p6.relu())
        return [*levels, p6, p7]


class AuthorsPyramid(FeaturePyramid):
    """The pyramid under the names of FCOS's authors."""

    def register(self, laterals: list[nn.Conv2d], outputs: list[nn.Conv2d], coarse: nn.ModuleDict) -> None:
        """Keep the layers as `fpn_inner2`, `fpn_layer2` to 4 (the trunk's stages) and `top_blocks`."""
        for stage, (lateral, output) in enumerate(zip(laterals, outputs, strict=True), start=2):
            self.add_module(f"fpn_inner{stage}", lateral)
            self.add_module(f"fpn_layer{stage}", output)
        self.top_blocks = coarse

    def layer_names(self) -> tuple[list[str], list[str], str]:
        """Paths of the lateral convolutions, of the output convolutions (fine to coarse) and of P6 and P7."""
        return [f"fpn_inner{stage}" for stage in (2, 3, 4)], [f"fpn_layer{stage}" for stage in (2, 3, 4)], "top_blocks"


class TorchvisionPyramid(FeaturePyramid):
    """The pyramid under torchvision's names."""

    def register(self, laterals: list[nn.Conv2d], outputs: list[nn.Conv2d], coarse: nn.ModuleDict) -> None:
        """Keep the layers as `inner_blocks.0.0`, `layer_blocks.0.0` to 2 and `extra_blocks`."""
        self.inner_blocks = nn.ModuleList(nn.Sequential(convolution) for convolution in laterals)
        self.layer_blocks = nn.ModuleList(nn.Sequential(convolution) for convolution in outputs)
        self.extra_blocks = coarse

    def layer_names(self) -> tuple[list[str], list[str], str]:
        """Paths of the lateral convolutions, of the output convolutions (fine to coarse) and of P6 and P7."""
        return [f"inner_blocks.{i}" for i in range(3)], [f"layer_blocks.{i}" for i in range(3)], "extra_blocks"
