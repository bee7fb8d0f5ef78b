"""CenterNet: an object is the centre of its box, a peak on a heatmap (Objects as Points, arXiv:1904.07850).

Everything is at a quarter of the input's resolution: the networks' output stride is 4, and a *cell* is 4 input
pixels. State-dict keys are the published ones, which is why heads are called `hm`, `wh` and `reg` there.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional

from detectors import boxes as box
from detectors.backbones.resnet import ResNet
from detectors.detector import Detections, Detector, DetectorError, Preprocessing, register
from detectors.gaussian import gaussian_heatmaps, published_radius
from detectors.layers.head import Head, start_heatmap, start_small
from detectors.layers.upsampling import deformable_upsampling, transposed_upsampling
from detectors.losses import (
    at_centers,
    masked_l1_loss,
    masked_smooth_l1_loss,
    penalty_reduced_focal_loss,
)
from detectors.peaks import top_peaks
from detectors.settings import configure, require_choice, require_count, require_fraction, require_weight

STRIDE = 4
"""Input pixels per cell of the heatmap."""

Outputs = list[dict[str, Tensor]]
"""One dict per stack: `hm` `(batch, classes, height / 4, width / 4)` logits, `wh` and `reg` `(batch, 2, ...)`."""


@dataclass(frozen=True, kw_only=True)
class CenterNetSettings:
    """What may be chosen about any CenterNet; the defaults are the published COCO training."""

    max_objects: int = 128
    """Annotations of an image that are used, the first ones in file order."""
    heatmap_weight: float = 1.0
    """Weight of the heatmap's focal loss."""
    size_weight: float = 0.1
    """Weight of the loss on width and height in cells (λ_size; 0.02 and 0.2 lose 1 and 3 AP, table 3b)."""
    offset_weight: float = 1.0
    """Weight of the loss on the centre's place inside its cell (λ_off)."""
    regression_loss: Literal["l1", "smooth_l1"] = "l1"
    """Loss on sizes and offsets (smooth L1 loses 2.4 AP, table 3c)."""
    min_overlap: float = 0.7
    """IoU from which the radius of the Gaussians follows."""

    def __post_init__(self) -> None:
        require_count("max_objects", self.max_objects)
        for name in ("heatmap_weight", "size_weight", "offset_weight"):
            require_weight(name, getattr(self, name))
        require_choice("regression_loss", self.regression_loss, ("l1", "smooth_l1"))
        require_fraction("min_overlap", self.min_overlap)


