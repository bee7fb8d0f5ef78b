"""CenterNet's heads: two convolutions to a raw map, the second always in float32."""

from typing import cast

import torch
from torch import Tensor, nn

HEATMAP_BIAS = -2.19
"""Logit of a probability of 0.1, at which published heatmaps start."""


class Head(nn.Sequential):
    """3x3 convolution, ReLU, 1x1 convolution; the last in float32 whatever the autocast state.

    A bfloat16 size of 100 cells would move in steps of half a cell.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, out_channels, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Raw map `(batch, out_channels, height, width)`, float32."""
        hidden = self[1](self[0](features))
        last = self.convolutions()[1]
        with torch.autocast(features.device.type, enabled=False):
            return cast(Tensor, last(hidden.to(last.weight.dtype))).float()

    def convolutions(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        """The two layers with weights, first and last."""
        return cast(nn.Conv2d, self[0]), cast(nn.Conv2d, self[2])


def start_heatmap(last: nn.Conv2d) -> None:
    """Let a heatmap start at a probability of 0.1; the weights keep PyTorch's random start."""
    assert last.bias is not None
    nn.init.constant_(last.bias, HEATMAP_BIAS)


def start_small(convolution: nn.Conv2d) -> None:
    """Normal weights of standard deviation 0.001 and biases of 0."""
    assert convolution.bias is not None
    nn.init.normal_(convolution.weight, std=0.001)
    nn.init.zeros_(convolution.bias)
