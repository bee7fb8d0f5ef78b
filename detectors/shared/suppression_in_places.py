"""Non-maximum suppression of a whole batch in tensors whose shapes do not depend on what is in them.

Greedy suppression keeps the best box, then the best of the rest, and so on. Since no more than `limit` boxes are
wanted, that many rounds suffice, each over all boxes of all images. The result is that of `suppression`, up to `limit`.

A *place* is a row that every image has. Results name places by their numbers, -1 where fewer boxes were kept.
"""

import torch
from torch import Tensor
from torch.nn import functional

from detectors.shapes import Float, Int
from detectors.shared.rounds import State, repeated

NONE = -1
"""Number of a place that does not exist, and label of a place without a box."""


def take(values: Tensor, places: Int[Tensor, "batch wanted"]) -> Tensor:
    """Rows `(batch, wanted, ...)` of `values` `(batch, places, ...)`, in the order of `places`; row 0 for `NONE`."""
    index = places.clamp_min(0)
    index = index.reshape(*index.shape, *(1 for _ in values.shape[2:]))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def filled_first(places: Int[Tensor, "batch wanted"]) -> Int[Tensor, "batch wanted"]:
    """The order in which those that are `NONE` come last and all others stay as they are."""
    return (places < 0).int().argsort(dim=1, stable=True)


def best_places(
    scores: Float[Tensor, "batch places"], limit: int
) -> tuple[Int[Tensor, "batch {limit}"], Float[Tensor, "batch {limit}"]]:
    """The `limit` best places, in their own order and not by score, and the scores there.

    Args:
        scores: negative where a place may not be chosen.
        limit: places to choose; if there are fewer, the rest is place 0 with a negative score.
    """
    # A level may have fewer places than are wanted, which is not known while tracing for any input size.
    padded = functional.pad(scores, (0, limit), value=-1.0)
    places = padded.topk(limit, dim=1).indices.sort(dim=1).values
    chosen = padded.gather(1, places)
    return torch.where(chosen < 0, 0, places), chosen


def nms_in_places(
    boxes: Float[Tensor, "batch places 4"],
    scores: Float[Tensor, "batch places"],
    labels: Int[Tensor, "batch places"],
    *,
    threshold: float,
    limit: int,
    plus_one: bool = False,
) -> Int[Tensor, "batch {limit}"]:
    """`suppression.nms`, class by class.

    Args:
        boxes: x1, y1, x2, y2; computed in float32.
        scores: of each box.
        labels: of each box; `NONE` where there is none.
        threshold: IoU above which the worse box is dropped.
        limit: boxes of an image to keep.
        plus_one: measure boxes as if x2 and y2 were their last pixels.

    Returns:
        Places, best score first.
    """
    apart = torch.ones_like(labels[:, :1], dtype=torch.bool)
    return _greedy(boxes.float(), scores, labels, apart, threshold, limit, plus_one)


def shifting_nms_in_places(
    boxes: Float[Tensor, "batch places 4"],
    scores: Float[Tensor, "batch places"],
    labels: Int[Tensor, "batch places"],
    *,
    threshold: float,
    limit: int,
    always: bool = False,
) -> Int[Tensor, "batch {limit}"]:
    """`suppression.shifting_nms`; see `nms_in_places` for arguments."""
    exists = labels >= 0
    most = 1_000 if boxes.device.type == "cpu" else 25_000
    in_place = (exists.sum(dim=1, keepdim=True) > most) & (not always)
    largest = torch.where(exists[..., None], boxes, -torch.inf).amax(dim=(1, 2))[:, None]
    shift = torch.where(in_place, 0, labels.to(boxes.dtype) * (largest + 1))
    # An image without boxes has no largest coordinate.
    shift = torch.where(exists, shift, 0)
    # Where boxes are shifted, only their places keep the classes apart.
    return _greedy((boxes + shift[..., None]).float(), scores, labels, in_place, threshold, limit, False)


