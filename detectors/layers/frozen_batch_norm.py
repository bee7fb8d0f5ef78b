"""Batch normalisation that never learns: statistics and affine parameters are buffers of a file."""

from typing import cast

import torch
from torch import Tensor, nn

from detectors.shapes import Float


class FrozenBatchNorm2d(nn.Module):
    """A fixed scale and shift per channel: `weight * (x - running_mean) / sqrt(running_var + eps) + bias`.

    Statistics of a batch of two images are too noisy, so detectors that train with such batches keep those of
    ImageNet.

    Args:
        channels: of the input.
        eps: 0 for FCOS's authors (their code has none), 1e-5 for torchvision, detectron2 and mmdetection.

    Source:
        tianzhi0549/FCOS, fcos_core/layers/batch_norm.py; torchvision/ops/misc.py.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Features in the dtype of the input."""
        names = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, variance = (cast(Tensor, getattr(self, name)) for name in names)
        scale = weight * (variance + self.eps).rsqrt()
        shift = bias - mean * scale
        return features * scale[:, None, None].to(features.dtype) + shift[:, None, None].to(features.dtype)