@dataclass(frozen=True, kw_only=True)
class ResNetSettings(CenterNetSettings):
    """What may be chosen about a CenterNet on a ResNet."""

    width: int = 64
    """Channels of the trunk's first stage; less makes a lighter network that no published file fits."""
    deconv_channels: tuple[int, ...] = (256, 256, 256)
    """Channels of the three steps that double the resolution, from stride 32 to 4."""
    head_channels: int = 64
    """Channels between the two convolutions of a head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("width", self.width)
        require_count("head_channels", self.head_channels)
        object.__setattr__(self, "deconv_channels", tuple(self.deconv_channels))
        for step, channels in enumerate(self.deconv_channels):
            require_count(f"deconv_channels[{step}]", channels)
        if len(self.deconv_channels) != 3:
            raise DetectorError(
                f"deconv_channels has {len(self.deconv_channels)} entries; the way from stride 32 to 4 takes 3."
            )


@dataclass(frozen=True)
class CenterNetTargets:
    """What the losses are given for a batch; object rows keep the slots of the annotations.

    `heatmap` float32 `(batch, classes, height, width)`; `size` and `offset` float32 `(batch, max_objects, 2)` in
    cells; `center_index` int64 `(batch, max_objects)`, y * width + x; `object_mask` bool, same shape, False
    where a slot is padding or its box was dropped (all else is 0 there).
    """

    heatmap: Tensor
    size: Tensor
    offset: Tensor
    center_index: Tensor
    object_mask: Tensor


class CenterNet(Detector):
    """Targets, losses and decoding; what makes the features is the business of the classes below."""

    preprocessing = Preprocessing(
        channel_order="bgr",
        mean=(0.40789654, 0.44719302, 0.47026115),
        std=(0.28863828, 0.27408164, 0.27809835),
    )
    stride_divisor = 32
    class_layers = ("hm.2",)

    def __init__(self, num_classes: int, settings: CenterNetSettings) -> None:
        super().__init__()
        require_count("num_classes", num_classes)
        self.num_classes = num_classes
        self.settings = settings

    def head_channels(self) -> dict[str, int]:
        """Output channels of each head, under the published names and in their order."""
        return {"hm": self.num_classes, "wh": 2, "reg": 2}

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

    @torch.no_grad()
    def encode(self, boxes: Tensor, labels: Tensor, input_size: tuple[int, int], **extra: Tensor) -> CenterNetTargets:
        """Targets of a batch (section 3 of the paper; section "target encoding" of the published sampler).

        Boxes are clipped to 0 .. width - 1 and 0 .. height - 1 of the cell frame (127 of 128), and dropped where
        nothing is left; sizes, offsets and centres are those of the clipped box. A centre's cell comes from
        truncation, the Gaussian's reach from the box's height and width rounded up to whole cells.

        Args:
            boxes: float32 `(batch, objects, 4)`, x1, y1, x2, y2, unclipped, in the input frame; the first
                `max_objects` count.
            labels: int64 `(batch, objects)`, -1 for padding.
            input_size: height and width of the input, in pixels.
            extra: not used by a detector of boxes.

        Raises:
            DetectorError: a label is not below `num_classes`, or a side of the input is no multiple of
                `stride_divisor`.

        Source:
            xingyizhou/CenterNet, src/lib/datasets/sample/ctdet.py.
        """
        self.check_input_size(input_size)
        height, width = input_size[0] // STRIDE, input_size[1] // STRIDE
        labels = self._in_slots(labels, fill=-1)
        self._check_labels(labels)
        boxes_in_cells = box.clip(self._in_slots(boxes.float(), fill=0) / STRIDE, height - 1, width - 1)
        size = box.sizes(boxes_in_cells)
        object_mask = (labels >= 0) & (size > 0).all(dim=-1)
        size = torch.where(object_mask[..., None], size, 0)
        center = torch.where(object_mask[..., None], box.centers(boxes_in_cells), 0)
        cell = center.long()
        return CenterNetTargets(
            heatmap=self._draw(labels, cell, size.ceil(), object_mask, (height, width)),
            size=size,
            offset=center - cell,
            center_index=cell[..., 1] * width + cell[..., 0],
            object_mask=object_mask,
        )

    def losses(self, outputs: Outputs, targets: CenterNetTargets) -> dict[str, Tensor]:
        """Focal loss of the heatmap, regression losses of size and offset (eq. 1 to 4), and their weighted sum.

        Normalised by the objects of this process, not of all ranks, as published. Several stacks are averaged.

        Returns:
            Scalars float32 "heatmap", "size" and "offset", unweighted, and "loss".
        """
        settings = self.settings
        regression_loss = masked_l1_loss if settings.regression_loss == "l1" else masked_smooth_l1_loss
        heatmap = size = offset = torch.zeros((), device=targets.heatmap.device)
        for maps in outputs:
            sizes = at_centers(maps["wh"], targets.center_index)
            offsets = at_centers(maps["reg"], targets.center_index)
            heatmap = heatmap + penalty_reduced_focal_loss(maps["hm"], targets.heatmap) / len(outputs)
            size = size + regression_loss(sizes, targets.size, targets.object_mask) / len(outputs)
            offset = offset + regression_loss(offsets, targets.offset, targets.object_mask) / len(outputs)
        loss = settings.heatmap_weight * heatmap + settings.size_weight * size + settings.offset_weight * offset
        return {"heatmap": heatmap, "size": size, "offset": offset, "loss": loss}

    @torch.no_grad()
    def decode(self, outputs: Outputs, input_size: tuple[int, int], limit: int = 100) -> list[Detections]:
        """The best `limit` peaks of the last stack, without a threshold and without clipping (section 4).

        Args:
            outputs: what `forward` gave.
            input_size: height and width of the input, in pixels.
            limit: detections an image; cells that are no peak fill up the list with a score of 0.

        Raises:
            DetectorError: the maps are not a quarter of `input_size`.

        Source:
            xingyizhou/CenterNet, src/lib/models/decode.py, `ctdet_decode`.
        """
        maps = outputs[-1]
        self._check_map_size(maps["hm"], input_size)
        peaks = top_peaks(maps["hm"].float().sigmoid(), limit)
        offset = at_centers(maps["reg"].float(), peaks.index)
        size = at_centers(maps["wh"].float(), peaks.index)
        center = torch.stack((peaks.x, peaks.y), dim=-1) + offset
        boxes = box.around(center, size) * STRIDE
        return [Detections(*rows) for rows in zip(boxes, peaks.scores, peaks.labels, strict=True)]

    def _in_slots(self, rows: Tensor, fill: int) -> Tensor:
        slots = self.settings.max_objects
        rows = rows[:, :slots]
        missing = slots - rows.shape[1]
        return functional.pad(rows, (*(0, 0) * (rows.dim() - 2), 0, missing), value=fill)

    def _check_labels(self, labels: Tensor) -> None:
        highest = int(labels.max()) if labels.numel() else -1
        if highest >= self.num_classes:
            raise DetectorError(
                f"an object has label {highest}, but the detector was built for {self.num_classes} classes "
                f"(labels 0 to {self.num_classes - 1}). Build it with num_classes={highest + 1}, or check the "
                "class list."
            )

    def _check_map_size(self, heatmap: Tensor, input_size: tuple[int, int]) -> None:
        height, width = heatmap.shape[-2:]
        if (height * STRIDE, width * STRIDE) != tuple(input_size):
            raise DetectorError(
                f"the maps are {height} x {width} cells, which an input of {height * STRIDE} x {width * STRIDE} "
                f"gives, not one of {input_size[0]} x {input_size[1]}. Pass the size of the tensor that was run."
            )

    def _draw(self, labels: Tensor, cell: Tensor, extent: Tensor, drawn: Tensor, map_size: tuple[int, int]) -> Tensor:
        """Heatmap `(batch, classes, *map_size)` of Gaussians that suit objects of width and height `extent`."""
        batch = len(labels)
        radii = published_radius(extent[..., 1], extent[..., 0], self.settings.min_overlap).long()
        image = torch.arange(batch, device=labels.device)[:, None]
        planes = image * self.num_classes + labels.clamp_min(0)
        shape = (batch * self.num_classes, *map_size)
        heatmap = gaussian_heatmaps(planes.flatten(), cell.flatten(0, 1), radii.flatten(), drawn.flatten(), shape)
        return heatmap.view(batch, self.num_classes, *map_size)


class CenterNetResNet(CenterNet):
    """ResNet, three transposed convolutions, heads: the plain network of the published code (`res_18` ...)."""

    upsampling = staticmethod(transposed_upsampling)

    def __init__(self, num_classes: int, depth: int, settings: ResNetSettings) -> None:
        super().__init__(num_classes, settings)
        trunk = ResNet(depth, settings.width)
        # The published names have no prefix: the trunk's stages are this module's own.
        for name, module in trunk.named_children():
            self.add_module(name, module)
        self.deconv_layers = self.upsampling(trunk.channels[-1], settings.deconv_channels)
        channels = settings.deconv_channels[-1]
        for name in self.head_order():
            head = Head(channels, settings.head_channels, self.head_channels()[name])
            self.start_head(name, head)
            self.add_module(name, head)

    def head_order(self) -> list[str]:
        """Order in which the published code registers heads."""
        return sorted(self.head_channels())

    def start_head(self, name: str, head: Head) -> None:
        """Small weights in the last convolution only; the heatmap keeps PyTorch's."""
        _, last = head.convolutions()
        if "hm" in name:
            start_heatmap(last)
        else:
            start_small(last)

    def forward(self, images: Tensor) -> Outputs:
        """Raw maps of one stack, `[{"hm", "wh", "reg"}]`, from normalised images `(batch, 3, height, width)`."""
        self.check_input_size((images.shape[-2], images.shape[-1]))
        stages = ResNet.forward(cast(ResNet, self), images)
        return [self.run_heads(self.deconv_layers(stages[-1]))]


