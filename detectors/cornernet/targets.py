"""Targets of detectors that find an object by points of its box: its corners, and for some its centre.

A network of stride 4 makes maps of 128 x 128 cells from an input of 511 x 511 pixels: a cell is 511 / 128 pixels wide.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from detectors.shapes import Bool, Float, Int
from detectors.shared import boxes as box
from detectors.shared.gaussian import corrected_radius, heatmaps_of_batch, published_radius
from detectors.shared.slots import in_slots

RadiusFormula = Literal["original", "corrected"]
"""Formula of the Gaussians' radius: "original", with the slip of CornerNet as first published, or "corrected"."""
RADIUS_FORMULAS: tuple[RadiusFormula, ...] = ("original", "corrected")


@dataclass(frozen=True)
class PointTargets:
    """Targets of one point of each object, in cells; rows of objects keep the slots of the annotations."""

    heatmap: Float[Tensor, "batch classes height width"]
    offset: Float[Tensor, "batch max_objects 2"]
    """x and y of the point in its cell; 0 without an object."""
    index: Int[Tensor, "batch max_objects"]
    """y * width + x of the cell; 0 without an object."""


@dataclass(frozen=True)
class CornerTargets:
    """Targets of a batch."""

    points: dict[str, PointTargets]
    """"top_left", "bottom_right", and "center" for Keypoint Triplets."""
    object_mask: Bool[Tensor, "batch max_objects"]
    """False where a slot is padding or its box was dropped."""


@dataclass(frozen=True)
class BoxesInInput:
    """Annotations of a batch in the input frame, one row per slot."""

    labels: Int[Tensor, "batch max_objects"]
    boxes: Float[Tensor, "batch max_objects 4"]
    """Clipped, float64; 0 without an object."""
    is_object: Bool[Tensor, "batch max_objects"]
    """The slot is not padding, and part of the box is in the input."""


@dataclass(frozen=True)
class Grid:
    """An input and the maps that a network makes from it."""

    input_size: tuple[int, int]
    """Height and width in pixels, one less than multiples of the stride."""
    stride: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the maps, in cells."""
        return (self.input_size[0] + 1) // self.stride, (self.input_size[1] + 1) // self.stride

    @property
    def cells_per_pixel(self) -> tuple[float, float]:
        """For x and y; not 1 / stride."""
        (height, width), (rows, columns) = self.input_size, self.size
        return columns / width, rows / height

    def in_cells(self, points: Float[Tensor, "*any 2"]) -> Float[Tensor, "*any 2"]:
        """Points of the input in cells."""
        (x, y), (of_x, of_y) = points.unbind(dim=-1), self.cells_per_pixel
        return torch.stack((x * of_x, y * of_y), dim=-1)

    def in_input(self, points: Float[Tensor, "*any 2"]) -> Float[Tensor, "*any 2"]:
        """Points in cells, in the input frame."""
        (x, y), (of_x, of_y) = points.unbind(dim=-1), self.cells_per_pixel
        return torch.stack((x / of_x, y / of_y), dim=-1)


def boxes_in_slots(
    boxes: Float[Tensor, "batch objects 4"],
    labels: Int[Tensor, "batch objects"],
    max_objects: int,
    input_size: tuple[int, int],
    limits: Float[Tensor, "batch 4"] | None = None,
) -> BoxesInInput:
    """Move annotations into their slots, and clip their boxes to 0 .. width - 1 and 0 .. height - 1 of the input.

    A box is kept if it has a width and a height left, however small.

    Args:
        boxes: x1, y1, x2, y2, unclipped, in the input frame; the first `max_objects` of an image count.
        labels: negative for padding and regions to ignore.
        max_objects: slots.
        input_size: height and width of the input, in pixels.
        limits: x1, y1, x2, y2 in each input to which boxes are clipped instead.
    """
    labels = in_slots(labels, max_objects, fill=-1)
    # float64, as in the published code, because it decides the cell of a corner that is near a cell's side.
    boxes = in_slots(boxes.double(), max_objects)
    clipped = box.clip(boxes, input_size[0] - 1, input_size[1] - 1)
    if limits is not None:
        first, last = (limits[:, None, axes].double().repeat(1, 1, 2) for axes in (slice(0, 2), slice(2, 4)))
        clipped = torch.minimum(torch.maximum(clipped, first), last)
    is_object = (box.sizes(clipped) > 0).all(dim=-1) & (labels >= 0)
    # Dropped boxes may hold anything, NaN included; their cells are read and drawn to, so they must be valid.
    return BoxesInInput(labels, torch.where(is_object[..., None], clipped, 0), is_object)


def radii_in_cells(
    boxes: Float[Tensor, "batch max_objects 4"], grid: Grid, formula: RadiusFormula, min_overlap: float
) -> Int[Tensor, "batch max_objects"]:
    """Reach of each object's Gaussians, from its width and height rounded up to whole cells.

    Args:
        boxes: clipped, in the input frame.
        grid: the input and its maps.
        formula: see `RadiusFormula`.
        min_overlap: IoU that boxes keep whose corners are shifted by the radius.
    """
    size = grid.in_cells(box.sizes(boxes)).ceil()
    radius = published_radius if formula == "original" else corrected_radius
    return radius(size[..., 1], size[..., 0], min_overlap).long().clamp_min(0)


def point_targets(
    points: Float[Tensor, "batch max_objects 2"],
    labels: Int[Tensor, "batch max_objects"],
    drawn: Bool[Tensor, "batch max_objects"],
    radii: Int[Tensor, "batch max_objects"],
    num_classes: int,
    grid: Grid,
    deviations: int = 6,
) -> PointTargets:
    """Targets of one point of each object; truncating a point yields its cell.

    Args:
        points: x and y in the input frame, inside it.
        labels: of the objects.
        drawn: False for rows to leave out.
        radii: reach of the Gaussians, in cells.
        num_classes: planes of the heatmap.
        grid: the input and its maps.
        deviations: standard deviations in the diameter of a Gaussian.
    """
    in_cells = grid.in_cells(points)
    cells = in_cells.long()
    index = cells[..., 1] * grid.size[1] + cells[..., 0]
    return PointTargets(
        heatmap=heatmaps_of_batch(labels, cells, radii, drawn, num_classes, grid.size, deviations),
        offset=torch.where(drawn[..., None], in_cells - cells, 0).float(),
        index=torch.where(drawn, index, 0),
    )
