"""CornerNet-Saccade: look at a small version of the image, then at crops of what was noticed (arXiv:1904.08900)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detectors.backbones.hourglass import HourglassSettings
from detectors.cornernet.cornernet import CornerDetector, CornerSettings
from detectors.cornernet.decoding import NO_PAIRS, Pairs, joined_pairs
from detectors.cornernet.losses import corner_losses
from detectors.cornernet.networks import SaccadeNetwork
from detectors.cornernet.placement import placements
from detectors.cornernet.saccade_search import (
    ATTENTION_STRIDES,
    SIDE,
    Crop,
    attended_locations,
    cut,
    first_locations,
    locations_of,
    without_neighbours,
)
from detectors.cornernet.targets import BoxesInInput, CornerTargets
from detectors.detections import Detections
from detectors.detector import TestMode, TestTime, View
from detectors.settings import configure, require_count, require_fraction, require_weight
from detectors.shapes import Bool, Float, Int
from detectors.shared import boxes as box
from detectors.shared.losses import penalty_reduced_focal_loss
from detectors.shared.network import Network, Outputs
from detectors.shared.slots import in_slots
from detectors.shared.test_time_augmentation import merge_by_soft_nms

_SMALLEST = 16
"""Pixels of an object's longer side from which its corners must be found."""
_LONGER_SIDES = {16: (96, 256), 8: (32, 96), 4: (0, 32)}
"""Longer sides of objects in each attention map, both included: 32 and 96 are in two."""
_NOTICED, _LOOKED_AT_AGAIN = 0.3, 0.5
"""Scores above which boxes of the first look are kept, and have a crop of their own."""


