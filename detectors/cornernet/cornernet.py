"""CornerNet: an object is a pair of corners, whose tags say that they belong together (arXiv:1808.01244).

CornerNet-Squeeze is the same with a small network, whose stride is 8 (arXiv:1904.08900).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from detectors.backbones.hourglass import HourglassSettings
from detectors.backbones.squeeze_hourglass import SqueezeSettings
from detectors.cornernet.decoding import Pairs, joined_pairs, mirrored_pairs, pair_corners
from detectors.cornernet.losses import corner_losses
from detectors.cornernet.networks import CornerNetNetwork, SqueezeNetwork
from detectors.cornernet.placement import Placement, placements, whole_input
from detectors.cornernet.targets import (
    RADIUS_FORMULAS,
    BoxesInInput,
    CornerTargets,
    Grid,
    PointTargets,
    RadiusFormula,
    boxes_in_slots,
    point_targets,
    radii_in_cells,
)
from detectors.detections import Detections, DetectionTensors
from detectors.detector import MODES, Detector, TestMode, TestTime, View
from detectors.errors import DetectorError
from detectors.settings import configure, require_choice, require_count, require_fraction, require_weight
from detectors.shapes import Float, Int
from detectors.shared import boxes as box
from detectors.shared.network import Network, Outputs
from detectors.shared.pixels import COCO_BGR
from detectors.shared.suppression import merging_soft_nms
from detectors.shared.suppression_in_places import NONE, soft_nms_in_places, take
from detectors.shared.test_time_augmentation import best_with_ties, merge_by_soft_nms

_MERGE_EXPONENT = 10
"""Exponent of the weights of boxes that several scales merge (`weight_exp`)."""

_CAPTIONS = {"top_left": "top-left", "bottom_right": "bottom-right", "center": "centre"}
"""Words for the points, for pictures."""


@dataclass(frozen=True, kw_only=True)
class CornerSettings:
    """Settings of detectors that pair corners; the defaults are CornerNet's."""

    max_objects: int = 128
    """Annotations of an image that are used, the first ones in file order."""
    heatmap_weight: float = 1.0
    """Weight of the heatmaps' focal loss."""
    pull_weight: float = 0.1
    """Weight of the loss that pulls the tags of an object together (α)."""
    push_weight: float = 0.1
    """Weight of the loss that pushes the tags of different objects apart (β)."""
    offset_weight: float = 1.0
    """Weight of the loss on the corners' places inside their cells (γ)."""
    gaussian_radius: RadiusFormula = "corrected"
    """Formula of the Gaussians' radius: "original" as first published, with its slip, or "corrected"."""
    min_overlap: float = 0.3
    """IoU from which the radius follows."""
    corners: int = 100
    """Corners of each kind that are paired, over all classes."""
    tag_distance: float = 0.5
    """Largest difference between the tags of an object."""
    candidates: int = 1000
    """Pairs of an image that enter suppression."""

    def __post_init__(self) -> None:
        for name in ("max_objects", "corners", "candidates"):
            require_count(name, getattr(self, name))
        for name in ("heatmap_weight", "pull_weight", "push_weight", "offset_weight"):
            require_weight(name, getattr(self, name))
        require_choice("gaussian_radius", self.gaussian_radius, RADIUS_FORMULAS)
        require_fraction("min_overlap", self.min_overlap)
        if not self.tag_distance > 0:
            raise DetectorError(f"tag_distance is {self.tag_distance!r}; it has to be a number above 0.")