def _greedy(
    boxes: Tensor, scores: Tensor, labels: Tensor, by_class: Tensor, threshold: float, limit: int, plus_one: bool
) -> Tensor:
    one = 1.0 if plus_one else 0.0
    areas = _areas(boxes, one)

    def keep_best(state: State) -> State:
        left, kept, count = state
        # argmax returns the first of equals.
        best = left.argmax(dim=1, keepdim=True)
        found = left.gather(1, best) > -torch.inf
        kept = _written(kept, count, torch.where(found, best, NONE))
        overlap = _overlaps(take(boxes, best), boxes, areas.gather(1, best), areas, one)
        drops = (overlap > threshold) & ((labels == labels.gather(1, best)) | ~by_class)
        # A box without area does not even overlap itself.
        drops = drops.scatter(1, best, True)
        return torch.where(drops, -torch.inf, left), kept, count + 1

    left = torch.where(labels >= 0, scores, -torch.inf)
    return repeated(keep_best, (left, _none(labels, limit), labels.new_zeros(1)), limit)[1]


def nms_of_classes(
    boxes: Float[Tensor, "batch places 4"],
    scores: Float[Tensor, "batch places classes"],
    *,
    threshold: float,
    limit: int,
    plus_one: bool = False,
) -> tuple[Int[Tensor, "batch {limit}"], Int[Tensor, "batch {limit}"]]:
    """`suppression.nms` of boxes that each may be of several classes.

    Args:
        boxes: x1, y1, x2, y2; computed in float32.
        scores: of each box for each class; -inf where it is not of the class.
        threshold: IoU above which the worse box of a class is dropped.
        limit: boxes of an image to keep.
        plus_one: measure boxes as if x2 and y2 were their last pixels.

    Returns:
        Places and labels, best score first; `NONE` for both where there is no box.
    """
    boxes = boxes.float()
    one = 1.0 if plus_one else 0.0
    num_classes = scores.shape[2]
    areas = _areas(boxes, one)
    classes = torch.arange(num_classes, device=boxes.device)
    numbers = torch.arange(boxes.shape[1], device=boxes.device)
    nothing = _none(scores, limit)

    def keep_best(state: State) -> State:
        left, places, labels, count = state
        flat = left.flatten(1)
        best = flat.argmax(dim=1, keepdim=True)
        found = flat.gather(1, best) > -torch.inf
        place = best // num_classes
        label = best - place * num_classes
        overlap = _overlaps(take(boxes, place), boxes, areas.gather(1, place), areas, one)
        drops = ((overlap > threshold) | (numbers == place))[..., None] & (classes == label)[:, None]
        return (
            torch.where(drops, -torch.inf, left),
            _written(places, count, torch.where(found, place, NONE)),
            _written(labels, count, torch.where(found, label, NONE)),
            count + 1,
        )

    count = torch.zeros(1, dtype=torch.int64, device=boxes.device)
    _, places, labels, _ = repeated(keep_best, (scores, nothing, nothing.clone(), count), limit)
    return places, labels


