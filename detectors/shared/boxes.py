"""Box arithmetic that several detectors share: x1, y1, x2, y2 with continuous edges, in any frame."""

import torch
from torch import Tensor


def clip(boxes: Tensor, height: float, width: float) -> Tensor:
    """Move edges that lie outside of 0 .. `width` and 0 .. `height` onto the border.

    Args:
        boxes: `(..., 4)` as x1, y1, x2, y2.
        height: largest y, in the unit of `boxes`.
        width: largest x, in the unit of `boxes`.

    Returns:
        `(..., 4)`; a box wholly outside has no width or no height left. NaN stays NaN.
    """
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    return torch.stack((x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), dim=-1)


def centers(boxes: Tensor) -> Tensor:
    """Midpoints `(..., 2)` as x, y of boxes `(..., 4)` as x1, y1, x2, y2."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def sizes(boxes: Tensor) -> Tensor:
    """Widths and heights `(..., 2)` of boxes `(..., 4)` as x1, y1, x2, y2."""
    return boxes[..., 2:] - boxes[..., :2]


def around(center: Tensor, size: Tensor) -> Tensor:
    """Boxes `(..., 4)` as x1, y1, x2, y2 of `size` (width, height) around `center` (x, y), both `(..., 2)`."""
    return torch.cat((center - size / 2, center + size / 2), dim=-1)
