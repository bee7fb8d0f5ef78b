"""The published augmentation on the batch's device: flip, colour, lighting and normalisation of whole batches.

`random_draws.py` draws the numbers; the crop happens while an image is resampled on the CPU. Colour and lighting are
affine in the pixel, so one expression jitters and normalises a batch. The published constants for lighting were made
for RGB and are applied to B, G, R; published results depend on it, so it is kept.
"""

import math
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from data_shards.loading.batch import Batch
from data_shards.loading.random_draws import CONTRAST, SATURATION

_GRAY_OF_RGB = (0.299, 0.587, 0.114)
# Rows are the channels B, G, R of the published code.
_LIGHTING_VALUES = (0.2141788, 0.01817699, 0.00341571)
_LIGHTING_VECTORS = (
    (-0.58752847, -0.69563484, 0.41340352),
    (-0.5832747, 0.00994535, -0.81221408),
    (-0.56089297, 0.71832671, 0.41158938),
)


@runtime_checkable
class Normalisation(Protocol):
    """From pixels to the network's input: `(pixel * scale - mean) / std`, with channels in `channel_order`."""

    @property
    def channel_order(self) -> Literal["rgb", "bgr"]:
        """Order of the channels of `mean`, `std` and the result."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Subtracted from the scaled pixel."""

    @property
    def std(self) -> tuple[float, float, float]:
        """Divides the difference."""

    @property
    def scale(self) -> float:
        """Factor on pixels from 0 to 255."""


def augment(batch: Batch, normalisation: Normalisation) -> Float32[Tensor, "batch 3 height width"]:
    """Mirror, jitter and normalise a batch on its device.

    Mirroring changes the batch itself, once: its images, boxes, joints, angles and transforms; afterwards all its
    `flips` are False. A batch without draws (evaluation) is only normalised. Padding around an image (beyond its
    `content_sizes`) is 0 in the result, as the authors of FCOS pad.

    Args:
        batch: from a loader, on any device.
        normalisation: the detector's normalisation.

    Returns:
        The network's input, with channels in the normalisation's order.
    """
    if batch.flips is not None:
        _mirror(batch, batch.flips)
    rgb = normalisation.channel_order == "rgb"
    pixels = (batch.images if rgb else batch.images.flip(1)).to(torch.float32)
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
        for values in (normalisation.mean, normalisation.std)
    )
    gain, offset = normalisation.scale / std, -mean / std
    if batch.colour_factors is None or batch.colour_order is None or batch.lighting is None:
        return _padded_with_zeros(pixels.mul_(gain).add_(offset), batch.content_sizes)
    weights = _GRAY_OF_RGB if rgb else _GRAY_OF_RGB[::-1]
    # In place wherever possible, to save copies of a whole batch in float32.
    gray = pixels[:, :1] * weights[0]
    gray.add_(pixels[:, 1:2], alpha=weights[1]).add_(pixels[:, 2:], alpha=weights[2])
    mean_gray = gray.mean(dim=(1, 2, 3))
    if batch.content_sizes is not None:
        # The padding is black and does not count as part of the image.
        mean_gray = mean_gray * (math.prod(batch.input_size) / batch.content_sizes.prod(dim=1))
    of_pixel, of_gray, constant = _colour_coefficients(batch.colour_factors, batch.colour_order, mean_gray)
    lighting = _lighting_shift(batch.lighting)
    shift = constant[:, None] + 255 * (lighting.flip(1) if rgb else lighting)
    pixels.mul_(gain * of_pixel.view(-1, 1, 1, 1)).addcmul_(gray, gain * of_gray.view(-1, 1, 1, 1))
    return _padded_with_zeros(pixels.add_(offset + gain * shift[:, :, None, None]), batch.content_sizes)


def _padded_with_zeros(
    pixels: Float32[Tensor, "batch 3 height width"], content_sizes: Int64[Tensor, "batch 2"] | None
) -> Float32[Tensor, "batch 3 height width"]:
    if content_sizes is None:
        return pixels
    height, width = pixels.shape[2:]
    rows = torch.arange(height, device=pixels.device) < content_sizes[:, :1]
    columns = torch.arange(width, device=pixels.device) < content_sizes[:, 1:]
    return pixels.mul_(rows[:, None, :, None]).mul_(columns[:, None, None, :])


