"""The stacked hourglass of CornerNet, also used by CenterNet: down by strided residuals, up by repetition.

There is no pooling, batch norm follows every convolution, and each stack returns features at the stem's stride.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from detectors.errors import DetectorError
from detectors.layers.convolution_block import ConvolutionBlock
from detectors.layers.head import Head
from detectors.layers.recomputation import Recomputable, set_activation_checkpointing
from detectors.settings import require_count, require_flag
from detectors.stages import Stages


@runtime_checkable
class HourglassLayers(Protocol):
    """Owner of an hourglass's layers under their published names: a trunk, or a detector that has them as its own.

    The hourglasses themselves are called `kps` or, in CornerNet-Lite, `hgs`.
    """

    pre: nn.Sequential
    cnvs: nn.ModuleList
    inters: nn.ModuleList
    inters_: nn.ModuleList
    cnvs_: nn.ModuleList


class Stack(NamedTuple):
    """Result of one hourglass."""

    features: Tensor
    """`(batch, width, height / stride, width / stride)`."""
    levels: list[Tensor]
    """Results of all levels, from the deepest to the one at the stem's stride."""


def run_stacks(layers: HourglassLayers, images: Tensor) -> list[Tensor]:
    """Features `(batch, width, height / stride, width / stride)` of each stack."""
    return [stack.features for stack in each_stack(layers, images)]


def each_stack(layers: HourglassLayers, images: Tensor) -> Iterator[Stack]:
    """Run the hourglasses one after the other, and yield the result of each."""
    features = layers.pre(images)
    hourglasses = cast(nn.ModuleList, getattr(layers, "kps" if hasattr(layers, "kps") else "hgs"))
    for number, (hourglass, convolution) in enumerate(zip(hourglasses, layers.cnvs, strict=True)):
        levels = cast(HourglassLevel, hourglass).run_levels(features)
        stack = Stack(convolution(levels[-1]), levels)
        yield stack
        # All stacks are trained on their own output; all but the last also pass it on.
        if number < len(layers.inters):
            merged = layers.inters_[number](features) + layers.cnvs_[number](stack.features)
            features = layers.inters[number](torch.relu(merged))


@dataclass(frozen=True, kw_only=True)
class HourglassForm:
    """Form of a stacked hourglass; the default is Hourglass-104, of CornerNet and CenterNet."""

    stacks: int = 2
    """Hourglasses, one after the other."""
    widths: tuple[float, ...] = (1, 1, 1.5, 1.5, 1.5, 2)
    """Channels of the levels, in multiples of those at the stem's stride; each level halves the resolution."""
    blocks: tuple[int, ...] = (2, 2, 2, 2, 2, 4)
    """Blocks on each path of these levels."""
    stem_residuals: int = 1
    """Residuals of the stem, each of which halves the resolution, after a convolution that does."""
    block: Callable[[int, int, int], Recomputable] = lambda inputs, outputs, stride: Residual(inputs, outputs, stride)
    """Makes a block of the hourglasses from input channels, output channels and stride."""
    enlarge: Callable[[int], nn.Module] = lambda channels: nn.Upsample(scale_factor=2)
    """Makes the layer that doubles the resolution of this many channels."""
    hourglasses: str = "kps"
    """Published name of the list of hourglasses."""

    @property
    def stages(self) -> Stages:
        """The stem, and each hourglass with the layers that lead from the one before to it."""
        found = {"pre": ("pre",)}
        for number in range(self.stacks):
            before = (f"inters_.{number - 1}", f"cnvs_.{number - 1}", f"inters.{number - 1}") if number else ()
            found[f"stack{number}"] = (*before, f"{self.hourglasses}.{number}", f"cnvs.{number}")
        return found


@dataclass(frozen=True, kw_only=True)
class HourglassSettings:
    """Settings of a network of hourglasses."""

    width: int = 256
    """Channels at the stem's stride, also of the heads; fewer make a lighter network, which no published file fits."""

    activation_checkpointing: bool = False
    """Recompute the inside of residuals and pooling modules in backward instead of keeping it: less memory, more time,
    same results."""

    def __post_init__(self) -> None:
        require_count("width", self.width)
        require_flag("activation_checkpointing", self.activation_checkpointing)
        if self.width % 2:
            raise DetectorError(
                f"width is {self.width}; an hourglass has levels of half and 1.5 times as many. Choose an even number."
            )


