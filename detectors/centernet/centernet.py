"""CenterNet: an object is the centre of its box, a peak on a heatmap (Objects as Points, arXiv:1904.07850).

Maps have a quarter of the input's resolution: the output stride is 4, and a *cell* is 4 input pixels wide. Heads have
their published names: `hm` is the heatmap, `wh` the size, `reg` the offset.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from detectors.backbones.hourglass import HourglassSettings
from detectors.centernet.networks import (
    PREPROCESSING,
    DLANetwork,
    DLASettings,
    HourglassNetwork,
    Network,
    OriginalDLANetwork,
    OriginalDLASettings,
    ResNetDCNNetwork,
    ResNetNetwork,
    ResNetSettings,
)
from detectors.detections import Detections, DetectionTensors
from detectors.detector import MODES, Detector, TestTime
from detectors.errors import DetectorError
from detectors.settings import configure, require_choice, require_count, require_fraction, require_weight
from detectors.shapes import Bool, Float, Int
from detectors.shared import boxes as box
from detectors.shared.gaussian import heatmaps_of_batch, published_radius
from detectors.shared.losses import (
    at_centers,
    masked_l1_loss,
    masked_smooth_l1_loss,
    penalty_reduced_focal_loss,
)
from detectors.shared.network import Outputs
from detectors.shared.peaks import Peaks, top_peaks
from detectors.shared.slots import in_slots
from detectors.shared.test_time_augmentation import averaged_with_mirror, merge_by_soft_nms

STRIDE = 4
"""Input pixels per cell of the heatmap."""


@dataclass(frozen=True, kw_only=True)
class CenterNetSettings:
    """Settings of CenterNet, for any network; the defaults are the published COCO training."""

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
    pixel_statistics: Literal["coco", "imagenet"] = "coco"
    """Mean and deviation of pixels for normalisation: COCO's or ImageNet's. The latter, published for VOC and KITTI,
    are for RGB but applied to BGR images."""

    def __post_init__(self) -> None:
        require_count("max_objects", self.max_objects)
        for name in ("heatmap_weight", "size_weight", "offset_weight"):
            require_weight(name, getattr(self, name))
        require_choice("regression_loss", self.regression_loss, ("l1", "smooth_l1"))
        require_choice("pixel_statistics", self.pixel_statistics, tuple(PREPROCESSING))
        require_fraction("min_overlap", self.min_overlap)


@dataclass(frozen=True)
class CenterNetTargets:
    """Targets of a batch, in cells; object rows keep the slots of the annotations.

    `object_mask` is False where a slot is padding or its box was dropped; all other values are 0 there.
    """

    heatmap: Float[Tensor, "batch classes height width"]
    size: Float[Tensor, "batch max_objects 2"]
    offset: Float[Tensor, "batch max_objects 2"]
    center_index: Int[Tensor, "batch max_objects"]
    """y * width + x"""
    object_mask: Bool[Tensor, "batch max_objects"]


@dataclass(frozen=True)
class CenterNetObjects:
    """Annotations of a batch in the frame of cells, one row per slot; sizes and places are those of the clipped box."""

    labels: Int[Tensor, "batch max_objects"]
    in_frame: Bool[Tensor, "batch max_objects"]
    """The slot is not padding, and part of the box is in the frame. Elsewhere all values but the labels are 0."""
    size: Float[Tensor, "batch max_objects 2"]
    cell: Int[Tensor, "batch max_objects 2"]
    """x and y"""
    offset: Float[Tensor, "batch max_objects 2"]
    index: Int[Tensor, "batch max_objects"]
    """y * width + x of the cell"""


@dataclass(frozen=True)
class CenterNetPoints:
    """The best peaks of a batch; centres and boxes are in the input frame."""

    peaks: Peaks
    cell: Float[Tensor, "batch peaks 2"]
    """x and y"""
    center: Float[Tensor, "batch peaks 2"]
    boxes: Float[Tensor, "batch peaks 4"]


class CenterNet(Detector):
    """Boxes as points: heads, targets, losses, and decoding.

    Args:
        num_classes: classes to tell apart.
        network: makes the network for the heads that it is passed.
        settings: of the task.
    """

    test_time = TestTime(modes=MODES, scales=(0.5, 0.75, 1.0, 1.25, 1.5), soft_nms=True)

    def __init__(
        self, num_classes: int, network: Callable[[Mapping[str, int]], Network], settings: CenterNetSettings
    ) -> None:
        super().__init__()
        require_count("num_classes", num_classes)
        self.num_classes = num_classes
        self.settings = settings
        self.network = network(self.head_channels())
        self.sizes = self.network.sizes
        self.preprocessing = PREPROCESSING[settings.pixel_statistics]
        self.published = self.network.published()
        self.stages = self.network.stages()
        for name, layer in self.network.make_layers().items():
            self.add_module(name, layer)

    @property
    def max_objects(self) -> int:
        """Annotations of an image that `encode` uses, the first ones in file order."""
        return self.settings.max_objects

    def head_channels(self) -> dict[str, int]:
        """Output channels of each head, under the published names and in their order."""
        return {"hm": self.num_classes, "wh": 2, "reg": 2}

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """Raw maps of each stack, from normalised images."""
        self.check_input_size((images.shape[-2], images.shape[-1]))
        return self.network.run(self, images)

    @torch.no_grad()
    def encode(
        self,
        boxes: Float[Tensor, "batch objects 4"],
        labels: Int[Tensor, "batch objects"],
        input_size: tuple[int, int],
        **extra: Tensor,
    ) -> CenterNetTargets:
        """Encode the targets of a batch (section 3 of the paper).

        Boxes are clipped to 0 .. width - 1 and 0 .. height - 1 of the cell frame (127 of 128), and dropped if
        nothing is left; sizes, offsets and centres are those of the clipped box. Truncating a centre yields its cell;
        the Gaussian's reach follows from the box's height and width, rounded up to whole cells.

        Args:
            boxes: x1, y1, x2, y2, unclipped, in the input frame; the first `max_objects` of an image count.
            labels: -1 for padding.
            input_size: height and width of the input, in pixels.
            extra: not used.

        Raises:
            DetectorError: a label is not below `num_classes`, or the input's size does not fit `sizes`.

        Source:
            xingyizhou/CenterNet, src/lib/datasets/sample/ctdet.py.
        """
        objects = self.locate(boxes, labels, input_size)
        # Labels below -1 mark objects to ignore, which only 3D knows how to draw.
        is_object = objects.in_frame & (objects.labels >= 0)
        return CenterNetTargets(
            heatmap=self.draw(
                objects.labels, objects.cell, objects.size.ceil(), is_object, self.num_classes, input_size
            ),
            size=torch.where(is_object[..., None], objects.size, 0),
            offset=torch.where(is_object[..., None], objects.offset, 0),
            center_index=torch.where(is_object, objects.index, 0),
            object_mask=is_object,
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

    def heatmaps(self, targets: CenterNetTargets) -> dict[str, Float[Tensor, "batch planes height width"]]:
        """Heatmaps of the classes; see `Detector.heatmaps`."""
        return {"heatmap": targets.heatmap}

    @torch.no_grad()
    def decode(self, outputs: Outputs, input_size: tuple[int, int], limit: int = 100) -> list[Detections]:
        """Find the best `limit` peaks of the last stack, without a threshold and without clipping (section 4).

        Args:
            outputs: result of `forward`.
            input_size: height and width of the input, in pixels.
            limit: detections an image; cells that are not peaks fill up the list with a score of 0.

        Raises:
            DetectorError: the maps are not a quarter of `input_size`.

        Source:
            xingyizhou/CenterNet, src/lib/models/decode.py, `ctdet_decode`.
        """
        return self.decode_maps(self.read_maps(outputs), input_size, limit).images()

    @torch.no_grad()
    def decode_tensors(self, outputs: Outputs, input_size: tuple[int, int], limit: int = 100) -> DetectionTensors:
        """Find what `decode` does, in tensors; see `Detector.decode_tensors`."""
        return self.decode_maps(self.read_maps(outputs), input_size, limit).padded(limit)

    @torch.no_grad()
    def candidates(
        self,
        outputs: Outputs,
        input_size: tuple[int, int],
        limit: int = 100,
        *,
        mirrored: Outputs | None = None,
        content_sizes: Int[Tensor, "batch 2"] | None = None,
    ) -> list[Detections]:
        """Decode the maps, averaged with the mirror's if there is one; see `Detector.candidates`.

        Heatmaps are averaged after the sigmoid; offsets are the image's own (section 4 of the paper, "flip").

        Source:
            xingyizhou/CenterNet, src/lib/detectors/ctdet.py and multi_pose.py, `process`.
        """
        maps = self.read_maps(outputs)
        if mirrored is not None:
            self.check_test_mode("flip")
            maps = maps | self.average_with_mirror(maps, self.read_maps(mirrored))
        return self.decode_maps(maps, input_size, limit).images()

    def merge(self, parts: Sequence[Detections], limit: int = 100, *, soft: bool = False) -> Detections:
        """Apply soft-NMS to several scales, or to one if `soft`; see `merge_by_soft_nms`."""
        if not soft and len(parts) == 1:
            return parts[0]
        self.check_test_mode("multiscale" if len(parts) > 1 else "none", soft)
        return merge_by_soft_nms(parts, limit)

    def read_maps(self, outputs: Outputs) -> dict[str, Tensor]:
        """Maps of the last stack in float32, heatmaps after the sigmoid."""
        maps = {name: values.float() for name, values in outputs[-1].items()}
        # The heatmap of joints is called hm_hp.
        return maps | {name: maps[name].sigmoid() for name in maps if "hm" in name}

    def average_with_mirror(self, maps: dict[str, Tensor], mirrored: dict[str, Tensor]) -> dict[str, Tensor]:
        """Average those maps of `read_maps` that the publication averages."""
        return {name: averaged_with_mirror(maps[name], mirrored[name]) for name in ("hm", "wh")}

    def decode_maps(self, maps: dict[str, Tensor], input_size: tuple[int, int], limit: int) -> DetectionTensors:
        """Decode the result of `read_maps`, with fewer places than `limit` if there are fewer cells; see `decode`."""
        points = self.find(maps, input_size, limit)
        return DetectionTensors(points.boxes, points.peaks.scores, points.peaks.labels)

    def find(self, maps: dict[str, Tensor], input_size: tuple[int, int], limit: int) -> CenterNetPoints:
        """The best peaks, with size and offset read at their cells; see `decode`."""
        height, width = maps["hm"].shape[-2] * STRIDE, maps["hm"].shape[-1] * STRIDE
        if (height, width) != tuple(input_size):
            raise DetectorError(
                f"the maps are {height // STRIDE} x {width // STRIDE} cells, as for an input of {height} x {width}, "
                f"not of {input_size[0]} x {input_size[1]}. Pass the size of the tensor that was run."
            )
        peaks = top_peaks(maps["hm"], limit)
        cell = torch.stack((peaks.x, peaks.y), dim=-1)
        center = cell + at_centers(maps["reg"], peaks.index)
        size = at_centers(maps["wh"], peaks.index)
        return CenterNetPoints(peaks, cell, center * STRIDE, box.around(center, size) * STRIDE)

    def locate(
        self, boxes: Float[Tensor, "batch objects 4"], labels: Int[Tensor, "batch objects"], input_size: tuple[int, int]
    ) -> CenterNetObjects:
        """Move annotations into their slots and into the frame of cells; see `encode` for arguments and errors."""
        self.check_input_size(input_size)
        height, width = input_size[0] // STRIDE, input_size[1] // STRIDE
        labels = in_slots(labels, self.settings.max_objects, fill=-1)
        self.check_labels(labels)
        boxes_in_cells = box.clip(in_slots(boxes.float(), self.settings.max_objects) / STRIDE, height - 1, width - 1)
        size = box.sizes(boxes_in_cells)
        in_frame = (size > 0).all(dim=-1) & (labels != -1)
        # Dropped boxes may hold anything, NaN included; their cells are read and drawn to, so they must be valid.
        center = torch.where(in_frame[..., None], box.centers(boxes_in_cells), 0)
        cell = center.long()
        return CenterNetObjects(
            labels=labels,
            in_frame=in_frame,
            size=torch.where(in_frame[..., None], size, 0),
            cell=cell,
            offset=center - cell,
            index=cell[..., 1] * width + cell[..., 0],
        )

    def draw(
        self,
        planes: Int[Tensor, "batch points"],
        cell: Int[Tensor, "batch points 2"],
        extent: Float[Tensor, "batch points 2"],
        drawn: Bool[Tensor, "batch points"],
        num_planes: int,
        input_size: tuple[int, int],
    ) -> Float[Tensor, "batch {num_planes} height width"]:
        """Draw a Gaussian for each point of a batch, on maps of a quarter of the input's resolution.

        Args:
            planes: the plane of each point.
            cell: x and y.
            extent: width and height in cells of the object, which set the reach.
            drawn: False for rows to leave out, whose other values do not matter.
            num_planes: planes an image.
            input_size: height and width of the input, in pixels.
        """
        radii = published_radius(extent[..., 1], extent[..., 0], self.settings.min_overlap).long()
        size = (input_size[0] // STRIDE, input_size[1] // STRIDE)
        return heatmaps_of_batch(planes, cell, radii, drawn, num_planes, size)


_RESNET_DCN = ResNetSettings(deconv_channels=(256, 128, 64))


def centernet_resnet18(num_classes: int = 80, **settings: Any) -> CenterNet:
    """ResNet-18 with plain transposed convolutions: 15.8 M parameters, no deformable layer; no published AP."""
    network, chosen = configure("centernet_resnet18", settings, ResNetSettings(), CenterNetSettings())
    return CenterNet(num_classes, partial(ResNetNetwork, 18, network), chosen)


def centernet_resnet101(num_classes: int = 80, **settings: Any) -> CenterNet:
    """ResNet-101 with plain transposed convolutions; no published AP."""
    network, chosen = configure("centernet_resnet101", settings, ResNetSettings(), CenterNetSettings())
    return CenterNet(num_classes, partial(ResNetNetwork, 101, network), chosen)


def centernet_resdcn18(num_classes: int = 80, **settings: Any) -> CenterNet:
    """The paper's ResNet-18: 14.4 M parameters, 28.1 AP on COCO val2017."""
    network, chosen = configure("centernet_resdcn18", settings, _RESNET_DCN, CenterNetSettings())
    return CenterNet(num_classes, partial(ResNetDCNNetwork, 18, network), chosen)


