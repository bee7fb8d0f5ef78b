"""The FCOSes that were published with weights, and all rules in which they differ."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import Tensor

from detectors.detector import Preprocessing
from detectors.shared.box_losses import floored_iou_loss, giou_loss, unitbox_iou_loss
from detectors.shared.suppression import nms, shifting_nms
from detectors.shared.suppression_in_places import nms_in_places, shifting_nms_in_places

SIZE_RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, 1e8))
"""Longest distance from a point to a side of its box, in pixels, that P3 to P7 are responsible for."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The rules of one publication; each field's docstring describes the choice."""

    name: str
    preprocessing: Preprocessing
    num_classes: int
    """Outputs of the published file."""
    torchvision_layout: bool
    """Names of parameters, stride of a bottleneck in its 3x3 convolution, no learned scale per level."""
    tower_bias: bool
    """The convolutions of the towers have a bias."""
    class_layer: str
    """Path of the layer that outputs the class scores."""
    norm_eps: float
    """In the frozen batch norm."""
    exponential: bool
    """Distances are exp(scale * x), in pixels; otherwise relu(scale * x), in strides."""
    pixels_in_evaluation: bool
    """In evaluation the network multiplies distances in strides by the stride of their level."""
    centerness_beside_boxes: bool
    """The centerness layer is on the tower of boxes, otherwise on that of classes."""
    cell_middles: bool
    """Points are the middles of cells. Otherwise, in torchvision, they are corners, whose spacing is the input's side
    divided by the number of cells, rounded down."""
    center_radius: float | None
    """Only points within this many strides of a box's centre, along both axes, may predict it; None: all inside."""
    inclusive: bool
    """Both ends of a size range belong to it. Otherwise neither end does, and the first and the last have no end."""
    area: Literal["pixels", "edges", "coarse"]
    """Area of a box, of which the smallest around a point wins: (w + 1) (h + 1); w h; or float32 `1e8 - w h`, in which
    near-equal ones tie."""
    box_loss: Callable[[Tensor, Tensor], Tensor]
    """Loss of each point from its distances, as predicted and as wanted."""
    centerness_weights_boxes: bool
    """A point's box loss is weighted by its centerness and divided by their sum; otherwise by the number of points."""
    least_centerness_sum: float
    """That sum is at least this; 0 has no floor, and there is no loss without points."""
    normalise_over_ranks: bool
    """Denominators are means over all ranks; otherwise a rank's own."""
    pixel: float
    """1 if boxes end on their last pixel, which is where clipping and mirrors put their ends; 0 if they are edges."""
    threshold_with_centerness: bool
    """Candidates are points with sqrt(class * centerness) > `score_threshold`; otherwise the class probability alone is
    compared."""
    score_threshold: float
    ranks_by_class: bool
    """The best candidates of a level are those of the highest class probability, otherwise class * centerness."""
    root_score: bool
    """The score is sqrt(class * centerness), otherwise the product."""
    suppress: Callable[..., Tensor]
    """Takes boxes, scores, labels, `threshold` and `limit`; returns the rows that stay."""
    suppress_in_places: Callable[..., Tensor]
    """The same for a batch; see `suppression_in_places`."""
    nms_threshold: float
    clips_last: bool
    """Boxes are clipped after suppression, otherwise before."""
    drops_empty: bool
    """Boxes without width or height after clipping are dropped."""


ORIGINAL = Variant(
    name="original",
    preprocessing=Preprocessing(
        channel_order="bgr", mean=(102.9801, 115.9465, 122.7717), std=(1.0, 1.0, 1.0), scale=1.0
    ),
    num_classes=80,
    torchvision_layout=False,
    tower_bias=True,
    class_layer="rpn.head.cls_logits",
    norm_eps=0.0,
    exponential=True,
    pixels_in_evaluation=False,
    centerness_beside_boxes=False,
    cell_middles=True,
    center_radius=None,
    inclusive=True,
    area="pixels",
    box_loss=partial(unitbox_iou_loss, plus=1.0),
    centerness_weights_boxes=True,
    least_centerness_sum=0.0,
    normalise_over_ranks=True,
    pixel=1.0,
    threshold_with_centerness=False,
    score_threshold=0.05,
    ranks_by_class=False,
    root_score=True,
    suppress=partial(nms, plus_one=True, keep_ties=True),
    suppress_in_places=partial(nms_in_places, plus_one=True),
    nms_threshold=0.6,
    clips_last=False,
    drops_empty=False,
)
"""FCOS_R_50_FPN_1x and its siblings: the paper of ICCV 2019 (37.1 AP with ResNet-50)."""

