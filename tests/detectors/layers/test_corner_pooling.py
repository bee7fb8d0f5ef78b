"""Corner pooling against `cummax`, and its gradient against a loop that moves from cell to cell."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from detectors.layers.corner_pooling import (
    CascadeCornerPooling,
    CenterPooling,
    CornerPooling,
    Side,
    center_pool,
    corner_pool,
)
from detectors.layers.recomputation import set_activation_checkpointing

SIDES: tuple[Side, ...] = ("top", "left", "bottom", "right")
SHAPES = ((2, 3, 5, 7), (1, 1, 1, 1), (2, 2, 1, 6), (2, 2, 6, 1), (1, 2, 3, 300), (1, 2, 300, 3))


def by_cummax(features: Tensor, towards: Side) -> Tensor:
    dim = -2 if towards in ("top", "bottom") else -1
    if towards in ("bottom", "right"):
        return features.cummax(dim).values
    return features.flip(dim).cummax(dim).values.flip(dim)


def scanned(height: int, width: int, towards: Side) -> list[list[tuple[int, int]]]:
    """Cells of each column (or row), in the order of the scan."""
    rows, columns = range(height), range(width)
    if towards == "top":
        return [[(y, x) for y in reversed(rows)] for x in columns]
    if towards == "bottom":
        return [[(y, x) for y in rows] for x in columns]
    if towards == "left":
        return [[(y, x) for x in reversed(columns)] for y in rows]
    return [[(y, x) for x in columns] for y in rows]


def gradient_by_loop(features: Tensor, gradient: Tensor, towards: Side) -> Tensor:
    """The published rule, cell by cell: a later cell takes over only if it is larger."""
    result = torch.zeros_like(features)
    height, width = features.shape[-2:]
    for image, channel in itertools.product(range(features.shape[0]), range(features.shape[1])):
        for line in scanned(height, width, towards):
            best = line[0]
            for cell in line:
                if features[image, channel][cell] > features[image, channel][best]:
                    best = cell
                result[image, channel][best] += gradient[image, channel][cell]
    return result


def with_gradient(features: Tensor, gradient: Tensor, towards: Side) -> tuple[Tensor, Tensor]:
    features = features.detach().requires_grad_()
    result = corner_pool(features, towards)
    (received,) = torch.autograd.grad(result, features, gradient)
    return result.detach(), received


@pytest.mark.parametrize("towards", SIDES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_cummax(towards: Side, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        features = torch.randn(shape).to(dtype)
        assert torch.equal(corner_pool(features, towards), by_cummax(features, towards))
        # With a gradient other operations are computed.
        assert torch.equal(corner_pool(features.requires_grad_(), towards), by_cummax(features, towards))


def test_each_side_carries_values_towards_itself() -> None:
    features = torch.tensor([[[[2.0, 1.0, 3.0], [1.0, 4.0, 0.0]]]])
    expected = {
        "top": [[2.0, 4.0, 3.0], [1.0, 4.0, 0.0]],
        "left": [[3.0, 3.0, 3.0], [4.0, 4.0, 0.0]],
        "bottom": [[2.0, 1.0, 3.0], [2.0, 4.0, 3.0]],
        "right": [[2.0, 2.0, 3.0], [1.0, 4.0, 4.0]],
    }
    for towards in SIDES:
        assert corner_pool(features, towards).tolist() == [[expected[towards]]]


@pytest.mark.parametrize("towards", SIDES)
@pytest.mark.parametrize("shape", SHAPES)
def test_of_equal_cells_the_first_one_scanned_receives_the_gradient(towards: Side, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    # Four values in long lines, so that most cells are equal to another one.
    features, gradient = torch.randint(0, 4, shape).double(), torch.randint(-8, 9, shape).double()
    _, received = with_gradient(features, gradient, towards)
    assert torch.equal(received, gradient_by_loop(features, gradient, towards))


def test_a_constant_map_sends_the_whole_gradient_to_the_cell_where_the_scan_begins() -> None:
    features, gradient = torch.zeros(1, 1, 2, 3), torch.ones(1, 1, 2, 3)
    assert with_gradient(features, gradient, "top")[1].tolist() == [[[[0, 0, 0], [2, 2, 2]]]]
    assert with_gradient(features, gradient, "left")[1].tolist() == [[[[0, 0, 3], [0, 0, 3]]]]
    assert with_gradient(features, gradient, "bottom")[1].tolist() == [[[[2, 2, 2], [0, 0, 0]]]]
    assert with_gradient(features, gradient, "right")[1].tolist() == [[[[3, 0, 0], [3, 0, 0]]]]


@pytest.mark.parametrize("towards", SIDES)
def test_gradients_are_right_where_no_cells_are_equal(towards: Side) -> None:
    torch.manual_seed(0)
    features = torch.randperm(2 * 2 * 4 * 5).double().view(2, 2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda maps: corner_pool(maps, towards), features)


@pytest.mark.parametrize("towards", SIDES)
def test_memory_formats_change_nothing_but_themselves(towards: Side) -> None:
    torch.manual_seed(0)
    features, gradient = torch.randint(0, 9, (2, 3, 5, 7)).float(), torch.randn(2, 3, 5, 7)
    plain, plain_gradient = with_gradient(features, gradient, towards)
    last = {"memory_format": torch.channels_last}
    result, received = with_gradient(features.contiguous(**last), gradient.contiguous(**last), towards)
    assert result.is_contiguous(**last)
    assert received.is_contiguous(**last)
    assert torch.equal(result, plain)
    assert torch.equal(received, plain_gradient)
    # The gradient may come in another format than the features, and with strides of 0.
    assert torch.equal(with_gradient(features, gradient.contiguous(**last), towards)[1], plain_gradient)
    one = torch.ones(()).expand(2, 3, 5, 7)
    assert torch.equal(with_gradient(features, one, towards)[1], with_gradient(features, one.clone(), towards)[1])
    # Every second column of a wider map, and a map on its side.
    wide = torch.zeros(2, 3, 5, 14)
    wide[..., ::2] = features
    for same in (wide[..., ::2], features.mT.contiguous().mT, features.movedim(0, -1).contiguous().movedim(-1, 0)):
        result, received = with_gradient(same, gradient, towards)
        assert torch.equal(result, plain)
        assert torch.equal(received, plain_gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_runs_under_autocast_and_adds_in_float32(dtype: torch.dtype) -> None:
    # In bfloat16, 256 + 1 is 256.
    features = torch.zeros(1, 1, 1, 300, dtype=dtype)
    with torch.autocast("cpu", dtype):
        result, received = with_gradient(features, torch.ones_like(features), "left")
    assert (result.dtype, received.dtype) == (dtype, dtype)
    assert received[0, 0, 0, -1] == 300
    assert not received[..., :-1].any()


@pytest.mark.parametrize("towards", SIDES)
def test_at_most_two_bytes_an_element_are_kept_for_backward(towards: Side) -> None:
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    for shape in ((2, 3, 64, 48), (1, 2, 300, 3)):
        features = torch.randn(shape, requires_grad=True)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            corner_pool(features, towards)
        assert 0 < sum(kept) <= 2 * features.numel()
        with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            kept.clear()
            corner_pool(features, towards)
        assert not kept


def test_a_second_derivative_is_refused() -> None:
    features = torch.randn(1, 1, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(corner_pool(features, "top").square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_input_keeps_its_values() -> None:
    features = torch.randn(1, 2, 3, 4)
    before = features.clone()
    for towards in SIDES:
        corner_pool(features, towards)
        with_gradient(features, torch.ones_like(features), towards)
    assert torch.equal(features, before)


@pytest.mark.parametrize("values", [4, 10_000])
def test_centre_pooling_is_pooling_towards_opposite_sides(values: int) -> None:
    """Also where cells are equal, as they are among 4 values."""
    torch.manual_seed(0)
    columns, rows = (torch.randint(0, values, (2, 3, 6, 5)).double().requires_grad_() for _ in range(2))
    gradient = torch.randint(-8, 9, (2, 3, 6, 5)).double()
    result = center_pool(columns, rows)
    expected = corner_pool(corner_pool(columns, "top"), "bottom") + corner_pool(corner_pool(rows, "left"), "right")
    assert torch.equal(result, expected)
    assert torch.equal(result, columns.amax(-2, keepdim=True) + rows.amax(-1, keepdim=True))
    for given, wanted in zip(
        torch.autograd.grad(result, (columns, rows), gradient),
        torch.autograd.grad(expected, (columns, rows), gradient),
        strict=True,
    ):
        assert torch.equal(given, wanted)


def modules() -> list[nn.Module]:
    return [CornerPooling(8, "top", "left"), CascadeCornerPooling(8, "bottom", "right"), CenterPooling(8)]


@pytest.mark.parametrize("number", range(3))
def test_activation_checkpointing_changes_no_bit(number: int) -> None:
    results = []
    for active in (False, True):
        torch.manual_seed(0)
        module = modules()[number].train()
        set_activation_checkpointing(module, active)
        features = torch.randn(2, 8, 6, 5, requires_grad=True)
        result = module(features)
        result.square().sum().backward()
        results.append((result.detach(), features.grad, *(p.grad for p in module.parameters()), *module.buffers()))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("number", range(3))
def test_modules_run_in_bfloat16(number: int) -> None:
    torch.manual_seed(0)
    module, features = modules()[number].eval(), torch.randn(2, 8, 6, 5)
    with torch.no_grad():
        exact = module(features)
        with torch.autocast("cpu", torch.bfloat16):
            result = module(features)
    assert result.dtype == torch.bfloat16
    assert_close(result.float(), exact, rtol=0.05, atol=0.05)
