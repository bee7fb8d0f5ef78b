"""Deep layer aggregation, DLA-34: a trunk of trees, and the steps that merge its levels upwards.

CenterNet's steps are deformable and add levels; those of the original network are ordinary and concatenate them.

Two parts of the published network have no effect, and are kept because its checkpoints hold them: the ImageNet
classifier `fc`, and the projections of trees that contain trees (the inner tree makes its own), whose batch norm
statistics change although no gradient reaches them.
"""

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from detectors.layers.deformable_convolution import DeformableConvolution
from detectors.layers.upsampling import bilinear_kernel
from detectors.stages import Stages

DLA34_IMAGENET = "http://dl.yf.io/dla/models/imagenet/dla34-ba72cf86.pth"
"""Address at which the authors published the ImageNet weights. The server is gone, so users must provide a copy."""


class DLA34(nn.Module):
    """The convolutional part of DLA-34 in six levels, strides 1 to 32.

    Weights start from He et al.'s normal initialisation (fan out), as in the ImageNet training. CenterNet's code, which
    always loads ImageNet's weights, leaves PyTorch's in place.

    Args:
        width: channels of the first level, which each later one doubles; 16 is the published network.
        starts_as_pytorch: leave the weights as PyTorch initialises them, uniform within 1 / sqrt(fan in).

    Source:
        Yu et al., Deep Layer Aggregation, table 1 (arXiv:1707.06484); xingyizhou/CenterNet,
        src/lib/models/networks/pose_dla_dcn.py, `DLA`.
    """

    channels: tuple[int, ...]
    """Channels of the levels, at strides 1, 2, 4, 8, 16 and 32."""
    stages: ClassVar[Stages] = {name: (name,) for name in ("base_layer", *(f"level{level}" for level in range(6)))}

    def __init__(self, width: int = 16, starts_as_pytorch: bool = False) -> None:
        super().__init__()
        self.channels = channels = tuple(width * 2**level for level in range(6))
        self.base_layer = _convolution(3, channels[0], kernel_size=7)
        self.level0 = _convolution(channels[0], channels[0])
        self.level1 = _convolution(channels[0], channels[1], stride=2)
        self.level2 = Tree(1, channels[1], channels[2], stride=2)
        self.level3 = Tree(2, channels[2], channels[3], stride=2, keep_input=True)
        self.level4 = Tree(2, channels[3], channels[4], stride=2, keep_input=True)
        self.level5 = Tree(1, channels[4], channels[5], stride=2, keep_input=True)
        for module in () if starts_as_pytorch else self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        # After the loop above, so that `fc` keeps PyTorch's start in either case.
        self.fc = nn.Conv2d(channels[5], 1000, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features `(batch, channels[i], height / stride, width / stride)` of the six levels."""
        features = self.base_layer(images)
        levels = []
        for level in range(6):
            features = getattr(self, f"level{level}")(features)
            levels.append(features)
        return levels


class Tree(nn.Module):
    """Two subtrees, one after the other; the root of the last one merges the results of all of them.

    Args:
        depth: 1 for two blocks and a root, more for two trees that are one shallower.
        in_channels: channels of the input.
        channels: channels of the output.
        stride: factor by which the first block (and a max pooling beside it) reduces the resolution.
        keep_input: also pass the pooled input to the root.
        root_channels: channels that enter the root, without the input; 0 for those of the two blocks alone.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int,
        channels: int,
        stride: int = 1,
        keep_input: bool = False,
        root_channels: int = 0,
    ) -> None:
        super().__init__()
        root_channels = (root_channels or 2 * channels) + (in_channels if keep_input else 0)
        self.depth, self.keep_input = depth, keep_input
        if depth == 1:
            self.tree1: nn.Module = Block(in_channels, channels, stride)
            self.tree2: nn.Module = Block(channels, channels)
            self.root = Root(root_channels, channels)
        else:
            self.tree1 = Tree(depth - 1, in_channels, channels, stride)
            self.tree2 = Tree(depth - 1, channels, channels, root_channels=root_channels + channels)
        self.downsample = nn.MaxPool2d(stride) if stride > 1 else nn.Identity()
        self.project = None
        if in_channels != channels:
            self.project = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, features: Tensor, shortcut: Tensor | None = None, for_root: Sequence[Tensor] = ()) -> Tensor:
        """Features `(batch, channels, height / stride, width / stride)`; `shortcut` is ignored, as published."""
        bottom = self.downsample(features)
        # As published: an outer tree's projection arrives as `shortcut` and is replaced by this tree's own.
        shortcut = bottom if self.project is None else self.project(bottom)
        for_root = [*for_root, bottom] if self.keep_input else for_root
        first = self.tree1(features, shortcut)
        # Only the innermost last tree has a root. It receives the results of all trees around it, too.
        if self.depth == 1:
            return cast(Tensor, self.root([self.tree2(first), first, *for_root]))
        return cast(Tensor, self.tree2(first, for_root=[*for_root, first]))


class Block(nn.Module):
    """Two 3x3 convolutions, to whose result a shortcut (by default the input) is added."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Features `(batch, channels, height / stride, width / stride)`."""
        residual = self.relu(self.bn1(self.conv1(features)))
        return self.relu(self.bn2(self.conv2(residual)) + (features if shortcut is None else shortcut))


class Root(nn.Module):
    """1x1 convolution over concatenated features."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features `(batch, channels, height, width)`."""
        return self.relu(self.bn(self.conv(torch.cat(list(features), dim=1))))


