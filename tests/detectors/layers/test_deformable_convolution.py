"""Deformable convolution against a loop over every output, tap and corner, and against plain convolution."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from detectors.layers import deformable_convolution as layer_module
from detectors.layers.deformable_convolution import DeformableConvolution, deformable_convolution


def by_loops(
    features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int
) -> Tensor:
    """Eq. 1 of Deformable ConvNets v2 as it is written, one sum after the other."""
    batch, _, out_height, out_width = offset.shape
    out_channels, _, kernel_height, kernel_width = weight.shape
    result = torch.zeros(batch, out_channels, out_height, out_width, dtype=features.dtype)
    for image in range(batch):
        for row in range(out_height):
            for column in range(out_width):
                total = bias.clone()
                for tap in range(kernel_height * kernel_width):
                    y = row * stride - padding + tap // kernel_width + float(offset[image, 2 * tap, row, column])
                    x = column * stride - padding + tap % kernel_width + float(offset[image, 2 * tap + 1, row, column])
                    value = bilinear(features[image], y, x) * mask[image, tap, row, column]
                    total = total + weight[:, :, tap // kernel_width, tap % kernel_width] @ value
                result[image, :, row, column] = total
    return result


def bilinear(channels: Tensor, y: float, x: float) -> Tensor:
    value = torch.zeros(len(channels), dtype=channels.dtype)
    for corner_y in (math.floor(y), math.floor(y) + 1):
        for corner_x in (math.floor(x), math.floor(x) + 1):
            if 0 <= corner_y < channels.shape[1] and 0 <= corner_x < channels.shape[2]:
                share = (1 - abs(y - corner_y)) * (1 - abs(x - corner_x))
                value += share * channels[:, corner_y, corner_x]
    return value


def arguments(
    size: tuple[int, int] = (5, 6), out_size: tuple[int, int] = (5, 6), kernel: int = 3, spread: float = 2.0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    taps = kernel * kernel
    return [
        normal(2, 3, *size),
        normal(2, 2 * taps, *out_size) * spread,
        normal(2, taps, *out_size).sigmoid(),
        normal(4, 3, kernel, kernel),
        normal(4),
    ]


@pytest.mark.parametrize("spread", [0.3, 2.0, 10.0])
def test_equals_a_loop_over_outputs_taps_and_corners(spread: float) -> None:
    inputs = arguments(spread=spread)
    assert_close(deformable_convolution(*inputs, 1, 1), by_loops(*inputs, stride=1, padding=1))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "out_size"),
    [(3, 2, 1, (4, 3)), (1, 1, 0, (7, 6)), (5, 1, 2, (7, 6)), (3, 1, 0, (5, 4))],
)
def test_kernel_stride_and_padding(kernel: int, stride: int, padding: int, out_size: tuple[int, int]) -> None:
    inputs = arguments((7, 6), out_size, kernel)
    assert_close(deformable_convolution(*inputs, stride, padding), by_loops(*inputs, stride, padding))


def test_without_offsets_it_is_the_plain_convolution() -> None:
    features, offset, mask, weight, bias = arguments()
    plain = functional.conv2d(features, weight, bias, padding=1)
    result = deformable_convolution(features, torch.zeros_like(offset), torch.ones_like(mask), weight, bias, 1, 1)
    assert_close(result, plain)


def test_gradients_are_those_of_finite_differences() -> None:
    inputs = [argument.requires_grad_() for argument in arguments((3, 4), (3, 4), spread=1.5)]
    # fast_mode compares along random directions through all inputs; the 1x1 kernel below, entry by entry.
    torch.autograd.gradcheck(lambda *given: deformable_convolution(*given, 1, 1), inputs, fast_mode=True)
    inputs = [argument.requires_grad_() for argument in arguments((2, 3), (2, 3), kernel=1, spread=1.5)]
    torch.autograd.gradcheck(lambda *given: deformable_convolution(*given, 1, 0), inputs)


def test_offset_channels_alternate_down_and_right() -> None:
    # A single 1x1 tap on an image that counts: 10 per row, 1 per column.
    features = (10 * torch.arange(4.0)[:, None] + torch.arange(4.0))[None, None]
    offset = torch.zeros(1, 2, 4, 4)
    offset[0, 0] = 1  # down
    offset[0, 1] = 0.25  # right
    one = torch.ones(1, 1, 4, 4)
    result = deformable_convolution(features, offset, one, torch.ones(1, 1, 1, 1), torch.zeros(1))
    assert result[0, 0, 1, 2] == 22.25  # row 1 + 1, column 2 + 0.25
    assert result[0, 0, 3, 0] == 0  # one row below the last


def test_the_border_fades_within_one_cell() -> None:
    # One cell of value 8, read at -1.25, -1, -0.75, -0.5, 0.5, 0.75 and 1.
    down = torch.tensor([-1.25, -1.0, -0.75, -0.5, 0.5, 0.75, 1.0])
    features = torch.full((7, 1, 1, 1), 8.0)
    offset = torch.zeros(7, 2, 1, 1)
    offset[:, 0, 0, 0] = down
    one = torch.ones(7, 1, 1, 1)
    result = deformable_convolution(features, offset, one, torch.ones(1, 1, 1, 1), torch.zeros(1))
    assert result.flatten().tolist() == [0, 0, 2, 4, 4, 2, 0]  # 8 × (1 - distance)


def test_exactly_one_cell_outside_there_is_no_slope() -> None:
    # As published, and what every padded tap meets before training: offsets are 0 then.
    offset = torch.zeros(1, 2, 1, 1, requires_grad=True)
    features, one = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    outside = deformable_convolution(
        features, offset + torch.tensor([-1.0, 0.0]).view(1, 2, 1, 1), one, one, one[0, 0, 0]
    )
    outside.sum().backward()
    assert offset.grad is not None
    assert offset.grad.flatten().tolist() == [0, 0]


def test_the_layer_starts_as_half_a_convolution() -> None:
    torch.manual_seed(0)
    layer = DeformableConvolution(4, 5)
    features = torch.randn(2, 4, 6, 6)
    assert_close(layer(features), functional.conv2d(features, layer.weight / 2, padding=1))


def test_the_layer_takes_masks_from_the_last_third_of_the_channels() -> None:
    torch.manual_seed(0)
    layer = DeformableConvolution(4, 5)
    with torch.no_grad():
        layer.conv_offset_mask.bias[18:] = 100.0  # sigmoid(100) = 1
    features = torch.randn(2, 4, 6, 6)
    assert_close(layer(features), functional.conv2d(features, layer.weight, padding=1))


def test_groups_of_images_make_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [torch.cat((argument, argument[:1] + 0.1)).requires_grad_() for argument in arguments()[:3]]
    inputs += [argument.requires_grad_() for argument in arguments()[3:]]
    whole = deformable_convolution(*inputs, 1, 1)
    expected = torch.autograd.grad(whole.square().sum(), inputs)
    monkeypatch.setattr(layer_module, "_ELEMENTS_AT_ONCE", 2 * 4 * 30)  # two images of 4 output channels, then one
    parts = deformable_convolution(*inputs, 1, 1)
    assert_close(parts, whole)
    for gradient, wanted in zip(torch.autograd.grad(parts.square().sum(), inputs), expected, strict=True):
        assert_close(gradient, wanted)


def test_memory_formats_are_kept_and_agree() -> None:
    features, offset, mask, weight, bias = arguments()
    plain = deformable_convolution(features, offset, mask, weight, bias, 1, 1)
    last = deformable_convolution(
        features.contiguous(memory_format=torch.channels_last), offset, mask, weight, bias, 1, 1
    )
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert_close(plain, last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_input_is_sampled_in_float32(dtype: torch.dtype) -> None:
    inputs = [argument.to(dtype) for argument in arguments()]
    result = deformable_convolution(*inputs, 1, 1)
    assert result.dtype == dtype
    exact = deformable_convolution(*(argument.float() for argument in inputs), 1, 1)
    assert torch.equal(result, exact.to(dtype))


def test_autocast_changes_neither_the_sampling_nor_the_gradients() -> None:
    inputs = [argument.float().requires_grad_() for argument in arguments()]
    exact = deformable_convolution(*inputs, 1, 1)
    expected = torch.autograd.grad(exact.square().sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        result = deformable_convolution(*inputs, 1, 1)
        gradients = torch.autograd.grad(result.square().sum(), inputs)
    assert torch.equal(result, exact)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert_close(gradient, wanted)


def test_far_offsets_and_nan_neither_crash_nor_reach_other_cells() -> None:
    features, offset, mask, weight, bias = arguments()
    offset[0, :, 0, 0] = 1e30
    offset[1, :, 2, 3] = math.nan
    result = deformable_convolution(features, offset, mask, weight, bias, 1, 1)
    assert_close(result[0, :, 0, 0], bias)
    assert result[1, :, 2, 3].isnan().all()
    result[1, :, 2, 3] = 0
    assert result.isfinite().all()


def test_nothing_is_kept_for_the_backward_pass_but_the_arguments() -> None:
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    inputs = [argument.float().requires_grad_() for argument in arguments((16, 16), (16, 16))]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        deformable_convolution(*inputs, 1, 1)
    assert sum(kept) == sum(argument.numel() for argument in inputs[:4])


class LargestResult(TorchDispatchMode):
    """Notes the most elements that any operation gives, temporaries of forward and backward included."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        result = function(*given, **(named or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_temporary_is_larger_than_the_input() -> None:
    features = torch.randn(2, 32, 16, 16, requires_grad=True)  # 9 taps side by side would be 9 times as much
    offset, mask = torch.randn(2, 18, 16, 16, requires_grad=True), torch.rand(2, 9, 16, 16, requires_grad=True)
    weight, bias = torch.randn(32, 32, 3, 3, requires_grad=True), torch.randn(32, requires_grad=True)
    with LargestResult() as largest:
        deformable_convolution(features, offset, mask, weight, bias, 1, 1).sum().backward()
    assert features.grad is not None
    assert largest.elements == features.numel()


