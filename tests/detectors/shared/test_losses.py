"""Losses against arithmetic that stands beside them."""

import math

import pytest
import torch
from torch.testing import assert_close

from detectors.shared.losses import at_centers, masked_l1_loss, masked_smooth_l1_loss, penalty_reduced_focal_loss


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def heatmap_pair(probabilities: list[float], targets: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.tensor([logit(probability) for probability in probabilities])
    return logits.view(1, 1, 1, -1), torch.tensor(targets).view(1, 1, 1, -1)


def test_focal_loss_of_three_cells() -> None:
    logits, heatmap = heatmap_pair([0.6, 0.3, 0.2], [1.0, 0.5, 0.0])
    # Centre: -0.4^2 ln 0.6 = 0.0817; beside it: -0.3^2 × 0.5^4 ln 0.7 = 0.0020; far: -0.2^2 ln 0.8 = 0.0089.
    expected = -(0.16 * math.log(0.6) + 0.09 * 0.0625 * math.log(0.7) + 0.04 * math.log(0.8))
    assert penalty_reduced_focal_loss(logits, heatmap).item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_is_divided_by_the_centres_of_the_whole_batch() -> None:
    logits, heatmap = heatmap_pair([0.6, 0.3, 0.2], [1.0, 0.5, 0.0])
    one = penalty_reduced_focal_loss(logits, heatmap)
    # An image with three centres more, all cells at 0.5: 3 × 0.25 ln 2 = 0.5199.
    other_logits, other_heatmap = torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 1, 3)
    both = penalty_reduced_focal_loss(torch.cat((logits, other_logits)), torch.cat((heatmap, other_heatmap)))
    assert both.item() == pytest.approx((one.item() + 0.75 * math.log(2)) / 4, rel=1e-5)


def test_focal_loss_without_centres_is_the_plain_sum() -> None:
    logits, heatmap = heatmap_pair([0.5, 0.2], [0.5, 0.0])
    expected = -(0.25 * 0.0625 * math.log(0.5) + 0.04 * math.log(0.8))
    assert penalty_reduced_focal_loss(logits, heatmap).item() == pytest.approx(expected, rel=1e-5)


def test_a_mark_of_0_9999_is_no_centre() -> None:
    logits, heatmap = heatmap_pair([0.2, 0.5], [0.9999, 1.0])
    expected = -(0.04 * 0.0001**4 * math.log(0.8) + 0.25 * math.log(0.5))  # divided by one centre
    assert penalty_reduced_focal_loss(logits, heatmap).item() == pytest.approx(expected, rel=1e-5)


def test_probabilities_are_clamped_and_have_no_gradient_beyond() -> None:
    logits = torch.tensor([-20.0, 20.0, -1.0]).view(1, 1, 1, 3).requires_grad_()
    heatmap = torch.tensor([1.0, 0.0, 0.0]).view(1, 1, 1, 3)
    loss = penalty_reduced_focal_loss(logits, heatmap)
    low = 1 / (1 + math.e)
    # Both extremes cost -ln(1e-4) × 0.9999^2 = 9.2085.
    expected = -(2 * 0.9999**2 * math.log(1e-4) + low**2 * math.log(1 - low))
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.flatten()[:2].tolist() == [0, 0]
    assert logits.grad.flatten()[2] > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_and_autocast_do_not_reach_the_losses(dtype: torch.dtype) -> None:
    logits = torch.tensor([30.0, -30.0, 2.5, -1.0], dtype=dtype).view(1, 1, 2, 2)
    heatmap = torch.tensor([0.0, 1.0, 0.25, 1.0]).view(1, 1, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = penalty_reduced_focal_loss(logits, heatmap)
        size = masked_l1_loss(torch.full((1, 1, 2), 100.4), torch.full((1, 1, 2), 100.0), torch.ones(1, 1))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, penalty_reduced_focal_loss(logits.float(), heatmap))
    assert loss.isfinite()
    assert size.item() == pytest.approx(0.8 / 2.0001, rel=1e-4)


def regression() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values = torch.tensor([[[10.0, 4.0], [1.0, 2.0], [77.0, 77.0]]])
    targets = torch.tensor([[[8.0, 4.5], [1.0, 1.0], [0.0, 0.0]]])
    return values, targets, torch.tensor([[True, True, False]])


def test_l1_is_the_mean_over_coordinates() -> None:
    # (2 + 0.5 + 0 + 1) / (4 + 0.0001)
    assert masked_l1_loss(*regression()).item() == pytest.approx(3.5 / 4.0001, rel=1e-6)


def test_smooth_l1_is_divided_by_objects() -> None:
    # (2 - 0.5) + 0.5^2 / 2 + 0 + 1^2 / 2, over 2 objects
    assert masked_smooth_l1_loss(*regression()).item() == pytest.approx((1.5 + 0.125 + 0.5) / 2.0001, rel=1e-6)


def test_a_mask_of_coordinates_counts_coordinates() -> None:
    values, targets, _ = regression()
    mask = torch.tensor([[[1, 0], [0, 1], [0, 0]]], dtype=torch.float32)
    assert masked_l1_loss(values, targets, mask).item() == pytest.approx((2 + 1) / 2.0001, rel=1e-6)


def test_without_objects_the_regression_losses_are_0_with_a_gradient_of_0() -> None:
    for loss in (masked_l1_loss, masked_smooth_l1_loss):
        values = torch.full((2, 3, 2), 5.0, requires_grad=True)
        total = loss(values, torch.zeros(2, 3, 2), torch.zeros(2, 3, dtype=torch.bool))
        total.backward()
        assert total.item() == 0
        assert values.grad is not None
        assert not values.grad.any()


def test_at_centers_reads_y_times_width_plus_x() -> None:
    maps = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    index = torch.tensor([[2 * 5 + 3, 0], [19, 19]])
    expected = torch.stack(
        (
            torch.stack((maps[0, :, 2, 3], maps[0, :, 0, 0])),
            torch.stack((maps[1, :, 3, 4], maps[1, :, 3, 4])),
        )
    )
    assert_close(at_centers(maps, index), expected)
