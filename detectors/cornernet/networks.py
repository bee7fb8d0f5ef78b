"""The networks of CornerNet, CornerNet-Squeeze and CornerNet-Saccade: hourglasses, corner pooling, heads.

Each stack has pooling modules and heads of its own. All stacks are trained; the last one is used.
"""

from collections.abc import Mapping
from typing import ClassVar, cast

from torch import Tensor, nn

from detectors.backbones.hourglass import (
    Hourglass,
    HourglassForm,
    HourglassLayers,
    HourglassSettings,
    Stack,
    each_stack,
    hourglass_head,
)
from detectors.backbones.squeeze_hourglass import SQUEEZE_HOURGLASS, SqueezeSettings
from detectors.cornernet.file_keys import CORNERNET, CORNERNET_LITE, LAYOUTS, MMDETECTION, SACCADE, SQUEEZE
from detectors.file_layouts import FileLayout
from detectors.layers.corner_pooling import CornerPooling
from detectors.layers.head import start_heatmap
from detectors.layers.recomputation import set_activation_checkpointing
from detectors.shapes import Float
from detectors.shared.network import Network, Outputs
from detectors.sizes import InputSizes, OneLessThanMultiples
from detectors.stages import Stages, within


class CornerNetNetwork(Network):
    """Hourglass-104 with corner pooling: CornerNet's network.

    Args:
        settings: of the network.
        num_classes: classes to tell apart.

    Source:
        Law and Deng, CornerNet, sections 3.4 and 3.5 (arXiv:1808.01244); princeton-vl/CornerNet,
        models/py_utils/kp.py and models/CornerNet.py.
    """

    sizes: InputSizes = OneLessThanMultiples(128)
    form: ClassVar[HourglassForm] = HourglassForm()
    """Form of the hourglasses."""
    pooling: ClassVar[Mapping[str, str]] = {"top_left": "tl_cnvs", "bottom_right": "br_cnvs"}
    """Kinds of points, and the published names of their pooling modules."""
    heads: ClassVar[Mapping[str, str]] = {
        "top_left_heatmap": "tl_heats",
        "bottom_right_heatmap": "br_heats",
        "top_left_tag": "tl_tags",
        "bottom_right_tag": "br_tags",
        "top_left_offset": "tl_regrs",
        "bottom_right_offset": "br_regrs",
    }
    """Maps, named by point and part, and the published names of their heads."""
    head_kernel_size = 3
    """Side of the first of the two convolutions of a head."""
    file_layouts: tuple[FileLayout, ...] = LAYOUTS["cornernet"]
    export_layouts: Mapping[str, FileLayout] = {
        "authors": CORNERNET,
        "cornernet_lite": CORNERNET_LITE,
        "mmdetection": MMDETECTION,
    }

    def __init__(self, settings: HourglassSettings, num_classes: int) -> None:
        self.settings, self.num_classes = settings, num_classes
        self.stacks = self.form.stacks
        heatmaps = [name for output, name in self.heads.items() if output.endswith("heatmap")]
        self.class_layers = tuple(f"{name}.{stack}.1" for name in heatmaps for stack in range(self.stacks))

    def stages(self) -> Stages:
        """The stem and the hourglasses; corner pooling belongs to the heads."""
        return self.form.stages

    def make_layers(self) -> dict[str, nn.Module]:
        """Make all layers, in the published order; all but the heatmaps' biases start as PyTorch has them."""
        width, stacks = self.settings.width, range(self.stacks)
        layers = self.make_trunk()
        for point, name in self.pooling.items():
            layers[name] = nn.ModuleList(self.make_pooling(point) for _ in stacks)
        channels = {"heatmap": self.num_classes, "tag": 1, "offset": 2}
        for output, name in self.heads.items():
            part = output.rpartition("_")[2]
            heads = [hourglass_head(width, width, channels[part], self.head_kernel_size) for _ in stacks]
            if part == "heatmap":
                for head in heads:
                    start_heatmap(head)
            layers[name] = nn.ModuleList(heads)
        for layer in layers.values():
            set_activation_checkpointing(layer, self.settings.activation_checkpointing)
        return self.in_published_order(layers)

    def make_trunk(self) -> dict[str, nn.Module]:
        """Make the layers of the hourglasses, which are the detector's own."""
        return dict(Hourglass(self.settings.width, self.form).named_children())

    def make_pooling(self, point: str) -> nn.Module:
        """Make the pooling module of a kind of point."""
        if point == "top_left":
            return CornerPooling(self.settings.width, "top", "left")
        return CornerPooling(self.settings.width, "bottom", "right")

    def in_published_order(self, layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
        """Sort the layers: the published code registers those between the stacks late, and offsets last."""
        late = [name for name in layers if name in ("inters", "inters_", "cnvs_")]
        late += [name for name in layers if name.endswith("_regrs")]
        return {name: layers[name] for name in (*(name for name in layers if name not in late), *late)}

    def trunk_of(self, detector: nn.Module) -> nn.Module:
        """Owner of the hourglasses' layers."""
        return detector

    def run(self, detector: nn.Module, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """Raw maps of each stack, float32, by point and part.

        The keys are those of `heads`: "top_left_heatmap" (as many channels as classes), "top_left_tag" (1),
        "top_left_offset" (2), and others.

        In evaluation only the last stack has heads and is returned, as in the published code, so a loss computed from
        the result is that stack's.

        Args:
            detector: has what `make_layers` returned as its children.
            images: normalised.
        """
        return [
            self.run_heads(detector, number, stack)
            for number, stack in enumerate(each_stack(cast(HourglassLayers, self.trunk_of(detector)), images))
            if detector.training or number == self.stacks - 1
        ]

    def run_heads(self, detector: nn.Module, number: int, stack: Stack) -> dict[str, Tensor]:
        """Raw maps of one stack."""
        pooled = {point: getattr(detector, name)[number](stack.features) for point, name in self.pooling.items()}
        return {
            output: getattr(detector, name)[number](pooled[output.rpartition("_")[0]])
            for output, name in self.heads.items()
        }


class _LiteNetwork(CornerNetNetwork):
    """A network under the names of CornerNet-Lite, whose trunk is a part of its own."""

    pooling: ClassVar[Mapping[str, str]] = {"top_left": "tl_modules", "bottom_right": "br_modules"}
    heads: ClassVar[Mapping[str, str]] = {
        output: name.replace("regrs", "offs") for output, name in CornerNetNetwork.heads.items()
    }

    def stages(self) -> Stages:
        """The stem and the hourglasses; corner pooling and attention belong to the heads."""
        return within("hg", self.form.stages)

    def make_trunk(self) -> dict[str, nn.Module]:
        """Make the layers of the hourglasses, as one module."""
        return {"hg": Hourglass(self.settings.width, self.form)}

    def in_published_order(self, layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
        """The layers as they are: the order in which they are made is the published one."""
        return layers

    def trunk_of(self, detector: nn.Module) -> nn.Module:
        """Owner of the hourglasses' layers."""
        return cast(nn.Module, detector.hg)


class SqueezeNetwork(_LiteNetwork):
    """CornerNet-Squeeze's network: two hourglasses of fire modules, at stride 8, and heads without 3x3 convolutions.

    Source:
        Law et al., CornerNet-Lite, section 4 (arXiv:1904.08900); princeton-vl/CornerNet-Lite,
        core/models/CornerNet_Squeeze.py.
    """

    stride = 8
    form: ClassVar[HourglassForm] = SQUEEZE_HOURGLASS
    head_kernel_size = 1
    file_layouts: tuple[FileLayout, ...] = LAYOUTS["squeeze"]
    export_layouts: Mapping[str, FileLayout] = {"authors": SQUEEZE}

    def __init__(self, settings: SqueezeSettings, num_classes: int) -> None:
        super().__init__(settings, num_classes)


class SaccadeNetwork(_LiteNetwork):
    """CornerNet-Saccade's network: three shallow hourglasses (Hourglass-54), and attention on the way up in each.

    `run` also returns "attention_16", "attention_8" and "attention_4", with one channel and that stride: logits of the
    centres of large, medium and small objects.

    Source:
        Law et al., CornerNet-Lite, section 3 (arXiv:1904.08900); princeton-vl/CornerNet-Lite,
        core/models/CornerNet_Saccade.py.
    """

    # Published only with inputs of 255. Its hourglass halves three times after the stem.
    # Crops are cut from the whole photograph, up to its last pixel.
    sizes: InputSizes = OneLessThanMultiples(32, keeps_last_pixel=True)
    form: ClassVar[HourglassForm] = HourglassForm(
        stacks=3, widths=(1, 1.5, 1.5, 2), blocks=(1, 1, 1, 1), hourglasses="hgs"
    )
    attention_strides = (16, 8, 4)
    """Strides of the attention maps, which are those of the hourglass's levels, the deepest first."""
    file_layouts: tuple[FileLayout, ...] = LAYOUTS["saccade"]
    export_layouts: Mapping[str, FileLayout] = {"authors": SACCADE}

    def make_layers(self) -> dict[str, nn.Module]:
        """Make all layers, in the published order; all but the heatmaps' biases start as PyTorch has them."""
        layers = super().make_layers()
        width = self.settings.width
        # Each level but the innermost has a result of its own width.
        level_channels = [int(width * factor) for factor in reversed(self.form.widths[:-1])]
        attention = [[hourglass_head(channels, width, 1) for channels in level_channels] for _ in range(self.stacks)]
        for head in (head for of_stack in attention for head in of_stack):
            start_heatmap(head)
        layers["att_modules"] = nn.ModuleList(nn.ModuleList(of_stack) for of_stack in attention)
        return layers

    def run_heads(self, detector: nn.Module, number: int, stack: Stack) -> dict[str, Tensor]:
        """Raw maps of one stack."""
        heads = cast(nn.ModuleList, cast(nn.ModuleList, detector.att_modules)[number])
        attention = {
            f"attention_{stride}": head(level)
            for stride, head, level in zip(self.attention_strides, heads, stack.levels, strict=True)
        }
        return super().run_heads(detector, number, stack) | attention
