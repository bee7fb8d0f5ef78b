"""FoveaBox: the cells in the middle of a box, its fovea, predict its class and its sides (arXiv:1904.03797).

A box belongs to the pyramid levels that its size fits, one to three of them. On each, the cells of the shrunk box are
positive, and smaller boxes cover larger ones. The paper's band between two shrunk boxes, which no loss counts, is not
in its authors' code, nor here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from detectors.backbones.resnet import IMAGENET, ResNet
from detectors.detections import Detections, DetectionTensors, joined
from detectors.detector import MODES, Detector, Preprocessing, Published, TestTime
from detectors.foveabox.file_keys import EXPORTS, LAYOUTS
from detectors.foveabox.network import FoveaBoxNetworkSettings, FoveaHead, Outputs, pyramid, trunk
from detectors.layers.feature_pyramid import STRIDES, check_levels, grid_sizes
from detectors.settings import configure, require_choice, require_count, require_fraction, require_weight
from detectors.shapes import Float, Int
from detectors.shared import boxes as box
from detectors.shared.box_losses import sigmoid_focal_loss
from detectors.shared.suppression import nms
from detectors.shared.suppression_in_places import NONE, best_places, nms_in_places, nms_of_classes, take
from detectors.shared.test_time_augmentation import mirror_content
from detectors.sizes import Multiples
from detectors.stages import within

SIZE_RANGES = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))
"""Square root of the area of a box, in pixels, that P3 to P7 learn; both ends belong to the range."""
BASE_LENGTHS = (16, 32, 64, 128, 256)
"""Unit of the sides of a box on P3 to P7, in pixels."""

_SIDE_LIMITS = 1 / 16, 16.0
"""Shortest and longest side that is learnt, in base lengths."""
_FOCAL_ALPHA, _FOCAL_GAMMA = 0.4, 1.5
_SMOOTH_L1_BETA = 0.11


@dataclass(frozen=True, kw_only=True)
class FoveaBoxSettings:
    """Settings of FoveaBox, for any network; the defaults are the authors'."""

    box_ends: Literal["last_pixel", "edge"] = "last_pixel"
    """End of a box, the same as data.box_ends. last_pixel: x + width - 1, so that NMS measures sides of x2 - x1 + 1
    (the authors' files); edge: x + width (mmdetection's files)."""
    fovea: float = 0.4
    """Width and height of the fovea, as a fraction of the box's (σ)."""
    candidates: int = 1000
    """Candidates of each level and image that enter suppression."""
    candidates_by: Literal["location", "class"] = "location"
    """location: candidates are the cells with the best scores, each with all its classes above the threshold (the
    authors, and mmdetection's published figures); class: the best scores above the threshold (mmdetection 3)."""
    score_threshold: float = 0.05
    """Candidates score above this."""
    nms_threshold: float = 0.5
    """IoU above which the worse of two boxes of a class is dropped."""
    classification_weight: float = 1.0
    """Weight of the focal loss."""
    box_weight: float = 1.0
    """Weight of the loss on boxes."""

    def __post_init__(self) -> None:
        require_choice("box_ends", self.box_ends, ("last_pixel", "edge"))
        require_choice("candidates_by", self.candidates_by, ("location", "class"))
        for name in ("fovea", "score_threshold", "nms_threshold"):
            require_fraction(name, getattr(self, name))
        require_count("candidates", self.candidates)
        for name in ("classification_weight", "box_weight"):
            require_weight(name, getattr(self, name))


@dataclass(frozen=True)
class FoveaBoxTargets:
    """Targets of a batch, level by level, P3 first."""

    labels: list[Int[Tensor, "batch height width"]]
    """-1 for background."""
    log_sides: list[Float[Tensor, "batch 4 height width"]]
    """As in `Outputs`; 0 for background."""
    num_classes: int