def soft_nms_in_places(
    boxes: Float[Tensor, "batch places 4"],
    scores: Float[Tensor, "batch places"],
    labels: Int[Tensor, "batch places"],
    *,
    limit: int,
    with_stale_rows: bool,
    sigma: float = 0.5,
    threshold: float = 0.001,
) -> tuple[Int[Tensor, "batch {limit}"], Float[Tensor, "batch {limit}"]]:
    """`suppression.soft_nms` class by class, then the best `limit` of all classes, as in `merge_by_soft_nms`.

    Each round handles the box with the best score of all classes, instead of class after class. That does not change a
    class's own rounds, and what later rounds leave scores less than what was kept.

    Args:
        boxes: x1, y1, x2, y2; sides are x2 - x1 + 1, as published.
        scores: of each box.
        labels: of each box; `NONE` where there is none.
        limit: boxes of an image to return.
        with_stale_rows: also choose from the rows that the published code leaves at the end of each list.
        sigma: width of the Gaussian.
        threshold: score below which an overlapping box is dropped.

    Returns:
        Places and decayed scores, best first; 0 where there is no box.
    """
    # The list of each class becomes a range of places; boxes that do not exist come last.
    listed = torch.where(labels >= 0, labels, torch.iinfo(labels.dtype).max).argsort(dim=1, stable=True)
    boxes, labels = take(boxes.float(), listed), labels.gather(1, listed)
    place = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    exists = labels >= 0
    nowhere = torch.zeros_like(exists)

    def decay(state: State) -> State:
        rows, scores, left, kept, stale = state
        # Swap the best of what is left to the front of its list.
        best = torch.where(left, scores, -torch.inf).argmax(dim=1, keepdim=True)
        found = left.gather(1, best)
        of_class = left & (labels == labels.gather(1, best)) & found
        front = of_class.int().argmax(dim=1, keepdim=True)
        is_front, is_best = of_class & (place == front), of_class & (place == best)
        source = torch.where(is_front, best, torch.where(is_best, front, place))
        rows, scores = rows.gather(1, source), scores.gather(1, source)
        kept = kept | is_front
        behind = of_class & (place > front)
        # Lower the scores of those that overlap it.
        here = take(boxes, rows)
        areas = _areas(here, 1.0)
        overlap = _overlaps(take(here, front), here, areas.gather(1, front), areas, 1.0)
        decayed = torch.where(overlap > 0, scores * torch.exp(-(overlap**2) / sigma), scores)
        dropped = behind & (overlap > 0) & (decayed < threshold)
        stays = behind & ~dropped
        # Fill gaps from the left with rows that stay from the right; see `_close_gaps` of `suppression`.
        num_left, num_behind = stays.sum(dim=1, keepdim=True), behind.sum(dim=1, keepdim=True)
        end = front + 1 + num_left
        gap, filler = dropped & (place < end), stays & (place >= end)
        num_fillers = filler.sum(dim=1, keepdim=True)
        from_right = num_fillers - filler.cumsum(dim=1)
        # One place more takes what is not a filler.
        last = labels.shape[1]
        fillers = functional.pad(torch.zeros_like(place), (0, 1))
        fillers = fillers.scatter(1, torch.where(filler, from_right, last), place)
        source = torch.where(gap, fillers.gather(1, gap.cumsum(dim=1) - gap.long()), place)
        # Rows behind the new end keep what they were, except the first if the last thing done was to drop it there.
        first_filler = torch.where(filler, place, last).amin(dim=1, keepdim=True)
        last_taken = torch.where(num_fillers > 0, first_filler, front + 1 + num_behind)
        dropped_last = behind & (place == end) & (last_taken > end)
        source = torch.where(dropped_last, torch.minimum(end + 1, last_taken - 1), source)
        remains = behind & (place < end)
        scores = torch.where(remains | dropped_last, decayed.gather(1, source), scores)
        stale = stale | (behind & ~remains)
        return rows.gather(1, source), scores, (left & ~of_class) | remains, kept, stale

    state = (place.clone(), scores.float().gather(1, listed), exists, nowhere, nowhere.clone())
    rows, scores, _, kept, stale = repeated(decay, state, limit)
    # Kept rows of all classes come before stale ones among those that score the same.
    group = torch.where(kept, 0, torch.where(stale, 1, 2)) if with_stale_rows else torch.where(kept, 0, 2)
    order = group.argsort(dim=1, stable=True)
    chosen = torch.where(group.gather(1, order) < 2, scores.gather(1, order), -torch.inf)
    order = order.gather(1, chosen.argsort(dim=1, descending=True, stable=True))
    order = order[:, :limit] if limit <= order.shape[1] else functional.pad(order, (0, limit - order.shape[1]))
    exists = group.gather(1, order) < 2
    exists = exists & (torch.arange(limit, device=exists.device) < labels.shape[1])
    found = listed.gather(1, rows.gather(1, order))
    return torch.where(exists, found, NONE), torch.where(exists, scores.gather(1, order), 0)


def _none(like: Tensor, limit: int) -> Int[Tensor, "batch {limit}"]:
    return torch.full((like.shape[0], limit), NONE, device=like.device)


def _written(list_: Tensor, at: Tensor, value: Tensor) -> Tensor:
    """The list with one value of each image written at a place."""
    return list_.scatter(1, at.expand(list_.shape[0], 1), value)


def _areas(boxes: Tensor, one: float) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2] + one).prod(dim=-1)


def _overlaps(first: Tensor, second: Tensor, first_areas: Tensor, second_areas: Tensor, one: float) -> Tensor:
    """IoU of one box of each image with all of them; NaN between two boxes without area."""
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2]) + one
    intersection = sides.clamp_min(0).prod(dim=-1)
    return intersection / (first_areas + second_areas - intersection)
