"""FCOS's network: a ResNet with frozen norms, a feature pyramid, and two towers that all levels share.

State-dict keys and their order are the published ones: those of the authors (without "module."), which `file_keys`
translates for AdelaiDet and mmdetection, or torchvision's.
"""

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from detectors.backbones.resnet import CaffeResNet, ResNet
from detectors.errors import DetectorError
from detectors.fcos.variants import Variant
from detectors.layers.feature_pyramid import STRIDES, AuthorsPyramid, TorchvisionPyramid
from detectors.layers.frozen_batch_norm import FrozenBatchNorm2d
from detectors.layers.head import in_float32
from detectors.settings import require_count


class TrainingOutputs(NamedTuple):
    """Maps of the levels P3 to P7, float32, as from the authors' head in training; logits before the sigmoid."""

    logits: list[Tensor]
    """`(batch, classes, height, width)`."""
    distances: list[Tensor]
    """`(batch, 4, height, width)`, left, top, right, bottom, at least 0, in the variant's unit."""
    centerness: list[Tensor]
    """`(batch, 1, height, width)`."""


class EvaluationOutputs(NamedTuple):
    """The same as from the authors' head in evaluation: distances in strides have become pixels."""

    logits: list[Tensor]
    distances: list[Tensor]
    centerness: list[Tensor]


# The authors' own code returns plain tuples of the three lists.
Outputs = TrainingOutputs | EvaluationOutputs | tuple[list[Tensor], list[Tensor], list[Tensor]]

PRIOR = 0.01
"""Class scores start from this probability."""


@dataclass(frozen=True, kw_only=True)
class FCOSNetworkSettings:
    """Settings of FCOS's network; published files fit only the defaults."""

    width: int = 64
    """Channels of the trunk's first stage; fewer make a lighter network."""
    channels: int = 256
    """Channels of the pyramid and of the towers: a multiple of 32, at least 64. Group normalisation has 32 groups, and
    a group of a single channel has no variance on a level of a single cell."""

    def __post_init__(self) -> None:
        require_count("width", self.width)
        require_count("channels", self.channels)
        if self.channels % 32 or self.channels < 64:
            raise DetectorError(
                f"channels is {self.channels}; group normalisation has 32 groups of at least 2, so choose a multiple "
                "of 32 from 64 on."
            )


def trunk_and_pyramid(depth: int, settings: FCOSNetworkSettings, variant: Variant) -> nn.Sequential:
    """`body` and `fpn`, from images to five levels; the stem and the first stage are not trained."""
    norm = partial(FrozenBatchNorm2d, eps=variant.norm_eps)
    body = (ResNet if variant.torchvision_layout else CaffeResNet)(depth, settings.width, norm)
    body.freeze_first_stages()
    pyramid = TorchvisionPyramid if variant.torchvision_layout else AuthorsPyramid
    fpn = pyramid(body.channels[1:], settings.channels)
    return nn.Sequential(OrderedDict(body=body, fpn=fpn))


