"""FCOS: every point inside a box predicts its distances to the four sides (arXiv:1904.01355).

Several publications have this name. `variants` holds the rules in which they differ, and this file what they share: the
assignment of points to boxes, the losses, and decoding. Points of all levels are in one row, P3 first, each level line
by line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.backbones.resnet import CAFFE_IMAGENET, TORCHVISION_IMAGENET, CaffeResNet, ResNet
from detectors.detections import Detections, DetectionTensors, joined
from detectors.detector import MODES, Detector, Published, TestTime
from detectors.fcos.file_keys import EXPORTS, LAYOUTS
from detectors.fcos.network import (
    AuthorsHead,
    EvaluationOutputs,
    FCOSNetworkSettings,
    Outputs,
    TorchvisionHead,
    TrainingOutputs,
    over_strides,
    times_strides,
    trunk_and_pyramid,
)
from detectors.fcos.variants import SIZE_RANGES, VARIANTS
from detectors.layers.feature_pyramid import STRIDES, check_levels, grid_sizes
from detectors.settings import configure, require_choice, require_count, require_fraction, require_weight
from detectors.shapes import Float, Int
from detectors.shared import boxes as box
from detectors.shared.box_losses import centerness_of, sigmoid_focal_loss
from detectors.shared.suppression_in_places import NONE, best_places, filled_first, take
from detectors.shared.test_time_augmentation import mirror_content
from detectors.sizes import Multiples
from detectors.stages import within

_LARGEST_AREA = 1e8


@dataclass(frozen=True, kw_only=True)
class FCOSSettings:
    """Settings of FCOS, for any network; the defaults are the authors' first version."""

    variant: Literal["original", "improved", "adelaidet", "mmdetection", "mmdetection_base", "torchvision"] = "original"
    """Version of FCOS: the authors' from the paper, their improved one, or a library's: AdelaiDet's, mmdetection's
    improved one, mmdetection's from the paper, or torchvision's."""
    score_threshold: float | None = None
    """Candidates score above this. None: 0.05 on the class, in torchvision 0.2 on the joint score."""
    nms_threshold: float | None = None
    """IoU above which the worse of two boxes of a class is dropped. None: 0.6, in mmdetection_base 0.5."""
    candidates: int = 1000
    """Boxes of each level and image that enter suppression."""
    classification_weight: float = 1.0
    """Weight of the focal loss."""
    box_weight: float = 1.0
    """Weight of the loss on boxes (λ of eq. 2)."""
    centerness_weight: float = 1.0
    """Weight of the loss on centerness."""

    def __post_init__(self) -> None:
        require_choice("variant", self.variant, tuple(VARIANTS))
        if self.score_threshold is not None:
            require_fraction("score_threshold", self.score_threshold)
        if self.nms_threshold is not None:
            require_fraction("nms_threshold", self.nms_threshold)
        require_count("candidates", self.candidates)
        for name in ("classification_weight", "box_weight", "centerness_weight"):
            require_weight(name, getattr(self, name))


@dataclass(frozen=True)
class FCOSTargets:
    """Targets of a batch, one row per point of all levels."""

    labels: Int[Tensor, "batch points"]
    """-1 for background."""
    distances: Float[Tensor, "batch points 4"]
    """Left, top, right, bottom, in the unit of the head's; 0 for background."""
    centerness: Float[Tensor, "batch points"]
    """0 for background."""


