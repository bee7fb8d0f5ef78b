"""Non-maximum suppression, hard and soft, with the results of the greedy algorithms, computed block by block.

Greedy suppression looks at one box after the other. Here a block of boxes is decided at once, and then suppresses the
boxes after it. The result is the greedy one, to the last box.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from detectors.shapes import Float, Int

_BLOCK = 256


def nms(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, " boxes"],
    labels: Int[Tensor, " boxes"] | None = None,
    *,
    threshold: float,
    plus_one: bool = False,
    limit: int | None = None,
    keep_ties: bool = False,
) -> Int[Tensor, " kept"]:
    """Keep a box unless it overlaps a kept box of its class with a better score.

    Args:
        boxes: x1, y1, x2, y2; computed in float32.
        scores: of equal scores, the first in the list counts as better.
        labels: boxes of different labels never suppress one another. Without labels, all are of one class.
        threshold: IoU above which (not at which) the worse box is dropped.
        plus_one: measure boxes as if x2 and y2 were their last pixels: sides are x2 - x1 + 1.
        limit: stop once this many boxes are kept.
        keep_ties: also keep boxes beyond `limit` that score as much as the last one within it.

    Returns:
        Rows of `boxes`, best score first. A box without area overlaps nothing (without `plus_one`).

    Source:
        facebookresearch/maskrcnn-benchmark, csrc/cuda/nms.cu and ml_nms.cu; torchvision/ops/boxes.py.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, scores = boxes[order].float(), scores[order]
    labels = None if labels is None else labels[order]
    alive = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    kept: list[Tensor] = []
    num_kept = 0
    for start in range(0, len(boxes), _BLOCK):
        # Boxes that no earlier block has suppressed; among themselves they are decided by `_settle`.
        block = start + alive[start : start + _BLOCK].nonzero().squeeze(1)
        block = block[_settle(_overlaps(boxes, labels, block, block, plus_one) > threshold)]
        kept.append(block)
        num_kept += len(block)
        if limit is not None and num_kept >= limit:
            # Scores are sorted: once those after this block are lower, nothing can tie for the last place.
            lowest = scores[torch.cat(kept)[limit - 1]]
            if not keep_ties or bool((scores[start + _BLOCK :] < lowest).all()):
                break
        rest = start + _BLOCK + alive[start + _BLOCK :].nonzero().squeeze(1)
        alive[rest] = ~(_overlaps(boxes, labels, block, rest, plus_one) > threshold).any(dim=0)
    if not kept:
        return order
    rows = torch.cat(kept)
    if limit is not None and len(rows) > limit:
        rows = rows[scores[rows] >= scores[rows[limit - 1]]] if keep_ties else rows[:limit]
    return order[rows]


def shifting_nms(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, " boxes"],
    labels: Int[Tensor, " boxes"],
    *,
    threshold: float,
    limit: int | None = None,
    keep_ties: bool = False,
    always: bool = False,
) -> Int[Tensor, " kept"]:
    """torchvision's `nms` for several classes: up to 1,000 boxes, it shifts each class to a place of its own.

    A label shifts its boxes by that many times the largest coordinate plus 1. That far from 0, float32 has steps of up
    to 1/128 (at 91 classes and 1,333 pixels), so overlaps near the threshold may be decided otherwise than in place.

    Args:
        boxes: x1, y1, x2, y2. Those below 0, as before clipping, may reach into the place of the class before theirs
            and are suppressed by its boxes, as published.
        scores: of each box.
        labels: of each box.
        threshold: IoU above which the worse box is dropped.
        limit: stop once this many boxes are kept.
        keep_ties: also keep boxes beyond `limit` that score as much as the last one within it.
        always: shift however many boxes there are, as mmcv does.

    Returns:
        Rows of `boxes`, best score first.

    Source:
        torchvision/ops/boxes.py, `batched_nms`; open-mmlab/mmcv, mmcv/ops/nms.py, `batched_nms`.
    """
    most = 1_000 if boxes.device.type == "cpu" else 25_000
    if (len(boxes) > most and not always) or not len(boxes):
        return nms(boxes, scores, labels, threshold=threshold, limit=limit, keep_ties=keep_ties)
    apart = boxes + (labels.to(boxes.dtype) * (boxes.max() + 1))[:, None]
    return nms(apart, scores, threshold=threshold, limit=limit, keep_ties=keep_ties)