class Hourglass(nn.Module):
    """Stem to stride 4 (or more), then stacks that each go down to a coarse resolution and back.

    Args:
        width: channels at the stem's stride.
        form: all else.
        activation_checkpointing: keep only the inputs of blocks for backward, and recompute the rest: less memory
            for about a third more time, with the same results bit for bit.

    Source:
        Law and Deng, CornerNet, section 3.5 (arXiv:1808.01244); xingyizhou/CenterNet,
        src/lib/models/networks/large_hourglass.py, `exkp`.
    """

    def __init__(
        self, width: int = 256, form: HourglassForm = HourglassForm(), activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        channels = tuple(int(width * factor) for factor in form.widths)
        stem: list[nn.Module] = [ConvolutionBlock(3, width // 2, kernel_size=7, stride=2)]
        for number in range(form.stem_residuals):
            stem.append(Residual(width if number else width // 2, width, stride=2))
        self.pre = nn.Sequential(*stem)
        levels = [HourglassLevel(channels, form.blocks, form.block, form.enlarge) for _ in range(form.stacks)]
        self.add_module(form.hourglasses, nn.ModuleList(levels))
        self.cnvs = nn.ModuleList(ConvolutionBlock(width, width) for _ in range(form.stacks))
        self.inters = nn.ModuleList(Residual(width, width) for _ in range(form.stacks - 1))
        self.inters_ = nn.ModuleList(_convolution1x1(width, width) for _ in range(form.stacks - 1))
        self.cnvs_ = nn.ModuleList(_convolution1x1(width, width) for _ in range(form.stacks - 1))
        set_activation_checkpointing(self, activation_checkpointing)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features `(batch, width, height / stride, width / stride)` of each stack."""
        return run_stacks(self, images)


class HourglassLevel(nn.Module):
    """One level of an hourglass and, inside it, all the deeper ones.

    Args:
        channels: of this level and of those below, at least one.
        blocks: number of blocks on each path of these levels.
        block: see `HourglassForm`.
        enlarge: see `HourglassForm`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        blocks: Sequence[int],
        block: Callable[[int, int, int], Recomputable],
        enlarge: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        here, below = channels[0], channels[1]
        self.up1 = nn.Sequential(*(block(here, here, 1) for _ in range(blocks[0])))
        rest = [block(below, below, 1) for _ in range(blocks[0] - 1)]
        # There is no pooling: the first block halves the resolution.
        self.low1 = nn.Sequential(block(here, below, 2), *rest)
        self.low2: nn.Module
        if len(channels) > 2:
            self.low2 = HourglassLevel(channels[1:], blocks[1:], block, enlarge)
        else:
            self.low2 = nn.Sequential(*(block(below, below, 1) for _ in range(blocks[1])))
        self.low3 = nn.Sequential(*(block(below, below, 1) for _ in range(blocks[0] - 1)), block(below, here, 1))
        self.up2 = enlarge(here)

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same shape."""
        return self.run_levels(features)[-1]

    def run_levels(self, features: Tensor) -> list[Tensor]:
        """Results of this level and of all below, the deepest first."""
        low = self.low1(features)
        deeper = self.low2.run_levels(low) if isinstance(self.low2, HourglassLevel) else []
        below = self.low3(deeper[-1] if deeper else self.low2(low))
        return [*deeper, cast(Tensor, self.up1(features)) + self.up2(below)]


class Residual(Recomputable):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        changes = stride != 1 or in_channels != channels
        self.skip = _convolution1x1(in_channels, channels, stride) if changes else nn.Sequential()

    def compute(self, features: Tensor) -> Tensor:
        """Features `(batch, channels, height / stride, width / stride)`."""
        residual = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(features)))))
        return torch.relu(residual + self.skip(features))


def hourglass_head(in_channels: int, channels: int, out_channels: int, kernel_size: int = 3) -> Head:
    """Convolution with a bias, ReLU, 1x1 convolution, as PyTorch initialises them, under the hourglass's names."""
    hidden = ConvolutionBlock(in_channels, channels, kernel_size, batch_norm=False)
    return Head(hidden, nn.Conv2d(channels, out_channels, 1))


def _convolution1x1(in_channels: int, channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))