class CenterNetResNetDCN(CenterNetResNet):
    """ResNet with a deformable convolution before each transposed one: the paper's ResNets (`resdcn_18` ...)."""

    upsampling = staticmethod(deformable_upsampling)

    def head_order(self) -> list[str]:
        """Order in which the published code registers heads."""
        return list(self.head_channels())

    def start_head(self, name: str, head: Head) -> None:
        """Small weights in both convolutions; the heatmap keeps PyTorch's."""
        first, last = head.convolutions()
        if "hm" in name:
            start_heatmap(last)
        else:
            start_small(first)
            start_small(last)


_RESNET = ResNetSettings()
_RESNET_DCN = ResNetSettings(deconv_channels=(256, 128, 64))


@register("centernet_resnet18")
def centernet_resnet18(num_classes: int = 80, **settings: Any) -> CenterNet:
    """ResNet-18 with plain transposed convolutions: 15.8 M parameters, no deformable layer; no published AP."""
    return CenterNetResNet(num_classes, 18, configure("centernet_resnet18", _RESNET, settings))


@register("centernet_resnet101")
def centernet_resnet101(num_classes: int = 80, **settings: Any) -> CenterNet:
    """ResNet-101 with plain transposed convolutions; no published AP."""
    return CenterNetResNet(num_classes, 101, configure("centernet_resnet101", _RESNET, settings))


@register("centernet_resdcn18")
def centernet_resdcn18(num_classes: int = 80, **settings: Any) -> CenterNet:
    """The paper's ResNet-18: 14.4 M parameters, 28.1 AP on COCO val2017."""
    return CenterNetResNetDCN(num_classes, 18, configure("centernet_resdcn18", _RESNET_DCN, settings))


@register("centernet_resdcn101")
def centernet_resdcn101(num_classes: int = 80, **settings: Any) -> CenterNet:
    """The paper's ResNet-101: 49.7 M parameters, 34.6 AP on COCO val2017."""
    return CenterNetResNetDCN(num_classes, 101, configure("centernet_resdcn101", _RESNET_DCN, settings))