class SoftNMS(NamedTuple):
    """The list that soft-NMS leaves, place by place.

    Places beyond `num_kept` hold whatever the published code leaves there: copies of rows that were moved forward, with
    the score from before that round.
    """

    rows: Int[Tensor, " boxes"]
    """The row whose box is in this place."""
    scores: Float[Tensor, " boxes"]
    """The decayed score, float32."""
    num_kept: int
    """Places that count."""
    joints: Int[Tensor, " boxes"]
    """The row whose keypoints are in this place: the same as `rows` among the places that count, but beyond them the
    row that was dropped, because the published code for poses copies boxes and swaps keypoints."""


def soft_nms(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, " boxes"],
    labels: Int[Tensor, " boxes"] | None = None,
    *,
    sigma: float = 0.5,
    threshold: float = 0.001,
) -> SoftNMS:
    """Lower the scores of boxes that overlap better ones by a Gaussian of the IoU, instead of dropping them.

    Round by round the best of the rest is swapped to the front and the scores behind it fall by
    `exp(-IoU² / sigma)`; a box that overlaps it and falls below `threshold` is overwritten by the last box of the
    list, which gets shorter. CenterNet ignores how many are left and uses the whole list (`rows` and `scores` uncut),
    stale rows included; everybody else cuts at `num_kept`.

    Args:
        boxes: x1, y1, x2, y2; sides are x2 - x1 + 1, as published.
        scores: of equal scores, the first in the list in its current order counts as better.
        labels: every class has a list of its own. The places that count come first, class after class, then the stale
            ones, class after class. Without labels, all boxes are of one class.
        sigma: width of the Gaussian.
        threshold: score below which an overlapping box is dropped.

    Source:
        Bodla et al., Soft-NMS, section 3 (arXiv:1704.04503); xingyizhou/CenterNet, src/lib/external/nms.pyx.
    """
    if labels is not None:
        return _soft_nms_by_class(boxes, scores, labels, sigma, threshold)
    index = torch.arange(len(boxes), device=boxes.device)
    boxes, scores = boxes.float(), scores.float().clone()
    end = len(boxes)
    dropped_rows: list[Tensor] = []
    current = 0
    while current < end:
        # argmax returns the first of equals, as the published loop finds it.
        best = current + scores[current:end].argmax()
        swap = torch.stack((best, torch.full_like(best, current)))
        index[swap.flip(0)], scores[swap.flip(0)] = index[swap], scores[swap]
        behind = index[current + 1 : end]
        overlap = _overlaps(boxes, None, index[current : current + 1], behind, plus_one=True)[0]
        falling = scores[current + 1 : end] * torch.exp(-(overlap**2) / sigma)
        decayed = torch.where(overlap > 0, falling, scores[current + 1 : end])
        # The published code compares with the threshold only where boxes overlap.
        dropped = (overlap > 0) & (decayed < threshold)
        if bool(dropped.any()):
            dropped_rows.append(behind[_dropping_order(dropped.tolist())])
        end = _close_gaps(index, scores, decayed, dropped, current + 1)
        current += 1
    # Each dropped row leaves its keypoints in the place that was the list's last one then.
    return SoftNMS(index, scores, end, torch.cat((index[:end], torch.cat([index[:0], *dropped_rows]).flip(0))))


def _soft_nms_by_class(boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float, threshold: float) -> SoftNMS:
    kept: list[tuple[Tensor, ...]] = []
    stale: list[tuple[Tensor, ...]] = []
    for label in torch.unique(labels):
        rows = (labels == label).nonzero().squeeze(1)
        one = soft_nms(boxes[rows], scores[rows], sigma=sigma, threshold=threshold)
        places = (rows[one.rows], one.scores, rows[one.joints])
        kept.append(tuple(values[: one.num_kept] for values in places))
        stale.append(tuple(values[one.num_kept :] for values in places))
    if not kept:
        return SoftNMS(labels, scores.float(), 0, labels)
    index, decayed, joints = (torch.cat(parts) for parts in zip(*kept, *stale, strict=True))
    return SoftNMS(index, decayed, sum(len(values[0]) for values in kept), joints)


