"""ResNet trunks whose parameters carry torchvision's names, so that its ImageNet files load by name.

The stride of a bottleneck is in its 3x3 convolution (as in torchvision, not as in the paper), except in `CaffeResNet`,
where it is in the first 1x1. There is no classifier: `forward` returns the four stages.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from detectors.errors import DetectorError
from detectors.stages import Stages

_BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

IMAGENET = {
    depth: f"https://download.pytorch.org/models/{name}"
    for depth, name in (
        (18, "resnet18-5c106cde.pth"),
        (34, "resnet34-333f7ec4.pth"),
        (50, "resnet50-19c8e357.pth"),
        (101, "resnet101-5d3b4d8f.pth"),
        (152, "resnet152-b121ed2d.pth"),
    )
}
"""The ImageNet files that PyTorch published first, which CenterNet starts from, by depth."""

TORCHVISION_IMAGENET = {
    50: "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    101: "https://download.pytorch.org/models/resnet101-63fe2227.pth",
}
"""torchvision's IMAGENET1K_V1 files, which its detectors start from, by depth."""

CAFFE_IMAGENET = {
    depth: f"https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-{depth}.pkl" for depth in (50, 101)
}
"""The files of the paper's authors, as Detectron distributes them, by depth; FCOS's authors start from these."""

Norm = Callable[[int], nn.Module]
"""Makes the normalisation for a number of channels."""


@runtime_checkable
class ResNetStages(Protocol):
    """Owner of a ResNet's stages under their published names: a trunk, or a detector that has them as its own."""

    relu: nn.ReLU
    maxpool: nn.MaxPool2d
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential


@runtime_checkable
class ResNetLayers(ResNetStages, Protocol):
    """Owner of all layers of a ResNet under torchvision's names."""

    conv1: nn.Conv2d
    bn1: nn.Module


def run_stages(layers: ResNetStages, after_stem: Tensor) -> list[Tensor]:
    """Features of the four stages, from what the first convolution and its normalisation return."""
    stage1 = layers.layer1(layers.maxpool(layers.relu(after_stem)))
    stage2 = layers.layer2(stage1)
    stage3 = layers.layer3(stage2)
    return [stage1, stage2, stage3, layers.layer4(stage3)]


class ResNet(nn.Module):
    """The convolutional part of a residual network.

    Weights start from He et al.'s normal initialisation (fan out), batch norm from 1 and 0, as in torchvision's
    ImageNet training. CenterNet's code, which always loads ImageNet's weights, leaves PyTorch's in place.

    Args:
        depth: 18, 34, 50, 101 or 152 layers; from 50 on, blocks are bottlenecks with 4 times the channels.
        width: channels of the first stage, which the three later ones double; 64 is the published network.
        norm: makes the normalisation after each convolution.
        starts_as_pytorch: leave the weights as PyTorch initialises them, uniform within 1 / sqrt(fan in).

    Raises:
        DetectorError: there is no network of this depth.

    Source:
        He et al., Deep Residual Learning, table 1 (arXiv:1512.03385); torchvision/models/resnet.py.
    """

    channels: tuple[int, int, int, int]
    """Channels of the four stages, at strides 4, 8, 16 and 32."""
    stride_in_1x1: ClassVar[bool] = False
    stages: ClassVar[Stages] = {"stem": ("conv1", "bn1"), **{f"layer{n}": (f"layer{n}",) for n in (1, 2, 3, 4)}}

    def __init__(
        self, depth: int, width: int = 64, norm: Norm = nn.BatchNorm2d, starts_as_pytorch: bool = False
    ) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise DetectorError(f"no ResNet has {depth} layers; known are {', '.join(map(str, _BLOCKS))}.")
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock if depth < 50 else Bottleneck
        first, second, third, fourth = (width * block.expansion * 2**stage for stage in range(4))
        self.channels = (first, second, third, fourth)
        self.add_stem(width, norm)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks = _BLOCKS[depth]
        make = partial(block, norm=norm, stride_in_1x1=self.stride_in_1x1)
        self.layer1 = _stage(make, width, first, blocks[0], 1, norm)
        self.layer2 = _stage(make, first, second, blocks[1], 2, norm)
        self.layer3 = _stage(make, second, third, blocks[2], 2, norm)
        self.layer4 = _stage(make, third, fourth, blocks[3], 2, norm)
        for module in () if starts_as_pytorch else self.modules():
            if isinstance(module, nn.Conv2d):
                self.start(module)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features `(batch, channels[i], height / stride, width / stride)` at strides 4, 8, 16 and 32."""
        return run_stages(self, self.bn1(self.conv1(images)))

    def add_stem(self, width: int, norm: Norm) -> None:
        """Register the first convolution and its normalisation."""
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)

    def start(self, convolution: nn.Conv2d) -> None:
        """Initialise a convolution."""
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")

    def freeze_first_stages(self) -> None:
        """Exclude the stem and the first stage from training, as detectors do that start from ImageNet."""
        for parameter in itertools.chain(self.stem_parameters(), self.layer1.parameters()):
            parameter.requires_grad_(False)

    def stem_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the first convolution and its normalisation."""
        return itertools.chain(self.conv1.parameters(), self.bn1.parameters())


