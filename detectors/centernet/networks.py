"""The networks that CenterNet was published with: ResNets plain and deformable, DLA-34, Hourglass-104.

Each is a class without a task: a detector inherits from one of them, and from the class that says which heads
there are and what they mean. State-dict keys are the published ones, without a prefix for the trunk, which is why
a trunk's children become the detector's own.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from torch import Tensor, nn

from detectors.backbones.dla import DLA34, DLA34_IMAGENET, HierarchicalAggregation, IterativeAggregation
from detectors.backbones.hourglass import ConvolutionBlock, Hourglass
from detectors.backbones.resnet import IMAGENET, ResNet
from detectors.detector import Detector, Preprocessing
from detectors.errors import DetectorError
from detectors.layers.head import (
    Head,
    convolutional_head,
    start_at_low_probability,
    start_heatmap,
    start_small,
    start_without_bias,
)
from detectors.layers.upsampling import deformable_upsampling, transposed_upsampling
from detectors.settings import require_choice, require_count, require_flag

Outputs = list[dict[str, Tensor]]
"""One dict per stack: a float32 map `(batch, channels, height / 4, width / 4)` for each head."""

PREPROCESSING = {
    "coco": Preprocessing(
        channel_order="bgr",
        mean=(0.40789654, 0.44719302, 0.47026115),
        std=(0.28863828, 0.27408164, 0.27809835),
    ),
    # ImageNet's numbers for RGB on images that are BGR, as published.
    "imagenet": Preprocessing(channel_order="bgr", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
"""How the published code normalises, by whose statistics it takes."""

TRUNK_STARTS = ("pytorch", "he")


class CenterNetNetwork(Detector):
    """What the networks share: heads by their published names, and a check of the input's sides."""

    stride_divisor = 32
    stacks: ClassVar[int] = 1

    @abstractmethod
    def head_channels(self) -> dict[str, int]:
        """Output channels of each head, under the published names and in their order."""

    @abstractmethod
    def assemble(self, settings: Any) -> None:
        """Register the layers, in the published order, and give them their published start."""

    def run_heads(self, features: Tensor) -> dict[str, Tensor]:
        """Raw maps by head, float32, from features `(batch, channels, height / 4, width / 4)`."""
        return {name: getattr(self, name)(features) for name in self.head_channels()}

    def check_input_size(self, input_size: tuple[int, int]) -> None:
        """Refuse sides that the network cannot halve and double back.

        Raises:
            DetectorError: a side is no multiple of `stride_divisor`.
        """
        height, width = input_size
        if height % self.stride_divisor or width % self.stride_divisor:
            raise DetectorError(
                f"the input is {height} x {width} pixels; height and width have to be multiples of "
                f"{self.stride_divisor}. Pad or resize it."
            )


@dataclass(frozen=True, kw_only=True)
class ResNetSettings:
    """What may be chosen about a CenterNet's ResNet."""

    width: int = 64
    """Channels of the trunk's first stage; less makes a lighter network that no published file fits."""
    deconv_channels: tuple[int, ...] = (256, 256, 256)
    """Channels of the three steps that double the resolution, from stride 32 to 4."""
    head_channels: int = 64
    """Channels between the two convolutions of a head."""
    trunk_start: Literal["pytorch", "he"] = "pytorch"
    """First weights of the trunk where none are loaded: PyTorch's, as the published code leaves them, or He et al.'s,
    which ImageNet trainings start from."""

    def __post_init__(self) -> None:
        require_count("width", self.width)
        require_count("head_channels", self.head_channels)
        require_choice("trunk_start", self.trunk_start, TRUNK_STARTS)
        object.__setattr__(self, "deconv_channels", tuple(self.deconv_channels))
        for step, channels in enumerate(self.deconv_channels):
            require_count(f"deconv_channels[{step}]", channels)
        if len(self.deconv_channels) != 3:
            raise DetectorError(
                f"deconv_channels has {len(self.deconv_channels)} entries; the way from stride 32 to 4 takes 3."
            )


class ResNetNetwork(CenterNetNetwork):
    """ResNet, three transposed convolutions, heads: the plain network of the published code (`res_18` ...)."""

    depth: ClassVar[int]
    upsampling = staticmethod(transposed_upsampling)

    def assemble(self, settings: ResNetSettings) -> None:
        """Register the layers, in the published order, and give them their published start."""
        self.imagenet_weights = IMAGENET[self.depth]
        trunk = ResNet(self.depth, settings.width, starts_as_pytorch=settings.trunk_start == "pytorch")
        _adopt(self, trunk)
        self.deconv_layers = self.upsampling(trunk.channels[-1], settings.deconv_channels)
        for name in self.head_order():
            head = convolutional_head(settings.deconv_channels[-1], settings.head_channels, self.head_channels()[name])
            self.start_head(name, head)
            self.add_module(name, head)

    def head_order(self) -> list[str]:
        """Order in which the published code registers heads."""
        return sorted(self.head_channels())

    def start_head(self, name: str, head: Head) -> None:
        """Small weights, or the bias of a heatmap, in every convolution with as many outputs as the head has.

        Which is the last one, and the first as well where it happens to have as many: a heatmap of 64 classes.
        """
        for layer in head:
            if isinstance(layer, nn.Conv2d) and layer.out_channels == self.head_channels()[name]:
                if "hm" in name:
                    start_at_low_probability(layer)
                else:
                    start_small(layer)

    def forward(self, images: Tensor) -> Outputs:
        """Raw maps of one stack, from normalised images `(batch, 3, height, width)`."""
        self.check_input_size((images.shape[-2], images.shape[-1]))
        stages = ResNet.forward(cast(ResNet, self), images)
        return [self.run_heads(self.deconv_layers(stages[-1]))]


