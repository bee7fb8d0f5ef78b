"""Settings of this package. They import no torch, so that a recipe is read in an instant."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from data_shards.errors import DataError

Crowd = Literal["keep", "drop"]
BoxEnds = Literal["edge", "last_pixel"]


@runtime_checkable
class InputSizes(Protocol):
    """Input sizes that a network takes. Loader processes receive it pickled, so its module must not import torch."""

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Return the smallest input that holds an image of this size, in pixels."""

    def at_own_resolution(self, height: int, width: int) -> tuple[int, int]:
        """Return the input in whose middle an image of this size is tested, for the geometry "keep"."""


@dataclass(frozen=True, kw_only=True)
class BoxRules:
    """The boxes of an image that a batch contains, and the pixel they end on."""

    crowd: Crowd = "keep"
    """Boxes around crowds: "keep" treats them as ordinary boxes (CenterNet), "drop" leaves them out (FCOS)."""
    box_ends: BoxEnds = "edge"
    """Right and lower end of a box: "edge" is x + width. "last_pixel" is x + width - 1, clipped to the image's last
    pixel, and drops boxes that are empty then, as the authors of FCOS read COCO."""


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """Time limits for reading from S3."""

    timeout_seconds: float = 30.0
    """Seconds without a byte after which a request is cancelled and made again."""

    deadline_seconds: float = 300.0
    """Seconds that one file may take, from the first request to the last retry."""

    def __post_init__(self) -> None:
        for name in ("timeout_seconds", "deadline_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise DataError(f"{name} is {getattr(self, name):g}; set it to more than 0.")


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """Random changes to every training image. The defaults are CenterNet's for COCO."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    geometry: Literal["crop", "shift", "shorter_side"] = "crop"
    """crop: a random crop (CenterNet). shift: the whole image, moved and scaled a little (CenterNet's --not_rand_crop,
    and 3D). shorter_side: the whole image resized to a random shorter side, and padded to the largest image of the
    batch (FCOS)."""

    fit: Literal["longer_side", "width"] = "longer_side"
    """Side of an image that fills the input's width before random changes: the longer one, or its width (KITTI)."""

    crop_scales: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
    """For "crop": sizes of the crop, as a factor on the image's longer side; one is chosen at random. Empty takes the
    whole image, centred."""

    crop_border: int = 128
    """For "crop": least distance of the crop's centre from each side of the image, in image pixels. Halved for small
    images until it fits."""

    shift: float = 0.1
    """For "shift": standard deviation of the centre's displacement as a fraction of the image, clipped at twice
    this."""

    scale: float = 0.4
    """For "shift": standard deviation of the crop's relative size around 1, clipped at 1 ± this."""

    shift_probability: float = 1.0
    """For "shift": probability that an image is moved and scaled at all (aug_ddd: 0.5 in 3D)."""

    rotation_probability: float = 0.0
    """Probability that an image is rotated (aug_rot). For pose only: rotated images train the joint heatmaps alone."""

    rotation_degrees: float = 0.0
    """Standard deviation of the rotation in degrees, clipped at twice this."""

    shorter_sides: tuple[int, ...] = (800,)
    """For "shorter_side": lengths of the shorter side in pixels; one is chosen at random."""

    shorter_side_range: tuple[int, int] | None = None
    """Smallest and largest shorter side in pixels, instead of `shorter_sides`: any integer between them is equally
    likely (640 800 in the authors' 2x schedule)."""

    longer_side_limit: int = 1333
    """For "shorter_side": most pixels of the longer side; an image that would exceed it is resized to less."""

    flip_probability: float = 0.5
    """Probability that an image is mirrored left to right."""

    brightness: float = 0.4
    """Colours are multiplied by a random factor of 1 ± this."""

    contrast: float = 0.4
    """Differences from the image's mean gray are multiplied by a random factor of 1 ± this."""

    saturation: float = 0.4
    """Differences from each pixel's own gray are multiplied by a random factor of 1 ± this."""

    lighting: float = 0.1
    """Standard deviation of a random shift along the principal components of ImageNet's colours."""

    def __post_init__(self) -> None:
        if bad := [scale for scale in self.crop_scales if not 0 < scale < math.inf]:
            raise DataError(f"crop_scales contains {bad[0]:g}; set every scale above 0.")
        if self.crop_border < 0:
            raise DataError(f"crop_border is {self.crop_border}; set it to 0 pixels or more.")
        for name in ("shift", "rotation_degrees"):
            if not 0 <= getattr(self, name) < math.inf:
                raise DataError(f"{name} is {getattr(self, name):g}; set it to 0 or more.")
        if not 0 <= self.scale < 1:
            raise DataError(f"scale is {self.scale:g}; set it to 0 or more and below 1.")
        if self.geometry == "shorter_side" and self.rotation_probability:
            raise DataError("rotation_probability works with the geometries crop and shift only; set it to 0.")
        if not self.shorter_sides or min(self.shorter_sides) < 1:
            raise DataError(
                f"shorter_sides is {list(self.shorter_sides)}; give one side or more, each at least 1 pixel."
            )
        if self.shorter_side_range is not None and not 1 <= self.shorter_side_range[0] <= self.shorter_side_range[1]:
            raise DataError(
                f"shorter_side_range is {list(self.shorter_side_range)}; give the smallest and the largest side, in "
                "pixels."
            )
        if self.longer_side_limit < self.largest_shorter_side:
            raise DataError(
                f"longer_side_limit is {self.longer_side_limit}; set it to the largest shorter side, "
                f"{self.largest_shorter_side}, or more."
            )
        for name in (
            "shift_probability",
            "rotation_probability",
            "flip_probability",
            "brightness",
            "contrast",
            "saturation",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} is {getattr(self, name):g}; set it between 0 and 1.")
        if not 0 <= self.lighting < math.inf:
            raise DataError(f"lighting is {self.lighting:g}; set it to 0 or more.")

    @property
    def largest_shorter_side(self) -> int:
        """The largest shorter side that may be chosen, in pixels."""
        return self.shorter_side_range[1] if self.shorter_side_range else max(self.shorter_sides)

    def largest_input(self, input_size: tuple[int, int], sizes: InputSizes | None) -> tuple[int, int]:
        """Return an upper bound of any batch's height and width; memory is reserved from it before images are known."""
        if self.geometry != "shorter_side" or sizes is None:
            return input_size
        # Rounding the shorter side may leave the longer one a little above its limit; `random_draws.resized` stops it
        # at the same multiple of 32.
        side = -(-self.longer_side_limit // 32) * 32
        return sizes.padded(side, side)

    @classmethod
    def off(cls) -> "AugmentationSettings":
        """Return settings without randomness: the whole image, unmirrored, in its own colours."""
        return cls(crop_scales=(), flip_probability=0.0, brightness=0.0, contrast=0.0, saturation=0.0, lighting=0.0)
