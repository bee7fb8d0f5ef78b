"""FCOS's losses: by hand, against autograd, against loops."""

import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from detectors.shared.box_losses import centerness_of, giou_loss, sigmoid_focal_loss, unitbox_iou_loss


def autograd_iou_loss(distances: Tensor, targets: Tensor, plus: float) -> Tensor:
    """-ln IoU in corners, left to autograd."""
    boxes = [torch.cat((-d[:, :2], d[:, 2:]), dim=1) for d in (distances, targets)]
    sides = torch.minimum(boxes[0][:, 2:], boxes[1][:, 2:]) - torch.maximum(boxes[0][:, :2], boxes[1][:, :2])
    intersection = sides[:, 0] * sides[:, 1]
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in boxes]
    return -torch.log((intersection + plus) / (areas[0] + areas[1] - intersection + plus))


def pairs(count: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(count, 4, generator=generator, dtype=torch.float64) * 9 + 0.1 for _ in range(2))
    return first.requires_grad_(), second


def test_unitbox_by_hand() -> None:
    # 2 x 2 in 4 x 4: IoU 4/16; with the 1: 5/17.
    distances, targets = torch.ones(1, 4), torch.full((1, 4), 2.0)
    assert unitbox_iou_loss(distances, targets).item() == pytest.approx(math.log(4))
    assert unitbox_iou_loss(distances, targets, plus=1.0).item() == pytest.approx(math.log(17 / 5))


def test_unitbox_gradient_by_hand() -> None:
    # l, t, r, b = 1, 1, 1, 1 in 2, 2, 2, 2: dX = dI = 2, U = 16, I = 4: 2/16 - (16 + 4) / (16 × 4) × 2 = -0.5.
    distances = torch.ones(1, 4, requires_grad=True)
    unitbox_iou_loss(distances, torch.full((1, 4), 2.0)).sum().backward()
    assert_close(distances.grad, torch.full((1, 4), -0.5))


@pytest.mark.parametrize("plus", [0.0, 1.0])
def test_unitbox_gradient_is_autograds_away_from_ties(plus: float) -> None:
    distances, targets = pairs()
    upstream = torch.linspace(-1, 2, len(distances), dtype=torch.float64)
    ours = unitbox_iou_loss(distances, targets, plus)
    theirs = autograd_iou_loss(distances, targets, plus)
    assert_close(ours, theirs)
    (given,) = torch.autograd.grad(ours, distances, upstream)
    (expected,) = torch.autograd.grad(theirs, distances, upstream)
    assert_close(given, expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(lambda d: unitbox_iou_loss(d, targets, plus), distances)


def test_unitbox_in_a_tie_does_not_push_the_intersection() -> None:
    # Equal boxes 2 x 2: dL/dx = dX / U = 2 / 4, where autograd takes half of dI: 0.5 - (4 + 4) / 16 × 1 = 0.
    distances = torch.ones(1, 4, requires_grad=True)
    unitbox_iou_loss(distances, torch.ones(1, 4)).sum().backward()
    assert_close(distances.grad, torch.full((1, 4), 0.5))


def test_points_without_a_box_cost_nothing() -> None:
    distances = torch.rand(2, 4).requires_grad_()
    loss = unitbox_iou_loss(distances, torch.stack((torch.zeros(4), torch.ones(4))))
    assert loss[0] == 0
    assert loss[1] > 0
    loss.sum().backward()
    assert distances.grad is not None
    assert not distances.grad[0].any()
    assert distances.grad[1].all()


def test_giou_by_hand() -> None:
    # 2 x 2 in 4 x 4: IoU 1/4, enclosing 16 = union: 3/4. The 1 makes the IoU 5/17.
    distances, targets = torch.ones(1, 4), torch.full((1, 4), 2.0)
    assert giou_loss(distances, targets).item() == pytest.approx(0.75)
    assert giou_loss(distances, targets, plus=1.0).item() == pytest.approx(12 / 17)
    # A cross of 1 x 3 and 3 x 1: IoU 1/5, enclosing 9, (9 - 5) / 9: 1 - 0.2 + 4/9.
    first, second = tensor([[0.5, 1.5, 0.5, 1.5]]), tensor([[1.5, 0.5, 1.5, 0.5]])
    assert giou_loss(first, second).item() == pytest.approx(0.8 + 4 / 9)


def test_the_authors_add_their_epsilon_to_the_enclosing_box_itself() -> None:
    nothing = torch.zeros(1, 4)
    # GIoU is (0 + 1) / (0 + 1) - (1e-7 - 0) / 1e-7 = 0; without the pixel 0 / 1e-7 - 0 / 1e-7 = 0.
    assert_close(giou_loss(nothing, nothing, plus=1.0), tensor([1.0]))
    assert_close(giou_loss(nothing, nothing), tensor([1.0]))


def test_box_losses_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        for loss in (unitbox_iou_loss, giou_loss):
            values = loss(torch.full((1, 4), 100.25).bfloat16(), torch.full((1, 4), 100.25))
            assert values.dtype == torch.float32


def test_focal_loss_by_hand() -> None:
    # Probability 1/2 everywhere: own class 0.25 × 0.25 × ln 2, three others 0.75 × 0.25 × ln 2.
    logits = torch.zeros(2, 2)
    assert sigmoid_focal_loss(logits, tensor([1, -1])).item() == pytest.approx((0.0625 + 3 * 0.1875) * math.log(2))


def test_focal_loss_is_the_sum_over_points_and_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator, dtype=torch.float64) * 4
    labels = [0, 2, -1, 1, -1, 0]
    expected = 0.0
    for point, label in enumerate(labels):
        for number in range(3):
            probability = 1 / (1 + math.exp(-float(logits[point, number])))
            if number == label:
                expected -= 0.25 * (1 - probability) ** 2 * math.log(probability)
            else:
                expected -= 0.75 * probability**2 * math.log(1 - probability)
    assert sigmoid_focal_loss(logits, tensor(labels)).item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_survives_extreme_logits() -> None:
    logits = tensor([[200.0, -200.0]], requires_grad=True)
    loss = sigmoid_focal_loss(logits, tensor([1]))
    assert loss.item() == pytest.approx(0.75 * 200 + 0.25 * 200)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_centerness_falls_from_the_centre_to_the_sides() -> None:
    distances = tensor([[2.0, 3.0, 2.0, 3.0], [1.0, 2.0, 4.0, 2.0], [0.0, 2.0, 4.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert_close(centerness_of(distances), tensor([1.0, 0.5, 0.0, 0.0]))  # sqrt(1/4 × 2/2) = 0.5
    assert_close(centerness_of(distances * 8), centerness_of(distances))
