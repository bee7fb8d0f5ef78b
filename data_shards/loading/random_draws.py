"""The random numbers of augmentation: crop, flip, angle, size and colours of each sample. Nothing is applied here.

A crop is resampled on the CPU by `cv2.resize` of a slice, which is three times as fast as `cv2.warpAffine` but can only
begin at whole pixels. So a random crop is moved by at most half a pixel to where the slice has exactly its geometry;
the batch's transforms and labels are those of the moved crop. A crop that is not random is not moved.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from data_shards.order.keyed_random import uniforms
from data_shards.reading.geometry import crop_matrix, whole_pixel_shift
from data_shards.settings import AugmentationSettings

BRIGHTNESS, CONTRAST, SATURATION = 0, 1, 2
_AUGMENTATION = 301
_ORDERS = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]], dtype=np.int64)
# The use of each of a sample's numbers. They keep their places, so that one setting never changes another's draws.
_SCALE, _CENTRE, _FLIP, _FACTORS, _ORDER, _LIGHTING = 0, slice(1, 3), 3, slice(4, 7), 7, slice(8, 12)
_SHIFT, _WHETHER_SHIFTED, _WHETHER_TURNED, _ANGLE, _COUNT = slice(12, 16), 16, 17, slice(18, 22), 22


@dataclass(frozen=True)
class Draws:
    """The draws of some samples, row by row."""

    centres: Float64[np.ndarray, "samples 2"]
    """x, y of the crop's centre, in the image frame before mirroring."""
    scales: Float64[np.ndarray, " samples"]
    """Width of the crop: the image pixels that fill the input's width."""
    degrees: Float64[np.ndarray, " samples"]
    """Rotation of the crop, clockwise in the image, or in the mirrored image if it is mirrored."""
    rescaled: Bool[np.ndarray, " samples"]
    """True if sizes in pixels no longer match depths in metres."""
    content_sizes: Int64[np.ndarray, "samples 2"]
    """Height and width to which the whole image is resized; 0 if it is cropped."""
    original_sizes: Int64[np.ndarray, "samples 2"]
    """Height and width of the image."""
    flips: Bool[np.ndarray, " samples"]
    """True if the device must mirror the input."""
    colour_factors: Float32[np.ndarray, "samples 3"]
    """Factors of brightness, contrast and saturation."""
    colour_order: Int64[np.ndarray, "samples 3"]
    """0, 1, 2 for brightness, contrast and saturation, in the order in which they are applied."""
    lighting: Float32[np.ndarray, "samples 3"]
    """Weights of the principal colours."""

    @property
    def rotated(self) -> Bool[np.ndarray, " samples"]:
        """True if the image is rotated."""
        return self.degrees != 0

    def matrix(self, row: int, input_size: tuple[int, int]) -> Float64[np.ndarray, "2 3"]:
        """Return the map from image to input of one sample, before the input is mirrored."""
        if self.content_sizes[row].any():
            height, width = self.content_sizes[row] / self.original_sizes[row]
            return np.array([[width, 0.0, 0.0], [0.0, height, 0.0]])
        flip = self.flips[row]
        # A mirrored image rotates the other way.
        degrees = float(-self.degrees[row] if flip else self.degrees[row])
        matrix = crop_matrix((self.centres[row, 0], self.centres[row, 1]), self.scales[row], input_size, degrees)
        if flip:
            # The publication mirrors the image, x' = width - 1 - x, and then crops with the centre at width / 2 of
            # the input. Mirroring the finished input instead is off by one pixel, which is corrected here.
            matrix[0, 2] -= 1.0
        if self.rescaled[row] and not degrees:
            for axis in (0, 1):
                matrix[axis, 2] = whole_pixel_shift(matrix[axis, axis], matrix[axis, 2])
        return matrix

    def centre(self, row: int, input_size: tuple[int, int]) -> Float64[np.ndarray, "2"]:
        """Return the actual centre of the crop, at most half a pixel from the random one."""
        matrix = self.matrix(row, input_size)
        middle = np.array([input_size[1] / 2 - float(self.flips[row]), input_size[0] / 2])
        return np.asarray(np.linalg.solve(matrix[:, :2], middle - matrix[:, 2]), dtype=np.float64)


