"""The published augmentation: random crop, flip, colour and lighting, drawn by key and applied to whole batches.

The crop happens while an image is resampled on the CPU; everything else here runs on the batch's device.
Colour and lighting are affine in the pixel, so a batch is jittered and normalised in one expression. The
published constants for lighting were made for RGB and are applied to B, G, R; results depend on it, so it is
kept.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_shards.decode import crop_matrix
from data_shards.keyed import uniforms
from data_shards.settings import AugmentationSettings

if TYPE_CHECKING:
    from data_shards.batch import Batch

_AUGMENTATION = 301
_ORDERS = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]], dtype=np.int64)
_BRIGHTNESS, _CONTRAST, _SATURATION = 0, 1, 2
_GRAY_OF_RGB = (0.299, 0.587, 0.114)
# Rows are the channels B, G, R of the published code.
_LIGHTING_VALUES = (0.2141788, 0.01817699, 0.00341571)
_LIGHTING_VECTORS = (
    (-0.58752847, -0.69563484, 0.41340352),
    (-0.5832747, 0.00994535, -0.81221408),
    (-0.56089297, 0.71832671, 0.41158938),
)


class Normalisation(Protocol):
    """How pixels become the network's input: `(pixel * scale - mean) / std` in `channel_order`."""

    @property
    def channel_order(self) -> Literal["rgb", "bgr"]:
        """The order of the channels of `mean`, `std` and the result."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Taken away from the scaled pixel."""

    @property
    def std(self) -> tuple[float, float, float]:
        """What remains is divided by it."""

    @property
    def scale(self) -> float:
        """Factor on the 0 to 255 pixel."""


@dataclass(frozen=True)
class Draws:
    """What was drawn for some samples, row by row."""

    centres: NDArray[np.float64]
    """`(samples, 2)`: x, y of the crop's centre, in the image frame before mirroring."""
    scales: NDArray[np.float64]
    """`(samples,)`: side of the crop, in image pixels."""
    flips: NDArray[np.bool_]
    """`(samples,)`: whether the finished input is to be mirrored."""
    colour_factors: NDArray[np.float32]
    """`(samples, 3)`: for brightness, contrast and saturation."""
    colour_order: NDArray[np.int64]
    """`(samples, 3)`: 0, 1, 2 for brightness, contrast and saturation, first applied first."""
    lighting: NDArray[np.float32]
    """`(samples, 3)`: weights of the principal colours."""

    def matrix(self, row: int, input_size: tuple[int, int]) -> NDArray[np.float64]:
        """Image to input for one sample, before the input is mirrored: float64 `(2, 3)`."""
        matrix = crop_matrix((self.centres[row, 0], self.centres[row, 1]), self.scales[row], input_size)
        if self.flips[row]:
            # The publication mirrors the image, x' = width - 1 - x, and then crops with the centre at
            # out / 2; mirroring the finished input instead lands one pixel off, which is taken back here.
            matrix[0, 2] -= 1.0
        return matrix


def draw(
    settings: AugmentationSettings,
    seed: int,
    epoch: int,
    sample_ids: NDArray[np.int64],
    original_sizes: NDArray[np.int64],
) -> Draws:
    """What augmentation does to samples in an epoch: a function of the seed, the epoch and the sample alone.

    Args:
        settings: the ranges.
        seed: the run's seed.
        epoch: counted from 0.
        sample_ids: int64 `(samples,)`.
        original_sizes: int64 `(samples, 2)`, height and width of the images.

    Source:
        CenterNet, src/lib/datasets/sample/ctdet.py (crop, flip) and src/lib/utils/image.py (colour).
    """
    numbers = uniforms(seed, epoch, sample_ids, 12, _AUGMENTATION)
    heights, widths = original_sizes[:, 0], original_sizes[:, 1]
    longer = np.maximum(heights, widths).astype(np.float64)
    if settings.crop_scales:
        choices = np.array(settings.crop_scales)
        scales = longer * choices[(numbers[:, 0] * len(choices)).astype(np.int64)]
        centres = np.stack(
            [
                _crop_centre(numbers[:, 1], widths, settings.crop_border),
                _crop_centre(numbers[:, 2], heights, settings.crop_border),
            ],
            axis=1,
        )
    else:
        scales = longer
        centres = np.stack([widths / 2, heights / 2], axis=1)
    spread = np.array([settings.brightness, settings.contrast, settings.saturation])
    return Draws(
        centres=centres,
        scales=scales,
        flips=numbers[:, 3] < settings.flip_probability,
        colour_factors=(1 + spread * (2 * numbers[:, 4:7] - 1)).astype(np.float32),
        colour_order=_ORDERS[(numbers[:, 7] * len(_ORDERS)).astype(np.int64)],
        lighting=(settings.lighting * _normals(numbers[:, 8:12])).astype(np.float32),
    )


