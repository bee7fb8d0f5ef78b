"""CenterNet's losses, with the denominators of the published code, which differ from one to the next.

All of them compute in float32 whatever the autocast state: in bfloat16 and float16 `1 - 1e-4` is 1, and the
focal loss would take the logarithm of 0.
"""

import torch
from torch import Tensor
from torch.nn import functional

from detectors.shapes import Bool, Float, Int

_DENOMINATOR_FLOOR = 1e-4


def penalty_reduced_focal_loss(
    logits: Float[Tensor, "batch classes height width"],
    heatmap: Float[Tensor, "batch classes height width"],
    counted: Bool[Tensor, "batch classes height width"] | None = None,
) -> Float[Tensor, ""]:
    """Focal loss on a heatmap of Gaussians: cells near a centre are punished less for a high score.

    Args:
        logits: before the sigmoid.
        heatmap: 0 .. 1; exactly 1 at object centres.
        counted: False for cells to leave out of the sum. Centres among them still count in its denominator, as
            CornerNet-Saccade's do.

    Returns:
        The sum over all cells divided by the number of cells that are exactly 1 in the whole batch of this process;
        undivided if there is none. The probability is clamped to 1e-4 .. 1 - 1e-4, so cells
        beyond that have no gradient.

    Source:
        Objects as Points, eq. 1 with alpha 2 and beta 4 (arXiv:1904.07850); xingyizhou/CenterNet,
        src/lib/models/losses.py, `_neg_loss`, and src/lib/models/utils.py, `_sigmoid`.
    """
    with torch.autocast(logits.device.type, enabled=False):
        heatmap = heatmap.float()
        probabilities = logits.float().sigmoid().clamp(1e-4, 1 - 1e-4)
        is_center = (heatmap == 1).float()
        positive = probabilities.log() * (1 - probabilities) ** 2 * is_center
        # At centres (1 - heatmap) is 0, which leaves them out.
        negative = (1 - probabilities).log() * probabilities**2 * (1 - heatmap) ** 4
        if counted is not None:
            positive, negative = positive * counted, negative * counted
        return -(positive.sum() + negative.sum()) / is_center.sum().clamp_min(1)


def masked_l1_loss(
    values: Float[Tensor, "batch objects coordinates"],
    targets: Float[Tensor, "batch objects coordinates"],
    mask: Bool[Tensor, "batch objects *coordinates"] | Float[Tensor, "batch objects *coordinates"],
) -> Float[Tensor, ""]:
    """Mean absolute difference over the coordinates of real objects.

    Args:
        values: read from a head's map.
        targets: in the same unit.
        mask: of rows, or of single coordinates; False or 0 leaves one out.

    Returns:
        The denominator is the number of *coordinates* that the mask leaves, plus 1e-4.

    Source:
        xingyizhou/CenterNet, src/lib/models/losses.py, `RegL1Loss` and `RegWeightedL1Loss`.
    """
    with torch.autocast(values.device.type, enabled=False):
        mask = _coordinate_mask(mask, values)
        difference = values.float() * mask - targets.float() * mask
        return difference.abs().sum() / (mask.sum() + _DENOMINATOR_FLOOR)


def masked_smooth_l1_loss(
    values: Float[Tensor, "batch objects coordinates"],
    targets: Float[Tensor, "batch objects coordinates"],
    mask: Bool[Tensor, "batch objects"] | Float[Tensor, "batch objects"],
) -> Float[Tensor, ""]:
    """Smooth L1 (quadratic below 1) over real objects, summed over their coordinates.

    Args:
        values: read from a head's map.
        targets: in the same unit.
        mask: False or 0 leaves a row out.

    Returns:
        The denominator is the number of *objects*, plus 1e-4: half of `masked_l1_loss`'s for sizes.

    Source:
        xingyizhou/CenterNet, src/lib/models/losses.py, `RegLoss`.
    """
    with torch.autocast(values.device.type, enabled=False):
        coordinates = _coordinate_mask(mask, values)
        total = functional.smooth_l1_loss(values.float() * coordinates, targets.float() * coordinates, reduction="sum")
        return total / (mask.float().sum() + _DENOMINATOR_FLOOR)


def at_centers(
    maps: Float[Tensor, "batch channels height width"], center_index: Int[Tensor, "batch objects"]
) -> Float[Tensor, "batch objects channels"]:
    """Read a head's map at each object's cell.

    Args:
        maps: one of a head's outputs.
        center_index: y * width + x of each object's cell.
    """
    index = center_index[:, None].expand(-1, maps.shape[1], -1)
    return maps.flatten(2).gather(2, index).transpose(1, 2)


def _coordinate_mask(mask: Tensor, values: Tensor) -> Tensor:
    return (mask if mask.dim() == values.dim() else mask[..., None]).float().expand_as(values)