class CaffeResNet(ResNet):
    """The ResNet of the paper's own Caffe files, as Detectron and the authors of FCOS name it.

    Strides are in the first 1x1 convolution of a bottleneck, the first convolution is in a module `stem`, and weights
    start from He's uniform initialisation for a linear layer. Everything else is `ResNet`'s.

    Source:
        tianzhi0549/FCOS, fcos_core/modeling/backbone/resnet.py, `STRIDE_IN_1X1`.
    """

    stride_in_1x1 = True
    stages: ClassVar[Stages] = {**ResNet.stages, "stem": ("stem",)}

    def add_stem(self, width: int, norm: Norm) -> None:
        """Register the first convolution and its normalisation, as `stem.conv1` and `stem.bn1`."""
        self.stem = nn.ModuleDict(
            {"conv1": nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), "bn1": norm(width)}
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features `(batch, channels[i], height / stride, width / stride)` at strides 4, 8, 16 and 32."""
        return run_stages(self, self.stem["bn1"](self.stem["conv1"](images)))

    def stem_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the first convolution and its normalisation."""
        return self.stem.parameters()

    def start(self, convolution: nn.Conv2d) -> None:
        """Initialise a convolution."""
        nn.init.kaiming_uniform_(convolution.weight, a=1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, with the input added to their result."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        downsample: nn.Module | None,
        norm: Norm = nn.BatchNorm2d,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        assert not stride_in_1x1, "a basic block has no 1x1 convolution"
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn1 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = norm(channels)
        self.downsample = downsample

    def forward(self, features: Tensor) -> Tensor:
        """Features `(batch, channels, height / stride, width / stride)`."""
        shortcut = features if self.downsample is None else self.downsample(features)
        residual = self.relu(self.bn1(self.conv1(features)))
        return self.relu(self.bn2(self.conv2(residual)) + shortcut)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 that narrow and widen the channels, with the input added to their result."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        downsample: nn.Module | None,
        norm: Norm = nn.BatchNorm2d,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        if stride_in_1x1:
            # Files of Caffe's descendants list the shortcut first, and keys keep the order of registration.
            self.downsample = downsample
        narrow = channels // self.expansion
        self.conv1 = nn.Conv2d(in_channels, narrow, 1, stride=stride if stride_in_1x1 else 1, bias=False)
        self.bn1 = norm(narrow)
        self.conv2 = _conv3x3(narrow, narrow, 1 if stride_in_1x1 else stride)
        self.bn2 = norm(narrow)
        self.conv3 = nn.Conv2d(narrow, channels, 1, bias=False)
        self.bn3 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, features: Tensor) -> Tensor:
        """Features `(batch, channels, height / stride, width / stride)`."""
        shortcut = features if self.downsample is None else self.downsample(features)
        residual = self.relu(self.bn1(self.conv1(features)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        return self.relu(self.bn3(self.conv3(residual)) + shortcut)


def _stage(
    block: Callable[[int, int, int, nn.Module | None], nn.Module],
    in_channels: int,
    channels: int,
    blocks: int,
    stride: int,
    norm: Norm,
) -> nn.Sequential:
    downsample = None
    if stride != 1 or in_channels != channels:
        downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), norm(channels))
    first = block(in_channels, channels, stride, downsample)
    return nn.Sequential(first, *(block(channels, channels, 1, None) for _ in range(blocks - 1)))


def _conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