IMPROVED = replace(
    ORIGINAL,
    name="improved",
    exponential=False,
    pixels_in_evaluation=True,
    centerness_beside_boxes=True,
    center_radius=1.5,
    box_loss=partial(giou_loss, plus=1.0),
)
"""FCOS_imprv_R_50_FPN_1x and its siblings (38.7 AP with ResNet-50)."""

_DETECTRON2_MEAN = Preprocessing(channel_order="bgr", mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0), scale=1.0)

ADELAIDET = replace(
    IMPROVED,
    name="adelaidet",
    preprocessing=_DETECTRON2_MEAN,
    norm_eps=1e-5,
    pixels_in_evaluation=False,
    area="edges",
    # The + 1 of the IoU has stayed, in strides, though boxes are edges everywhere else.
    box_loss=partial(giou_loss, plus=1.0, eps=0.0),
    least_centerness_sum=1e-6,
    pixel=0.0,
    suppress=partial(shifting_nms, keep_ties=True),
    suppress_in_places=shifting_nms_in_places,
    # detectron2 clips what is left, to the image, and drops what that empties.
    clips_last=True,
    drops_empty=True,
)
"""AdelaiDet's FCOS_R_50_1x and its siblings, by the same authors (38.7 AP with ResNet-50).

Source:
    aim-uofa/AdelaiDet, adet/modeling/fcos/fcos_outputs.py; facebookresearch/detectron2,
    detectron2/modeling/postprocessing.py.
"""

MMDETECTION = replace(
    IMPROVED,
    name="mmdetection",
    preprocessing=_DETECTRON2_MEAN,
    norm_eps=1e-5,
    area="edges",
    box_loss=partial(giou_loss, eps=0.0, floor=1e-6),
    least_centerness_sum=1e-6,
    pixel=0.0,
    ranks_by_class=True,
    root_score=False,
    suppress=partial(shifting_nms, always=True),
    suppress_in_places=partial(shifting_nms_in_places, always=True),
    drops_empty=True,
)
"""mmdetection's fcos_r50_caffe_fpn_gn-head-center-normbbox-centeronreg-giou and its siblings (38.7 AP).

Source:
    open-mmlab/mmdetection 3.3, mmdet/models/dense_heads/fcos_head.py and base_dense_head.py; open-mmlab/mmcv,
    mmcv/ops/nms.py.
"""

MMDETECTION_BASE = replace(
    MMDETECTION,
    name="mmdetection_base",
    preprocessing=ORIGINAL.preprocessing,
    tower_bias=False,
    exponential=True,
    pixels_in_evaluation=False,
    centerness_beside_boxes=False,
    center_radius=None,
    box_loss=partial(floored_iou_loss, floor=1e-6),
    nms_threshold=0.5,
)
"""mmdetection's fcos_r50_caffe_fpn_gn-head and its siblings: the paper's version (36.6 AP with ResNet-50)."""

TORCHVISION = Variant(
    name="torchvision",
    preprocessing=Preprocessing(channel_order="rgb", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    num_classes=91,
    torchvision_layout=True,
    tower_bias=True,
    class_layer="head.classification_head.cls_logits",
    norm_eps=1e-5,
    exponential=False,
    pixels_in_evaluation=False,
    centerness_beside_boxes=True,
    cell_middles=False,
    center_radius=1.5,
    inclusive=False,
    area="coarse",
    box_loss=giou_loss,
    centerness_weights_boxes=False,
    least_centerness_sum=0.0,
    normalise_over_ranks=False,
    pixel=0.0,
    threshold_with_centerness=True,
    score_threshold=0.2,
    ranks_by_class=False,
    root_score=True,
    suppress=shifting_nms,
    suppress_in_places=shifting_nms_in_places,
    nms_threshold=0.6,
    clips_last=False,
    drops_empty=False,
)
"""fcos_resnet50_fpn (39.2 AP); its 91 outputs are COCO's category ids."""

VARIANTS = {
    variant.name: variant for variant in (ORIGINAL, IMPROVED, ADELAIDET, MMDETECTION, MMDETECTION_BASE, TORCHVISION)
}