class DeformableBlock(nn.Module):
    """Deformable 3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.actf = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.conv = DeformableConvolution(in_channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """Features `(batch, channels, height, width)`."""
        return cast(Tensor, self.actf(self.conv(features)))


class IterativeAggregation(nn.Module):
    """Enlarge each coarser level to the resolution of the one before it and merge the two, level after level.

    Args:
        channels: channels of the result and of every merged level.
        in_channels: channels of the levels, finest first.
        factors: of enlargement, for each level but the first.

    Source:
        Yu et al., Deep Layer Aggregation, section 3.1; pose_dla_dcn.py, `IDAUp`.
    """

    def __init__(self, channels: int, in_channels: Sequence[int], factors: Sequence[int]) -> None:
        super().__init__()
        for step, (before, factor) in enumerate(zip(in_channels[1:], factors, strict=True), start=1):
            # Weights are drawn in this order, though the projection is the first in the state dict.
            enlarge = _enlargement(channels, factor)
            self.add_module(f"proj_{step}", DeformableBlock(before, channels))
            self.add_module(f"up_{step}", enlarge)
            self.add_module(f"node_{step}", DeformableBlock(channels, channels))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The finest level unchanged, then the result of each merge, all at its resolution."""
        merged = [levels[0]]
        for step, level in enumerate(levels[1:], start=1):
            project, enlarge, node = (getattr(self, f"{part}_{step}") for part in ("proj", "up", "node"))
            merged.append(node(enlarge(project(level)) + merged[-1]))
        return merged


class HierarchicalAggregation(nn.Module):
    """Merge levels from the coarse end: each round adds one finer level and merges the results again.

    Args:
        channels: channels of the levels, finest first; each is twice as fine as the next.

    Source:
        Yu et al., Deep Layer Aggregation, section 3.2; pose_dla_dcn.py, `DLAUp`.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        num_rounds = len(channels) - 1
        for turn in range(num_rounds):
            finest = num_rounds - 1 - turn
            # Earlier rounds left all coarser levels with the channels and resolution of the next one.
            coarser = [channels[finest + 1]] * (turn + 1)
            self.add_module(
                f"ida_{turn}",
                IterativeAggregation(channels[finest], [channels[finest], *coarser], [2] * len(coarser)),
            )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Last result of each round, finest first, and the coarsest level unchanged."""
        levels = list(levels)
        results = [levels[-1]]
        for turn in range(len(levels) - 1):
            finest = len(levels) - 2 - turn
            # The published code changes this list in place, too: the next round starts from merged levels.
            levels[finest:] = getattr(self, f"ida_{turn}")(levels[finest:])
            results.insert(0, levels[-1])
        return results


class ConcatenatingAggregation(nn.Module):
    """The original iterative aggregation: each merge is a 3x3 convolution of two concatenated levels.

    Args:
        channels: channels of the result and of every merged level.
        in_channels: channels of the levels, finest first; each but the first differs from `channels`.
        factors: of enlargement, for each level but the first.

    Source:
        Yu et al., Deep Layer Aggregation, section 3.1; xingyizhou/CenterNet, src/lib/models/networks/dlav0.py, `IDAUp`.
    """

    def __init__(self, channels: int, in_channels: Sequence[int], factors: Sequence[int]) -> None:
        super().__init__()
        for step, (before, factor) in enumerate(zip(in_channels[1:], factors, strict=True), start=1):
            self.add_module(f"proj_{step}", _convolution(before, channels, kernel_size=1))
            self.add_module(f"up_{step}", _enlargement(channels, factor))
        # After all of those above, in the published order.
        for step in range(1, len(in_channels)):
            self.add_module(f"node_{step}", _convolution(2 * channels, channels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Result of each merge, all at the resolution of the finest level."""
        merged = [levels[0]]
        for step, level in enumerate(levels[1:], start=1):
            project, enlarge, node = (getattr(self, f"{part}_{step}") for part in ("proj", "up", "node"))
            merged.append(node(torch.cat((merged[-1], enlarge(project(level))), dim=1)))
        return merged[1:]


class OriginalHierarchicalAggregation(nn.Module):
    """Merge levels from the coarse end, with `ConcatenatingAggregation`, until one is left.

    Args:
        channels: channels of the levels, finest first; each is twice as fine as the next.

    Source:
        Yu et al., Deep Layer Aggregation, section 3.2; dlav0.py, `DLAUp`.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        for turn, finest in enumerate(reversed(range(len(channels) - 1))):
            # Earlier rounds left all coarser levels with the channels and resolution of the next one.
            coarser = [channels[finest + 1]] * (turn + 1)
            step = ConcatenatingAggregation(channels[finest], [channels[finest], *coarser], [2] * len(coarser))
            self.add_module(f"ida_{turn}", step)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Features `(batch, channels[0], height, width)` at the resolution of the finest level."""
        levels = list(levels)
        for turn, finest in enumerate(reversed(range(len(levels) - 1))):
            # The next round starts from the results, and from the finest level of this one as it was.
            levels[finest + 1 :] = getattr(self, f"ida_{turn}")(levels[finest:])
        return levels[-1]


def _enlargement(channels: int, factor: int) -> nn.ConvTranspose2d:
    """Transposed convolution of each channel by itself, which starts as bilinear interpolation."""
    enlarge = nn.ConvTranspose2d(
        channels, channels, 2 * factor, factor, padding=factor // 2, groups=channels, bias=False
    )
    with torch.no_grad():
        enlarge.weight.copy_(bilinear_kernel(factor).expand_as(enlarge.weight))
    return enlarge


def _convolution(in_channels: int, channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
