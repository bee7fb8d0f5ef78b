"""The unit that hourglasses, corner pooling and their heads are built of."""

import torch
from torch import Tensor, nn

from detectors.shapes import Float


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

    def forward(
        self, features: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch channels out_height out_width"]:
        """Features `(batch, channels, height / stride, width / stride)`."""
        return torch.relu(self.bn(self.conv(features)))
