"""Box arithmetic that several detectors share: x1, y1, x2, y2 with continuous edges, in any frame."""

import torch
from torch import Tensor

from detectors.shapes import Float


def clip(boxes: Float[Tensor, "*any 4"], height: float, width: float) -> Float[Tensor, "*any 4"]:
    """Move edges outside of 0 .. `width` and 0 .. `height` onto the border.

    Args:
        boxes: x1, y1, x2, y2.
        height: largest y, in the unit of `boxes`.
        width: largest x, in the unit of `boxes`.

    Returns:
        A box wholly outside has no width or no height left. NaN stays NaN.
    """
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    return torch.stack((x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), dim=-1)


def mirrored(boxes: Float[Tensor, "*any 4"], width: float) -> Float[Tensor, "*any 4"]:
    """Mirror boxes as x1, y1, x2, y2 left to right: x becomes `width` - x."""
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=-1)


def centers(boxes: Float[Tensor, "*any 4"]) -> Float[Tensor, "*any 2"]:
    """Midpoints as x, y of boxes as x1, y1, x2, y2."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def sizes(boxes: Float[Tensor, "*any 4"]) -> Float[Tensor, "*any 2"]:
    """Widths and heights of boxes as x1, y1, x2, y2."""
    return boxes[..., 2:] - boxes[..., :2]


def around(center: Float[Tensor, "*any 2"], size: Float[Tensor, "*any 2"]) -> Float[Tensor, "*any 4"]:
    """Boxes as x1, y1, x2, y2 of `size` (width, height) around `center` (x, y)."""
    return torch.cat((center - size / 2, center + size / 2), dim=-1)
