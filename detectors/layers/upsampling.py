"""Upsampling of CenterNet's networks, from stride 32 back to stride 4."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detectors.layers.deformable_convolution import DeformableConvolution
from detectors.shapes import Float


def transposed_upsampling(in_channels: int, channels: Sequence[int]) -> nn.Sequential:
    """For each entry of `channels`: a transposed 4x4 convolution that doubles the resolution, batch norm, ReLU.

    Weights are normal with standard deviation 0.001.

    Source:
        xingyizhou/CenterNet, src/lib/models/networks/msra_resnet.py.
    """
    layers: list[nn.Module] = []
    for before, after in zip((in_channels, *channels[:-1]), channels, strict=True):
        double = _doubling(before, after)
        nn.init.normal_(double.weight, std=0.001)
        layers += [double, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def deformable_upsampling(in_channels: int, channels: Sequence[int]) -> nn.Sequential:
    """For each entry of `channels`: a deformable 3x3 convolution, then a transposed one, each with batch norm, ReLU.

    Source:
        Objects as Points, section 5; xingyizhou/CenterNet, src/lib/models/networks/resnet_dcn.py.
    """
    layers: list[nn.Module] = []
    for before, after in zip((in_channels, *channels[:-1]), channels, strict=True):
        double = _doubling(after, after)
        _write_bilinear_kernel(double.weight)
        layers += [DeformableConvolution(before, after), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        layers += [double, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def bilinear_kernel(factor: int) -> Float[Tensor, "2*{factor} 2*{factor}"]:
    """Kernel with which a transposed convolution of stride `factor` interpolates bilinearly."""
    center = factor - 0.5
    row = 1 - (torch.arange(2 * factor) - center).abs() / factor
    return row[:, None] * row


def _doubling(in_channels: int, channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, channels, 4, stride=2, padding=1, bias=False)


@torch.no_grad()
def _write_bilinear_kernel(weight: Tensor) -> None:
    """Write the kernel of bilinear doubling into output channel 0 of every input channel, as the published code does.

    That would be right for a grouped convolution. This one is not grouped, so all other output channels keep PyTorch's
    random start.
    """
    weight[:, 0] = bilinear_kernel(factor=2)