class FoveaBox(Detector):
    """A class and four sides in each cell of five levels."""

    preprocessing = Preprocessing(
        channel_order="rgb", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), scale=1.0
    )
    sizes = Multiples(32)
    box_corners = "edges"
    # The paper has no test-time augmentation. These are the views of mmdetection's generic one, which joins the
    # candidates of all views before a single NMS; shorter sides are 800, 400 and 1200.
    # Source: mmdet/models/dense_heads/dense_test_mixins.py (2.x); configs/retinanet/retinanet_tta.py.
    test_time = TestTime(modes=MODES, scales=(1.0, 0.5, 1.5))

    def __init__(
        self, depth: int, num_classes: int, network: FoveaBoxNetworkSettings, settings: FoveaBoxSettings
    ) -> None:
        super().__init__()
        require_count("num_classes", num_classes)
        self.settings = settings
        self.num_classes = num_classes
        self.backbone = trunk(depth, network.width)
        self.neck = pyramid(self.backbone, network.channels)
        self.bbox_head = FoveaHead(network.channels, num_classes, network.align)
        self.stages = {**within("backbone", ResNet.stages), "neck": ("neck",)}
        self.published = Published(
            imagenet_weights=IMAGENET[depth],
            backbone_prefix="backbone.",
            class_layers=("bbox_head.conv_cls",),
            file_layouts=LAYOUTS,
            export_layouts=EXPORTS,
        )

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """Logits and logarithms of sides, each a list of five levels."""
        levels = self.neck(self.backbone(images))
        outputs: Outputs = self.bbox_head(levels)
        return outputs

    @torch.no_grad()
    def encode(
        self,
        boxes: Float[Tensor, "batch objects 4"],
        labels: Int[Tensor, "batch objects"],
        input_size: tuple[int, int],
        **extra: Tensor,
    ) -> FoveaBoxTargets:
        """Paint the fovea of each box on the levels that its size fits, the largest box first.

        Boxes are clipped to 0 .. width - 1 and 0 .. height - 1 of the input (with box_ends "edge", to width and
        height). All rows count, however many there are. Of equally large boxes, the last in the list is painted last;
        the published code leaves their order to an unstable sort. A box whose fovea has no middle of a cell in it is
        not learnt on that level.

        Args:
            boxes: x1, y1, x2, y2, unclipped, in the input frame.
            labels: -1 for padding.
            input_size: height and width of the input, in pixels.
            extra: not used.

        Raises:
            DetectorError: a label is not below `num_classes`, or the input's size does not fit `sizes`.

        Source:
            taokong/FoveaBox, mmdet/models/anchor_heads/fovea_head.py, `fovea_target_single`.
        """
        self.check_input_size(input_size)
        self.check_labels(labels)
        # Padding by one row, so that there is a row to gather from even if there are no boxes.
        boxes, labels = functional.pad(boxes.float(), (0, 0, 0, 1)), functional.pad(labels, (0, 1), value=-1)
        boxes = box.clip(boxes, input_size[0] - self._pixel, input_size[1] - self._pixel)
        # Sizes are compared after the square root, in which slightly different areas may become equal.
        lengths = box.sizes(boxes).prod(dim=-1).sqrt()
        order = lengths.argsort(dim=1, descending=True, stable=True)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        labels, lengths = labels.gather(1, order), lengths.gather(1, order)
        targets = FoveaBoxTargets([], [], self.num_classes)
        for level, grid in enumerate(grid_sizes(input_size)):
            shortest, longest = SIZE_RANGES[level]
            fits = (labels >= 0) & (lengths >= shortest) & (lengths <= longest)
            chosen = self._painted_last(boxes / STRIDES[level], fits, grid)  # batch, cells
            is_positive = chosen >= 0
            row = chosen.clamp_min(0)
            own = boxes.gather(1, row[..., None].expand(-1, -1, 4))
            points = _points(level, grid, boxes.device)
            sides = torch.cat((points - own[..., :2], own[..., 2:] - points), dim=-1) / BASE_LENGTHS[level]
            # The fovea is inside the box, except where it was moved onto the border, and sides may be negative there.
            log_sides = torch.where(is_positive[..., None], sides.clamp(*_SIDE_LIMITS).log(), 0)
            targets.labels.append(torch.where(is_positive, labels.gather(1, row), -1).view(-1, *grid))
            targets.log_sides.append(log_sides.transpose(1, 2).reshape(-1, 4, *grid))
        return targets

    def losses(self, outputs: Outputs, targets: FoveaBoxTargets) -> dict[str, Tensor]:
        """Focal loss of classes, smooth L1 of the logarithms of sides, and their weighted sum.

        The published code divides the first by the positive cells *plus the images*, the second by the positive cells
        alone, both of this rank, with no exchange between ranks.

        Returns:
            Scalars float32 "classification" and "box", unweighted, and "loss".
        """
        labels = torch.cat([of_level.flatten(1) for of_level in targets.labels], dim=1)
        positive = (labels >= 0).float()
        logits, log_sides, wanted = (
            torch.cat([of_level.float().flatten(2) for of_level in maps], dim=2)  # batch, channels, points
            for maps in (outputs.logits, outputs.log_sides, targets.log_sides)
        )
        num_positive, num_images = positive.sum(), len(labels)
        focal = sigmoid_focal_loss(
            logits.transpose(1, 2).flatten(0, 1), labels.flatten(), alpha=_FOCAL_ALPHA, gamma=_FOCAL_GAMMA
        )
        with torch.autocast(logits.device.type, enabled=False):
            errors = functional.smooth_l1_loss(log_sides, wanted, reduction="none", beta=_SMOOTH_L1_BETA)
        parts = {
            "classification": focal / (num_positive + num_images),
            # Summed over the four sides. The floor acts only where the sum is 0.
            "box": (errors * positive[:, None]).sum() / num_positive.clamp_min(1),
        }
        weighted = [getattr(self.settings, f"{name}_weight") * part for name, part in parts.items()]
        return {**parts, "loss": torch.stack(weighted).sum()}

    @torch.no_grad()
    def decode(self, outputs: Outputs, input_size: tuple[int, int], limit: int = 100) -> list[Detections]:
        """Boxes of the best cells of each level, clipped, then suppressed class by class.

        Args:
            outputs: result of `forward`.
            input_size: height and width of the input, in pixels.
            limit: detections an image.

        Raises:
            DetectorError: the maps are not those of `input_size`.

        Source:
            taokong/FoveaBox, mmdet/models/anchor_heads/fovea_head.py, `get_bboxes`.
        """
        return [self.merge([found], limit) for found in self.candidates(outputs, input_size, limit)]

    @torch.no_grad()
    def decode_tensors(self, outputs: Outputs, input_size: tuple[int, int], limit: int = 100) -> DetectionTensors:
        """Find what `decode` does, in tensors; see `Detector.decode_tensors`."""
        check_levels(outputs.logits, input_size)
        by_location = self.settings.candidates_by == "location"
        candidates = self._locations_in_places if by_location else self._candidates_in_places
        levels = [
            candidates(logits.float(), log_sides.float(), level, input_size)
            for level, (logits, log_sides) in enumerate(zip(outputs.logits, outputs.log_sides, strict=True))
        ]
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        threshold, plus_one = self.settings.nms_threshold, self._pixel == 1
        if by_location:
            kept, labels = nms_of_classes(boxes, scores, threshold=threshold, limit=limit, plus_one=plus_one)
            chosen = kept.clamp_min(0) * self.num_classes + labels.clamp_min(0)
            scores = scores.flatten(1).gather(1, chosen)
        else:
            kept = nms_in_places(boxes, scores, labels, threshold=threshold, limit=limit, plus_one=plus_one)
            labels = torch.where(kept >= 0, labels.gather(1, kept.clamp_min(0)), NONE)
            scores = scores.gather(1, kept.clamp_min(0))
        return DetectionTensors(take(boxes, kept), scores, labels).cleared()

    def heatmaps(self, targets: FoveaBoxTargets) -> dict[str, Float[Tensor, "batch classes height width"]]:
        """The foveas of each level, 1 in the cells of a class."""
        classes = torch.arange(targets.num_classes, device=targets.labels[0].device)
        return {
            f"fovea P{level}": (labels[:, None] == classes[:, None, None]).float()
            for level, labels in enumerate(targets.labels, start=3)
        }

    def mirror(
        self, images: Float[Tensor, "batch 3 height width"], content_widths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Mirror the photographs and leave the padding to their right."""
        return mirror_content(images, content_widths)

    @torch.no_grad()
    def candidates(
        self,
        outputs: Outputs,
        input_size: tuple[int, int],
        limit: int = 100,
        *,
        mirrored: Outputs | None = None,
        content_sizes: Int[Tensor, "batch 2"] | None = None,
    ) -> list[Detections]:
        """The best boxes of each level before suppression, clipped to the photograph; then the mirror's."""
        sizes = [input_size] * len(outputs.logits[0])
        if content_sizes is not None:
            sizes = [(height, width) for height, width in content_sizes.tolist()]
        found = self._all_candidates(outputs, input_size, sizes)
        if mirrored is None:
            return found
        turned = self._all_candidates(mirrored, input_size, sizes)
        for of_mirror, (_, width) in zip(turned, sizes, strict=True):
            of_mirror.boxes = box.mirrored(of_mirror.boxes, width - self._pixel)
        return [joined(both) for both in zip(found, turned, strict=True)]

    def merge(self, parts: Sequence[Detections], limit: int = 100, *, soft: bool = False) -> Detections:
        """Apply one NMS to the candidates of all scales, class by class.

        `detect` calls this in the image frame, as published, so the pixel that box_ends "last_pixel" adds to a side is
        one of the image; from `decode` it is one of the input.

        Raises:
            DetectorError: `soft` is set; FoveaBox was published with NMS.
        """
        self.check_test_mode("none", soft)
        every = joined(parts)
        kept = nms(
            *(every.boxes, every.scores, every.labels),
            threshold=self.settings.nms_threshold,
            plus_one=self._pixel == 1,
            limit=limit,
        )
        return every.rows(kept)

    @property
    def _pixel(self) -> int:
        """Part of a box's width that its last pixel adds to x2 - x1."""
        return 1 if self.settings.box_ends == "last_pixel" else 0

    def _painted_last(
        self, boxes: Float[Tensor, "batch objects 4"], fits: Tensor, grid: tuple[int, int]
    ) -> Int[Tensor, "batch cells"]:
        """The last row of `boxes`, in cells, whose fovea covers each cell; -1 for none."""
        half = 0.5 * box.sizes(boxes)
        first, last = (
            boxes[..., :2] + (1 - self.settings.fovea) * half,
            boxes[..., :2] + (1 + self.settings.fovea) * half,
        )
        # Both ends are clamped on their own, as published: a fovea beyond the middle of the last cell moves onto that
        # cell. If no middle is in the fovea, its first cell comes after its last one, and nothing is painted.
        left, top = ((first[..., axis] - 0.5).ceil().clamp(0, grid[1 - axis] - 1) for axis in (0, 1))
        right, bottom = ((last[..., axis] - 0.5).floor().clamp(0, grid[1 - axis] - 1) for axis in (0, 1))
        rows, columns = (torch.arange(cells, device=boxes.device) for cells in grid)
        in_columns = (columns >= left[..., None]) & (columns <= right[..., None]) & fits[..., None]
        in_rows = (rows >= top[..., None]) & (rows <= bottom[..., None])
        covers = in_rows[..., :, None] & in_columns[..., None, :]  # batch, objects, height, width
        rank = torch.arange(1, boxes.shape[1] + 1, device=boxes.device, dtype=torch.int32)[:, None, None]
        return (covers * rank).amax(dim=1).flatten(1).long() - 1

    def _all_candidates(
        self, outputs: Outputs, input_size: tuple[int, int], content_sizes: list[tuple[int, int]]
    ) -> list[Detections]:
        check_levels(outputs.logits, input_size)
        found = []
        for image, content_size in enumerate(content_sizes):
            levels = [
                self._candidates(logits[image].float(), log_sides[image].float(), level, content_size)
                for level, (logits, log_sides) in enumerate(zip(outputs.logits, outputs.log_sides, strict=True))
            ]
            found.append(Detections(*(torch.cat(parts) for parts in zip(*levels, strict=True))))
        return found

    def _candidates(
        self, logits: Tensor, log_sides: Tensor, level: int, content_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of one level of one image, in the order of cells and classes."""
        grid = (logits.shape[1], logits.shape[2])
        scores, log_sides = logits.flatten(1).T.sigmoid(), log_sides.flatten(1).T
        points = _points(level, grid, logits.device)
        limit = self.settings.candidates
        by_location = self.settings.candidates_by == "location"
        if by_location and len(scores) > limit:
            # Sorted by place again, since suppression decides ties by the order of the list.
            best = scores.amax(dim=1).topk(limit).indices.sort().values
            scores, log_sides, points = scores[best], log_sides[best], points[best]
        chosen = (scores > self.settings.score_threshold).nonzero()
        found = scores[chosen[:, 0], chosen[:, 1]]
        if not by_location and len(found) > limit:
            best = found.topk(limit).indices.sort().values
            chosen, found = chosen[best], found[best]
        at, labels = chosen.unbind(dim=-1)
        return _boxes(points[at], log_sides[at], level, content_size), found, labels

    def _locations_in_places(
        self, logits: Tensor, log_sides: Tensor, level: int, input_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes of the best cells of one level, their score for each class (-inf for none), and no labels."""
        scores, log_sides = (values.flatten(2).transpose(1, 2) for values in (logits.sigmoid(), log_sides))
        points = _points(level, (logits.shape[2], logits.shape[3]), logits.device).expand(logits.shape[0], -1, -1)
        best, ranks = best_places(scores.amax(dim=2), self.settings.candidates)
        scores = take(scores, best)
        scores = torch.where((scores > self.settings.score_threshold) & (ranks >= 0)[..., None], scores, -torch.inf)
        return _boxes(take(points, best), take(log_sides, best), level, input_size), scores, best

    def _candidates_in_places(
        self, logits: Tensor, log_sides: Tensor, level: int, input_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of one level; see `_candidates`."""
        scores, log_sides = (values.flatten(2).transpose(1, 2) for values in (logits.sigmoid(), log_sides))
        points = _points(level, (logits.shape[2], logits.shape[3]), logits.device).expand(logits.shape[0], -1, -1)
        scores = torch.where(scores > self.settings.score_threshold, scores, -1.0)
        chosen, found = best_places(scores.flatten(1), self.settings.candidates)
        at = chosen // self.num_classes
        labels = torch.where(found < 0, NONE, chosen - at * self.num_classes)
        return _boxes(take(points, at), take(log_sides, at), level, input_size), found, labels


def _boxes(points: Tensor, log_sides: Tensor, level: int, content_size: tuple[int, int]) -> Tensor:
    """Boxes of points, clipped to the photograph."""
    sides = log_sides.exp() * BASE_LENGTHS[level]
    boxes = torch.cat((points - sides[..., :2], points + sides[..., 2:]), dim=-1)
    # To the last pixel also where boxes end on edges: mmdetection has kept the authors' clipping.
    return box.clip(boxes, content_size[0] - 1, content_size[1] - 1)


def _points(level: int, grid: tuple[int, int], device: torch.device) -> Float[Tensor, "points 2"]:
    """Middles of the cells of a level as x, y in the input frame, float32, line by line."""
    y, x = ((torch.arange(cells, device=device, dtype=torch.float32) + 0.5) * STRIDES[level] for cells in grid)
    return torch.stack((x.expand(grid), y[:, None].expand(grid)), dim=-1).flatten(0, 1)


def foveabox_resnet50(num_classes: int = 80, **settings: Any) -> FoveaBox:
    """ResNet-50: 36.4 M parameters, 36.5 AP on COCO val2017; with align 37.9, and 40.1 after two scales."""
    return FoveaBox(50, num_classes, *_configured("foveabox_resnet50", settings))


def foveabox_resnet101(num_classes: int = 80, **settings: Any) -> FoveaBox:
    """ResNet-101: 38.5 AP on COCO val2017; with align 39.4, and 41.9 after two scales."""
    return FoveaBox(101, num_classes, *_configured("foveabox_resnet101", settings))


def _configured(name: str, settings: dict[str, Any]) -> tuple[FoveaBoxNetworkSettings, FoveaBoxSettings]:
    return configure(name, settings, FoveaBoxNetworkSettings(), FoveaBoxSettings())
