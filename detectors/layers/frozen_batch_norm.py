"""Batch normalisation with the statistics of a file, for batches that are too small to have their own."""

from typing import Self, cast

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

    def float32_layers(self) -> list[nn.Module]:
        """Layers that stay in float32; see `in_half_precision`. A variance may exceed what float16 can hold."""
        return [self]

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Features in the dtype of the input."""
        names = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, variance = (cast(Tensor, getattr(self, name)) for name in names)
        scale = weight * (variance + self.eps).rsqrt()
        shift = bias - mean * scale
        return features * scale[:, None, None].to(features.dtype) + shift[:, None, None].to(features.dtype)


class FixedStatisticsBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that always computes in evaluation mode, but whose scale and shift learn.

    Source:
        open-mmlab/mmdetection, mmdet/models/backbones/resnet.py, `norm_eval`.
    """

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)
