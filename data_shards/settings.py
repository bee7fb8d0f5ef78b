"""Settings of this room, free of torch so that a recipe is read in an instant."""

import math
from dataclasses import dataclass

from data_shards.errors import DataError


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

    crop_scales: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
    """Side of the crop, times the longer side of the image; one of them is drawn. Empty: no crop, the whole
    image in the middle."""

    crop_border: int = 128
    """The crop's centre keeps this many image pixels from each side, halved until there is room."""

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
        if not 0 <= self.flip_probability <= 1:
            raise DataError(f"flip_probability is {self.flip_probability:g}; set it between 0 and 1.")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} is {getattr(self, name):g}; set it between 0 and 1.")
        if not 0 <= self.lighting < math.inf:
            raise DataError(f"lighting is {self.lighting:g}; set it to 0 or more.")

    @classmethod
    def off(cls) -> "AugmentationSettings":
        """Nothing is drawn: the whole image, unmirrored, in its own colours."""
        return cls(crop_scales=(), flip_probability=0.0, brightness=0.0, contrast=0.0, saturation=0.0, lighting=0.0)