@dataclass(frozen=True, kw_only=True)
class CornerNetSettings(CornerSettings):
    """Settings of CornerNet, with any network."""

    suppression: Literal["published", "corrected"] = "published"
    """Soft-NMS "published", in which dropped boxes stay in the list as copies of others and merged boxes have the
    corner scores of others, or "corrected"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("suppression", self.suppression, ("published", "corrected"))


class CornerDetector(Detector):
    """The parts that detectors of corners share: the network, targets and losses.

    Args:
        num_classes: classes to tell apart.
        network: without weights of its own; its layers become the detector's.
        settings: of the task.
    """

    preprocessing = COCO_BGR

    def __init__(self, num_classes: int, network: Network, settings: CornerSettings) -> None:
        super().__init__()
        require_count("num_classes", num_classes)
        self.num_classes = num_classes
        self.settings = settings
        self.network = network
        self.sizes = network.sizes
        self.published = network.published()
        self.stages = network.stages()
        for name, layer in network.make_layers().items():
            self.add_module(name, layer)

    @property
    def max_objects(self) -> int:
        """Annotations of an image that `encode` uses, the first ones in file order."""
        return self.settings.max_objects

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """Raw maps of each stack, from normalised images."""
        self.check_input_size((images.shape[-2], images.shape[-1]))
        return self.network.run(self, images)

    @torch.no_grad()
    def encode(
        self,
        boxes: Float[Tensor, "batch objects 4"],
        labels: Int[Tensor, "batch objects"],
        input_size: tuple[int, int],
        **extra: Tensor,
    ) -> CornerTargets:
        """Encode the targets of a batch: heatmaps and offsets of the points, and their cells, where tags are read.

        Boxes are clipped to 0 .. width - 1 and 0 .. height - 1 of the input, and dropped if nothing is left.

        Args:
            boxes: x1, y1, x2, y2, unclipped, in the input frame; the first `max_objects` of an image count.
            labels: -1 for padding.
            input_size: height and width of the input, in pixels.
            extra: not used.

        Raises:
            DetectorError: a label is not below `num_classes`, or the input's size does not fit `sizes`.

        Source:
            princeton-vl/CornerNet, sample/coco.py; CornerNet-Lite, core/sample/.
        """
        objects, grid = self.locate(boxes, labels, input_size)
        radii = self.radii(objects, grid)
        return CornerTargets(self.draw(objects, objects.is_object, radii, grid), objects.is_object)

    def losses(self, outputs: Outputs, targets: CornerTargets) -> dict[str, Tensor]:
        """Focal loss of heatmaps, pull and push of tags, loss of offsets, and their weighted sum; see `corner_losses`.

        Returns:
            Scalars float32 "heatmap", "pull", "push" and "offset", unweighted, and "loss".
        """
        parts = corner_losses(outputs, targets)
        return {**parts, "loss": self.weighted(parts)}

    def weighted(self, parts: dict[str, Tensor]) -> Tensor:
        """Sum of the parts, each with its weight among the settings."""
        return torch.stack([getattr(self.settings, f"{name}_weight") * part for name, part in parts.items()]).sum()

    def heatmaps(self, targets: CornerTargets) -> dict[str, Float[Tensor, "batch planes height width"]]:
        """Heatmaps of the points; see `Detector.heatmaps`."""
        return {_CAPTIONS[name]: point.heatmap for name, point in targets.points.items()}

    def locate(
        self,
        boxes: Float[Tensor, "batch objects 4"],
        labels: Int[Tensor, "batch objects"],
        input_size: tuple[int, int],
        limits: Float[Tensor, "batch 4"] | None = None,
    ) -> tuple[BoxesInInput, Grid]:
        """Move annotations into their slots; see `boxes_in_slots`, and `encode` for errors."""
        self.check_input_size(input_size)
        self.check_labels(labels)
        objects = boxes_in_slots(boxes, labels, self.settings.max_objects, input_size, limits)
        return objects, self.grid(input_size)

    def radii(self, objects: BoxesInInput, grid: Grid) -> Int[Tensor, "batch max_objects"]:
        """Reach of each object's Gaussians, in cells."""
        return radii_in_cells(objects.boxes, grid, self.settings.gaussian_radius, self.settings.min_overlap)

    def draw(
        self,
        objects: BoxesInInput,
        drawn: Tensor,
        radii: Int[Tensor, "batch max_objects"],
        grid: Grid,
    ) -> dict[str, PointTargets]:
        """Targets of both corners of the objects that are `drawn`."""
        corners = {"top_left": objects.boxes[..., :2], "bottom_right": objects.boxes[..., 2:]}
        return {
            name: point_targets(points, objects.labels, drawn, radii, self.num_classes, grid)
            for name, points in corners.items()
        }

    def grid(self, input_size: tuple[int, int]) -> Grid:
        """The maps of an input."""
        return Grid(input_size, self.network.stride)

    def pairs(self, maps: dict[str, Tensor], grid: Grid, *, rejects_border: bool = False) -> Pairs:
        """The best pairs of corners, in cells; see `pair_corners`.

        Raises:
            DetectorError: the maps are not those of the input.
        """
        size = tuple(maps["top_left_heatmap"].shape[-2:])
        if size != grid.size:
            raise DetectorError(
                f"the maps are {size[0]} x {size[1]} cells, but an input of {grid.input_size[0]} x "
                f"{grid.input_size[1]} has {grid.size[0]} x {grid.size[1]}. Pass the size of the tensor that was run."
            )
        settings = self.settings
        return pair_corners(
            maps,
            corners=settings.corners,
            tag_distance=settings.tag_distance,
            limit=settings.candidates,
            rejects_border=rejects_border,
        )


