"""Test-time augmentation: mirrored maps averaged, and the detections of several scales merged into one list.

CenterNet averages its heads' maps of an image and of its mirror, cell by cell; FCOS decodes both and lets NMS choose.
The modes are those of the papers' tables: "none", "flip", and "multiscale", which is flip at every scale.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from detectors.detections import Detections, joined
from detectors.shapes import Float, Int
from detectors.shared.suppression import soft_nms

COCO_JOINT_PAIRS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
"""COCO's joints that a mirror exchanges: eyes, ears, shoulders, elbows, wrists, hips, knees, ankles."""


def averaged_with_mirror(
    maps: Float[Tensor, "batch channels height width"], mirrored: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch channels height width"]:
    """Mean of an image's maps and of its mirror image's, which are turned back."""
    return (maps + mirrored.flip(-1)) / 2


def exchange_joints(joints: int) -> list[int]:
    """For each joint, the joint of the mirror image that it is: COCO's 17 swap left and right, others stay."""
    order = list(range(joints))
    if joints == 17:
        for left, right in COCO_JOINT_PAIRS:
            order[left], order[right] = right, left
    return order


def mirror_displacements(
    displacement: Float[Tensor, "batch coordinates height width"],
) -> Float[Tensor, "batch coordinates height width"]:
    """Turn a mirror image's displacements of joints into the image's: columns turned, x negated, joints swapped.

    Args:
        displacement: x and y of each joint, relative to the cell.

    Source:
        xingyizhou/CenterNet, src/lib/models/utils.py, `flip_lr_off`.
    """
    batch, channels, height, width = displacement.shape
    pairs = displacement.flip(-1).reshape(batch, channels // 2, 2, height, width)
    pairs = pairs[:, exchange_joints(channels // 2)] * pairs.new_tensor([-1, 1]).view(1, 1, 2, 1, 1)
    return pairs.reshape(displacement.shape)


def mirror_content(
    images: Float[Tensor, "batch channels height width"], widths: Int[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Mirror the first `widths` columns of each image, and leave the padding to their right where it is."""
    columns = torch.arange(images.shape[-1], device=images.device).expand(len(images), -1)
    inside = columns < widths[:, None]
    source = torch.where(inside, widths[:, None] - 1 - columns, columns)
    return images.gather(-1, source[:, None, None].expand_as(images))


def best_with_ties(scores: Float[Tensor, " boxes"], limit: int) -> Int[Tensor, " kept"]:
    """Rows of all scores that are at least the `limit`-th best, best first; of equal ones the first in the list."""
    order = scores.argsort(descending=True, stable=True)
    if len(order) > limit:
        ranked = scores[order]
        order = order[ranked >= ranked[limit - 1]]
    return order


def merge_by_soft_nms(
    parts: Sequence[Detections], limit: int, *, sigma: float = 0.5, with_stale_rows: bool = True
) -> Detections:
    """Merge as CenterNet does: Gaussian soft-NMS class by class, then all that score at least the `limit`-th best.

    Two quirks are kept because published figures depend on them: the stale rows that soft-NMS leaves at the end of its
    list stay in (those of poses with the keypoints of the dropped rows), and detections that tie for the last place
    all stay, so more than `limit` may be returned.

    Args:
        parts: detections of each scale in one frame (the image's, as published), in the order of the scales.
        limit: best detections over all classes.
        sigma: width of the Gaussian.
        with_stale_rows: False leaves out the rows that soft-NMS has dropped.

    Returns:
        Best score first, on the CPU: soft-NMS is a chain of small steps, which a GPU would only slow down.

    Source:
        xingyizhou/CenterNet, src/lib/detectors/ctdet.py and multi_pose.py, `merge_outputs`.
    """
    every = joined(parts).cpu()
    places = soft_nms(every.boxes, every.scores, every.labels, sigma=sigma)
    order = best_with_ties(places.scores if with_stale_rows else places.scores[: places.num_kept], limit)
    merged = every.rows(places.rows[order])
    # The published code swaps keypoints where it copies boxes, so they no longer match beyond the end of its list.
    keypoints = None if every.keypoints is None else every.keypoints[places.joints[order]]
    return replace(merged, scores=places.scores[order], keypoints=keypoints)
