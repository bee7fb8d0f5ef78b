"""The input that each image becomes in evaluation, in one of the published test geometries."""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float64
from jaxtyping import Int64 as Int64Array

from data_shards.errors import DataError
from data_shards.loading.batch_arrays import BatchArrays
from data_shards.loading.row_filling import fill
from data_shards.reading.geometry import crop_matrix, scaled_size
from data_shards.reading.resizing import resized
from data_shards.reading.samples import Samples
from data_shards.reading.windows import Window
from data_shards.settings import BoxRules, InputSizes, Resizing

Geometry = Literal["fixed", "width", "keep", "shorter_side"]
Sizes = Int64Array[np.ndarray, "images 2"]
"""Heights and widths, in pixels."""


class View(NamedTuple):
    """The size at which images are shown."""

    scale: float
    """Factor on the image's size."""
    longer_side_limit: int
    """Most pixels of the longer side, for the geometry "shorter_side"."""


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """A test geometry with its numbers; see `EvaluationLoader`.

    Raises:
        DataError: a value is impossible.
    """

    geometry: Geometry = "fixed"
    input_size: tuple[int, int] = (512, 512)
    """Height and width of the input, in pixels, for "fixed" and "width"."""
    sizes: InputSizes | None = None
    """Sizes that the network takes; needed for "keep" and "shorter_side"."""
    shorter_side: int = 800
    """In pixels, for "shorter_side"."""
    resizing: Resizing = "plain"
    """The library whose sizes and pixels images get in "shorter_side"."""
    boxes: BoxRules = field(default_factory=BoxRules)
    """Boxes that count, and the meaning of their corners, which the transforms of a batch follow."""

    def __post_init__(self) -> None:
        if self.geometry not in get_args(Geometry):
            known = ", ".join(repr(name) for name in get_args(Geometry)[:-1])
            raise DataError(f"geometry is {self.geometry!r}; set it to {known} or {get_args(Geometry)[-1]!r}.")
        if self.sizes is None and self.geometry in ("keep", "shorter_side"):
            raise DataError(
                f"sizes is None; pass the detector's, to which images are padded in geometry {self.geometry!r}."
            )

    @property
    def whole_images(self) -> bool:
        """True if images are resized whole and padded on the right and below."""
        return self.geometry == "shorter_side"

    @property
    def vary(self) -> bool:
        """True if images of different sizes may have inputs of different sizes."""
        return self.geometry in ("keep", "shorter_side")

    def input_sizes(self, image_sizes: Sizes, view: View) -> Sizes:
        """Return the size of the input that each image takes."""
        if self.sizes is None or not self.vary:
            return np.tile(np.array(self.input_size), (len(image_sizes), 1))
        around = self.sizes.at_own_resolution if self.geometry == "keep" else self.sizes.padded
        content_sizes = self.content_sizes(image_sizes, view).tolist()
        return np.array([around(height, width) for height, width in content_sizes]).reshape(-1, 2)

    def content_sizes(self, image_sizes: Sizes, view: View) -> Sizes:
        """Return the sizes of the resized images, before they are placed in the input."""
        if self.geometry == "shorter_side":
            return resized(image_sizes, round(self.shorter_side * view.scale), view.longer_side_limit, self.resizing)
        scaled = [scaled_size((height, width), view.scale) for height, width in image_sizes.tolist()]
        return np.array(scaled).reshape(-1, 2)

    def fill(self, arrays: BatchArrays, row: int, samples: Samples, number: int, view: View) -> None:
        """Read, decode and resample one sample into one row of a batch.

        Raises:
            DataError: the image cannot be read.
        """
        height, width = arrays.images.shape[2:]
        size = samples.size(number)
        matrix, window = self._matrix(size, (height, width), view), self._window(size, (height, width), view)
        # The geometry "shorter_side" resizes only once, to a side that has the scale in it.
        scale = 1.0 if self.geometry == "shorter_side" else view.scale
        fill(arrays, row, samples, number, matrix, self.boxes, self.resizing, scale, window)

    def _matrix(self, size: tuple[int, int], input_size: tuple[int, int], view: View) -> Float64[np.ndarray, "2 3"]:
        """Return resized image to input; for "shorter_side", image to input."""
        height, width = size
        ((now_height, now_width),) = self.content_sizes(np.array([size]), view).tolist()
        if (window := self._window(size, input_size, view)) is not None:
            return window.matrix(input_size)
        if self.geometry == "shorter_side":
            return np.array([[now_width / width, 0.0, 0.0], [0.0, now_height / height, 0.0]])
        return crop_matrix(
            (now_width / 2, now_height / 2), width if self.geometry == "width" else max(height, width), input_size
        )

    def _window(self, size: tuple[int, int], input_size: tuple[int, int], view: View) -> Window | None:
        """Return the part of the image that the input shows in the geometry "keep", as large as the input."""
        if self.geometry != "keep":
            return None
        # Middles are whole pixels, also those of odd sides.
        ((height, width),) = self.content_sizes(np.array([size]), view).tolist()
        top, left = height // 2 - input_size[0] // 2, width // 2 - input_size[1] // 2
        return Window(view.scale, left, top, *input_size)


def check_view(view: View, shorter_side: int) -> None:
    """Refuse an impossible view.

    Raises:
        DataError: with the value.
    """
    if not 1 <= shorter_side <= view.longer_side_limit:
        raise DataError(
            f"shorter_side is {shorter_side} and longer_side_limit {view.longer_side_limit}; set both to 1 pixel or "
            "more, the limit no smaller than the side."
        )
    if not 0 < view.scale < math.inf:
        raise DataError(f"scale is {view.scale:g}; set it to more than 0.")
