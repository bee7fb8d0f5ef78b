"""Half precision for files: the network in float16, its last layers and the decoding in float32."""

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detectors import Detector
from detectors.fcos.network import FCOSHead
from detectors.foveabox.network import FoveaHead
from detectors.layers.frozen_batch_norm import FrozenBatchNorm2d
from detectors.layers.head import Head


def in_half_precision(detector: Detector) -> Detector:
    """Return a copy of a detector whose network computes in float16, for export.

    The layers that output raw maps stay in float32, as in mixed-precision training: a size of 100 cells in float16
    moves in steps of a sixteenth of a cell. So does the sampling of deformable convolutions.
    """
    halved = copy.deepcopy(detector)
    kept = {id(layer) for layer in _layers_of_maps(halved)}
    for layer in halved.modules():
        if id(layer) in kept:
            continue
        if isinstance(layer, _BatchNorm | FrozenBatchNorm2d):
            _simplify(layer)
        own = list(layer.parameters(recurse=False))
        # A single number is a factor on a map, such as that of each level of FCOS.
        for parameter in own if any(one.numel() > 1 for one in own) else ():
            parameter.data = parameter.data.half()
        for name, buffer in layer.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(layer, name, buffer.half())
    halved.register_forward_pre_hook(_halve_images)
    return halved


@torch.no_grad()
def _simplify(layer: _BatchNorm | FrozenBatchNorm2d) -> None:
    """Turn batch normalisation into a factor and a shift: float16 would round small variances to 0."""
    names = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, variance = (cast(Tensor, getattr(layer, name)) for name in names)
    factor = weight * (variance + layer.eps).rsqrt()
    bias.copy_(bias - mean * factor)
    weight.copy_(factor)
    mean.zero_()
    variance.fill_(1 - layer.eps)


def _halve_images(detector: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *further = arguments
    return (images.half(), *further)


def _layers_of_maps(detector: Detector) -> Iterator[nn.Module]:
    """Yield the layers that run in float32 whatever the autocast state."""
    for module in detector.modules():
        if isinstance(module, Head):
            yield module.last
        elif isinstance(module, FCOSHead):
            yield from module.layers()[2:]
        elif isinstance(module, FoveaHead):
            yield from (module.conv_reg, module.conv_cls)
            if module.feature_adaption is not None:
                yield module.feature_adaption.conv_offset