def draw(
    settings: AugmentationSettings,
    seed: int,
    epoch: int,
    sample_ids: Int64[np.ndarray, " samples"],
    original_sizes: Int64[np.ndarray, "samples 2"],
) -> Draws:
    """Draw the augmentation of samples in an epoch, as a function of the seed, the epoch and the sample alone.

    Args:
        settings: the ranges.
        seed: the run's seed.
        epoch: counted from 0.
        sample_ids: the samples.
        original_sizes: height and width of their images, in pixels.

    Source:
        CenterNet, src/lib/datasets/sample/ctdet.py (crop, shift, flip), multi_pose.py (rotation), ddd.py (shift in
        3D) and src/lib/utils/image.py (colour); tianzhi0549/FCOS, fcos_core/data/transforms/transforms.py (shorter
        side).
    """
    numbers = uniforms(seed, epoch, sample_ids, _COUNT, _AUGMENTATION)
    heights, widths = original_sizes[:, 0], original_sizes[:, 1]
    centres = np.stack([widths / 2, heights / 2], axis=1)
    scales = (widths if settings.fit == "width" else np.maximum(heights, widths)).astype(np.float64)
    rescaled = np.zeros(len(sample_ids), dtype=np.bool_)
    content_sizes = np.zeros_like(original_sizes)
    if settings.geometry == "shorter_side":
        content_sizes = resized(
            original_sizes, _shorter_sides(settings, numbers[:, _SCALE]), settings.longer_side_limit
        )
    elif settings.geometry == "shift":
        # Displacements are fractions of the side that fills the input; with "width", of each side itself.
        extent = original_sizes[:, ::-1] if settings.fit == "width" else scales[:, None]
        normals = _normals(numbers[:, _SHIFT])
        moved = numbers[:, _WHETHER_SHIFTED] < settings.shift_probability
        shift = np.clip(settings.shift * normals[:, :2], -2 * settings.shift, 2 * settings.shift)
        factor = np.clip(1 + settings.scale * normals[:, 2], 1 - settings.scale, 1 + settings.scale)
        centres = np.where(moved[:, None], centres + extent * shift, centres)
        scales = np.where(moved, scales * factor, scales)
        rescaled = moved
    elif settings.crop_scales:
        choices = np.array(settings.crop_scales)
        scales = scales * choices[(numbers[:, _SCALE] * len(choices)).astype(np.int64)]
        centres = np.stack(
            [
                _crop_centre(of_axis, sides, settings.crop_border)
                for of_axis, sides in zip(numbers[:, _CENTRE].T, (widths, heights), strict=True)
            ],
            axis=1,
        )
        rescaled = np.ones_like(rescaled)
    turned = numbers[:, _WHETHER_TURNED] < settings.rotation_probability
    most = 2 * settings.rotation_degrees
    degrees = np.clip(settings.rotation_degrees * _normals(numbers[:, _ANGLE])[:, 0], -most, most)
    spread = np.array([settings.brightness, settings.contrast, settings.saturation])
    return Draws(
        centres=centres,
        scales=scales,
        degrees=np.where(turned, degrees, 0.0),
        rescaled=rescaled,
        content_sizes=content_sizes,
        original_sizes=original_sizes,
        flips=numbers[:, _FLIP] < settings.flip_probability,
        colour_factors=(1 + spread * (2 * numbers[:, _FACTORS] - 1)).astype(np.float32),
        colour_order=_ORDERS[(numbers[:, _ORDER] * len(_ORDERS)).astype(np.int64)],
        lighting=(settings.lighting * _normals(numbers[:, _LIGHTING])).astype(np.float32),
    )


def resized(
    sizes: Int64[np.ndarray, "images 2"], shorter_sides: Int64[np.ndarray, " images"] | int, longer_side_limit: int
) -> Int64[np.ndarray, "images 2"]:
    """Return heights and widths with this shorter side, or less if the longer side would exceed its limit.

    The rounding is the authors': if the limit applies, the shorter side is rounded to the nearest pixel, and the longer
    side follows from it, rounded down. (It is also cut to the next multiple of 32 of the limit, which only images more
    than twenty times as long as wide reach.)

    Args:
        sizes: height and width of the images, in pixels.
        shorter_sides: the wanted shorter side, of each image or of all.
        longer_side_limit: most pixels of the longer side.

    Source:
        tianzhi0549/FCOS, fcos_core/data/transforms/transforms.py, `Resize.get_size`.
    """
    least, most = sizes.min(axis=1), sizes.max(axis=1)
    wanted = np.broadcast_to(np.asarray(shorter_sides, dtype=np.int64), least.shape)
    limited = np.rint(longer_side_limit * least / most).astype(np.int64)
    shorter = np.maximum(1, np.where(most / least * wanted > longer_side_limit, limited, wanted))
    longer = np.minimum((shorter * most / least).astype(np.int64), -(-longer_side_limit // 32) * 32)
    upright = sizes[:, :1] > sizes[:, 1:]
    return np.where(upright, np.stack([longer, shorter], axis=1), np.stack([shorter, longer], axis=1))


def _shorter_sides(
    settings: AugmentationSettings, numbers: Float64[np.ndarray, " samples"]
) -> Int64[np.ndarray, " samples"]:
    if settings.shorter_side_range is None:
        choices = np.array(settings.shorter_sides, dtype=np.int64)
    else:
        choices = np.arange(settings.shorter_side_range[0], settings.shorter_side_range[1] + 1)
    return choices[(numbers * len(choices)).astype(np.int64)]


def _crop_centre(
    numbers: Float64[np.ndarray, " samples"], sides: Int64[np.ndarray, " samples"], border: int
) -> Float64[np.ndarray, " samples"]:
    """Draw whole numbers from border … side - border - 1."""
    borders = np.full(len(sides), border, dtype=np.int64)
    divisor = 1
    # As published, the first border is halved until it fits: 128, 64, 32, …
    while np.any(crowded := sides - borders <= borders):
        divisor *= 2
        borders = np.where(crowded, border // divisor, borders)
    return np.asarray(borders + np.floor(numbers * (sides - 2 * borders)), dtype=np.float64)


def _normals(numbers: Float64[np.ndarray, "samples 4"]) -> Float64[np.ndarray, "samples 3"]:
    """Make three normal numbers from four uniform ones, by Box and Muller."""
    radius = np.sqrt(-2 * np.log1p(-numbers[:, [0, 0, 1]]))
    angle = 2 * np.pi * numbers[:, [2, 2, 3]]
    return radius * np.stack([np.cos(angle[:, 0]), np.sin(angle[:, 1]), np.cos(angle[:, 2])], axis=1)
