"""Losses of corners against the published normalisations, one image and one pair after the other."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from detectors.cornernet.cornernet import CornerNet, CornerNetSettings
from detectors.cornernet.losses import pull_and_push
from detectors.cornernet.targets import CornerTargets
from tests.detectors.cornernet.stand_in import StandIn, random_maps

INPUT = (63, 95)


def detector(**settings: Any) -> CornerNet:
    return CornerNet(3, StandIn(), CornerNetSettings(max_objects=8, **settings))


def targets(*images: list[list[float]]) -> CornerTargets:
    most = max(1, *map(len, images))
    boxes, labels = torch.zeros(len(images), most, 4), torch.full((len(images), most), -1)
    for image, rows in enumerate(images):
        for row, corners in enumerate(rows):
            boxes[image, row], labels[image, row] = tensor(corners), row % 3
    return detector().encode(boxes, labels, INPUT)


def by_hand(top_left: list[list[float]], bottom_right: list[list[float]]) -> tuple[float, float]:
    """Equations 4 and 5 as the published code has them, for the tags of real objects of each image."""
    pull = push = 0.0
    for first, second in zip(top_left, bottom_right, strict=True):
        means = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
        count = len(means)
        pull += sum(
            ((a - m) ** 2 + (b - m) ** 2) / (count + 1e-4) for a, b, m in zip(first, second, means, strict=True)
        )
        for one in means:
            for other in means:
                push += (max(0.0, 1 - abs(one - other)) - 1 / (count + 1e-4)) / ((count - 1) * count + 1e-4)
    return pull, push


def test_pull_and_push_are_sums_over_images_of_their_means() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    counts = [6, 3, 2, 0]
    mask = torch.arange(6) < tensor(counts)[:, None]
    expected = by_hand(
        [row[:count].tolist() for row, count in zip(first, counts, strict=True)],
        [row[:count].tolist() for row, count in zip(second, counts, strict=True)],
    )
    given = pull_and_push(first, second, mask)
    assert [value.item() for value in given] == pytest.approx(expected, rel=1e-4)
    # Twice the images, twice the loss: it is not a mean over images.
    twice = pull_and_push(first.repeat(2, 1), second.repeat(2, 1), mask.repeat(2, 1))
    assert [value.item() for value in twice] == pytest.approx([2 * value.item() for value in given])


def test_one_object_has_a_constant_push() -> None:
    tags = tensor([[3.0]], requires_grad=True)
    pull, push = pull_and_push(tags, tags, tensor([[True]]))
    # (1 - 1 / 1.0001) / 1e-4 = 0.9999, of which float32 makes 1.0002.
    assert push.item() == pytest.approx(0.9999, abs=1e-3)
    assert pull.item() == 0
    push.backward()
    assert tags.grad is not None
    assert not tags.grad.any()


def test_no_objects_have_no_pull_and_push() -> None:
    tags = torch.randn(2, 5, requires_grad=True)
    pull, push = pull_and_push(tags, tags, torch.zeros(2, 5, dtype=torch.bool))
    assert (pull.item(), push.item()) == (0, 0)
    (pull + push).backward()
    assert tags.grad is not None
    assert not tags.grad.any()


def focal(logits: Tensor, heatmap: Tensor, counted: Tensor | None = None) -> float:
    total, centers = 0.0, int((heatmap == 1).sum())
    counts = torch.ones_like(heatmap) if counted is None else counted
    for logit, wanted, counts_here in zip(
        logits.flatten().tolist(), heatmap.flatten().tolist(), counts.flatten().tolist(), strict=True
    ):
        p = min(max(1 / (1 + math.exp(-logit)), 1e-4), 1 - 1e-4)
        here = (1 - p) ** 2 * math.log(p) if wanted == 1 else (1 - wanted) ** 4 * p**2 * math.log(1 - p)
        total -= here * float(counts_here)
    return total / max(centers, 1)


def offsets(values: Tensor, point: Any, mask: Tensor) -> float:
    total = 0.0
    for image, row in mask.nonzero().tolist():
        read = values[image].flatten(1)[:, int(point.index[image, row])]
        for difference in (read - point.offset[image, row]).abs().tolist():
            total += 0.5 * difference**2 if difference < 1 else difference - 0.5
    return total / (int(mask.sum()) + 1e-4)


@pytest.mark.parametrize("images", [1, 3])
def test_losses_are_the_published_ones(images: int) -> None:
    boxes = [[4.0, 4, 40, 30], [10, 8, 90, 60], [50, 20, 70, 44], [4, 4, 20, 20]]
    goal = targets(*[boxes, [], boxes[:1]][:images])
    stacks = [random_maps(3, (16, 24), seed, images) for seed in (1, 2)]
    given = detector().losses(stacks, goal)
    expected = dict.fromkeys(("heatmap", "pull", "push", "offset"), 0.0)
    for maps in stacks:
        for name, point in goal.points.items():
            expected["heatmap"] += focal(maps[f"{name}_heatmap"], point.heatmap) / 2
            expected["offset"] += offsets(maps[f"{name}_offset"], point, goal.object_mask) / 2
        tags = [
            [
                [
                    float(maps[f"{name}_tag"][image].flatten()[goal.points[name].index[image, row]])
                    for row in goal.object_mask[image].nonzero().flatten().tolist()
                ]
                for image in range(images)
            ]
            for name in ("top_left", "bottom_right")
        ]
        pull, push = by_hand(*tags)
        expected["pull"] += pull / 2
        expected["push"] += push / 2
    expected["loss"] = expected["heatmap"] + 0.1 * expected["pull"] + 0.1 * expected["push"] + expected["offset"]
    assert {name: value.item() for name, value in given.items()} == pytest.approx(expected, rel=1e-3)
    assert all(value.dtype == torch.float32 and value.dim() == 0 for value in given.values())


def test_the_weights_are_settings() -> None:
    goal, maps = targets([[4.0, 4, 40, 30], [10, 8, 90, 60]]), [random_maps(3, (16, 24), 1)]
    parts = detector(heatmap_weight=2.0, pull_weight=3.0, push_weight=5.0, offset_weight=0.0).losses(maps, goal)
    expected = 2 * parts["heatmap"] + 3 * parts["pull"] + 5 * parts["push"]
    assert parts["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_losses_are_float32_under_autocast_and_from_half_precision() -> None:
    goal = targets([[4.0, 4, 40, 30], [10, 8, 90, 60]], [])
    maps = {name: values.bfloat16() for name, values in random_maps(3, (16, 24), 1, 2).items()}
    exact = detector().losses([{name: values.float() for name, values in maps.items()}], goal)
    with torch.autocast("cpu", torch.bfloat16):
        given = detector().losses([maps], goal)
    assert {name: value.item() for name, value in given.items()} == {
        name: value.item() for name, value in exact.items()
    }


def test_sure_maps_have_a_finite_loss_and_gradient() -> None:
    goal = targets([], [])
    maps = {name: (values * 1000).requires_grad_() for name, values in random_maps(3, (16, 24), 1, 2).items()}
    loss = detector().losses([maps], goal)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(values.grad is None or values.grad.isfinite().all() for values in maps.values())