class MergedBoxes(NamedTuple):
    """The list that merging soft-NMS leaves; rows beyond `num_kept` are stale, as in `SoftNMS`."""

    boxes: Float[Tensor, "boxes 4"]
    """Merged boxes, float32; the stale ones are as they were."""
    scores: Float[Tensor, " boxes"]
    """The decayed score, float32."""
    rows: Int[Tensor, " boxes"]
    """The row of the box that the others were merged into."""
    num_kept: int
    """Places that count."""


def merging_soft_nms(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, " boxes"],
    corner_scores: Float[Tensor, "boxes 2"],
    labels: Int[Tensor, " boxes"],
    *,
    exponent: float,
    corners_stay: bool = True,
    sigma: float = 0.5,
    threshold: float = 0.001,
) -> MergedBoxes:
    """Apply soft-NMS class by class, and move each corner to the weighted mean of those that its box overlaps.

    The weight of a corner is its score times `(1 - decay) ** exponent`, where the decay is the factor on the score of
    its box; that of the box itself is its corner's score.

    Args:
        boxes: x1, y1, x2, y2; sides are x2 - x1 + 1, as published.
        scores: of each box.
        corner_scores: of each top left and bottom right corner.
        labels: every class has a list of its own; see `soft_nms` for the order of the result.
        exponent: of the weights.
        corners_stay: as published, boxes move within the list and the scores of their corners do not, so a box is
            weighted with the corners of the one that started in its place. False: with its own.
        sigma: width of the Gaussian.
        threshold: score below which an overlapping box is dropped.

    Source:
        princeton-vl/CornerNet, external/nms.pyx, `soft_nms_merge`.
    """
    kept: list[tuple[Tensor, ...]] = []
    stale: list[tuple[Tensor, ...]] = []
    for label in torch.unique(labels):
        rows = (labels == label).nonzero().squeeze(1)
        one = _merge_one_class(
            boxes[rows].float(),
            scores[rows].float().clone(),
            corner_scores[rows].float(),
            exponent,
            corners_stay,
            sigma,
            threshold,
        )
        places = (one.boxes, one.scores, rows[one.rows])
        kept.append(tuple(values[: one.num_kept] for values in places))
        stale.append(tuple(values[one.num_kept :] for values in places))
    if not kept:
        return MergedBoxes(boxes.float(), scores.float(), labels, 0)
    merged, decayed, index = (torch.cat(parts) for parts in zip(*kept, *stale, strict=True))
    return MergedBoxes(merged, decayed, index, sum(len(values[0]) for values in kept))


def _merge_one_class(
    boxes: Tensor,
    scores: Tensor,
    corner_scores: Tensor,
    exponent: float,
    corners_stay: bool,
    sigma: float,
    threshold: float,
) -> MergedBoxes:
    index = torch.arange(len(boxes), device=boxes.device)
    corners = boxes.view(-1, 2, 2)
    merged: list[Tensor] = []
    end = len(boxes)
    current = 0
    while current < end:
        best = current + scores[current:end].argmax()
        swap = torch.stack((best, torch.full_like(best, current)))
        index[swap.flip(0)], scores[swap.flip(0)] = index[swap], scores[swap]
        behind = index[current + 1 : end]
        overlap = _overlaps(boxes, None, index[current : current + 1], behind, plus_one=True)[0]
        decay = torch.exp(-(overlap**2) / sigma)
        decayed = torch.where(overlap > 0, scores[current + 1 : end] * decay, scores[current + 1 : end])
        dropped = (overlap > 0) & (decayed < threshold)
        if corners_stay:
            own, others = corner_scores[current], corner_scores[current + 1 + _places_met(dropped)]
        else:
            own, others = corner_scores[index[current]], corner_scores[behind]
        # Without overlap the decay is 1 and the weight 0.
        weights = others * ((1 - decay) ** exponent)[:, None]
        total = (own + weights.sum(dim=0))[:, None]
        moved = own[:, None] * corners[index[current]] + (weights[..., None] * corners[behind]).sum(dim=0)
        merged.append(torch.where(total > 0, moved / total, corners[index[current]]))
        end = _close_gaps(index, scores, decayed, dropped, current + 1)
        current += 1
    return MergedBoxes(torch.cat((*(one.view(1, 4) for one in merged), boxes[index[end:]])), scores, index, end)