@dataclass(frozen=True, kw_only=True)
class SaccadeSettings(CornerSettings):
    """Settings of CornerNet-Saccade."""

    attention_weight: float = 1.0
    """Weight of the loss on attention maps, besides the published division by the number of stacks."""
    min_overlap: float = 0.5
    """IoU from which the radius follows."""
    corners: int = 12
    """Corners of each kind that are paired in a crop, over all classes."""
    tag_distance: float = 0.3
    """Largest difference between the tags of an object."""
    candidates: int = 12
    """Pairs of a crop that enter suppression."""
    attention_threshold: float = 0.3
    """Score of attention above which a place is looked at again."""
    max_crops: int = 30
    """Crops of an image that are looked at again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_weight("attention_weight", self.attention_weight)
        require_fraction("attention_threshold", self.attention_threshold)
        require_count("max_crops", self.max_crops)


@dataclass(frozen=True)
class SaccadeTargets(CornerTargets):
    """Targets of a batch; only positive objects have points and are in the mask."""

    counted: dict[str, Bool[Tensor, "batch classes height width"]]
    """For each point, False around those of objects that are too small or too far outside the crop."""
    attention: dict[int, Float[Tensor, "batch 1 rows columns"]]
    """By stride: 1 where the centre of an object of that size is, 0 elsewhere."""


class CornerNetSaccade(CornerDetector):
    """CornerNet on crops of 255 x 255 pixels, with attention that chooses them."""

    settings: SaccadeSettings
    test_time = TestTime(soft_nms=True)

    def __init__(self, num_classes: int, network: Network, settings: SaccadeSettings) -> None:
        super().__init__(num_classes, network, settings)

    @torch.no_grad()
    def encode(
        self,
        boxes: Float[Tensor, "batch objects 4"],
        labels: Int[Tensor, "batch objects"],
        input_size: tuple[int, int],
        **extra: Tensor,
    ) -> SaccadeTargets:
        """Encode the targets of a batch of crops; see `CornerDetector.encode`.

        Boxes are clipped to `clip_boxes` (batch, 4), the part of each crop that shows the image, if it is in `extra`.
        An object is positive if more than half of it is in the crop and its longer side there is 16 pixels or more.
        Around the corners of others, the focal loss does not count.

        Source:
            princeton-vl/CornerNet-Lite, core/sample/cornernet_saccade.py.
        """
        objects, grid = self.locate(boxes, labels, input_size, extra.get("clip_boxes"))
        whole = box.sizes(in_slots(boxes.double(), self.settings.max_objects)).prod(dim=-1)
        visible = box.sizes(objects.boxes).prod(dim=-1) / torch.where(objects.is_object, whole, 1)
        # As published, corners are truncated to whole pixels before the side is measured.
        longer_side = box.sizes(objects.boxes.trunc()).amax(dim=-1)
        positive = objects.is_object & (visible > 0.5) & (longer_side >= _SMALLEST)
        radii = self.radii(objects, grid)
        others = self.draw(objects, objects.is_object & ~positive, radii, grid)
        return SaccadeTargets(
            points=self.draw(objects, positive, radii, grid),
            object_mask=positive,
            counted={name: point.heatmap == 0 for name, point in others.items()},
            attention={stride: _attention(objects, input_size, stride) for stride in ATTENTION_STRIDES},
        )

    def losses(self, outputs: Outputs, targets: CornerTargets) -> dict[str, Tensor]:
        """The losses of CornerNet, and a focal loss of the attention maps; see `CornerDetector.losses`.

        Returns:
            Scalars float32 "heatmap", "pull", "push", "offset" and "attention", unweighted, and "loss".

        Source:
            princeton-vl/CornerNet-Lite, core/models/py_utils/losses.py, `CornerNet_Saccade_Loss`.
        """
        assert isinstance(targets, SaccadeTargets)
        # Peaks in cells that do not count are left out of the sum but divide it, as published.
        parts = corner_losses(outputs, targets, targets.counted)
        attention = torch.zeros((), device=targets.object_mask.device)
        for maps in outputs:
            for stride, wanted in targets.attention.items():
                # Attention has no Gaussians: each cell is 1 or 0.
                attention = attention + penalty_reduced_focal_loss(maps[f"attention_{stride}"], wanted) / len(outputs)
        # The published code divides this part by the number of stacks once more than the others.
        weight = self.settings.attention_weight / self.network.stacks
        return {**parts, "attention": attention, "loss": self.weighted(parts) + weight * attention}

    def heatmaps(self, targets: CornerTargets) -> dict[str, Float[Tensor, "batch planes height width"]]:
        """Heatmaps of the corners, and the attention maps; see `Detector.heatmaps`."""
        assert isinstance(targets, SaccadeTargets)
        attention = {f"attention {stride}": plane for stride, plane in targets.attention.items()}
        return {**super().heatmaps(targets), **attention}

    @torch.no_grad()
    def decode(self, outputs: Outputs, input_size: tuple[int, int], limit: int = 100) -> list[Detections]:
        """Pair the corners of the last stack in each crop, without those on its border, and apply soft-NMS.

        Args:
            outputs: result of `forward`.
            input_size: height and width of the crops, in pixels.
            limit: detections a crop.

        Returns:
            One for each crop, on the CPU.
        """
        return [self._suppress(pairs, limit) for pairs in self._in_input(outputs, input_size)]

    @torch.no_grad()
    def detect(
        self,
        views: Sequence[View],
        *,
        mode: TestMode = "none",
        soft: bool = False,
        limit: int = 100,
        watch: Callable[[int, Any], None] = lambda number, outputs: None,
    ) -> list[Detections]:
        """Find objects in a batch of images; see `Detector.detect`.

        The network sees the photographs in pieces, so they may have any size. `watch` is not called, because no output
        belongs to a whole image.
        """
        self.check_test_mode(mode, soft)
        (view,) = views
        found = []
        for image, place in zip(view.images, placements(view), strict=True):
            # Columns and rows of the photograph in its input.
            left, top = (place.border + place.first).round().int().clamp_min(0).tolist()
            right, bottom = (place.border + place.last).round().int().tolist()
            pairs = self.look(image[:, top:bottom, left:right])
            corners = pairs.boxes.view(-1, 2, 2) + torch.tensor([left, top])
            boxes = place.in_image(place.from_origin(corners)).view(-1, 4)
            found.append(self._suppress(Pairs(boxes, pairs.scores, pairs.labels, pairs.corner_scores), limit))
        return found

    def look(self, image: Float[Tensor, "3 height width"]) -> Pairs:
        """Boxes of an image and of its crops, before suppression, in the frame of the image, on the CPU.

        Source:
            princeton-vl/CornerNet-Lite, core/test/cornernet_saccade.py, `cornernet_saccade_inference`.
        """
        height, width = image.shape[-2:]
        crops = self._crops(image, first_locations(height, width))
        if not crops:  # an image of one pixel
            return NO_PAIRS
        outputs = self(torch.stack([crop.pixels for crop in crops]))
        noticed = self._in_image(outputs, crops)
        noticed = noticed.rows(noticed.scores > _NOTICED)
        locations = torch.cat(
            (
                attended_locations(outputs[-1], crops, (height, width), self.settings.attention_threshold),
                locations_of(noticed.rows(noticed.scores > _LOOKED_AT_AGAIN)),
            )
        )
        crops = self._crops(image, without_neighbours(locations)[: self.settings.max_crops])
        if not crops:
            return noticed
        closer = self._in_image(self(torch.stack([crop.pixels for crop in crops])), crops)
        return joined_pairs([noticed, closer])

    def _crops(self, image: Tensor, locations: Float[Tensor, "locations 4"]) -> list[Crop]:
        mean, std = (
            image.new_tensor(values)[:, None, None] for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        crops = (cut(image, location, -mean / std) for location in locations)
        return [crop for crop in crops if crop is not None]

    def _in_image(self, outputs: Outputs, crops: Sequence[Crop]) -> Pairs:
        """Boxes of all crops in the frame of the image."""
        parts = []
        for pairs, crop in zip(self._in_input(outputs, (SIDE, SIDE)), crops, strict=True):
            boxes = crop.in_image(pairs.boxes.view(-1, 2, 2)).view(-1, 4)
            parts.append(Pairs(boxes, pairs.scores, pairs.labels, pairs.corner_scores))
        return joined_pairs(parts)

    def _in_input(self, outputs: Outputs, input_size: tuple[int, int]) -> list[Pairs]:
        """Boxes of each crop in its own frame, without those that are rejected."""
        grid = self.grid(input_size)
        found = []
        for pairs in self.pairs(outputs[-1], grid, rejects_border=True).images():
            boxes = grid.in_input(pairs.boxes.view(-1, 2, 2)).view(-1, 4)
            found.append(Pairs(boxes, pairs.scores, pairs.labels, pairs.corner_scores).rows(pairs.scores > -1))
        return found

    def _suppress(self, pairs: Pairs, limit: int) -> Detections:
        # Unlike CornerNet's, the published code leaves out what soft-NMS has dropped.
        found = Detections(pairs.boxes, pairs.scores, pairs.labels)
        return merge_by_soft_nms([found], limit, sigma=0.7, with_stale_rows=False)


def _attention(
    objects: BoxesInInput, input_size: tuple[int, int], stride: int
) -> Float[Tensor, "batch 1 rows columns"]:
    """Map with a 1 at the centre of each object whose size belongs to the stride, positive or not."""
    rows, columns = ((side + 1) // stride for side in input_size)
    least, most = _LONGER_SIDES[stride]
    longer_side = box.sizes(objects.boxes).amax(dim=-1)
    drawn = objects.is_object & (longer_side >= least) & (longer_side <= most)
    cells = (box.centers(objects.boxes) / stride).long()
    index = torch.where(drawn, cells[..., 1] * columns + cells[..., 0], 0)
    planes = torch.zeros(len(index), rows * columns, device=index.device)
    return planes.scatter_reduce_(1, index, drawn.float(), reduce="amax").view(-1, 1, rows, columns)


def cornernet_saccade(num_classes: int = 80, **settings: Any) -> CornerNetSaccade:
    """CornerNet-Saccade with Hourglass-54: 117.0 M parameters, 43.2 AP on COCO test-dev."""
    network, chosen = configure("cornernet_saccade", settings, HourglassSettings(), SaccadeSettings())
    return CornerNetSaccade(num_classes, SaccadeNetwork(network, num_classes), chosen)
