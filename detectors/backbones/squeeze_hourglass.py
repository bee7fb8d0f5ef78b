"""The hourglass of CornerNet-Squeeze, whose residuals are fire modules: 1x1 and depthwise 3x3 convolutions."""

import torch
from torch import Tensor, nn

from detectors.backbones.hourglass import HourglassForm, HourglassSettings
from detectors.errors import DetectorError
from detectors.layers.recomputation import Recomputable


class SqueezeSettings(HourglassSettings):
    """Settings of a network of hourglasses with fire modules."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 4:
            raise DetectorError(f"width is {self.width}; fire modules halve 1.5 times as many. Choose a multiple of 4.")


class FireModule(Recomputable):
    """1x1 convolution to half the channels, then a 1x1 and a depthwise 3x3 convolution side by side.

    There is no ReLU between the two steps. The input is added only where it has the shape of the output: unlike a
    residual, this module has no convolution on its shortcut.

    Source:
        Law et al., CornerNet-Lite, table 2 (arXiv:1904.08900); princeton-vl/CornerNet-Lite,
        core/models/CornerNet_Squeeze.py, `fire_module`.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv_1x1 = nn.Conv2d(half, half, 1, stride=stride, bias=False)
        self.conv_3x3 = nn.Conv2d(half, half, 3, stride=stride, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.adds_input = stride == 1 and in_channels == channels

    def compute(self, features: Tensor) -> Tensor:
        """Features `(batch, channels, height / stride, width / stride)`."""
        squeezed = self.bn1(self.conv1(features))
        expanded = self.bn2(torch.cat((self.conv_1x1(squeezed), self.conv_3x3(squeezed)), dim=1))
        return torch.relu(expanded + features if self.adds_input else expanded)


def _doubling(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)


SQUEEZE_HOURGLASS = HourglassForm(
    widths=(1, 1, 1.5, 1.5, 2),
    blocks=(2, 2, 2, 2, 4),
    stem_residuals=2,
    block=FireModule,
    enlarge=_doubling,
    hourglasses="hgs",
)
"""The first halving is in the stem, whose residuals are ordinary ones: features are at stride 8."""