class FCOS(Detector):
    """A point per cell of five levels, its distances to the sides of its box, and its centerness."""

    sizes = Multiples(32)
    box_corners = "edges"
    test_time = TestTime(
        modes=MODES,
        # The image at its test size, then shorter sides of 400 to 1200 pixels where that one is 800.
        scales=(1.0, 0.5, 0.625, 0.75, 0.875, 1.125, 1.25, 1.375, 1.5),
        merges_in_input=True,
    )

    def __init__(self, depth: int, num_classes: int | None, network: FCOSNetworkSettings, settings: FCOSSettings):
        super().__init__()
        self.settings = settings
        self.variant = VARIANTS[settings.variant]
        self.num_classes = self.variant.num_classes if num_classes is None else num_classes
        require_count("num_classes", self.num_classes)
        self.preprocessing = self.variant.preprocessing
        self.backbone = trunk_and_pyramid(depth, network, self.variant)
        body = ResNet if self.variant.torchvision_layout else CaffeResNet
        self.stages = within("backbone", {**within("body", body.stages), "fpn": ("fpn",)})
        if self.variant.torchvision_layout:
            self.head = TorchvisionHead(network.channels, self.num_classes, self.variant)
        else:
            head = AuthorsHead(network.channels, self.num_classes, self.variant)
            self.rpn = nn.ModuleDict({"head": head})
        self.published = Published(
            imagenet_weights=(TORCHVISION_IMAGENET if self.variant.torchvision_layout else CAFFE_IMAGENET)[depth],
            backbone_prefix="backbone.body.",
            class_layers=(self.variant.class_layer,),
            file_layouts=LAYOUTS[settings.variant],
            export_layouts=EXPORTS[settings.variant],
        )

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """Logits, distances and centerness, each a list of five levels.

        "improved" returns distances in strides in training and in pixels in evaluation, as its authors' code does;
        `losses` and `decode` take either. A plain tuple of three lists is taken as the authors' code would: `losses`
        expects those of training, `decode` those of evaluation.
        """
        head = self.head if self.variant.torchvision_layout else self.rpn["head"]
        return head(self.backbone(images))

    @torch.no_grad()
    def encode(
        self,
        boxes: Float[Tensor, "batch objects 4"],
        labels: Int[Tensor, "batch objects"],
        input_size: tuple[int, int],
        **extra: Tensor,
    ) -> FCOSTargets:
        """Assign a box to each point: the smallest of those that it may predict.

        Boxes are clipped to 0 .. width - 1 and 0 .. height - 1 of the input (in the libraries, to width and height)
        and dropped if nothing is left. All rows count, however many there are.

        Args:
            boxes: x1, y1, x2, y2, unclipped, in the input frame.
            labels: -1 for padding.
            input_size: height and width of the input, in pixels.
            extra: not used.

        Raises:
            DetectorError: a label is not below `num_classes`, or the input's size does not fit `sizes`.

        Source:
            tianzhi0549/FCOS, fcos_core/modeling/rpn/fcos/loss.py; aim-uofa/AdelaiDet,
            adet/modeling/fcos/fcos_outputs.py; open-mmlab/mmdetection, mmdet/models/dense_heads/fcos_head.py;
            torchvision/models/detection/fcos.py.
        """
        self.check_input_size(input_size)
        self.check_labels(labels)
        # Padding by one row, so that argmax below has a row to choose even if there are no boxes.
        boxes, labels = functional.pad(boxes.float(), (0, 0, 0, 1)), functional.pad(labels, (0, 1), value=-1)
        boxes = box.clip(boxes, input_size[0] - self.variant.pixel, input_size[1] - self.variant.pixel)
        is_object = (labels >= 0) & (box.sizes(boxes) > 0).all(dim=-1)
        parts = [self._assign(level, boxes, is_object, input_size) for level in range(len(STRIDES))]
        chosen, distances = (torch.cat(level_parts, dim=1) for level_parts in zip(*parts, strict=True))
        is_positive = chosen >= 0
        distances = torch.where(is_positive[..., None], distances, 0)
        return FCOSTargets(
            labels=torch.where(is_positive, labels.gather(1, chosen.clamp_min(0)), -1),
            distances=distances,
            centerness=centerness_of(distances),
        )

    def losses(self, outputs: Outputs, targets: FCOSTargets) -> dict[str, Tensor]:
        """Focal loss of classes, IoU or GIoU loss of boxes, cross entropy of centerness, and their weighted sum.

        In training, all variants but torchvision's divide by means over all ranks, including ranks without a positive
        point: every rank must call this equally often. In evaluation mode nothing is exchanged.

        Returns:
            Scalars float32 "classification", "box" and "centerness", unweighted, and "loss".
        """
        labels = targets.labels.flatten()
        positive = labels >= 0
        # The validation loss is computed from outputs in evaluation mode, whose distances may be in pixels.
        if isinstance(outputs, EvaluationOutputs) and self.variant.pixels_in_evaluation:
            outputs = outputs._replace(distances=over_strides(outputs.distances))
        logits, distances, centerness = (
            torch.cat([of_level.float().flatten(2) for of_level in maps], dim=2).transpose(1, 2).flatten(0, 1)
            for maps in outputs
        )
        wanted = targets.centerness.flatten()[positive]
        sums = torch.stack((positive.sum().float(), wanted.sum()))
        num_positive, centerness_sum = self._mean_over_ranks(sums)
        num_positive = num_positive.clamp_min(1)
        boxes = self.variant.box_loss(distances[positive], targets.distances.flatten(0, 1)[positive])
        if self.variant.centerness_weights_boxes:
            # Without a floor of the publication's, ours acts only if no rank has a positive point: 0 is divided then.
            least = self.variant.least_centerness_sum or torch.finfo(torch.float32).tiny
            box_loss = (boxes * wanted).sum() / centerness_sum.clamp_min(least)
        else:
            box_loss = boxes.sum() / num_positive
        classification = sigmoid_focal_loss(logits, labels) / num_positive
        with torch.autocast(wanted.device.type, enabled=False):
            entropy = functional.binary_cross_entropy_with_logits(centerness[positive, 0], wanted, reduction="sum")
        parts = {"classification": classification, "box": box_loss, "centerness": entropy / num_positive}
        weighted = [getattr(self.settings, f"{name}_weight") * part for name, part in parts.items()]
        return {**parts, "loss": torch.stack(weighted).sum()}

    @torch.no_grad()
    def decode(self, outputs: Outputs, input_size: tuple[int, int], limit: int = 100) -> list[Detections]:
        """Boxes of the best points of each level, clipped and suppressed class by class, in the variant's order.

        The score is sqrt(class * centerness), in mmdetection class * centerness.

        Args:
            outputs: result of `forward`.
            input_size: height and width of the input, in pixels.
            limit: detections an image; the authors keep all that tie for the last place, also in AdelaiDet.

        Raises:
            DetectorError: the maps are not those of `input_size`.

        Source:
            tianzhi0549/FCOS, fcos_core/modeling/rpn/fcos/inference.py; torchvision/models/detection/fcos.py.
        """
        return [self.merge([found], limit) for found in self.candidates(outputs, input_size, limit)]

    @torch.no_grad()
    def decode_tensors(self, outputs: Outputs, input_size: tuple[int, int], limit: int = 100) -> DetectionTensors:
        """Find what `decode` does, in tensors, without those that tie for the last place."""
        logits, distances, centerness = self._maps_in_pixels(outputs, input_size)
        levels = [
            self._candidates_in_places([values.float() for values in maps], level, input_size)
            for level, maps in enumerate(zip(logits, distances, centerness, strict=True))
        ]
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        kept = self.variant.suppress_in_places(boxes, scores, labels, threshold=self._nms_threshold, limit=limit)
        found = take(boxes, kept)
        if self.variant.clips_last:
            found = self._clipped(found, input_size)
            if self.variant.drops_empty:
                kept = torch.where((box.sizes(found) > 0).all(dim=-1), kept, NONE)
                # Boxes that were dropped leave gaps.
                order = filled_first(kept)
                kept, found = kept.gather(1, order), take(found, order)
        labels = torch.where(kept >= 0, labels.gather(1, kept.clamp_min(0)), NONE)
        return DetectionTensors(found, scores.gather(1, kept.clamp_min(0)), labels).cleared()

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
        """The best boxes of each level before suppression, clipped to the photograph; the mirror's after the image's.

        AdelaiDet's are `unclipped`, too, for suppression.

        Source:
            tianzhi0549/FCOS, fcos_core/modeling/rpn/fcos/inference.py; fcos_core/engine/bbox_aug.py.
        """
        sizes = [input_size] * len(outputs[0][0])
        if content_sizes is not None:
            sizes = [(height, width) for height, width in content_sizes.tolist()]
        found = self._all_candidates(outputs, input_size, sizes)
        if mirrored is None:
            return found
        turned = self._all_candidates(mirrored, input_size, sizes)
        for of_mirror, (_, width) in zip(turned, sizes, strict=True):
            # Boxes of the authors end on their last pixel, so a mirror turns x into width - 1 - x.
            last = width - self.variant.pixel
            of_mirror.boxes = box.mirrored(of_mirror.boxes, last)
            if of_mirror.unclipped is not None:
                of_mirror.unclipped = box.mirrored(of_mirror.unclipped, last)
        return [joined(both) for both in zip(found, turned, strict=True)]

    def merge(self, parts: Sequence[Detections], limit: int = 100, *, soft: bool = False) -> Detections:
        """Apply one NMS to the candidates of all scales, class by class.

        Raises:
            DetectorError: `soft` is set; FCOS was published with NMS.
        """
        self.check_test_mode("none", soft)
        every = joined(parts)
        measured = every.boxes if every.unclipped is None else every.unclipped
        found = every.rows(
            self.variant.suppress(measured, every.scores, every.labels, threshold=self._nms_threshold, limit=limit)
        )
        found.unclipped = None
        return found.rows(_not_empty(found.boxes)) if self.variant.clips_last and self.variant.drops_empty else found

    @property
    def _nms_threshold(self) -> float:
        chosen = self.settings.nms_threshold
        return self.variant.nms_threshold if chosen is None else chosen

    @property
    def _score_threshold(self) -> float:
        return self.settings.score_threshold or self.variant.score_threshold

    def _maps_in_pixels(
        self, outputs: Outputs, input_size: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Logits, distances in pixels, and centerness of the levels."""
        logits, distances, centerness = outputs
        if isinstance(outputs, TrainingOutputs) or not self.variant.pixels_in_evaluation:
            distances = distances if self.variant.exponential else times_strides(distances)
        check_levels(logits, input_size)
        return logits, distances, centerness

    def _all_candidates(
        self, outputs: Outputs, input_size: tuple[int, int], content_sizes: list[tuple[int, int]]
    ) -> list[Detections]:
        logits, distances, centerness = self._maps_in_pixels(outputs, input_size)
        found = []
        for image, content_size in enumerate(content_sizes):
            levels = [
                self._candidates([values[image].float() for values in maps], level, input_size, content_size)
                for level, maps in enumerate(zip(logits, distances, centerness, strict=True))
            ]
            found.append(joined(levels))
        return found

    def points(self, level: int, input_size: tuple[int, int], device: torch.device) -> Float[Tensor, "points 2"]:
        """Points of a level as x, y in the input frame, float32, line by line."""
        height, width = grid_sizes(input_size)[level]
        stride = STRIDES[level]
        y, x = (torch.arange(count, device=device, dtype=torch.float32) for count in (height, width))
        if self.variant.cell_middles:
            x, y = x * stride + stride // 2, y * stride + stride // 2
        else:
            x, y = x * (input_size[1] // width), y * (input_size[0] // height)
        return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).flatten(0, 1)

    def _assign(
        self, level: int, boxes: Tensor, is_object: Tensor, input_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """For each point of a level, the row `(batch, points)` of its box, -1 for none, and the distances to it."""
        variant, stride = self.variant, STRIDES[level]
        points = self.points(level, input_size, boxes.device)
        sides = _distances(points[:, None], boxes[:, None])  # batch, points, objects, 4
        nearest, longest = sides.amin(dim=-1), sides.amax(dim=-1)
        if variant.center_radius is not None:
            # Centre sampling: the point must be inside the intersection of the box and a square around its centre.
            region = box.centers(boxes).repeat(1, 1, 2)
            region = region + region.new_tensor([-1, -1, 1, 1]) * stride * variant.center_radius
            region = torch.cat((torch.maximum(region, boxes)[..., :2], torch.minimum(region, boxes)[..., 2:]), dim=-1)
            nearest = _distances(points[:, None], region[:, None]).amin(dim=-1)
        shortest_allowed, longest_allowed = SIZE_RANGES[level]
        if variant.inclusive:
            fits = (longest >= shortest_allowed) & (longest <= longest_allowed)
        else:
            # Neither the smallest nor the largest boxes are bounded.
            fits = (longest > max(shortest_allowed, 0)) & (longest < (longest_allowed if level < 4 else torch.inf))
        fits = fits & (nearest > 0) & is_object[:, None]
        # A number that is larger for smaller boxes, computed as the publication does, since ties depend on it.
        areas = (box.sizes(boxes) + (1 if variant.area == "pixels" else 0)).prod(dim=-1)
        preference = (_LARGEST_AREA - areas if variant.area == "coarse" else -areas)[:, None]
        best = torch.where(fits, preference, -torch.inf).argmax(dim=-1)  # the first of equals
        own = boxes.gather(1, best[..., None].expand(-1, -1, 4))
        distances = _distances(points, own)
        return torch.where(fits.any(dim=-1), best, -1), distances if variant.exponential else distances / stride

    def _mean_over_ranks(self, sums: Tensor) -> Tensor:
        distributed = torch.distributed
        if not (self.variant.normalise_over_ranks and self.training):
            return sums
        if not (distributed.is_available() and distributed.is_initialized()):
            return sums
        # One exchange for both sums. It must not depend on positives, or ranks without any would leave others waiting.
        distributed.all_reduce(sums)
        return sums / distributed.get_world_size()

    def _candidates(
        self, maps: list[Tensor], level: int, input_size: tuple[int, int], content_size: tuple[int, int]
    ) -> Detections:
        """Boxes of one level of one image, not sorted by score; distances are in pixels."""
        variant = self.variant
        logits, distances, centerness = maps
        probabilities = logits.flatten(1).T.sigmoid()  # points, classes
        joint = probabilities * centerness.flatten()[:, None].sigmoid()
        chosen = self._confident(probabilities, joint).nonzero()
        if len(chosen) > self.settings.candidates:
            # Sorted by place again, since suppression decides ties by the order of the list.
            ranking = (probabilities if variant.ranks_by_class else joint)[chosen[:, 0], chosen[:, 1]]
            chosen = chosen[ranking.topk(self.settings.candidates).indices.sort().values]
        at, labels = chosen.unbind(dim=-1)
        scores = joint[at, labels]
        distances = distances.flatten(1).T[at]
        points = self.points(level, input_size, distances.device)[at]
        unclipped = torch.cat((points - distances[:, :2], points + distances[:, 2:]), dim=-1)
        boxes = box.clip(unclipped, content_size[0] - variant.pixel, content_size[1] - variant.pixel)
        found = Detections(
            boxes,
            scores.sqrt() if variant.root_score else scores,
            labels,
            unclipped=unclipped if variant.clips_last else None,
        )
        return found.rows(_not_empty(boxes)) if variant.drops_empty and not variant.clips_last else found

    def _confident(self, probabilities: Tensor, joint: Tensor) -> Tensor:
        """Mask of the points and classes that are candidates."""
        return (joint.sqrt() if self.variant.threshold_with_centerness else probabilities) > self._score_threshold

    def _clipped(self, boxes: Tensor, input_size: tuple[int, int]) -> Tensor:
        # As an int, because ONNX has no float that is computed from the size of an input.
        pixel = int(self.variant.pixel)
        return box.clip(boxes, input_size[0] - pixel, input_size[1] - pixel)

    def _candidates_in_places(
        self, maps: list[Tensor], level: int, input_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of one level as `_candidates` has them, in as many places as there may be."""
        variant = self.variant
        logits, distances, centerness = (values.flatten(2).transpose(1, 2) for values in maps)  # batch, points, _
        probabilities = logits.sigmoid()
        joint = probabilities * centerness.sigmoid()
        ranking = torch.where(
            self._confident(probabilities, joint), probabilities if variant.ranks_by_class else joint, -1.0
        )
        chosen, ranks = best_places(ranking.flatten(1), self.settings.candidates)
        at = chosen // self.num_classes
        scores = joint.flatten(1).gather(1, chosen)
        labels = torch.where(ranks < 0, NONE, chosen - at * self.num_classes)
        points = take(self.points(level, input_size, logits.device).expand(logits.shape[0], -1, -1), at)
        distances = take(distances, at)
        boxes = torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)
        if not variant.clips_last:
            boxes = self._clipped(boxes, input_size)
            if variant.drops_empty:
                labels = torch.where((box.sizes(boxes) > 0).all(dim=-1), labels, NONE)
        return boxes, scores.sqrt() if variant.root_score else scores, labels


def _distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Left, top, right, bottom from points `(..., 2)` to the sides of boxes `(..., 4)`; negative outside."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)


def _not_empty(boxes: Tensor) -> Tensor:
    """Rows of the boxes that have a width and a height."""
    return (box.sizes(boxes) > 0).all(dim=-1).nonzero().squeeze(1)


def fcos_resnet50(num_classes: int | None = None, **settings: Any) -> FCOS:
    """ResNet-50: 32.2 M parameters, 37.1 AP on COCO minival; improved 38.7, torchvision's 39.2."""
    network, chosen = configure("fcos_resnet50", settings, FCOSNetworkSettings(), FCOSSettings())
    return FCOS(50, num_classes, network, chosen)


def fcos_resnet101(num_classes: int | None = None, **settings: Any) -> FCOS:
    """ResNet-101: 41.4 AP on COCO minival after twice the time and with many scales; improved 43.0."""
    network, chosen = configure("fcos_resnet101", settings, FCOSNetworkSettings(), FCOSSettings())
    return FCOS(101, num_classes, network, chosen)
