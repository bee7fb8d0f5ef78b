"""The place of a photograph in an input, and the way from there to the image frame.

Boxes are moved and clipped in the order of the published code: border, clip, scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detectors.detector import View
from detectors.shapes import Float


@dataclass(frozen=True)
class Placement:
    """The place of one image; x and y of everything."""

    border: Float[Tensor, " 2"]
    """Place of the image's origin in the input."""
    factor: Float[Tensor, " 2"]
    """Input pixels per pixel of the image."""
    first: Float[Tensor, " 2"]
    """Least and largest coordinates that boxes are clipped to, in input pixels from the image's origin."""
    last: Float[Tensor, " 2"]

    def from_origin(self, points: Float[Tensor, "*any 2"]) -> Float[Tensor, "*any 2"]:
        """Points of the input, in input pixels from the image's origin."""
        return points - self.border

    def in_image(self, points: Float[Tensor, "*any 2"]) -> Float[Tensor, "*any 2"]:
        """Points in input pixels from the image's origin, in the image frame."""
        return points / self.factor

    def clipped(self, points: Float[Tensor, "*any 2"]) -> Float[Tensor, "*any 2"]:
        """Points in input pixels from the image's origin, moved onto its border if they are outside."""
        return torch.minimum(torch.maximum(points, self.first), self.last)


def whole_input(input_size: tuple[int, int], images: int) -> list[Placement]:
    """Placements of images that are their inputs."""
    zero, size = torch.zeros(2), torch.tensor([float(input_size[1]), float(input_size[0])])
    return [Placement(zero, torch.ones(2), zero, size)] * images


def placements(view: View) -> list[Placement]:
    """Placements of the images of a view; without their sizes, boxes are clipped to the input."""
    transforms = view.transforms.cpu().float()
    sizes: Sequence[Tensor | None] = [None] * len(transforms)
    if view.image_sizes is not None:
        sizes = list(view.image_sizes.cpu())
    height, width = view.input_size
    found = []
    for transform, size in zip(transforms, sizes, strict=True):
        factor, border = transform[:, :2].diagonal(), transform[:, 2]
        if size is None:
            first, last = -border, border.new_tensor([width, height]) - border
        else:
            # Resizing truncates the sides; the small term keeps a whole number from falling below itself in float32.
            first, last = torch.zeros(2), (size.flip(0) * factor + 1e-3).floor()
        found.append(Placement(border, factor, first, last))
    return found
