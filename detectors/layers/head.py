"""Layers that output raw maps, always in float32, and CenterNet's heads of two convolutions."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from detectors.shapes import Float

HEATMAP_BIAS = -2.19
"""Logit of a probability of 0.1, at which published heatmaps start."""


class Head(nn.Sequential):
    """Layers of which the last, a convolution, runs in float32 whatever the autocast state.

    A bfloat16 size of 100 cells would move in steps of half a cell.
    """

    def forward(
        self, features: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels height width"]:
        """Raw map, float32."""
        *hidden, last = self
        for layer in hidden:
            features = layer(features)
        return in_float32(last, features)

    @property
    def last(self) -> nn.Conv2d:
        """The convolution that outputs the raw map."""
        return cast(nn.Conv2d, self[len(self) - 1])

    def float32_layers(self) -> list[nn.Module]:
        """Layers that run in float32; see `in_half_precision`."""
        return [self.last]


def in_float32(convolution: nn.Module, features: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
    """Run a convolution in the precision of its weights whatever the autocast state. Returns float32."""
    # Programs are exported without autocast, and torch.export would make a graph of its own of each such block.
    with nullcontext() if torch.compiler.is_exporting() else torch.autocast(features.device.type, enabled=False):
        weight = cast(Tensor, convolution.weight)
        return cast(Tensor, convolution(features.to(weight.dtype))).float()


def in_half_precision(network: nn.Module) -> None:
    """Convert weights to float16, except those of layers that output maps, which `in_float32` runs.

    A module with such layers names them by a method `float32_layers`.
    """
    kept: set[nn.Module] = set()
    for module in network.modules():
        named: Callable[[], list[nn.Module]] | None = getattr(module, "float32_layers", None)
        kept.update(() if named is None else named())
    for module in network.modules():
        if module not in kept:
            for values in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if values.is_floating_point():
                    values.data = values.data.half()


def convolutional_head(in_channels: int, channels: int, out_channels: int) -> Head:
    """3x3 convolution, ReLU, 1x1 convolution, as PyTorch initialises them."""
    return Head(
        nn.Conv2d(in_channels, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, out_channels, 1),
    )


def start_heatmap(head: Head) -> None:
    """Set the bias of a heatmap to a probability of 0.1; the weights keep PyTorch's random start."""
    start_at_low_probability(head.last)


def start_at_low_probability(convolution: nn.Conv2d) -> None:
    """Set the bias of a convolution to a probability of 0.1; the weights keep PyTorch's random start."""
    assert convolution.bias is not None
    nn.init.constant_(convolution.bias, HEATMAP_BIAS)


def start_small(convolution: nn.Conv2d) -> None:
    """Set normal weights of standard deviation 0.001 and a bias of 0."""
    nn.init.normal_(convolution.weight, std=0.001)
    start_without_bias(convolution)


def start_without_bias(convolution: nn.Conv2d) -> None:
    """Set the bias to 0; the weights keep PyTorch's random start."""
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
