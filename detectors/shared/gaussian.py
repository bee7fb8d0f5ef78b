"""Gaussian peaks on heatmaps: how far they reach, and a whole batch of them drawn at once."""

import torch
from torch import Tensor

from detectors.shapes import Bool, Float, Int

_CELLS_AT_ONCE = 1 << 20
"""Cells drawn in one go: about 60 MB of indices and float64 values."""


def published_radius(
    heights: Float[Tensor, "*#objects"], widths: Float[Tensor, "*#objects"], min_overlap: float = 0.7
) -> Float[Tensor, "*#objects"]:
    """Reach of the Gaussian of an object, in cells, with the published slip on which the reported results depend.

    The idea is CornerNet's: a box whose corners are shifted by the radius still has an IoU of `min_overlap` with
    the true one, in three cases that are quadratic equations. The published code divides every root by 2 rather
    than by 2a, and takes the larger root of the first two, so that the third case always decides; a square gets
    3.35 times the radius that was meant. Users who corrected it lost AP.

    Args:
        heights: object heights in cells, >= 0. CenterNet rounds them up for boxes, not for 3D.
        widths: object widths likewise.
        min_overlap: IoU that shifted boxes were meant to keep, between 0 and 1.

    Returns:
        float64, not yet truncated to whole cells.

    Source:
        xingyizhou/CenterNet, src/lib/utils/image.py, `gaussian_radius`.
    """
    heights, widths = heights.double(), widths.double()
    total = heights + widths
    # Factors are multiplied in the published order: some roots are whole numbers, which rounding puts on either side.
    moved_same_way = _halved_root(1.0, total, widths * heights * (1 - min_overlap) / (1 + min_overlap))
    shrunk = _halved_root(4.0, 2 * total, (1 - min_overlap) * widths * heights)
    grown = _halved_root(4 * min_overlap, -2 * min_overlap * total, (min_overlap - 1) * widths * heights)
    return torch.minimum(torch.minimum(moved_same_way, shrunk), grown)


def corrected_radius(
    heights: Float[Tensor, "*#objects"], widths: Float[Tensor, "*#objects"], min_overlap: float = 0.3
) -> Float[Tensor, "*#objects"]:
    """Reach of the Gaussian of an object, in cells, as CornerNet's authors corrected it; see `published_radius`.

    Args:
        heights: object heights in cells, >= 0, rounded up.
        widths: object widths likewise.
        min_overlap: IoU that boxes keep whose corners are shifted by the radius, between 0 and 1.

    Returns:
        float64, not yet truncated to whole cells.

    Source:
        princeton-vl/CornerNet, sample/utils.py, since commit 3e71377, and CornerNet-Lite, core/sample/utils.py,
        `gaussian_radius`.
    """
    heights, widths = heights.double(), widths.double()
    total = heights + widths
    c = widths * heights * (1 - min_overlap) / (1 + min_overlap)
    moved_same_way = (total - (total * total - 4 * c).sqrt()) / 2
    b, c = 2 * total, (1 - min_overlap) * widths * heights
    shrunk = (b - (b * b - 16 * c).sqrt()) / 8
    a, b, c = 4 * min_overlap, -2 * min_overlap * total, (min_overlap - 1) * widths * heights
    grown = (b + (b * b - 4 * a * c).sqrt()) / (2 * a)
    return torch.minimum(torch.minimum(moved_same_way, shrunk), grown)


def _halved_root(a: float, b: Tensor, c: Tensor) -> Tensor:
    return (b + (b * b - 4 * a * c).sqrt()) / 2


def gaussian_heatmaps(
    planes: Int[Tensor, " objects"],
    centers: Int[Tensor, "objects 2"],
    radii: Int[Tensor, " objects"],
    drawn: Bool[Tensor, " objects"],
    shape: tuple[int, int, int],
    deviations: int = 6,
) -> Float[Tensor, "planes height width"]:
    """Draw one Gaussian per object; where several meet, the largest value stays.

    The standard deviation is a sixth of the diameter 2 radius + 1, the Gaussian is cut to the square of that
    side, and its centre is exactly 1. Work and memory follow the cells that are covered, not padding; the number
    of these cells is the one value that is read back from the device.

    Args:
        planes: the plane that each object is drawn on.
        centers: x and y of each object's cell, inside the plane.
        radii: reach in cells, >= 0.
        drawn: False for rows to leave out (padding), whose other values do not matter.
        shape: planes, height and width of the result.
        deviations: standard deviations in a diameter.

    Returns:
        float32, computed in float64.

    Source:
        xingyizhou/CenterNet, src/lib/utils/image.py, `gaussian2D` and `draw_umich_gaussian`.
    """
    _, height, width = shape
    heatmaps = torch.zeros(shape, dtype=torch.float32, device=planes.device)
    flat = heatmaps.view(-1)
    sides = 2 * radii + 1
    # The covered cells of all objects in one row, object after object; `ends` are the boundaries between objects.
    ends = torch.where(drawn, sides * sides, 0).cumsum(0)
    num_cells = int(ends[-1]) if len(ends) else 0
    for start in range(0, num_cells, _CELLS_AT_ONCE):
        cells = torch.arange(start, min(start + _CELLS_AT_ONCE, num_cells), device=planes.device)
        objects = torch.searchsorted(ends, cells, right=True)
        side = sides[objects]
        place = cells - (ends[objects] - side * side)
        right, down = place % side - radii[objects], place // side - radii[objects]
        sigma = side.double() / deviations
        values = (-(right * right + down * down) / (2 * sigma * sigma)).exp().float()
        x, y = centers[objects, 0] + right, centers[objects, 1] + down
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        index = (planes[objects] * height + y) * width + x
        # A 0 changes no maximum, so cells beyond the border are sent to cell 0 rather than filtered out.
        flat.scatter_reduce_(0, torch.where(inside, index, 0), torch.where(inside, values, 0.0), reduce="amax")
    return heatmaps


def heatmaps_of_batch(
    planes: Int[Tensor, "batch points"],
    cells: Int[Tensor, "batch points 2"],
    radii: Int[Tensor, "batch points"],
    drawn: Bool[Tensor, "batch points"],
    num_planes: int,
    size: tuple[int, int],
    deviations: int = 6,
) -> Float[Tensor, "batch {num_planes} height width"]:
    """Draw a Gaussian for each point of a batch; see `gaussian_heatmaps`.

    Args:
        planes: the plane of each point, among those of its image.
        cells: x and y.
        radii: reach in cells.
        drawn: False for rows to leave out, whose other values do not matter.
        num_planes: planes an image.
        size: height and width of the maps, in cells.
        deviations: standard deviations in a diameter.
    """
    batch = len(planes)
    # All planes of all images in one row, so that one call draws the whole batch.
    first_plane = torch.arange(batch, device=planes.device)[:, None] * num_planes
    heatmaps = gaussian_heatmaps(
        (first_plane + planes).flatten(),
        cells.flatten(0, 1),
        radii.flatten(),
        drawn.flatten(),
        (batch * num_planes, *size),
        deviations,
    )
    return heatmaps.view(batch, num_planes, *size)
