"""Settings of this room, free of torch so that a recipe is read in an instant."""

import math
from dataclasses import dataclass
from typing import Literal

from data_shards.errors import DataError

Crowd = Literal["keep", "drop"]
BoxEnds = Literal["edge", "last_pixel"]


@dataclass(frozen=True, kw_only=True)
class BoxRules:
    """Which boxes of an image a batch holds, and where they end."""

    crowd: Crowd = "keep"
    """Boxes around crowds: ordinary boxes (CenterNet), or left out (FCOS)."""
    box_ends: BoxEnds = "edge"
    """"edge" is x + width; "last_pixel" x + width - 1, clipped to the image's last pixel, without boxes that nothing
    is left of, as the authors of FCOS read COCO."""


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """How long a store on the network is waited for."""

    timeout_seconds: float = 30.0
    """Silence on a connection after which it is given up and tried anew."""

    deadline_seconds: float = 300.0
    """From the first request for a file to the last retry."""

    def __post_init__(self) -> None:
        for name in ("timeout_seconds", "deadline_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise DataError(f"{name} is {getattr(self, name):g}; set it to more than 0.")


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """What is drawn at random for every training image; the defaults are CenterNet's for COCO."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    geometry: Literal["crop", "shift", "shorter_side"] = "crop"
    """crop: a random crop (CenterNet); shift: the whole image, moved and scaled a little (CenterNet's --not_rand_crop,
    and 3D); shorter_side: resized to a drawn shorter side and padded to the batch's largest (FCOS)."""

    fit: Literal["longer_side", "width"] = "longer_side"
    """What fills the input's width where nothing is drawn: the longer side, or the width (KITTI)."""

    crop_scales: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
    """Side of the crop, times the longer side of the image; one of them is drawn. Empty: no crop, the whole
    image in the middle."""

    crop_border: int = 128
    """The crop's centre keeps this many image pixels from each side, halved until there is room."""

    shift: float = 0.1
    """Of "shift": standard deviation of the centre's displacement as a share of the image, cut at twice that."""

    scale: float = 0.4
    """Of "shift": standard deviation of the crop's size around 1, cut at 1 ± this."""

    shift_probability: float = 1.0
    """Of "shift": how often an image is moved and scaled at all (aug_ddd: 0.5 in 3D)."""

    rotation_probability: float = 0.0
    """How often an image is turned (aug_rot, for pose: of a turned image only joint heatmaps are learnt)."""

    rotation_degrees: float = 0.0
    """Standard deviation of the angle, cut at twice that."""

    shorter_sides: tuple[int, ...] = (800,)
    """Of "shorter_side": pixels of the shorter side; one of them is drawn."""

    shorter_side_range: tuple[int, int] | None = None
    """Every whole number from the first to the second is drawn instead: 640 800 at the authors' 2x."""

    longer_side_limit: int = 1333
    """Of "shorter_side": the shorter side becomes smaller where the longer one would exceed this."""

    flip_probability: float = 0.5
    """How often an image is mirrored left to right."""

    brightness: float = 0.4
    """Colours are multiplied by 1 ± this."""

    contrast: float = 0.4
    """Distance from the image's mean gray is multiplied by 1 ± this."""

    saturation: float = 0.4
    """Distance from each pixel's gray is multiplied by 1 ± this."""

    lighting: float = 0.1
    """Standard deviation of the shift along the principal colours of ImageNet."""

    def __post_init__(self) -> None:
        if bad := [scale for scale in self.crop_scales if not 0 < scale < math.inf]:
            raise DataError(f"crop_scales contains {bad[0]:g}; every scale is greater than 0.")
        if self.crop_border < 0:
            raise DataError(f"crop_border is {self.crop_border}; set it to 0 pixels or more.")
        for name in ("shift", "rotation_degrees"):
            if not 0 <= getattr(self, name) < math.inf:
                raise DataError(f"{name} is {getattr(self, name):g}; set it to 0 or more.")
        if not 0 <= self.scale < 1:
            raise DataError(f"scale is {self.scale:g}; set it to 0 or more and below 1.")
        if self.geometry == "shorter_side" and self.rotation_probability:
            raise DataError("rotation_probability is for the geometries crop and shift; set it to 0.")
        if not self.shorter_sides or min(self.shorter_sides) < 1:
            raise DataError(f"shorter_sides is {list(self.shorter_sides)}; give one or more sides of 1 pixel or more.")
        if self.shorter_side_range is not None and not 1 <= self.shorter_side_range[0] <= self.shorter_side_range[1]:
            raise DataError(
                f"shorter_side_range is {list(self.shorter_side_range)}; give the smallest and the largest, in pixels."
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
        """Of all that may be drawn, in pixels."""
        return self.shorter_side_range[1] if self.shorter_side_range else max(self.shorter_sides)

    def largest_input(self, input_size: tuple[int, int], size_divisor: int) -> tuple[int, int]:
        """Height and width that no batch's input exceeds, for who has to make room before knowing the images."""
        if self.geometry != "shorter_side":
            return input_size
        # Rounding the shorter side may leave the longer one a little above its limit; `draws.resized` stops it here.
        side = -(-self.longer_side_limit // 32) * 32
        side = -(-side // size_divisor) * size_divisor
        return side, side

    @classmethod
    def off(cls) -> "AugmentationSettings":
        """Nothing is drawn: the whole image, unmirrored, in its own colours."""
        return cls(crop_scales=(), flip_probability=0.0, brightness=0.0, contrast=0.0, saturation=0.0, lighting=0.0)
