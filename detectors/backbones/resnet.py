"""ResNet trunks whose parameters carry torchvision's names, so that its ImageNet files load by name.

The stride of a bottleneck sits in its 3x3 convolution (as in torchvision, not as in the paper), and there is no
classifier: `forward` gives the four stages.
"""

from collections.abc import Callable

from torch import Tensor, nn

from detectors.detector import DetectorError

_BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class ResNet(nn.Module):
    """The convolutional part of a residual network.

    Weights start from He et al.'s normal initialisation (fan out), batch norm from 1 and 0: what torchvision's
    ImageNet training started from.

    Args:
        depth: 18, 34, 50, 101 or 152 layers; from 50 on, blocks are bottlenecks with 4 times the channels.
        width: channels of the first stage, which the three later ones double; 64 is the published network.

    Raises:
        DetectorError: there is no network of this depth.

    Source:
        He et al., Deep Residual Learning, table 1 (arXiv:1512.03385); torchvision/models/resnet.py.
    """

    channels: tuple[int, int, int, int]
    """Channels of the four stages, at strides 4, 8, 16 and 32."""

    def __init__(self, depth: int, width: int = 64) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise DetectorError(f"no ResNet has {depth} layers; known are {', '.join(map(str, _BLOCKS))}.")
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock if depth < 50 else Bottleneck
        first, second, third, fourth = (width * block.expansion * 2**stage for stage in range(4))
        self.channels = (first, second, third, fourth)
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks = _BLOCKS[depth]
        self.layer1 = _stage(block, width, first, blocks[0], stride=1)
        self.layer2 = _stage(block, first, second, blocks[1], stride=2)
        self.layer3 = _stage(block, second, third, blocks[2], stride=2)
        self.layer4 = _stage(block, third, fourth, blocks[3], stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features `(batch, channels[i], height / stride, width / stride)` at strides 4, 8, 16 and 32."""
        stage1 = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        stage2 = self.layer2(stage1)
        stage3 = self.layer3(stage2)
        return [stage1, stage2, stage3, self.layer4(stage3)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def forward(self, features: Tensor) -> Tensor:
        """Features `(batch, channels, height / stride, width / stride)`."""
        shortcut = features if self.downsample is None else self.downsample(features)
        residual = self.relu(self.bn1(self.conv1(features)))
        return self.relu(self.bn2(self.conv2(residual)) + shortcut)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 that narrow and widen the channels, around which the input is added."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        narrow = channels // self.expansion
        self.conv1 = nn.Conv2d(in_channels, narrow, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.conv2 = _conv3x3(narrow, narrow, stride)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.conv3 = nn.Conv2d(narrow, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
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
) -> nn.Sequential:
    downsample = None
    if stride != 1 or in_channels != channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
        )
    first = block(in_channels, channels, stride, downsample)
    return nn.Sequential(first, *(block(channels, channels, 1, None) for _ in range(blocks - 1)))


def _conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
