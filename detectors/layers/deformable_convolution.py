"""Deformable convolution, v1 and v2, in vectorised PyTorch, for any device, without compiled code of our own.

A tap of the kernel reads the input at a place of its own, between four cells. In channels-last layout that is a
weighted sum of four rows, which is what `embedding_bag` computes: one call gathers, weights and sums, without a buffer
for the four rows. Taps are handled one after the other and sampled again in the backward pass, so memory stays at a
few times the input's, not at 9 times.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from detectors.shapes import Float

_ELEMENTS_AT_ONCE = 1 << 22
"""Images are computed together while their features have at most this many elements: temporaries of 16 MB."""


class DeformableConvolution(nn.Module):
    """Convolution whose taps are shifted and weighted by a convolution of the same input.

    Starts as half of an ordinary convolution: no offsets, and every weight is sigmoid(0). `weight` is uniform
    within 1 / sqrt(kernel cells times input channels), biases are 0.

    Source:
        Zhu et al., Deformable ConvNets v2, eq. 1 (arXiv:1811.11168); xingyizhou/CenterNet,
        src/lib/models/networks/DCNv2/dcn_v2.py, `DCN`, whose state-dict keys these are.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, padding: int = 1
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        taps = kernel_size * kernel_size
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.conv_offset_mask = nn.Conv2d(in_channels, 3 * taps, kernel_size, stride, padding)
        bound = (in_channels * taps) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.conv_offset_mask.weight)
        assert self.conv_offset_mask.bias is not None
        nn.init.zeros_(self.conv_offset_mask.bias)

    def forward(
        self, features: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Features in the dtype of the input."""
        predicted = self.conv_offset_mask(features).float()
        # The first two thirds are dy, dx of tap 0, dy, dx of tap 1, ...; not all dy and then all dx.
        offset, mask = predicted.split([predicted.shape[1] // 3 * 2, predicted.shape[1] // 3], dim=1)
        return deformable_convolution(
            features, offset, mask.sigmoid(), self.weight, self.bias, self.stride, self.padding
        )


def deformable_convolution(
    features: Float[Tensor, "batch in_channels height width"],
    offset: Float[Tensor, "batch directions out_height out_width"],
    mask: Float[Tensor, "batch taps out_height out_width"] | None,
    weight: Float[Tensor, "out_channels in_channels kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None,
    stride: int = 1,
    padding: int = 0,
) -> Float[Tensor, "batch out_channels out_height out_width"]:
    """Sum over taps of `mask * weight @ features(place of the tap + offset)`, sampled bilinearly.

    Outside of the input is 0: a place up to one cell beyond the border still gets its share of the border cell.
    Computed in float32 (float64 for float64 input) whatever the autocast state.

    Args:
        features: in either memory format.
        offset: in cells of the input: channel 2k moves tap k down, channel 2k + 1 moves it right; taps in reading
            order. With several times as many channels, the input's channels are in as many groups of equal size, each
            of which has taps of its own: those of the first group come first.
        mask: the factor of each tap, the groups' one after the other as in `offset`; None for 1 (v1).
        weight: as of an ordinary convolution.
        bias: as of an ordinary convolution; None for 0.
        stride: step of the kernel, in cells.
        padding: cells of zeros around the input.

    Returns:
        In the dtype and memory format of `features`.

    Source:
        Dai et al., Deformable Convolutional Networks (arXiv:1703.06211); Zhu et al., Deformable ConvNets v2, eq. 1
        (arXiv:1811.11168); xingyizhou/CenterNet, src/lib/models/networks/DCNv2/src; open-mmlab/mmcv,
        mmcv/ops/deform_conv.py.
    """
    groups = offset.shape[1] // (2 * weight[0, 0].numel())
    if torch.compiler.is_compiling() and not torch.is_grad_enabled():
        dtype = torch.promote_types(features.dtype, torch.float32)
        tensors = (None if values is None else values.to(dtype) for values in (features, offset, mask, weight, bias))
        return deformable_convolution_operator(*tensors, stride, padding).to(features.dtype)
    if groups > 1:
        return _sum_of_groups(groups, features, offset, mask, weight, bias, stride, padding)
    dtype = torch.promote_types(features.dtype, torch.float32)
    cells = max(features[0, 0].numel(), offset[0, 0].numel())
    images = max(1, _ELEMENTS_AT_ONCE // (cells * max(features.shape[1], len(weight))))
    with torch.autocast(features.device.type, enabled=False):
        results = [
            _DeformableConvolution.apply(  # type: ignore[no-untyped-call]
                some_features.to(dtype),
                some_offset.to(dtype),
                None if mask is None else some_mask.to(dtype),
                weight.to(dtype),
                None if bias is None else bias.to(dtype),
                stride,
                padding,
            ).to(features.dtype)
            # Without a mask the third place is filled, but not used.
            for some_features, some_offset, some_mask in zip(
                *(torch.split(whole, images) for whole in (features, offset, offset if mask is None else mask)),
                strict=True,
            )
        ]
    result = results[0] if len(results) == 1 else torch.cat(results)
    channels_last = features.is_contiguous(memory_format=torch.channels_last)
    return result.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@torch.library.custom_op("aweigh::deformable_convolution", mutates_args=())
def deformable_convolution_operator(
    features: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
) -> Tensor:
    """`deformable_convolution` of tensors of one dtype as a single operator, for traces without gradient.

    ONNX has such an operator, too. Programs for PyTorch alone replace it by `traceable_deformable_convolution`.
    """
    return deformable_convolution(features, offset, mask, weight, bias, stride, padding).contiguous()


@deformable_convolution_operator.register_fake
def _(
    features: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
) -> Tensor:
    return features.new_empty(features.shape[0], weight.shape[0], *offset.shape[2:])


def traceable_deformable_convolution(
    features: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
) -> Tensor:
    """Compute `deformable_convolution_operator` with PyTorch's own operators, all taps at once, for any input size.

    Tap after tap, as elsewhere, takes less memory, but ten times as many operators.
    """
    batch, channels, height, width = features.shape
    kernel_height, kernel_width = weight.shape[2:]
    taps = kernel_height * kernel_width
    groups = offset.shape[1] // (2 * taps)
    offset = offset.reshape(batch, groups * taps, 2, *offset.shape[2:]).permute(
        0, 3, 4, 1, 2
    )  # batch, rows, columns, groups and taps, 2
    down, right = (torch.arange(side, device=offset.device, dtype=offset.dtype) * stride for side in offset.shape[1:3])
    tap = torch.arange(taps, device=offset.device)
    tap_down, tap_right = (part.repeat(groups) - padding for part in (tap // kernel_width, tap % kernel_width))
    y = down[:, None, None] + tap_down + offset[..., 0]
    x = right[:, None] + tap_right + offset[..., 1]
    top, left = y.floor(), x.floor()
    from_top, from_left = y - top, x - left
    corner_y = torch.stack((top, top, top + 1, top + 1), dim=-1)
    corner_x = torch.stack((left, left + 1, left, left + 1), dim=-1)
    up, before = 1 - from_top, 1 - from_left
    shares = torch.stack((up * before, up * from_left, from_top * before, from_top * from_left), dim=-1)
    shares = shares * ((corner_y >= 0) & (corner_y < height) & (corner_x >= 0) & (corner_x < width))
    if mask is not None:
        shares = shares * mask.permute(0, 2, 3, 1)[..., None]
    # A row of the table is a group of the channels of a cell.
    image = torch.arange(batch, device=offset.device)[:, None, None, None, None]
    group = torch.arange(groups, device=offset.device).repeat_interleave(taps)[:, None]
    row = (image * height + corner_y.long().clamp(0, height - 1)) * width + corner_x.long().clamp(0, width - 1)
    table = features.permute(0, 2, 3, 1).reshape(-1, channels // groups)
    sampled = functional.embedding_bag(
        (row * groups + group).reshape(-1, 4), table, per_sample_weights=shares.reshape(-1, 4), mode="sum"
    )
    kernel = weight.reshape(weight.shape[0], groups, channels // groups, taps).permute(1, 3, 2, 0).flatten(0, 2)
    result = sampled.reshape(-1, groups * taps * (channels // groups)) @ kernel
    if bias is not None:
        result = result + bias
    return result.reshape(batch, offset.shape[1], offset.shape[2], weight.shape[0]).permute(0, 3, 1, 2).contiguous()


def _sum_of_groups(
    groups: int,
    features: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
) -> Tensor:
    """Add the convolutions of the groups, each of its own channels with its own taps."""
    # In float32, so that the sum of a bfloat16 input is rounded once and not with every group.
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    masks = [None] * groups if mask is None else mask.chunk(groups, dim=1)
    of_groups = zip(
        wide.chunk(groups, dim=1), offset.chunk(groups, dim=1), masks, weight.chunk(groups, dim=1), strict=True
    )
    parts = [
        deformable_convolution(*group, None if number else bias, stride, padding)
        for number, group in enumerate(of_groups)
    ]
    return sum(parts[1:], start=parts[0]).to(features.dtype)


class _DeformableConvolution(torch.autograd.Function):
    """Rows are cells in channels-last order: `(batch * height * width, channels)`."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        offset: Tensor,
        mask: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: int,
    ) -> Tensor:
        ctx.save_for_backward(features, offset, mask, weight)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        batch, _, out_height, out_width = offset.shape
        rows, tap_weights = _as_rows(features), _by_tap(weight)
        num_places = batch * out_height * out_width
        if bias is None:
            result = rows.new_zeros(num_places, len(weight))
        else:
            result = bias.repeat(num_places, 1)
        for tap, tap_weight in enumerate(tap_weights):
            places = _Places(features.shape, offset, weight.shape, tap, stride, padding)
            # The mask goes into the four weights, which are fewer than the channels.
            sampled = places.sample(rows, _masked(places.shares(), mask, tap))
            result.addmm_(sampled, tap_weight)
        return result.view(batch, out_height, out_width, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, offset, mask, weight = ctx.saved_tensors
        rows, tap_weights, gradient_rows = _as_rows(features), _by_tap(weight), _as_rows(gradient)
        rows_gradient, weight_gradient = torch.zeros_like(rows), torch.empty_like(tap_weights)
        offset_gradient = torch.empty_like(offset)
        mask_gradient = None if mask is None else torch.empty_like(mask)
        with torch.autocast(gradient.device.type, enabled=False):
            for tap, tap_weight in enumerate(tap_weights):
                places = _Places(features.shape, offset, weight.shape, tap, ctx.stride, ctx.padding)
                sampled_gradient = gradient_rows @ tap_weight.T
                shares, shares_down, shares_right = places.shares(), *places.share_slopes()

                # Without the mask, since the output is linear in it: its gradient is what it multiplies.
                sampled = places.sample(rows, shares)
                if mask_gradient is not None:
                    mask_gradient[:, tap] = _dot(sampled, sampled_gradient).view_as(offset[:, tap])
                weight_gradient[tap] = _masked(sampled, mask, tap).T @ gradient_rows
                for axis, slopes in enumerate((shares_down, shares_right)):
                    slope = places.sample(rows, _masked(slopes, mask, tap))
                    moved = _dot(slope, sampled_gradient)
                    offset_gradient[:, 2 * tap + axis] = moved.view_as(offset[:, tap])
                places.spread(rows_gradient, sampled_gradient, _masked(shares, mask, tap))
        batch, channels, height, width = features.shape
        return (
            rows_gradient.view(batch, height, width, channels).permute(0, 3, 1, 2),
            offset_gradient,
            mask_gradient,
            weight_gradient.view(*weight.shape[2:], channels, -1).permute(3, 2, 0, 1),
            gradient_rows.sum(0) if ctx.has_bias else None,
            None,
            None,
        )


class _Places:
    """The places where one tap reads, for every cell of the output: four rows of the input and the share of each."""

    def __init__(
        self,
        features_shape: torch.Size,
        offset: Tensor,
        weight_shape: torch.Size,
        tap: int,
        stride: int,
        padding: int,
    ) -> None:
        _, _, height, width = features_shape
        batch, _, out_height, out_width = offset.shape
        tap_down, tap_right = divmod(tap, weight_shape[3])
        down = torch.arange(out_height, device=offset.device, dtype=offset.dtype) * stride
        right = torch.arange(out_width, device=offset.device, dtype=offset.dtype) * stride
        y = (down[:, None] + (tap_down - padding) + offset[:, 2 * tap]).reshape(-1)
        x = (right + (tap_right - padding) + offset[:, 2 * tap + 1]).reshape(-1)
        top, left = y.floor(), x.floor()
        self.down, self.right = y - top, x - left

        corner_y = torch.stack((top, top, top + 1, top + 1), dim=1)
        corner_x = torch.stack((left, left + 1, left, left + 1), dim=1)
        # Strictly inside: a place exactly one cell beyond contributes nothing and, as published, has no slope.
        inside = ((y > -1) & (y < height) & (x > -1) & (x < width))[:, None]
        inside = inside & (corner_y >= 0) & (corner_y < height) & (corner_x >= 0) & (corner_x < width)
        self.inside = inside.to(offset.dtype)
        image = torch.arange(batch, device=offset.device).repeat_interleave(out_height * out_width)[:, None]
        # Corners outside have no share, but their index must be valid.
        row = (image * height + corner_y.long().clamp(0, height - 1)) * width
        self.rows = row + corner_x.long().clamp(0, width - 1)

    def shares(self) -> Tensor:
        """Bilinear weights `(places, 4)` of the corners: top left, top right, bottom left, bottom right."""
        up, left = 1 - self.down, 1 - self.right
        corners = (up * left, up * self.right, self.down * left, self.down * self.right)
        return torch.stack(corners, dim=1) * self.inside

    def share_slopes(self) -> tuple[Tensor, Tensor]:
        """Change of the shares when the place moves down and when it moves right, each `(places, 4)`."""
        up, left = 1 - self.down, 1 - self.right
        moving_down = torch.stack((-left, -self.right, left, self.right), dim=1) * self.inside
        moving_right = torch.stack((-up, up, -self.down, self.down), dim=1) * self.inside
        return moving_down, moving_right

    def sample(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums `(places, channels)` of the corners' rows."""
        return functional.embedding_bag(self.rows, rows, per_sample_weights=weights, mode="sum")

    def spread(self, rows_gradient: Tensor, values: Tensor, weights: Tensor) -> None:
        """The reverse of `sample`: add weighted `values` `(places, channels)` to the corners' rows."""
        for corner in range(4):
            rows_gradient.index_add_(0, self.rows[:, corner], values * weights[:, corner, None])


def _as_rows(maps: Tensor) -> Tensor:
    # For a single image, reshape alone returns a view whose rows are strided: four times slower to gather from.
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).contiguous()


def _masked(values: Tensor, mask: Tensor | None, tap: int) -> Tensor:
    """Multiply a row of `values` for each place with the tap's mask, if there is one."""
    return values if mask is None else values * mask[:, tap].reshape(-1, 1)


def _by_tap(weight: Tensor) -> Tensor:
    return weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[1], weight.shape[0])


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.vecdot(left, right)