def test_groups_of_channels_have_taps_of_their_own() -> None:
    # Two groups of three channels: the sum of two convolutions, of which only the first has the bias.
    first, second = arguments(), [argument.flip(-1) * 0.9 for argument in arguments()]
    together = [torch.cat((one, other), dim=1) for one, other in zip(first[:4], second[:4], strict=True)]
    expected = by_loops(*first, stride=1, padding=1) + by_loops(*second[:4], torch.zeros(4), stride=1, padding=1)
    assert_close(deformable_convolution(*together, first[4], 1, 1), expected)
    inputs = [part.requires_grad_() for part in (*together, first[4])]
    torch.autograd.gradcheck(lambda *given: deformable_convolution(*given, 1, 1), inputs, fast_mode=True)


def test_without_mask_and_bias_they_are_ones_and_zeros() -> None:
    features, offset, mask, weight, bias = arguments()
    expected = by_loops(features, offset, torch.ones_like(mask), weight, torch.zeros_like(bias), stride=1, padding=1)
    assert_close(deformable_convolution(features, offset, None, weight, None, 1, 1), expected)
    inputs = [part.requires_grad_() for part in (features, offset, weight)]

    def run(features: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        return deformable_convolution(features, offset, None, weight, None, 1, 1)

    torch.autograd.gradcheck(run, inputs, fast_mode=True)
    groups = [features.repeat(1, 2, 1, 1), offset.repeat(1, 2, 1, 1), None, weight.repeat(1, 2, 1, 1), None]
    assert_close(deformable_convolution(*groups, 1, 1), 2 * expected)


def test_groups_of_a_bfloat16_input_are_added_before_they_are_rounded() -> None:
    features, offset, _, weight, _ = (argument.float() for argument in arguments())
    groups = [features.bfloat16().repeat(1, 2, 1, 1), offset.repeat(1, 2, 1, 1), None, weight.repeat(1, 2, 1, 1), None]
    result = deformable_convolution(*groups, 1, 1)
    exact = 2 * deformable_convolution(features.bfloat16().float(), offset, None, weight, None, 1, 1)
    assert result.dtype == torch.bfloat16
    assert_close(result, exact.bfloat16(), rtol=0, atol=0)