class ResNetDCNNetwork(ResNetNetwork):
    """ResNet with a deformable convolution before each transposed one: the paper's ResNets (`resdcn_18` ...)."""

    upsampling = staticmethod(deformable_upsampling)

    def head_order(self) -> list[str]:
        """Order in which the published code registers heads."""
        return list(self.head_channels())

    def start_head(self, name: str, head: Head) -> None:
        """Small weights in both convolutions; heatmaps keep PyTorch's."""
        if "hm" in name:
            start_heatmap(head)
        else:
            start_small(cast(nn.Conv2d, head[0]))
            start_small(head.last)


@dataclass(frozen=True, kw_only=True)
class DLASettings:
    """What may be chosen about a CenterNet's DLA-34."""

    width: int = 16
    """Channels of the trunk's first level; less makes a lighter network that no published file fits."""
    head_channels: int = 256
    """Channels between the two convolutions of a head."""
    trunk_start: Literal["pytorch", "he"] = "pytorch"
    """First weights of the trunk where none are loaded: PyTorch's, as the published code leaves them, or He et al.'s,
    which ImageNet trainings start from."""

    def __post_init__(self) -> None:
        require_count("width", self.width)
        require_count("head_channels", self.head_channels)
        require_choice("trunk_start", self.trunk_start, TRUNK_STARTS)


class DLANetwork(CenterNetNetwork):
    """DLA-34 with deformable convolutions wherever levels meet: the paper's network of choice (`dla_34`)."""

    backbone_prefix = "base."
    imagenet_weights = DLA34_IMAGENET

    def assemble(self, settings: DLASettings) -> None:
        """Register the layers, in the published order, and give them their published start."""
        self.base = DLA34(settings.width, starts_as_pytorch=settings.trunk_start == "pytorch")
        channels = self.base.channels[2:]
        self.dla_up = HierarchicalAggregation(channels)
        self.ida_up = IterativeAggregation(channels[0], channels[:3], factors=(2, 4))
        for name, out_channels in self.head_channels().items():
            head = convolutional_head(channels[0], settings.head_channels, out_channels)
            if "hm" in name:
                start_heatmap(head)
            else:
                start_without_bias(cast(nn.Conv2d, head[0]))
                start_without_bias(head.last)
            self.add_module(name, head)

    def forward(self, images: Tensor) -> Outputs:
        """Raw maps of one stack, from normalised images `(batch, 3, height, width)`."""
        self.check_input_size((images.shape[-2], images.shape[-1]))
        levels = self.dla_up(self.base(images)[2:])
        return [self.run_heads(self.ida_up(levels[:3])[-1])]


@dataclass(frozen=True, kw_only=True)
class HourglassSettings:
    """What may be chosen about a CenterNet's hourglass."""

    width: int = 256
    """Channels at stride 4, also of the heads; less makes a lighter network that no published file fits."""

    activation_checkpointing: bool = False
    """Compute the inside of residuals again in backward instead of keeping it: less memory, more time, same results."""

    def __post_init__(self) -> None:
        require_count("width", self.width)
        require_flag("activation_checkpointing", self.activation_checkpointing)
        if self.width % 2:
            raise DetectorError(f"width is {self.width}; an hourglass has levels of half and 1.5 times as many.")


class HourglassNetwork(CenterNetNetwork):
    """Hourglass-104: two stacks that both learn, and of which the last one counts (`hourglass`)."""

    stride_divisor = 128
    stacks = 2

    def assemble(self, settings: HourglassSettings) -> None:
        """Register the layers, in the published order; all but the heatmaps' biases start as PyTorch has them."""
        _adopt(self, Hourglass(settings.width, self.stacks, settings.activation_checkpointing))
        for name, out_channels in self.head_channels().items():
            heads = [_hourglass_head(settings.width, out_channels) for _ in range(self.stacks)]
            if "hm" in name:
                for head in heads:
                    start_heatmap(head)
            self.add_module(name, nn.ModuleList(heads))

    def forward(self, images: Tensor) -> Outputs:
        """Raw maps of both stacks, from normalised images `(batch, 3, height, width)`."""
        self.check_input_size((images.shape[-2], images.shape[-1]))
        stacks = Hourglass.forward(cast(Hourglass, self), images)
        names = list(self.head_channels())
        return [{name: getattr(self, name)[stack](features) for name in names} for stack, features in enumerate(stacks)]


def _adopt(detector: nn.Module, trunk: nn.Module) -> None:
    """Make the parts of `trunk` parts of `detector`, so that their keys have no prefix."""
    for name, part in trunk.named_children():
        detector.add_module(name, part)


def _hourglass_head(channels: int, out_channels: int) -> Head:
    return Head(ConvolutionBlock(channels, channels, batch_norm=False), nn.Conv2d(channels, out_channels, 1))