def centernet_resdcn101(num_classes: int = 80, **settings: Any) -> CenterNet:
    """The paper's ResNet-101: 49.7 M parameters, 34.6 AP on COCO val2017."""
    network, chosen = configure("centernet_resdcn101", settings, _RESNET_DCN, CenterNetSettings())
    return CenterNet(num_classes, partial(ResNetDCNNetwork, 101, network), chosen)


def centernet_dla34(num_classes: int = 80, **settings: Any) -> CenterNet:
    """DLA-34: 20.2 M parameters, 37.4 AP on COCO val2017 after 230 epochs."""
    network, chosen = configure("centernet_dla34", settings, DLASettings(), CenterNetSettings())
    return CenterNet(num_classes, partial(DLANetwork, network), chosen)


def centernet_dla34_original(num_classes: int = 80, **settings: Any) -> CenterNet:
    """DLA-34 without deformable convolutions: 18.5 M parameters; no published AP."""
    network, chosen = configure("centernet_dla34_original", settings, OriginalDLASettings(), CenterNetSettings())
    return CenterNet(num_classes, partial(OriginalDLANetwork, network), chosen)


def centernet_hourglass104(num_classes: int = 80, **settings: Any) -> CenterNet:
    """Hourglass-104: 191.3 M parameters, 40.3 AP on COCO val2017."""
    network, chosen = configure("centernet_hourglass104", settings, HourglassSettings(), CenterNetSettings())
    return CenterNet(num_classes, partial(HourglassNetwork, network), chosen)
