"""The networks that CenterNet was published with: ResNets plain and deformable, DLA-34, Hourglass-104.

A network is a part of a detector that knows nothing of its task: it makes the layers for any set of heads, and runs
them. The layers themselves belong to the detector, because published state-dict keys have no prefix for the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn

from detectors.backbones.dla import (
    DLA34,
    DLA34_IMAGENET,
    HierarchicalAggregation,
    IterativeAggregation,
    OriginalHierarchicalAggregation,
)
from detectors.backbones.hourglass import (
    Hourglass,
    HourglassForm,
    HourglassLayers,
    HourglassSettings,
    hourglass_head,
    run_stacks,
)
from detectors.backbones.resnet import IMAGENET, ResNet, ResNetLayers, run_stages
from detectors.detector import Preprocessing
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
from detectors.settings import require_choice, require_count
from detectors.shapes import Float
from detectors.shared import network
from detectors.shared.network import Outputs
from detectors.shared.pixels import COCO_BGR
from detectors.sizes import InputSizes, Multiples
from detectors.stages import Stages, within

PREPROCESSING = {
    "coco": COCO_BGR,
    # ImageNet's numbers for RGB on images that are BGR, as published.
    "imagenet": Preprocessing(channel_order="bgr", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
"""Normalisations of the published code, by the data set of their statistics."""

TRUNK_STARTS = ("pytorch", "he")


class Network(network.Network):
    """One of the networks, without weights of its own; see the module's docstring.

    Args:
        head_channels: output channels of each head, under the published names and in their order.
    """

    sizes: InputSizes = Multiples(32)

    def __init__(self, head_channels: Mapping[str, int]) -> None:
        self.head_channels = head_channels
        # The heads of an hourglass are lists with an entry per stack, of two layers each.
        self.class_layers = ("hm.2",) if self.stacks == 1 else tuple(f"hm.{stack}.1" for stack in range(self.stacks))

    def run_heads(
        self, detector: nn.Module, features: Float[Tensor, "batch channels height width"]
    ) -> dict[str, Tensor]:
        """Raw maps by head, float32."""
        return {name: getattr(detector, name)(features) for name in self.head_channels}


@dataclass(frozen=True, kw_only=True)
class ResNetSettings:
    """Settings of a CenterNet's ResNet."""

    width: int = 64
    """Channels of the trunk's first stage; fewer make a lighter network, which no published file fits."""
    deconv_channels: tuple[int, ...] = (256, 256, 256)
    """Channels of the three steps that double the resolution, from stride 32 to 4."""
    head_channels: int = 64
    """Channels between the two convolutions of a head."""
    trunk_start: Literal["pytorch", "he"] = "pytorch"
    """Initial weights of the trunk if none are loaded: PyTorch's, which the published code leaves in place, or He et
    al.'s, with which ImageNet trainings start."""

    def __post_init__(self) -> None:
        require_count("width", self.width)
        require_count("head_channels", self.head_channels)
        require_choice("trunk_start", self.trunk_start, TRUNK_STARTS)
        object.__setattr__(self, "deconv_channels", tuple(self.deconv_channels))
        for step, channels in enumerate(self.deconv_channels):
            require_count(f"deconv_channels[{step}]", channels)
        if len(self.deconv_channels) != 3:
            raise DetectorError(
                f"deconv_channels has {len(self.deconv_channels)} entries; give 3, for the steps from stride 32 to 4."
            )