def _mirror(batch: Batch, flips: Bool[Tensor, " batch"]) -> None:
    width = batch.images.shape[-1]
    if batch.content_sizes is None:
        batch.images = torch.where(flips[:, None, None, None], batch.images.flip(-1), batch.images)
        last = torch.full_like(batch.image_ids, width - 1)
    else:
        # Mirror only the image; its padding stays on the right.
        last = batch.content_sizes[:, 1] - 1
        columns = torch.arange(width, device=flips.device)
        source = last[:, None] - columns
        source = torch.where(flips[:, None] & (source >= 0), source, columns)
        batch.images = batch.images.gather(3, source[:, None, None].expand_as(batch.images))
    sums = (last if batch.mirror_sums is None else batch.mirror_sums).to(batch.boxes.dtype)
    x1, y1, x2, y2 = batch.boxes.unbind(dim=-1)
    mirrored = torch.stack([sums[:, None] - x2, y1, sums[:, None] - x1, y2], dim=-1)
    real = flips[:, None] & (batch.labels != -1)
    batch.boxes = torch.where(real[:, :, None], mirrored, batch.boxes)
    if batch.keypoints is not None:
        x, y, visibility = batch.keypoints.unbind(dim=-1)
        x = torch.where(real[:, :, None] & (visibility > 0), sums[:, None, None] - x, x)
        batch.keypoints = torch.stack([x, y, visibility], dim=-1)
    if batch.alpha is not None:
        # A mirrored object faces the other way: pi - alpha, within -pi .. pi.
        turned = torch.where(batch.alpha >= 0, math.pi - batch.alpha, -math.pi - batch.alpha)
        batch.alpha = torch.where(real, turned, batch.alpha)
    if batch.clip_boxes is not None:
        x1, y1, x2, y2 = batch.clip_boxes.unbind(dim=-1)
        batch.clip_boxes = torch.where(
            flips[:, None], torch.stack([sums - x2, y1, sums - x1, y2], dim=-1), batch.clip_boxes
        )
    # x' = sum - x negates the first row of the transform.
    transforms = batch.transforms.clone()
    transforms[:, 0] *= -1
    transforms[:, 0, 2] += sums
    batch.transforms = torch.where(flips[:, None, None], transforms, batch.transforms)
    batch.flips = torch.zeros_like(flips)


def _colour_coefficients(
    factors: Float32[Tensor, "batch 3"], order: Int64[Tensor, "batch 3"], mean_gray: Float32[Tensor, " batch"]
) -> tuple[Float32[Tensor, " batch"], Float32[Tensor, " batch"], Float32[Tensor, " batch"]]:
    """Return the coefficients of pixel, gray and 1 that result from the three jitters in their order.

    All three are affine: brightness scales the value, contrast pulls it towards the mean gray, saturation towards the
    gray of the pixel. Both grays are those of the image before any jitter.
    """
    of_pixel, of_gray, constant = torch.ones_like(mean_gray), torch.zeros_like(mean_gray), torch.zeros_like(mean_gray)
    for turn in range(3):
        kind = order[:, turn]
        factor = factors.gather(1, kind[:, None])[:, 0]
        of_pixel, of_gray, constant = of_pixel * factor, of_gray * factor, constant * factor
        of_gray = torch.where(kind == SATURATION, of_gray + (1 - factor), of_gray)
        constant = torch.where(kind == CONTRAST, constant + (1 - factor) * mean_gray, constant)
    return of_pixel, of_gray, constant


def _lighting_shift(weights: Float32[Tensor, "batch 3"]) -> Float32[Tensor, "batch 3"]:
    """Return the shift of B, G, R, on colours from 0 to 1."""
    vectors = torch.tensor(_LIGHTING_VECTORS, device=weights.device)
    values = torch.tensor(_LIGHTING_VALUES, device=weights.device)
    return (weights * values) @ vectors.T
