"""FoveaBox's network: a ResNet, a pyramid P3 to P7, and a head that all levels share.

Batch norm has ImageNet's statistics, but learns its scale and shift above the first stage. P6 is computed from the
trunk, and no ReLU is between P6 and P7. The names of parameters are mmdetection's, of which the authors' code is a
branch.

Source:
    taokong/FoveaBox and open-mmlab/mmdetection, mmdet/models: anchor_heads/fovea_head.py, necks/fpn.py,
    backbones/resnet.py.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from detectors.backbones.resnet import ResNet
from detectors.errors import DetectorError
from detectors.layers.deformable_convolution import deformable_convolution
from detectors.layers.feature_pyramid import MMDetectionPyramid
from detectors.layers.frozen_batch_norm import FixedStatisticsBatchNorm2d
from detectors.layers.head import in_float32
from detectors.settings import require_count, require_flag
from detectors.shapes import Float

PRIOR = 0.01
"""Class scores start from this probability."""

_GROUPS = 32
"""Groups of group normalisation."""
_OFFSET_GROUPS = 4
"""Groups of channels that the alignment shifts independently."""


class Outputs(NamedTuple):
    """Maps of the levels P3 to P7, float32."""

    logits: list[Float[Tensor, "batch classes height width"]]
    """Before the sigmoid."""
    log_sides: list[Float[Tensor, "batch 4 height width"]]
    """ln of the distances left, top, right, bottom from the middle of the cell, each divided by the level's base
    length. They do not depend on the class."""


@dataclass(frozen=True, kw_only=True)
class FoveaBoxNetworkSettings:
    """Settings of FoveaBox's network; published files fit only the default sizes."""

    align: bool = False
    """Classify features that a deformable convolution has aligned with the predicted box, and normalise by group."""
    width: int = 64
    """Channels of the trunk's first stage; fewer make a lighter network."""
    channels: int = 256
    """Channels of the pyramid and of the towers; with align a multiple of 32, at least 64. Group normalisation has 32
    groups, and a group of a single channel has no variance on a level of a single cell."""

    def __post_init__(self) -> None:
        require_flag("align", self.align)
        require_count("width", self.width)
        require_count("channels", self.channels)
        if self.align and (self.channels % _GROUPS or self.channels < 2 * _GROUPS):
            raise DetectorError(
                f"channels is {self.channels}; with align, group normalisation has 32 groups of at least 2, so choose "
                "a multiple of 32 from 64 on."
            )


def trunk(depth: int, width: int) -> ResNet:
    """Build the ResNet, whose stem and first stage are not trained."""
    backbone = ResNet(depth, width, FixedStatisticsBatchNorm2d)
    backbone.freeze_first_stages()
    return backbone


def pyramid(backbone: ResNet, channels: int) -> MMDetectionPyramid:
    """Build P3 to P7 on the last three stages of the trunk."""
    return MMDetectionPyramid(backbone.channels[1:], channels)


class FoveaHead(nn.Module):
    """A tower for boxes and one for classes, each ending in a convolution.

    Without `align` both towers are four convolutions. With it, convolutions are followed by group normalisation, and
    the classes have `FeatureAlignment` and two convolutions with four times the channels. Weights start from a normal
    distribution of standard deviation 0.01, biases from 0, those of classes from the logit of `PRIOR`.
    """

    def __init__(self, channels: int, num_classes: int, align: bool) -> None:
        super().__init__()
        # In the order of the published state dict.
        self.reg_convs = nn.ModuleList(_layer(channels, channels, 3, align) for _ in range(4))
        self.conv_reg = nn.Conv2d(channels, 4, 3, padding=1)
        if align:
            wide = 4 * channels
            self.cls_convs = nn.ModuleList([_layer(channels, wide, 3, align), _layer(wide, wide, 1, align)])
        else:
            wide = channels
            self.cls_convs = nn.ModuleList(_layer(channels, channels, 3, align) for _ in range(4))
        self.feature_adaption = FeatureAlignment(channels) if align else None
        self.conv_cls = nn.Conv2d(wide, num_classes, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.conv_cls.bias is not None
        nn.init.constant_(self.conv_cls.bias, -math.log((1 - PRIOR) / PRIOR))
        if self.feature_adaption is not None:
            nn.init.normal_(self.feature_adaption.conv_offset.weight, std=0.1)

    def float32_layers(self) -> list[nn.Module]:
        """Layers that run in float32; see `in_half_precision`."""
        alignment = [] if self.feature_adaption is None else [self.feature_adaption.conv_offset]
        return [self.conv_reg, self.conv_cls, *alignment]

    def forward(self, levels: list[Float[Tensor, "batch channels _ _"]]) -> Outputs:
        """Maps of every level; the last layers run in float32 whatever the autocast state."""
        maps = Outputs([], [])
        for features in levels:
            of_boxes = features
            for layer in self.reg_convs:
                of_boxes = layer(of_boxes)
            log_sides = in_float32(self.conv_reg, of_boxes)
            of_classes = features
            if self.feature_adaption is not None:
                # With the gradient: the classes, too, decide where a box is looked at.
                of_classes = self.feature_adaption(features, log_sides.exp())
            for layer in self.cls_convs:
                of_classes = layer(of_classes)
            maps.logits.append(in_float32(self.conv_cls, of_classes))
            maps.log_sides.append(log_sides)
        return maps


class FeatureAlignment(nn.Module):
    """Deformable convolution (v1) whose offsets are a linear function of the predicted sides of the box.

    Source:
        Kong et al., FoveaBox, section on feature alignment (arXiv:1904.03797); open-mmlab/mmdetection,
        mmdet/models/dense_heads/fovea_head.py, `FeatureAlign`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_offset = nn.Conv2d(4, _OFFSET_GROUPS * 2 * 9, 1, bias=False)
        # An ordinary convolution holds the weight under its published name, but is not called.
        self.conv_adaption = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(
        self, features: Float[Tensor, "batch channels height width"], sides: Float[Tensor, "batch 4 height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Features in the dtype of the input; offsets are computed in float32.

        Args:
            features: a level of the pyramid.
            sides: predicted distances left, top, right, bottom, in base lengths.
        """
        offset = in_float32(self.conv_offset, sides)
        return deformable_convolution(features, offset, None, self.conv_adaption.weight, None, padding=1).relu()


def _layer(in_channels: int, channels: int, kernel_size: int, normalised: bool) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=not normalised)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=convolution)
    if normalised:
        layers["gn"] = nn.GroupNorm(_GROUPS, channels)
    layers["activate"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)