class ResNetNetwork(Network):
    """ResNet, three transposed convolutions, heads: the plain network of the published code (`res_18` ...)."""

    upsampling = staticmethod(transposed_upsampling)

    def __init__(self, depth: int, settings: ResNetSettings, head_channels: Mapping[str, int]) -> None:
        super().__init__(head_channels)
        self.depth, self.settings = depth, settings
        self.imagenet_weights = IMAGENET[depth]

    def stages(self) -> Stages:
        """The trunk's stages, and the way up."""
        return {**ResNet.stages, "deconv_layers": ("deconv_layers",)}

    def make_layers(self) -> dict[str, nn.Module]:
        """Make all layers, in the published order and with their published start."""
        settings = self.settings
        trunk = ResNet(self.depth, settings.width, starts_as_pytorch=settings.trunk_start == "pytorch")
        layers: dict[str, nn.Module] = dict(trunk.named_children())
        layers["deconv_layers"] = self.upsampling(trunk.channels[-1], settings.deconv_channels)
        # The order is that of the published state dict, and that in which random weights are drawn.
        for name in self.head_order():
            head = convolutional_head(settings.deconv_channels[-1], settings.head_channels, self.head_channels[name])
            self.start_head(name, head)
            layers[name] = head
        return layers

    def head_order(self) -> list[str]:
        """Order in which the published code registers heads."""
        return sorted(self.head_channels)

    def start_head(self, name: str, head: Head) -> None:
        """Give small weights, or the bias of a heatmap, to every convolution with as many outputs as the head has.

        This is the last one, and also the first where it happens to have as many: a heatmap of 64 classes.
        """
        for layer in head:
            if isinstance(layer, nn.Conv2d) and layer.out_channels == self.head_channels[name]:
                if "hm" in name:
                    start_at_low_probability(layer)
                else:
                    start_small(layer)

    def run(self, detector: nn.Module, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """Raw maps of the one stack; see `Network.run`."""
        trunk = cast(ResNetLayers, detector)
        stages = run_stages(trunk, trunk.bn1(trunk.conv1(images)))
        return [self.run_heads(detector, cast(nn.Module, detector.deconv_layers)(stages[-1]))]


class ResNetDCNNetwork(ResNetNetwork):
    """ResNet with a deformable convolution before each transposed one: the paper's ResNets (`resdcn_18` ...)."""

    upsampling = staticmethod(deformable_upsampling)

    def head_order(self) -> list[str]:
        """Order in which the published code registers heads."""
        return list(self.head_channels)

    def start_head(self, name: str, head: Head) -> None:
        """Give small weights to both convolutions; heatmaps keep PyTorch's."""
        _start_by_place(name, head)


@dataclass(frozen=True, kw_only=True)
class DLASettings:
    """Settings of a CenterNet's DLA-34."""

    width: int = 16
    """Channels of the trunk's first level; fewer make a lighter network, which no published file fits."""
    head_channels: int = 256
    """Channels between the two convolutions of a head."""
    trunk_start: Literal["pytorch", "he"] = "pytorch"
    """Initial weights of the trunk if none are loaded: PyTorch's, which the published code leaves in place, or He et
    al.'s, with which ImageNet trainings start."""

    def __post_init__(self) -> None:
        require_count("width", self.width)
        require_count("head_channels", self.head_channels)
        require_choice("trunk_start", self.trunk_start, TRUNK_STARTS)


class DLANetwork(Network):
    """DLA-34 with deformable convolutions wherever levels meet: the paper's network of choice (`dla_34`)."""

    backbone_prefix = "base."
    imagenet_weights = DLA34_IMAGENET

    def __init__(self, settings: DLASettings, head_channels: Mapping[str, int]) -> None:
        super().__init__(head_channels)
        self.settings = settings

    def stages(self) -> Stages:
        """The trunk's levels, and the two steps that merge them."""
        return {**within("base", DLA34.stages), "dla_up": ("dla_up",), "ida_up": ("ida_up",)}

    def make_layers(self) -> dict[str, nn.Module]:
        """Make all layers, in the published order and with their published start."""
        settings = self.settings
        base = DLA34(settings.width, starts_as_pytorch=settings.trunk_start == "pytorch")
        channels = base.channels[2:]
        layers: dict[str, nn.Module] = {
            "base": base,
            "dla_up": HierarchicalAggregation(channels),
            "ida_up": IterativeAggregation(channels[0], channels[:3], factors=(2, 4)),
        }
        for name, out_channels in self.head_channels.items():
            head = convolutional_head(channels[0], settings.head_channels, out_channels)
            if "hm" in name:
                start_heatmap(head)
            else:
                start_without_bias(cast(nn.Conv2d, head[0]))
                start_without_bias(head.last)
            layers[name] = head
        return layers

    def run(self, detector: nn.Module, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """Raw maps of the one stack; see `Network.run`."""
        base, dla_up, ida_up = (getattr(detector, name) for name in ("base", "dla_up", "ida_up"))
        levels = dla_up(base(images)[2:])
        return [self.run_heads(detector, ida_up(levels[:3])[-1])]


@dataclass(frozen=True, kw_only=True)
class OriginalDLASettings(DLASettings):
    """Settings of a CenterNet's original DLA-34."""

    trunk_start: Literal["pytorch", "he"] = "he"
    """Initial weights of the trunk if none are loaded: He et al.'s, as in the published code, or PyTorch's."""


class OriginalDLANetwork(DLANetwork):
    """DLA-34 as it was made for segmentation, without deformable convolutions (figure 6c of the paper, `dlav0_34`)."""

    def stages(self) -> Stages:
        """The trunk's levels, and the one step that merges them."""
        return {**within("base", DLA34.stages), "dla_up": ("dla_up",)}

    def make_layers(self) -> dict[str, nn.Module]:
        """Make all layers, in the published order and with their published start."""
        settings = self.settings
        base = DLA34(settings.width, starts_as_pytorch=settings.trunk_start == "pytorch")
        channels = base.channels[2:]
        layers: dict[str, nn.Module] = {"base": base, "dla_up": OriginalHierarchicalAggregation(channels)}
        for name, out_channels in self.head_channels.items():
            layers[name] = head = convolutional_head(channels[0], settings.head_channels, out_channels)
            _start_by_place(name, head)
        return layers

    def run(self, detector: nn.Module, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """Raw maps of the one stack; see `Network.run`."""
        base, dla_up = (getattr(detector, name) for name in ("base", "dla_up"))
        return [self.run_heads(detector, dla_up(base(images)[2:]))]


class HourglassNetwork(Network):
    """Hourglass-104: two stacks, both trained, of which the last one is used (`hourglass`)."""

    sizes = Multiples(128)
    stacks = 2

    def __init__(self, settings: HourglassSettings, head_channels: Mapping[str, int]) -> None:
        super().__init__(head_channels)
        self.settings = settings

    def stages(self) -> Stages:
        """The stem and the hourglasses."""
        return HourglassForm(stacks=self.stacks).stages

    def make_layers(self) -> dict[str, nn.Module]:
        """Make all layers, in the published order; all but the heatmaps' biases start as PyTorch has them."""
        settings = self.settings
        trunk = Hourglass(settings.width, HourglassForm(stacks=self.stacks), settings.activation_checkpointing)
        layers: dict[str, nn.Module] = dict(trunk.named_children())
        for name, out_channels in self.head_channels.items():
            heads = [hourglass_head(settings.width, settings.width, out_channels) for _ in range(self.stacks)]
            if "hm" in name:
                for head in heads:
                    start_heatmap(head)
            layers[name] = nn.ModuleList(heads)
        return layers

    def run(self, detector: nn.Module, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """Raw maps of both stacks; see `Network.run`."""
        of_stacks = run_stacks(cast(HourglassLayers, detector), images)
        return [
            {name: getattr(detector, name)[stack](features) for name in self.head_channels}
            for stack, features in enumerate(of_stacks)
        ]


def _start_by_place(name: str, head: Head) -> None:
    if "hm" in name:
        start_heatmap(head)
    else:
        start_small(cast(nn.Conv2d, head[0]))
        start_small(head.last)
