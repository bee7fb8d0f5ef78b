"""Test-time augmentation: mirrored maps averaged, and the detections of several scales made into one list.

CenterNet averages what its heads say about an image and its mirror, cell by cell; FCOS decodes both and lets NMS
choose. The modes are those of the papers' tables: "none", "flip", and "multiscale", which is flip at every scale.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from detectors.detections import Detections, joined
from detectors.shared.suppression import soft_nms

COCO_JOINT_PAIRS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
"""COCO's joints that a mirror exchanges: eyes, ears, shoulders, elbows, wrists, hips, knees, ankles."""


def averaged_with_mirror(maps: Tensor, mirrored: Tensor) -> Tensor:
    """Mean of maps `(batch, channels, height, width)` and of their mirror image's, which is turned back."""
    return (maps + mirrored.flip(-1)) / 2


def exchange_joints(joints: int) -> list[int]:
    """Which joint of the mirror image each joint is: left and right change places; without COCO's 17 none do."""
    order = list(range(joints))
    if joints == 17:
        for left, right in COCO_JOINT_PAIRS:
            order[left], order[right] = right, left
    return order


def mirror_displacements(displacement: Tensor) -> Tensor:
    """What a mirror image says of joints, in terms of the image: columns turned, x negated, joints exchanged.

    Args:
        displacement: `(batch, 2 * joints, height, width)`, x and y of each joint seen from the cell.

    Source:
        xingyizhou/CenterNet, src/lib/models/utils.py, `flip_lr_off`.
    """
    batch, channels, height, width = displacement.shape
    pairs = displacement.flip(-1).reshape(batch, channels // 2, 2, height, width)
    pairs = pairs[:, exchange_joints(channels // 2)] * pairs.new_tensor([-1, 1]).view(1, 1, 2, 1, 1)
    return pairs.reshape(displacement.shape)


def mirror_content(images: Tensor, widths: Tensor) -> Tensor:
    """Mirror the first `widths` columns of each image and leave the padding behind them where it is.

    Args:
        images: `(batch, channels, height, width)`.
        widths: int64 `(batch,)`.
    """
    columns = torch.arange(images.shape[-1], device=images.device).expand(len(images), -1)
    inside = columns < widths[:, None]
    source = torch.where(inside, widths[:, None] - 1 - columns, columns)
    return images.gather(-1, source[:, None, None].expand_as(images))


def merge_by_soft_nms(parts: Sequence[Detections], limit: int) -> Detections:
    """CenterNet's merging: Gaussian soft-NMS class by class, then all that score no less than the `limit`-th best.

    Two quirks are kept because published figures rest on them: the stale rows that soft-NMS leaves at the end of its
    list stay in (those of poses with the keypoints of what was dropped), and detections that tie for the last place all
    stay, so more than `limit` may come back.

    Args:
        parts: detections of each scale in one frame (the image's, as published), in the order of the scales.
        limit: best detections over all classes.

    Returns:
        Best score first, on the CPU: soft-NMS is a chain of small steps, which a GPU would only slow down.

    Source:
        xingyizhou/CenterNet, src/lib/detectors/ctdet.py and multi_pose.py, `merge_outputs`.
    """
    every = joined(parts).cpu()
    places = soft_nms(every.boxes, every.scores, every.labels)
    order = places.scores.argsort(descending=True, stable=True)
    if len(order) > limit:
        ranked = places.scores[order]
        order = order[ranked >= ranked[limit - 1]]
    merged = every.rows(places.rows[order])
    # The published code swaps keypoints where it copies boxes, so behind the end of its list they part.
    keypoints = None if every.keypoints is None else every.keypoints[places.joints[order]]
    return replace(merged, scores=places.scores[order], keypoints=keypoints)
