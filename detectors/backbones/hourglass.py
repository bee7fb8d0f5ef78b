"""The stacked hourglass of CornerNet, also used by CenterNet: down by strided residuals, up by repetition.

There is no pooling, batch norm follows every convolution, and each stack returns features at stride 4.
"""

from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.layers.recomputation import recomputed


@runtime_checkable
class HourglassLayers(Protocol):
    """Owner of an hourglass's layers under their published names: a trunk, or a detector that has them as its own."""

    pre: nn.Sequential
    kps: nn.ModuleList
    cnvs: nn.ModuleList
    inters: nn.ModuleList
    inters_: nn.ModuleList
    cnvs_: nn.ModuleList


def run_stacks(layers: HourglassLayers, images: Tensor) -> list[Tensor]:
    """Features `(batch, width, height / 4, width / 4)` of each stack."""
    features = layers.pre(images)
    of_stacks: list[Tensor] = []
    for stack, (hourglass, convolution) in enumerate(zip(layers.kps, layers.cnvs, strict=True)):
        of_stacks.append(convolution(hourglass(features)))
        # All stacks are trained on their own output; all but the last also pass it on.
        if stack < len(layers.inters):
            merged = layers.inters_[stack](features) + layers.cnvs_[stack](of_stacks[-1])
            features = layers.inters[stack](torch.relu(merged))
    return of_stacks


class Hourglass(nn.Module):
    """Stem to stride 4, then stacks that each go down to stride 128 and back.

    Args:
        width: channels at stride 4; the deeper levels have 1, 1.5, 1.5, 1.5 and 2 times as many. 256 and two
            stacks are Hourglass-104.
        stacks: number of hourglasses, one after the other.
        activation_checkpointing: keep only the inputs of residuals for backward, and recompute the rest: less memory
            for about a third more time, with the same results bit for bit.

    Source:
        Law and Deng, CornerNet, section 3.5 (arXiv:1808.01244); xingyizhou/CenterNet,
        src/lib/models/networks/large_hourglass.py, `exkp`.
    """

    def __init__(self, width: int = 256, stacks: int = 2, activation_checkpointing: bool = False) -> None:
        super().__init__()
        channels = (width, width, *(width * 3 // 2,) * 3, width * 2)
        blocks = (2, 2, 2, 2, 2, 4)
        self.pre = nn.Sequential(
            ConvolutionBlock(3, width // 2, kernel_size=7, stride=2), Residual(width // 2, width, stride=2)
        )
        self.kps = nn.ModuleList(HourglassLevel(channels, blocks) for _ in range(stacks))
        self.cnvs = nn.ModuleList(ConvolutionBlock(width, width) for _ in range(stacks))
        self.inters = nn.ModuleList(Residual(width, width) for _ in range(stacks - 1))
        self.inters_ = nn.ModuleList(_convolution1x1(width, width) for _ in range(stacks - 1))
        self.cnvs_ = nn.ModuleList(_convolution1x1(width, width) for _ in range(stacks - 1))
        for module in self.modules():
            if isinstance(module, Residual):
                module.activation_checkpointing = activation_checkpointing

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features `(batch, width, height / 4, width / 4)` of each stack."""
        return run_stacks(self, images)


class HourglassLevel(nn.Module):
    """One level of an hourglass and, inside it, all the deeper ones.

    Args:
        channels: of this level and of those below, at least one.
        blocks: number of residuals on each path of these levels.
    """

    def __init__(self, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        here, below = channels[0], channels[1]
        self.up1 = nn.Sequential(*(Residual(here, here) for _ in range(blocks[0])))
        rest = [Residual(below, below) for _ in range(blocks[0] - 1)]
        # There is no pooling: the first residual halves the resolution.
        self.low1 = nn.Sequential(Residual(here, below, stride=2), *rest)
        self.low2: nn.Module
        if len(channels) > 2:
            self.low2 = HourglassLevel(channels[1:], blocks[1:])
        else:
            self.low2 = nn.Sequential(*(Residual(below, below) for _ in range(blocks[1])))
        self.low3 = nn.Sequential(*(Residual(below, below) for _ in range(blocks[0] - 1)), Residual(below, here))

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same shape."""
        below = self.low3(self.low2(self.low1(features)))
        return cast(Tensor, self.up1(features)) + functional.interpolate(below, scale_factor=2)


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        changes = stride != 1 or in_channels != channels
        self.skip = _convolution1x1(in_channels, channels, stride) if changes else nn.Sequential()
        self.activation_checkpointing = False

    def forward(self, features: Tensor) -> Tensor:
        """Features `(batch, channels, height / stride, width / stride)`."""
        if self.activation_checkpointing and self.training:
            return recomputed(self._compute, self, features)
        return self._compute(features)

    def _compute(self, features: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(features)))))
        return torch.relu(residual + self.skip(features))


class ConvolutionBlock(nn.Module):
    """Convolution, batch norm or a bias, ReLU."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, stride, padding=kernel_size // 2, bias=not batch_norm)
        self.bn = nn.BatchNorm2d(channels) if batch_norm else nn.Sequential()

    def forward(self, features: Tensor) -> Tensor:
        """Features `(batch, channels, height / stride, width / stride)`."""
        return torch.relu(self.bn(self.conv(features)))


def _convolution1x1(in_channels: int, channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))