def augment(batch: "Batch", normalisation: Normalisation) -> Tensor:
    """Mirror, jitter and normalise a batch on its device.

    Mirroring changes the batch itself, once: its images, boxes and transforms; its `flips` are all False
    afterwards. A batch without draws (evaluation) is only normalised.

    Args:
        batch: as the loaders give it.
        normalisation: the detector's; see `Normalisation`.

    Returns:
        float32 `(batch, 3, height, width)`, channels in the normalisation's order.
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
        return pixels.mul_(gain).add_(offset)
    weights = _GRAY_OF_RGB if rgb else _GRAY_OF_RGB[::-1]
    gray = pixels[:, :1] * weights[0]
    gray.add_(pixels[:, 1:2], alpha=weights[1]).add_(pixels[:, 2:], alpha=weights[2])
    of_pixel, of_gray, constant = _colour_coefficients(
        batch.colour_factors, batch.colour_order, gray.mean(dim=(1, 2, 3))
    )
    lighting = _lighting_shift(batch.lighting)
    shift = constant[:, None] + 255 * (lighting.flip(1) if rgb else lighting)
    pixels.mul_(gain * of_pixel.view(-1, 1, 1, 1)).addcmul_(gray, gain * of_gray.view(-1, 1, 1, 1))
    return pixels.add_(offset + gain * shift[:, :, None, None])


def _mirror(batch: "Batch", flips: Tensor) -> None:
    width = batch.images.shape[-1]
    batch.images = torch.where(flips[:, None, None, None], batch.images.flip(-1), batch.images)
    x1, y1, x2, y2 = batch.boxes.unbind(dim=-1)
    mirrored = torch.stack([width - 1 - x2, y1, width - 1 - x1, y2], dim=-1)
    real = flips[:, None] & (batch.labels >= 0)
    batch.boxes = torch.where(real[:, :, None], mirrored, batch.boxes)
    # x' = width - 1 - x turns the first row of the transform around.
    transforms = batch.transforms.clone()
    transforms[:, 0] *= -1
    transforms[:, 0, 2] += width - 1
    batch.transforms = torch.where(flips[:, None, None], transforms, batch.transforms)
    batch.flips = torch.zeros_like(flips)


def _colour_coefficients(factors: Tensor, order: Tensor, mean_gray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients `(batch,)` of pixel, gray and 1 that the three jitters make in their order.

    All three are affine: brightness scales what is there, contrast pulls it towards the mean gray, saturation
    towards the gray of the pixel. Both grays are those of the image before any jitter.
    """
    of_pixel, of_gray, constant = torch.ones_like(mean_gray), torch.zeros_like(mean_gray), torch.zeros_like(mean_gray)
    for turn in range(3):
        kind = order[:, turn]
        factor = factors.gather(1, kind[:, None])[:, 0]
        of_pixel, of_gray, constant = of_pixel * factor, of_gray * factor, constant * factor
        of_gray = torch.where(kind == _SATURATION, of_gray + (1 - factor), of_gray)
        constant = torch.where(kind == _CONTRAST, constant + (1 - factor) * mean_gray, constant)
    return of_pixel, of_gray, constant


def _lighting_shift(weights: Tensor) -> Tensor:
    """The shift `(batch, 3)` of B, G, R, on colours from 0 to 1, for weights `(batch, 3)`."""
    vectors = torch.tensor(_LIGHTING_VECTORS, device=weights.device)
    values = torch.tensor(_LIGHTING_VALUES, device=weights.device)
    return (weights * values) @ vectors.T


def _crop_centre(numbers: NDArray[np.float64], sides: NDArray[np.int64], border: int) -> NDArray[np.float64]:
    """Whole numbers drawn from border … side - border - 1."""
    borders = np.full(len(sides), border, dtype=np.int64)
    divisor = 1
    # Whole-number division of the first border, as published: 128, 64, 32, …
    while np.any(crowded := sides - borders <= borders):
        divisor *= 2
        borders = np.where(crowded, border // divisor, borders)
    return np.asarray(borders + np.floor(numbers * (sides - 2 * borders)), dtype=np.float64)


def _normals(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Three normal numbers from four uniform ones `(samples, 4)`, by Box and Muller."""
    radius = np.sqrt(-2 * np.log1p(-numbers[:, [0, 0, 1]]))
    angle = 2 * np.pi * numbers[:, [2, 2, 3]]
    return radius * np.stack([np.cos(angle[:, 0]), np.sin(angle[:, 1]), np.cos(angle[:, 2])], axis=1)
