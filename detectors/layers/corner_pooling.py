"""Corner, cascade corner and centre pooling: a cell receives the largest value in a direction.

A corner of a box is usually outside of the object, with nothing near it to recognise it by. Top pooling carries the
features of the object's topmost part up to the row of the corner, left pooling those of its leftmost part.

Where several cells are equally large, the whole gradient goes to the one that the scan reaches first, as in the
published extension.
"""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from detectors.layers.convolution_block import ConvolutionBlock
from detectors.layers.recomputation import Recomputable
from detectors.shapes import Float

Side = Literal["top", "left", "bottom", "right"]
"""The side of a map towards which values are carried."""

_STEPS_FOR_ANY_SIZE = 10
"""Steps of a trace for any size: maps of up to 1,024 cells, from inputs of 4,095 pixels."""


def corner_pool(
    features: Float[Tensor, "batch channels height width"], towards: Side
) -> Float[Tensor, "batch channels height width"]:
    """Running maximum towards one side of the map.

    Keeps one byte per element for backward, whatever the dtype. Gradients are summed in float32 or better, in a fixed
    order, and have no second derivative.

    Args:
        features: of any dtype and memory format.
        towards: "top": each cell receives the maximum of itself and all cells below it; "left": of all cells to its
            right; "bottom" and "right": the opposite.

    Returns:
        In the dtype of `features`, and in its memory format.

    Source:
        Law and Deng, CornerNet, eq. 6 and 7 (arXiv:1808.01244); princeton-vl/CornerNet,
        models/py_utils/_cpools/src/.
    """
    if torch.compiler.is_compiling() and not torch.is_grad_enabled():
        return _corner_pool_in_steps(features, towards)
    return cast(Tensor, _CornerPool.apply(features, towards))  # type: ignore[no-untyped-call]