class FCOSHead(nn.Module, ABC):
    """Two towers of four convolutions with group normalisation, and three convolutions on them.

    Weights start from a normal distribution of standard deviation 0.01, biases from 0, those of classes from the
    logit of `PRIOR`.
    """

    def __init__(self, channels: int, num_classes: int, variant: Variant) -> None:
        super().__init__()
        self.exponential = variant.exponential
        self.pixels_in_evaluation = variant.pixels_in_evaluation
        self.centerness_beside_boxes = variant.centerness_beside_boxes
        last = [nn.Conv2d(channels, outputs, 3, padding=1) for outputs in (num_classes, 4, 1)]
        self.register(_tower(channels, variant.tower_bias), _tower(channels, variant.tower_bias), *last)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert last[0].bias is not None
        nn.init.constant_(last[0].bias, -math.log((1 - PRIOR) / PRIOR))

    @abstractmethod
    def register(
        self, classes: nn.Sequential, boxes: nn.Sequential, logits: nn.Conv2d, distances: nn.Conv2d, center: nn.Conv2d
    ) -> None:
        """Register towers and last layers under their published names."""

    @abstractmethod
    def layers(self) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module, nn.Module]:
        """Towers of classes and boxes, layers of logits, distances and centerness."""

    @abstractmethod
    def scale(self, level: int) -> Tensor | float:
        """Factor on the raw distances of a level."""

    def float32_layers(self) -> list[nn.Module]:
        """Layers that run in float32; see `in_half_precision`."""
        return list(self.layers()[2:])

    def forward(self, levels: list[Tensor]) -> Outputs:
        """Maps of every level; the last layers run in float32 whatever the autocast state."""
        class_tower, box_tower, logits, distances, centerness = self.layers()
        maps = TrainingOutputs([], [], [])
        for level, features in enumerate(levels):
            of_classes, of_boxes = class_tower(features), box_tower(features)
            raw = in_float32(distances, of_boxes) * self.scale(level)
            maps.logits.append(in_float32(logits, of_classes))
            maps.distances.append(raw.exp() if self.exponential else raw.relu())
            maps.centerness.append(in_float32(centerness, of_boxes if self.centerness_beside_boxes else of_classes))
        if self.training:
            return maps
        return EvaluationOutputs(
            maps.logits,
            times_strides(maps.distances) if self.pixels_in_evaluation else maps.distances,
            maps.centerness,
        )


class AuthorsHead(FCOSHead):
    """The head under the authors' names, with a learned factor per level."""

    def register(
        self, classes: nn.Sequential, boxes: nn.Sequential, logits: nn.Conv2d, distances: nn.Conv2d, center: nn.Conv2d
    ) -> None:
        """Register towers and last layers under their published names."""
        # In the order of the published state dict.
        self.cls_tower = classes
        self.bbox_tower = boxes
        self.cls_logits = logits
        self.bbox_pred = distances
        self.centerness = center
        self.scales = nn.ModuleList(_Scale() for _ in STRIDES)

    def layers(self) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module, nn.Module]:
        """Towers of classes and boxes, layers of logits, distances and centerness."""
        return self.cls_tower, self.bbox_tower, self.cls_logits, self.bbox_pred, self.centerness

    def scale(self, level: int) -> Tensor:
        """Factor on the raw distances of a level."""
        return cast(_Scale, self.scales[level]).scale


class TorchvisionHead(FCOSHead):
    """The head under torchvision's names."""

    def register(
        self, classes: nn.Sequential, boxes: nn.Sequential, logits: nn.Conv2d, distances: nn.Conv2d, center: nn.Conv2d
    ) -> None:
        """Register towers and last layers under their published names."""
        self.classification_head = nn.ModuleDict({"conv": classes, "cls_logits": logits})
        self.regression_head = nn.ModuleDict({"conv": boxes, "bbox_reg": distances, "bbox_ctrness": center})

    def layers(self) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module, nn.Module]:
        """Towers of classes and boxes, layers of logits, distances and centerness."""
        of_classes, of_boxes = self.classification_head, self.regression_head
        return (
            of_classes["conv"],
            of_boxes["conv"],
            of_classes["cls_logits"],
            of_boxes["bbox_reg"],
            of_boxes["bbox_ctrness"],
        )

    def scale(self, level: int) -> float:
        """Factor on the raw distances of a level."""
        return 1.0


def times_strides(distances: list[Tensor]) -> list[Tensor]:
    """Distances of the levels in pixels, from those in strides."""
    return [of_level * stride for of_level, stride in zip(distances, STRIDES, strict=True)]


def over_strides(distances: list[Tensor]) -> list[Tensor]:
    """Distances of the levels in strides, from those in pixels."""
    return [of_level / stride for of_level, stride in zip(distances, STRIDES, strict=True)]


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


def _tower(channels: int, bias: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=bias), nn.GroupNorm(32, channels), nn.ReLU()]
    return nn.Sequential(*layers)