@dataclass(frozen=True)
class Found:
    """Candidates of one view of an image, in the image frame."""

    pairs: Pairs


class CornerNet(CornerDetector):
    """CornerNet and CornerNet-Squeeze."""

    settings: CornerNetSettings
    test_time = TestTime(modes=MODES, scales=(0.5, 0.75, 1.0, 1.25, 1.5), soft_nms=True)

    def __init__(self, num_classes: int, network: Network, settings: CornerNetSettings) -> None:
        super().__init__(num_classes, network, settings)

    @torch.no_grad()
    def decode(self, outputs: Outputs, input_size: tuple[int, int], limit: int = 100) -> list[Detections]:
        """Pair the corners of the last stack, clip the boxes to the input, and apply soft-NMS.

        Args:
            outputs: result of `forward`.
            input_size: height and width of the input, in pixels.
            limit: detections an image; more are returned if they tie for the last place.

        Returns:
            One for each image, on the CPU.

        Raises:
            DetectorError: the maps are not those of `input_size`.
        """
        here = whole_input(input_size, len(outputs[-1]["top_left_heatmap"]))
        found = self.find(outputs, None, input_size, here)
        return [self.finish([one], limit) for one in found]

    @torch.no_grad()
    def decode_tensors(self, outputs: Outputs, input_size: tuple[int, int], limit: int = 100) -> DetectionTensors:
        """Find what `decode` does, in tensors, without those that tie for the last place."""
        pairs = self.candidates_in_places(outputs, input_size)
        kept, scores = soft_nms_in_places(
            *(pairs.boxes, pairs.scores, pairs.labels),
            limit=limit,
            with_stale_rows=self.settings.suppression == "published",
        )
        labels = torch.where(kept >= 0, pairs.labels.gather(1, kept.clamp_min(0)), NONE)
        return DetectionTensors(take(pairs.boxes, kept), scores, labels).cleared()

    def candidates_in_places(self, outputs: Outputs, input_size: tuple[int, int]) -> Pairs:
        """The pairs that `find` leaves of whole inputs, in the input frame; the label of other places is `NONE`."""
        grid = self.grid(input_size)
        pairs = self.pairs(outputs[-1], grid)
        corners = grid.in_input(pairs.boxes.reshape(*pairs.scores.shape, 2, 2))
        kept = self.kept_in_input(corners, pairs.scores, input_size)
        return Pairs(
            box.clip(corners.flatten(-2), input_size[0], input_size[1]),
            pairs.scores,
            torch.where(kept, pairs.labels, NONE),
            pairs.corner_scores,
        )

    def kept_in_input(self, corners: Tensor, scores: Tensor, input_size: tuple[int, int]) -> Tensor:
        """As `kept`, of images that are their inputs."""
        return scores > -1

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

        Pairs of the image and of its mirror are clipped to the photograph and enter one soft-NMS, class by class. In
        the mode "multiscale", soft-NMS also moves the corners of boxes to the mean of those that they overlap.

        Source:
            princeton-vl/CornerNet, test/coco.py; CornerNet-Lite, core/test/cornernet.py.
        """
        self.check_test_mode(mode, soft)
        self.check_scales([view.scale for view in views])
        parts: list[list[Found]] = [[] for _ in views[0].images]
        for number, view in enumerate(views):
            outputs, mirrored = self._run(view, flip=mode != "none")
            watch(number, outputs)
            found = self.find(outputs, mirrored, view.input_size, placements(view), scale=view.scale)
            for row, one in enumerate(found):
                parts[row].append(one)
        return [self.finish(of_image, limit, merging=mode == "multiscale") for of_image in parts]

    def check_scales(self, scales: Sequence[float]) -> None:
        """Refuse scales that do not suffice."""

    def find(
        self,
        outputs: Outputs,
        mirrored: Outputs | None,
        input_size: tuple[int, int],
        here: Sequence[Placement],
        *,
        scale: float = 1.0,
    ) -> list[Found]:
        """The candidates of one view, image by image.

        Args:
            outputs: result of `forward`.
            mirrored: result of `forward` for the mirrored images.
            input_size: height and width of the input, in pixels.
            here: the places of the images in the inputs.
            scale: of the view.
        """
        grid = self.grid(input_size)
        parts = [self.pairs(outputs[-1], grid)]
        if mirrored is not None:
            parts.append(mirrored_pairs(self.pairs(mirrored[-1], grid), grid))
        images = [joined_pairs(both) for both in zip(*(part.images() for part in parts), strict=True)]
        return [Found(self.place(pairs, place, grid)) for pairs, place in zip(images, here, strict=True)]

    def place(self, pairs: Pairs, place: Placement, grid: Grid) -> Pairs:
        """Move the pairs of one image from cells to the image frame, and clip them to the image."""
        corners = place.from_origin(grid.in_input(pairs.boxes.view(-1, 2, 2)))
        kept = self.kept(corners, pairs.scores, place)
        boxes = place.in_image(place.clipped(corners)).view(-1, 4)
        return Pairs(boxes, pairs.scores, pairs.labels, pairs.corner_scores).rows(kept)

    def kept(self, corners: Tensor, scores: Tensor, place: Placement) -> Tensor:
        """Mask of the pairs that are candidates.

        Args:
            corners: in input pixels from the image's origin, before clipping.
            scores: of the pairs.
            place: of the image.
        """
        return scores > -1

    def finish(self, found: Sequence[Found], limit: int, *, merging: bool = False) -> Detections:
        """Turn the candidates of one image at each scale into its final detections; see `detect`."""
        return self.suppress(joined_pairs([one.pairs for one in found]), limit, merging=merging)

    def suppress(self, pairs: Pairs, limit: int, *, merging: bool) -> Detections:
        """Soft-NMS class by class, then all that score at least the `limit`-th best."""
        published = self.settings.suppression == "published"
        if not merging:
            every = Detections(pairs.boxes, pairs.scores, pairs.labels)
            return merge_by_soft_nms([every], limit, with_stale_rows=published)
        merged = merging_soft_nms(
            pairs.boxes,
            pairs.scores,
            pairs.corner_scores,
            pairs.labels,
            exponent=_MERGE_EXPONENT,
            corners_stay=published,
        )
        best = best_with_ties(merged.scores if published else merged.scores[: merged.num_kept], limit)
        return Detections(merged.boxes[best], merged.scores[best], pairs.labels[merged.rows[best]])


def cornernet_hourglass104(num_classes: int = 80, **settings: Any) -> CornerNet:
    """CornerNet with Hourglass-104: 201.0 M parameters, 40.6 AP on COCO test-dev with flip, 42.2 with five scales."""
    network, chosen = configure("cornernet_hourglass104", settings, HourglassSettings(), CornerNetSettings())
    return CornerNet(num_classes, CornerNetNetwork(network, num_classes), chosen)


def cornernet_squeeze(num_classes: int = 80, **settings: Any) -> CornerNet:
    """CornerNet-Squeeze: 31.8 M parameters, 34.4 AP on COCO test-dev without flip."""
    defaults = CornerNetSettings(corners=20, candidates=100)
    network, chosen = configure("cornernet_squeeze", settings, SqueezeSettings(), defaults)
    return CornerNet(num_classes, SqueezeNetwork(network, num_classes), chosen)