def center_pool(
    for_columns: Float[Tensor, "batch channels height width"], for_rows: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch channels height width"]:
    """Maximum of each cell's column in one map, plus that of its row in another.

    This is what pooling towards the top and then the bottom computes, plus left and then right.

    Source:
        Duan et al., CenterNet: Keypoint Triplets, section 3.3 (arXiv:1904.08189).
    """
    return _last_maximum(for_columns, dim=-2) + _last_maximum(for_rows, dim=-1)


class CornerPooling(Recomputable):
    """Features for one kind of corner: two pooled maps added, convolved, added to the input, convolved.

    Args:
        channels: of the input and the output; half as many are pooled.
        vertical: direction of the first map.
        horizontal: direction of the second map.

    Source:
        CornerNet, figure 7; princeton-vl/CornerNet, models/CornerNet.py, `pool`.
    """

    def __init__(self, channels: int, vertical: Side, horizontal: Side) -> None:
        super().__init__()
        self.vertical, self.horizontal = vertical, horizontal
        pooled = channels // 2
        self.p1_conv1 = ConvolutionBlock(channels, pooled)
        self.p2_conv1 = ConvolutionBlock(channels, pooled)
        self.p_conv1 = nn.Conv2d(pooled, channels, 3, padding=1, bias=False)
        self.p_bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = ConvolutionBlock(channels, channels)

    def compute(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Features of the same shape."""
        pooled = self.p_bn1(self.p_conv1(self.pool(features)))
        return cast(Tensor, self.conv2(torch.relu(pooled + self.bn1(self.conv1(features)))))

    def pool(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch pooled height width"]:
        """Sum of both pooled maps."""
        upright = corner_pool(self.p1_conv1(features), self.vertical)
        return upright + corner_pool(self.p2_conv1(features), self.horizontal)


class CascadeCornerPooling(CornerPooling):
    """Corner pooling that first looks along a box's side into the box, so that corners see what is inside.

    Source:
        Keypoint Triplets, section 3.3; Duankaiwen/CenterNet, models/CenterNet-104.py, `pool`.
    """

    def __init__(self, channels: int, vertical: Side, horizontal: Side) -> None:
        super().__init__(channels, vertical, horizontal)
        pooled = channels // 2
        self.look_conv1 = ConvolutionBlock(channels, pooled)
        self.look_conv2 = ConvolutionBlock(channels, pooled)
        # Neither norm nor ReLU follows these two.
        self.P1_look_conv = nn.Conv2d(pooled, pooled, 3, padding=1, bias=False)
        self.P2_look_conv = nn.Conv2d(pooled, pooled, 3, padding=1, bias=False)

    def pool(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch pooled height width"]:
        """Sum of both pooled maps."""
        looked = corner_pool(self.look_conv1(features), self.horizontal)
        upright = corner_pool(self.P1_look_conv(self.p1_conv1(features) + looked), self.vertical)
        looked = corner_pool(self.look_conv2(features), self.vertical)
        return upright + corner_pool(self.P2_look_conv(self.p2_conv1(features) + looked), self.horizontal)


class CenterPooling(CornerPooling):
    """Features for centres: as for corners, with the maximum of the whole column and of the whole row.

    Source:
        Keypoint Triplets, section 3.3; Duankaiwen/CenterNet, models/CenterNet-104.py, `pool_cross`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, "bottom", "right")

    def pool(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch pooled height width"]:
        """Sum of both pooled maps."""
        return center_pool(self.p1_conv1(features), self.p2_conv1(features))


def _corner_pool_in_steps(features: Tensor, towards: Side) -> Tensor:
    """The same in few operators for a trace: after each step, a cell has the maximum of twice as many cells.

    ONNX has no running maximum. The number of steps is that for the largest size which the trace is for.
    """
    dim = 2 if towards in ("top", "bottom") else 3
    backwards = towards in ("top", "left")
    length = features.shape[dim]
    steps = (length - 1).bit_length() if isinstance(length, int) else _STEPS_FOR_ANY_SIZE
    for step in range(steps):
        reach = 2**step
        edges = (0, reach) if backwards else (reach, 0)
        padded = functional.pad(features, edges if dim == 3 else (0, 0, *edges), value=-torch.inf)
        moved = padded.narrow(dim, reach if backwards else 0, length)
        features = torch.maximum(features, moved)
    return features


class _CornerPool(torch.autograd.Function):
    """A loop over rows or columns, each of which is one vectorised operation on the whole batch.

    On a CPU this takes less time than `cummax`, which handles one element after the other and writes eight bytes of
    index for each. Adding gradients by index would, on a GPU, add them in any order.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, towards: Side) -> Tensor:
        ctx.dim = -2 if towards in ("top", "bottom") else -1
        ctx.backwards = towards in ("top", "left")
        # Neighbours in memory have to be in one operation, so columns of an ordinary map become rows of a matrix.
        ctx.transposed = ctx.dim == -1 and features.is_contiguous()
        values = _transposed(features) if ctx.transposed else features
        result = values if ctx.transposed else torch.empty_like(values)  # what is a copy may be overwritten
        lines, maxima = _in_order(values, ctx), _in_order(result, ctx)
        maxima[0].copy_(lines[0])
        if not ctx.needs_input_grad[0]:
            for step in range(1, len(maxima)):
                torch.maximum(lines[step], maxima[step - 1], out=maxima[step])
            return _back(result, features.shape) if ctx.transposed else result
        # By step of the scan, 1 where a larger value begins: not at a cell that is only as large as one before it.
        # A comparison that returns its own type is vectorised, and so are conversions from and to int8, but not bool.
        starts = torch.empty((len(maxima), *maxima[0].shape), dtype=torch.int8, device=features.device)
        starts[0] = 1
        larger = torch.empty_like(starts[0], dtype=features.dtype)
        for step in range(1, len(maxima)):
            torch.gt(lines[step], maxima[step - 1], out=larger)
            starts[step].copy_(larger)
            torch.maximum(lines[step], maxima[step - 1], out=maxima[step])
        ctx.save_for_backward(starts)
        return _back(result, features.shape) if ctx.transposed else result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (starts,) = ctx.saved_tensors
        received = _transposed(gradient) if ctx.transposed else gradient
        result = received if ctx.transposed else torch.empty_like(received)
        lines, sums = _in_order(received, ctx), _in_order(result, ctx)
        # From the end of the scan to its beginning: `carried` collects the gradients of the cells that received one
        # value, and is emptied at the cell where the value comes from.
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        carried = torch.zeros_like(starts[0], dtype=dtype)
        start, here = torch.empty_like(carried), torch.empty_like(carried)
        for step in reversed(range(len(sums))):
            carried.add_(lines[step])
            # What is rounded is a copy, so that `carried` becomes exactly 0.
            here = sums[step] if gradient.dtype == dtype else here
            torch.mul(carried, start.copy_(starts[step]), out=here)
            carried.sub_(here)
            if here is not sums[step]:
                sums[step].copy_(here)
        return _back(result, gradient.shape) if ctx.transposed else result, None


def _in_order(maps: Tensor, ctx: Any) -> list[Tensor]:
    """Rows or columns in the order of the scan."""
    lines = list(maps.unbind(0 if ctx.transposed else ctx.dim))
    return lines[::-1] if ctx.backwards else lines


def _transposed(maps: Tensor) -> Tensor:
    """A matrix whose rows are columns of the maps: `(width, batch * channels * height)`."""
    return _swapped(maps.contiguous().view(-1, maps.shape[-1]))


def _back(columns: Tensor, shape: torch.Size) -> Tensor:
    """The reverse of `_transposed`."""
    return _swapped(columns).view(shape)


def _swapped(matrix: Tensor) -> Tensor:
    """Transpose a matrix in memory."""
    rows, columns = matrix.shape
    # Shuffling channels is a transposition, and of PyTorch's the only one that is vectorised on a CPU. A single cell
    # with all elements as its channels is stored like the matrix.
    shuffled = torch.channel_shuffle(matrix.view(1, 1, 1, -1).permute(0, 3, 1, 2), rows)
    return shuffled.reshape(columns, rows)


def _last_maximum(features: Tensor, dim: int) -> Tensor:
    """Maximum along a dimension, which is kept, with the gradient at its last cell if several are equal.

    That is the cell where the first of the two published scans, from the end, finds it.
    """
    # `max` takes the first of equal cells.
    return features.flip(dim).max(dim, keepdim=True).values
