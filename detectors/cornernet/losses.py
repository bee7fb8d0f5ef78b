"""Losses of detectors that find an object by its corners, with the normalisations of the published code.

All of them compute in float32 whatever the autocast state. They are sums and means over the images of this process:
the loss depends on the number of images that it has, as the published one depends on the images of a GPU.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from detectors.cornernet.targets import CornerTargets
from detectors.shapes import Bool, Float
from detectors.shared.losses import at_centers, masked_smooth_l1_loss, penalty_reduced_focal_loss

_DENOMINATOR_FLOOR = 1e-4


def pull_and_push(
    top_left: Float[Tensor, "batch objects"],
    bottom_right: Float[Tensor, "batch objects"],
    mask: Bool[Tensor, "batch objects"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Pull the two tags of an object together, and push the mean tags of an image's objects 1 apart.

    Args:
        top_left: the tag at each object's top left corner.
        bottom_right: the tag at its bottom right corner.
        mask: False leaves a row out.

    Returns:
        Sums over images, each image normalised by its own objects.

    Source:
        CornerNet, eq. 4 and 5 (arXiv:1808.01244); princeton-vl/CornerNet, models/py_utils/kp_utils.py, `_ae_loss`.
    """
    with torch.autocast(top_left.device.type, enabled=False):
        top_left, bottom_right = top_left.float(), bottom_right.float()
        num = mask.sum(dim=1, keepdim=True).float()
        mean = (top_left + bottom_right) / 2
        distance = (top_left - mean) ** 2 + (bottom_right - mean) ** 2
        pull = (distance * mask / (num + _DENOMINATOR_FLOOR)).sum()
        num = num[..., None]
        too_close = (1 - (mean[:, None] - mean[..., None]).abs()).relu()
        # The pairs include each object with itself, whose 1 is taken out by subtracting a share of it from every pair.
        # The floor keeps that from being exact: an image with one object adds a constant 0.9999, without a gradient.
        each = (too_close - 1 / (num + _DENOMINATOR_FLOOR)) / ((num - 1) * num + _DENOMINATOR_FLOOR)
        push = torch.where(mask[:, None] & mask[..., None], each, 0).sum()
        return pull, push


def corner_losses(
    outputs: Sequence[Mapping[str, Tensor]],
    targets: CornerTargets,
    counted: Mapping[str, Bool[Tensor, "batch classes height width"]] | None = None,
) -> dict[str, Tensor]:
    """Focal losses of the points' heatmaps, pull, push, and losses of offsets: sums over points, means over stacks.

    Args:
        outputs: raw maps of each stack.
        targets: of the points that count.
        counted: for each point, the cells that count in the focal loss.

    Returns:
        Scalars float32 "heatmap", "pull", "push" and "offset", unweighted.

    Source:
        princeton-vl/CornerNet, models/py_utils/kp.py, `AELoss`; CornerNet-Lite, core/models/py_utils/losses.py.
    """
    mask = targets.object_mask
    zero = torch.zeros((), device=mask.device)
    parts = dict.fromkeys(("heatmap", "pull", "push", "offset"), zero)
    for maps in outputs:
        for name, point in targets.points.items():
            cells = None if counted is None else counted[name]
            heatmap = penalty_reduced_focal_loss(maps[f"{name}_heatmap"], point.heatmap, cells)
            # Smooth L1 over all coordinates, divided by the number of objects; the points are added, not averaged.
            offset = masked_smooth_l1_loss(at_centers(maps[f"{name}_offset"], point.index), point.offset, mask)
            parts["heatmap"] = parts["heatmap"] + heatmap / len(outputs)
            parts["offset"] = parts["offset"] + offset / len(outputs)
        top_left, bottom_right = (
            at_centers(maps[f"{name}_tag"], targets.points[name].index)[..., 0] for name in ("top_left", "bottom_right")
        )
        pull, push = pull_and_push(top_left, bottom_right, mask)
        parts["pull"] = parts["pull"] + pull / len(outputs)
        parts["push"] = parts["push"] + push / len(outputs)
    return parts
