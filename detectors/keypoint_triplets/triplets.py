"""CenterNet: Keypoint Triplets: a pair of corners is an object if a centre is in its middle (arXiv:1904.08189)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detectors.backbones.hourglass import HourglassSettings
from detectors.cornernet.cornernet import CornerNet, CornerNetSettings, Found
from detectors.cornernet.decoding import Centers, Pairs, find_centers, joined_pairs, mirrored_centers
from detectors.cornernet.placement import Placement
from detectors.cornernet.targets import BoxesInInput, Grid, PointTargets, point_targets
from detectors.detections import Detections
from detectors.detector import MODES, TestMode, TestTime
from detectors.errors import DetectorError
from detectors.keypoint_triplets.networks import TripletsNetwork, TripletsNetwork52
from detectors.settings import configure
from detectors.shapes import Bool, Float, Int
from detectors.shared import boxes as box
from detectors.shared.network import Outputs
from detectors.shared.suppression_in_places import NONE, take

_OUTSIDE = 5
"""Input pixels outside the photograph from which a box is dropped."""
_LARGE = 22_500
"""Area in the image frame above which the central region is a fifth of a box in each direction, not a third."""


@dataclass(frozen=True)
class FoundTriplets(Found):
    """Candidates of a view at scale 1, in the image frame."""

    centers: Centers
    """Those of the image, best first, then those of the mirror."""


class KeypointTriplets(CornerNet):
    """Pairs of corners whose box has a centre of their class in its central region."""

    # As published, centres come from scale 1 alone.
    test_time = TestTime(modes=MODES, scales=(0.6, 1.0, 1.2, 1.5, 1.8), soft_nms=True)

    def draw(
        self,
        objects: BoxesInInput,
        drawn: Bool[Tensor, "batch max_objects"],
        radii: Int[Tensor, "batch max_objects"],
        grid: Grid,
    ) -> dict[str, PointTargets]:
        """Targets of both corners and of the centre, which is that of the clipped box."""
        centers = point_targets(
            box.centers(objects.boxes), objects.labels, drawn, radii, self.num_classes, grid, deviations=5
        )
        return {**super().draw(objects, drawn, radii, grid), "center": centers}

    def scales_shown(self, mode: TestMode, soft: bool = False, scales: Sequence[float] = ()) -> tuple[float, ...]:
        """Scales of the views that `detect` takes; see `Detector.scales_shown`.

        Raises:
            DetectorError: this detector was not published with the mode, or scale 1 is missing.
        """
        shown = super().scales_shown(mode, soft, scales)
        self.check_scales(shown)
        return shown

    def check_scales(self, scales: Sequence[float]) -> None:
        """Refuse scales without 1.

        Raises:
            DetectorError: with the scales.
        """
        if 1 not in scales:
            raise DetectorError(
                f"the scales are {', '.join(f'{scale:g}' for scale in scales)}, but {self.name} takes its centres from "
                "scale 1. Add 1 to evaluation.scales."
            )

    def find(
        self,
        outputs: Outputs,
        mirrored: Outputs | None,
        input_size: tuple[int, int],
        here: Sequence[Placement],
        *,
        scale: float = 1.0,
    ) -> list[Found]:
        """The pairs of one view, and at scale 1 its centres, image by image; see `CornerNet.find`."""
        found = super().find(outputs, mirrored, input_size, here, scale=scale)
        if scale != 1:
            return found
        grid, limit = self.grid(input_size), self.settings.corners
        parts = [find_centers(outputs[-1], limit).images()]
        if mirrored is not None:
            parts.append(mirrored_centers(find_centers(mirrored[-1], limit), grid).images())
        with_centers: list[Found] = []
        for one, place, *both in zip(found, here, *parts, strict=True):
            points = grid.in_input(torch.cat([centers.points for centers in both]))
            # Unlike boxes, centres are not clipped: the published code clips a copy.
            centers = Centers(
                place.in_image(place.from_origin(points)),
                torch.cat([centers.scores for centers in both]),
                torch.cat([centers.labels for centers in both]),
            )
            with_centers.append(FoundTriplets(one.pairs, centers))
        return with_centers

    def kept(
        self, corners: Float[Tensor, "pairs 2 2"], scores: Float[Tensor, " pairs"], place: Placement
    ) -> Bool[Tensor, " pairs"]:
        """Mask of the pairs that are candidates: also not too far outside the photograph; see `CornerNet.kept`."""
        far = (corners[:, 0] <= place.first - _OUTSIDE) | (corners[:, 1] >= place.last + _OUTSIDE)
        return super().kept(corners, scores, place) & ~far.any(dim=-1)

    def kept_in_input(
        self,
        corners: Float[Tensor, "batch pairs 2 2"],
        scores: Float[Tensor, "batch pairs"],
        input_size: tuple[int, int],
    ) -> Bool[Tensor, "batch pairs"]:
        """As `kept`, of images that are their inputs."""
        first, last = corners[..., 0, :], corners[..., 1, :]
        far_down = (first[..., 1] <= -_OUTSIDE) | (last[..., 1] >= input_size[0] + _OUTSIDE)
        far_right = (first[..., 0] <= -_OUTSIDE) | (last[..., 0] >= input_size[1] + _OUTSIDE)
        return super().kept_in_input(corners, scores, input_size) & ~far_down & ~far_right

    def candidates_in_places(self, outputs: Outputs, input_size: tuple[int, int]) -> Pairs:
        """The pairs that have a centre; see `CornerNet.candidates_in_places`."""
        centers = find_centers(outputs[-1], self.settings.corners)
        points = self.grid(input_size).in_input(centers.points)
        pairs = super().candidates_in_places(outputs, input_size)
        is_large, has_center, scores = with_mean_score(pairs, replace(centers, points=points))
        has_center = has_center & (pairs.labels >= 0)
        # In the order of `with_center`, on which ties depend.
        order = torch.where(has_center, torch.where(is_large, 0, 1), 2).argsort(dim=1, stable=True)
        ranked = torch.where(has_center, scores, -torch.inf).gather(1, order)
        order = order.gather(1, ranked.argsort(dim=1, descending=True, stable=True))
        return Pairs(
            take(pairs.boxes, order),
            scores.gather(1, order),
            torch.where(has_center, pairs.labels, NONE).gather(1, order),
            take(pairs.corner_scores, order),
        )

    def finish(self, found: Sequence[Found], limit: int, *, merging: bool = False) -> Detections:
        """Keep the pairs of all scales that have a centre, and apply soft-NMS; see `CornerNet.detect`.

        Source:
            Duankaiwen/CenterNet, test/coco.py.
        """
        (centers,) = (one.centers for one in found if isinstance(one, FoundTriplets))
        return self.suppress(with_center(joined_pairs([one.pairs for one in found]), centers), limit, merging=merging)


def with_center(pairs: Pairs, centers: Centers) -> Pairs:
    """The pairs that have a centre of their class strictly inside their central region, best first.

    Args:
        pairs: of one image, in the image frame.
        centers: likewise.
    """
    is_large, has_center, scores = with_mean_score(pairs, centers)
    # Large boxes come first, then small ones, each in the order of the views; the sort keeps that among equal scores.
    order = torch.cat(((has_center & is_large).nonzero(), (has_center & ~is_large).nonzero())).squeeze(1)
    order = order[scores[order].argsort(descending=True, stable=True)]
    return replace(pairs, scores=scores).rows(order)


def with_mean_score(
    pairs: Pairs, centers: Centers
) -> tuple[Bool[Tensor, "*batch pairs"], Bool[Tensor, "*batch pairs"], Float[Tensor, "*batch pairs"]]:
    """Tell which pairs are large and which have a centre, and return their scores with it.

    The score is the mean of three: those of the corners and of the first such centre in the list, which is not always
    the best one.

    Args:
        pairs: of one image or of a batch, in the image frame.
        centers: likewise.
    """
    top_left, bottom_right = pairs.boxes[..., None, :2], pairs.boxes[..., None, 2:]
    is_large = box.sizes(pairs.boxes).prod(dim=-1) > _LARGE
    points = centers.points[..., None, :, :]
    # The region is the middle one of 3 x 3 or of 5 x 5.
    fifth = _inside(points, (3 * top_left + 2 * bottom_right) / 5, (2 * top_left + 3 * bottom_right) / 5)
    third = _inside(points, (2 * top_left + bottom_right) / 3, (top_left + 2 * bottom_right) / 3)
    # Not torch.where, which onnxruntime does not have for truth values.
    large = is_large[..., None, None]
    inside = ((large & fifth) | (~large & third)).all(dim=-1)
    fits = inside & (pairs.labels[..., None] == centers.labels[..., None, :])
    # argmax returns the first of equals.
    first = fits.int().argmax(dim=-1)
    return is_large, fits.any(dim=-1), (2 * pairs.scores + centers.scores.gather(-1, first)) / 3


def _inside(points: Tensor, first: Tensor, last: Tensor) -> Bool[Tensor, "*batch pairs points 2"]:
    return (points > first) & (points < last)


def _settings() -> CornerNetSettings:
    return CornerNetSettings(gaussian_radius="original", min_overlap=0.7, corners=70)


def keypoint_triplets_hourglass104(num_classes: int = 80, **settings: Any) -> KeypointTriplets:
    """Keypoint Triplets with Hourglass-104: 210.1 M parameters, 44.9 AP on COCO test-dev, 47.0 with five scales."""
    network, chosen = configure("keypoint_triplets_hourglass104", settings, HourglassSettings(), _settings())
    return KeypointTriplets(num_classes, TripletsNetwork(network, num_classes), chosen)


def keypoint_triplets_hourglass52(num_classes: int = 80, **settings: Any) -> KeypointTriplets:
    """Keypoint Triplets with Hourglass-52: 104.8 M parameters, 41.6 AP on COCO test-dev, 43.5 with five scales."""
    network, chosen = configure("keypoint_triplets_hourglass52", settings, HourglassSettings(), _settings())
    return KeypointTriplets(num_classes, TripletsNetwork52(network, num_classes), chosen)
