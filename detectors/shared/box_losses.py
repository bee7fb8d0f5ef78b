"""FCOS's losses: IoU and GIoU of distances to four sides, focal loss of classes, and the target of centerness.

A box is described by the distances left, top, right, bottom from a point inside it to its sides. Everything computes in
float32 (float64 stays) whatever the autocast state.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from detectors.shapes import Float, Int


def unitbox_iou_loss(
    distances: Float[Tensor, "*points 4"], targets: Float[Tensor, "*points 4"], plus: float = 0.0
) -> Float[Tensor, "*points"]:
    """-ln IoU of two boxes around the same point, with the gradient of the paper's algorithm instead of autograd's.

    The two differ in ties: if a predicted side is exactly the true one, the paper's intersection does not grow with
    it, while autograd halves the gradient.

    Args:
        distances: left, top, right, bottom as predicted, at least 0.
        targets: the true ones; rows of four zeros are points without a box and cost nothing.
        plus: added to intersection and union: 1 in FCOS's own code, 0 in the paper, where boxes that do not
            overlap cost infinity.

    Returns:
        One loss per point.

    Source:
        Yu et al., UnitBox, algorithm 1 (arXiv:1608.01471); tianzhi0549/FCOS, fcos_core/layers/iou_loss.py.
    """
    with torch.autocast(distances.device.type, enabled=False):
        loss = _UnitBox.apply(_at_least_float(distances), _at_least_float(targets), plus)  # type: ignore[no-untyped-call]
        return cast(Tensor, loss)


class _UnitBox(torch.autograd.Function):
    """Names are the paper's: X and X~ are areas, I the intersection, U the union."""

    @staticmethod
    def forward(ctx: Any, distances: Tensor, targets: Tensor, plus: float) -> Tensor:
        area, intersection, _, _ = _areas(distances, targets)
        union = area + _area(targets) - intersection
        ctx.save_for_backward(distances, targets)
        ctx.plus = plus
        loss = -torch.log((intersection + plus) / (union + plus))
        return torch.where(_is_box(targets), loss, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        distances, targets = ctx.saved_tensors
        area, intersection, width, height = _areas(distances, targets)
        union = area + _area(targets) - intersection
        left, top, right, bottom = distances.unbind(dim=-1)
        horizontal, vertical = left + right, top + bottom
        d_area = torch.stack((vertical, horizontal, vertical, horizontal), dim=-1)
        grows = torch.stack((height, width, height, width), dim=-1)
        d_intersection = torch.where(distances < targets, grows, 0)
        union, intersection = (union + ctx.plus)[..., None], (intersection + ctx.plus)[..., None]
        # Without `plus` this is the paper's dX/U - dI (U + I) / (U I).
        d_loss = (d_area - d_intersection) / union - d_intersection / intersection
        return torch.where(_is_box(targets)[..., None], d_loss * gradient[..., None], 0), None, None


def floored_iou_loss(
    distances: Float[Tensor, "*points 4"], targets: Float[Tensor, "*points 4"], floor: float = 1e-6
) -> Float[Tensor, "*points"]:
    """-ln IoU of two boxes around the same point, with autograd's gradient and an end to the loss.

    Args:
        distances: left, top, right, bottom as predicted, at least 0.
        targets: the true ones.
        floor: smallest IoU and smallest union that count; below this IoU, there is no gradient.

    Returns:
        One loss per point.

    Source:
        open-mmlab/mmdetection, mmdet/models/losses/iou_loss.py, `iou_loss`.
    """
    with torch.autocast(distances.device.type, enabled=False):
        distances, targets = _at_least_float(distances), _at_least_float(targets)
        area, intersection, _, _ = _areas(distances, targets)
        union = area + _area(targets) - intersection
        return -(intersection / union.clamp_min(floor)).clamp_min(floor).log()


def giou_loss(
    distances: Float[Tensor, "*points 4"],
    targets: Float[Tensor, "*points 4"],
    plus: float = 0.0,
    eps: float = 1e-7,
    floor: float = 0.0,
) -> Float[Tensor, "*points"]:
    """1 - GIoU of two boxes around the same point.

    Args:
        distances: left, top, right, bottom as predicted, at least 0.
        targets: the true ones.
        plus: added to intersection and union in the IoU, though not in the rest: 1 in FCOS's own code, which
            measures in strides, where that is a lot; 0 elsewhere.
        eps: added to the area of the enclosing box and, without `plus`, to the union.
        floor: smallest union and enclosing box that count: 1e-6 in mmdetection, which adds nothing.

    Returns:
        One loss per point, 0 to 2.

    Source:
        Rezatofighi et al., Generalized Intersection over Union (arXiv:1902.09630); tianzhi0549/FCOS,
        fcos_core/layers/iou_loss.py; torchvision/ops/giou_loss.py; open-mmlab/mmdetection,
        mmdet/models/losses/iou_loss.py.
    """
    with torch.autocast(distances.device.type, enabled=False):
        distances, targets = _at_least_float(distances), _at_least_float(targets)
        area, intersection, _, _ = _areas(distances, targets)
        union = area + _area(targets) - intersection
        enclosing = _area(torch.maximum(distances, targets))
        if floor:
            union, enclosing = union.clamp_min(floor), enclosing.clamp_min(floor)
        iou = (intersection + plus) / (union + (plus or eps))
        # The authors add it to the enclosing box itself, everybody else to the divisor.
        empty = (enclosing + eps - union if plus else enclosing - union) / (enclosing + eps)
        return 1 - (iou - empty)


def sigmoid_focal_loss(
    logits: Float[Tensor, "points classes"], labels: Int[Tensor, " points"], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Tensor, ""]:
    """Focal loss of independent classes, summed over all points and classes.

    Args:
        logits: before the sigmoid.
        labels: below 0 is background.
        alpha: weight of a point's own class; the others have 1 - alpha.
        gamma: power by which easy examples count less.

    Returns:
        float32, also where the logits have less precision.

    Source:
        Lin et al., Focal Loss, eq. 5 (arXiv:1708.02002).
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        is_own = (labels[:, None] == torch.arange(logits.shape[1], device=logits.device)).float()
        probabilities = logits.sigmoid()
        wrong = probabilities * (1 - is_own) + (1 - probabilities) * is_own
        weight = alpha * is_own + (1 - alpha) * (1 - is_own)
        entropy = functional.binary_cross_entropy_with_logits(logits, is_own, reduction="none")
        return (weight * wrong**gamma * entropy).sum()


def centerness_of(distances: Float[Tensor, "*points 4"]) -> Float[Tensor, "*points"]:
    """Score how central each point is in its box: 1 at the centre, 0 on a side.

    Points near a side predict poor boxes; at test time this score multiplies the class score, so NMS ranks them last.

    Args:
        distances: left, top, right, bottom distance to the sides of the box, in any unit, at least 0.

    Returns:
        A box without width or height scores 0, not NaN.

    Source:
        Tian et al., FCOS, section 3.3, eq. 3 (arXiv:1904.01355).
    """
    left, top, right, bottom = distances.unbind(dim=-1)
    # The floor acts only on boxes of zero size, where 0 / 0 would poison the whole loss.
    tiny = torch.finfo(distances.dtype).tiny
    horizontal = torch.minimum(left, right) / torch.maximum(left, right).clamp_min(tiny)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom).clamp_min(tiny)
    return (horizontal * vertical).sqrt()


def _areas(distances: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Predicted area X, intersection I, and its width and height."""
    left, top, right, bottom = torch.minimum(distances, targets).unbind(dim=-1)
    width, height = left + right, top + bottom
    return _area(distances), width * height, width, height


def _area(distances: Tensor) -> Tensor:
    left, top, right, bottom = distances.unbind(dim=-1)
    return (left + right) * (top + bottom)


def _is_box(targets: Tensor) -> Tensor:
    return (targets != 0).any(dim=-1)


def _at_least_float(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