def _places_met(dropped: Tensor) -> Tensor:
    """The place in which the published loop meets each row of a round: rows at the list's end move into gaps."""
    num_left = int((~dropped).sum())
    gaps = dropped[:num_left].nonzero().squeeze(1)
    stays = (~dropped[num_left:]).flip(0).long()
    # From the right, all rows up to one that stays meet the loop in the same gap, the rest in the new end's place.
    met = torch.cat((gaps, gaps.new_tensor([num_left])))[stays.cumsum(0) - stays].flip(0)
    return torch.cat((torch.arange(num_left, device=dropped.device), met))


def _settle(beats: Tensor) -> Tensor:
    """Find the boxes of a block that stay; `beats[i, j]`, for i before j: i removes j if i itself stays.

    Each round is right about at least one more box than the round before, from the front.
    """
    beats = beats.triu(diagonal=1)
    stays = torch.ones(len(beats), dtype=torch.bool, device=beats.device)
    while True:
        now = ~(beats & stays[:, None]).any(dim=0)
        if torch.equal(now, stays):
            return stays
        stays = now


def _overlaps(boxes: Tensor, labels: Tensor | None, first: Tensor, second: Tensor, plus_one: bool) -> Tensor:
    """IoU `(first, second)` of rows of `boxes`; 0 between labels, NaN between two boxes without area."""
    one = 1.0 if plus_one else 0.0
    a, b = boxes[first, None], boxes[None, second]
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + one).clamp_min(0)
    intersection = sides.prod(dim=-1)
    areas = (boxes[:, 2:] - boxes[:, :2] + one).prod(dim=-1)
    overlaps = intersection / (areas[first, None] + areas[None, second] - intersection)
    if labels is not None:
        overlaps = torch.where(labels[first, None] == labels[None, second], overlaps, 0)
    return overlaps


def _close_gaps(index: Tensor, scores: Tensor, decayed: Tensor, dropped: Tensor, start: int) -> int:
    """Write a round's scores and fill the places of dropped rows from the list's end, in place. Returns its new end.

    The published loop puts the last row in the place of a dropped one and judges it there, and so on, until a row
    stays. So the gaps in front are filled, from the left, by rows that stay, from the right. Rows beyond the new end
    keep their content from before the round, except the first of them if the loop's last act was to drop it there.
    """
    num_left = int((~dropped).sum())
    end, old_end = start + num_left, start + len(dropped)
    gaps = dropped[:num_left].nonzero().squeeze(1)
    fillers = num_left + (~dropped[num_left:]).nonzero().squeeze(1).flip(0)
    # Rows from here to where the last filler came from are dropped at the list's end, one moving onto the next.
    last_taken = int(fillers[-1]) if len(fillers) else len(dropped)
    rows = index[start:old_end].clone()
    scores[start:end] = decayed[:num_left]
    index[start + gaps], scores[start + gaps] = rows[fillers], decayed[fillers]
    if last_taken > num_left:
        moved = min(num_left + 1, last_taken - 1)
        index[end], scores[end] = rows[moved], decayed[moved]
    return end


def _dropping_order(dropped: list[bool]) -> list[int]:
    """Rows of a round in the order in which the published loop drops them; the list's last row replaces each."""
    rows, order, place = list(range(len(dropped))), [], 0
    while place < len(rows):
        if not dropped[rows[place]]:
            place += 1
            continue
        order.append(rows[place])
        last = rows.pop()
        if place < len(rows):
            rows[place] = last
    return order
