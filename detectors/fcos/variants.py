"""The three FCOSes that were published with weights, and all rules in which they differ."""

from dataclasses import dataclass, replace
from typing import Literal

from detectors.detector import Preprocessing

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
    """Both ends of a size range belong to it, and areas are (w + 1) (h + 1). Otherwise neither end does, and areas
    compare as float32 `1e8 - w h`, in which near-equal ones tie."""
    box_loss: Literal["iou", "giou"]
    centerness_weights_boxes: bool
    """A point's box loss is weighted by its centerness and divided by their sum; otherwise by the number of points."""
    normalise_over_ranks: bool
    """Denominators are means over all ranks; otherwise a rank's own."""
    pixel: float
    """1 if boxes end on their last pixel (in the IoU, in NMS and in clipping), 0 if their sides are edges."""
    threshold_with_centerness: bool
    """Candidates are points with sqrt(class * centerness) > `score_threshold`; otherwise the class probability alone is
    compared. Candidates rank by class * centerness; boxes are clipped, then suppressed."""
    score_threshold: float
    shifts_classes: bool
    """NMS shifts classes apart, and `limit` holds; otherwise it compares labels, and ties for the last place stay."""


ORIGINAL = Variant(
    name="original",
    preprocessing=Preprocessing(
        channel_order="bgr", mean=(102.9801, 115.9465, 122.7717), std=(1.0, 1.0, 1.0), scale=1.0
    ),
    num_classes=80,
    torchvision_layout=False,
    class_layer="rpn.head.cls_logits",
    norm_eps=0.0,
    exponential=True,
    pixels_in_evaluation=False,
    centerness_beside_boxes=False,
    cell_middles=True,
    center_radius=None,
    inclusive=True,
    box_loss="iou",
    centerness_weights_boxes=True,
    normalise_over_ranks=True,
    pixel=1.0,
    threshold_with_centerness=False,
    score_threshold=0.05,
    shifts_classes=False,
)
"""FCOS_R_50_FPN_1x and its siblings: the paper of ICCV 2019 (37.1 AP with ResNet-50)."""

IMPROVED = replace(
    ORIGINAL,
    name="improved",
    exponential=False,
    pixels_in_evaluation=True,
    centerness_beside_boxes=True,
    center_radius=1.5,
    box_loss="giou",
)
"""FCOS_imprv_R_50_FPN_1x and its siblings (38.7 AP with ResNet-50)."""

TORCHVISION = Variant(
    name="torchvision",
    preprocessing=Preprocessing(channel_order="rgb", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    num_classes=91,
    torchvision_layout=True,
    class_layer="head.classification_head.cls_logits",
    norm_eps=1e-5,
    exponential=False,
    pixels_in_evaluation=False,
    centerness_beside_boxes=True,
    cell_middles=False,
    center_radius=1.5,
    inclusive=False,
    box_loss="giou",
    centerness_weights_boxes=False,
    normalise_over_ranks=False,
    pixel=0.0,
    threshold_with_centerness=True,
    score_threshold=0.2,
    shifts_classes=True,
)
"""fcos_resnet50_fpn (39.2 AP); its 91 outputs are COCO's category ids."""

VARIANTS = {variant.name: variant for variant in (ORIGINAL, IMPROVED, TORCHVISION)}
