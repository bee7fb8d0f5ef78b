"""CenterNet for cars and people in 3D: depth, size in metres and orientation of an object, read at its centre.

On top of the heads for boxes: `dep` is the depth through 1 / sigmoid - 1; `dim` height, width and length in
metres; `rot` the observation angle in two bins that overlap, each with two logits, sine and cosine. Published results
depend on two quirks: the reach of Gaussians follows from sizes that are not rounded up, and the losses on depth, size
and boxes are means over all slots, empty ones included, so they shrink if objects are few.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional

from detectors.centernet.centernet import CenterNet, CenterNetSettings, CenterNetTargets
from detectors.centernet.networks import DLANetwork, DLASettings
from detectors.detections import DetectionTensors
from detectors.detector import TestTime
from detectors.errors import DetectorError
from detectors.settings import configure, require_weight
from detectors.shapes import Bool, Float, Int
from detectors.shared.losses import at_centers, penalty_reduced_focal_loss
from detectors.shared.network import Outputs
from detectors.shared.slots import in_slots

_NEARLY_A_CENTER = 0.9999
"""Value of the heatmap at the centre of an ignored object: not a positive, and almost no penalty."""


@dataclass(frozen=True, kw_only=True)
class CenterNet3DSettings(CenterNetSettings):
    """Settings of 3D; the defaults are the published KITTI training."""

    max_objects: int = 50
    """Annotations of an image that are used, the first ones in file order."""
    pixel_statistics: Literal["coco", "imagenet"] = "imagenet"
    """Mean and deviation of pixels for normalisation: COCO's or ImageNet's."""
    depth_weight: float = 1.0
    """Weight of the loss on depth, in metres."""
    dimension_weight: float = 1.0
    """Weight of the loss on height, width and length, in metres."""
    rotation_weight: float = 1.0
    """Weight of the loss on orientation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("depth_weight", "dimension_weight", "rotation_weight"):
            require_weight(name, getattr(self, name))
        if self.regression_loss != "l1":
            raise DetectorError("regression_loss has to be 'l1' in 3D, where the published loss is a mean over slots.")


@dataclass(frozen=True)
class CenterNet3DTargets(CenterNetTargets):
    """Targets of a batch, one row per slot."""

    depth: Float[Tensor, "batch max_objects 1"]
    """In metres."""
    dimensions: Float[Tensor, "batch max_objects 3"]
    """Height, width and length, in metres."""
    in_bin: Bool[Tensor, "batch max_objects 2"]
    """The angle is in this bin."""
    rotation: Float[Tensor, "batch max_objects 2"]
    """Distance of the angle from the middle of each bin, in radians."""
    metric_mask: Bool[Tensor, "batch max_objects"]
    """`object_mask` without the images whose scale was changed."""


class CenterNet3D(CenterNet):
    """Objects as points in an image of a calibrated camera."""

    settings: CenterNet3DSettings
    needs = ("depth", "dimensions", "alpha")
    # A mirror turns the observation angle around; nobody has published an average of the two.
    test_time = TestTime()

    def head_channels(self) -> dict[str, int]:
        """Output channels of each head, under the published names and in their order."""
        return {"hm": self.num_classes, "dep": 1, "rot": 8, "dim": 3, "wh": 2, "reg": 2}

    @torch.no_grad()
    def encode(
        self,
        boxes: Float[Tensor, "batch objects 4"],
        labels: Int[Tensor, "batch objects"],
        input_size: tuple[int, int],
        **extra: Tensor,
    ) -> CenterNet3DTargets:
        """Encode the targets of a batch; boxes as in `CenterNet.encode`, except for the Gaussian's reach.

        Args:
            boxes: x1, y1, x2, y2, unclipped, in the input frame.
            labels: -1 for padding; -2 - c for an object to ignore for class c (KITTI's vans for cars); and
                -2 - num_classes for one to ignore for every class ("don't care").
            input_size: height and width of the input, in pixels.
            extra: `depth` `(batch, objects)` and `dimensions` `(batch, objects, 3)` as height, width, length, in
                metres; `alpha` `(batch, objects)`, the observation angle in radians, -pi .. pi; and optionally
                `rescaled` bool `(batch,)`, images whose augmentation makes depths and sizes wrong.

        Raises:
            DetectorError: as in `CenterNet.encode`, or a field is missing or has another shape.

        Source:
            xingyizhou/CenterNet, src/lib/datasets/sample/ddd.py.
        """
        fields = self._fields(boxes, extra)
        objects = self.locate(boxes, labels, input_size)
        is_object = objects.in_frame & (objects.labels >= 0)
        rescaled = extra.get("rescaled", torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device))
        in_bin, rotation = orientation_bins(fields["alpha"])
        heatmap = self._heatmap(objects.labels, objects.cell, objects.size, objects.in_frame, input_size)
        return CenterNet3DTargets(
            heatmap=heatmap,
            size=torch.where(is_object[..., None], objects.size, 0),
            offset=torch.where(is_object[..., None], objects.offset, 0),
            center_index=torch.where(is_object, objects.index, 0),
            object_mask=is_object,
            depth=torch.where(is_object, fields["depth"], 0)[..., None],
            dimensions=torch.where(is_object[..., None], fields["dimensions"], 0),
            in_bin=in_bin & is_object[..., None],
            rotation=torch.where(is_object[..., None], rotation, 0),
            metric_mask=is_object & ~rescaled[:, None],
        )

    def losses(self, outputs: Outputs, targets: CenterNetTargets) -> dict[str, Tensor]:
        """Focal loss, means of absolute differences over all slots, and the loss of the two bins.

        Returns:
            Scalars float32 "heatmap", "size", "offset", "depth", "dimension" and "rotation", unweighted, and
            "loss".

        Source:
            xingyizhou/CenterNet, src/lib/trains/ddd.py.
        """
        targets = cast(CenterNet3DTargets, targets)
        settings = self.settings
        names = ("heatmap", "size", "offset", "depth", "dimension", "rotation")
        parts = dict.fromkeys(names, torch.zeros((), device=targets.heatmap.device))
        for maps in outputs:
            read = {name: at_centers(maps[name], targets.center_index).float() for name in maps if name != "hm"}
            of_stack = {
                "heatmap": penalty_reduced_focal_loss(maps["hm"], targets.heatmap),
                "size": mean_over_slots(read["wh"], targets.size, targets.object_mask),
                "offset": mean_over_slots(read["reg"], targets.offset, targets.object_mask),
                "depth": mean_over_slots(depth_of(read["dep"]), targets.depth, targets.metric_mask),
                "dimension": mean_over_slots(read["dim"], targets.dimensions, targets.metric_mask),
                "rotation": rotation_loss(read["rot"], targets.in_bin, targets.rotation, targets.object_mask),
            }
            parts = {name: parts[name] + of_stack[name] / len(outputs) for name in names}
        weighted = [getattr(settings, f"{name}_weight") * parts[name] for name in names]
        return {**parts, "loss": torch.stack(weighted).sum()}

    def decode_maps(self, maps: dict[str, Tensor], input_size: tuple[int, int], limit: int) -> DetectionTensors:
        """Boxes as CenterNet's, with `box3d`, for which no camera has to be known.

        The observation angle is that of the more certain bin. `place_in_camera` turns all into locations. Published
        results keep scores above 0.2, and measure boxes otherwise: see `with_published_sizes`.

        Source:
            xingyizhou/CenterNet, src/lib/models/decode.py, `ddd_decode`; src/lib/utils/ddd_utils.py.
        """
        points = self.find(maps, input_size, limit)
        index = points.peaks.index
        depth, dimensions = depth_of(at_centers(maps["dep"], index)), at_centers(maps["dim"], index)
        alpha = surer_angle(at_centers(maps["rot"], index))[..., None]
        box3d = torch.cat((points.center, depth, dimensions, alpha), dim=-1)
        return DetectionTensors(points.boxes, points.peaks.scores, points.peaks.labels, box3d=box3d)

    def _heatmap(
        self, labels: Tensor, cell: Tensor, size: Tensor, in_frame: Tensor, input_size: tuple[int, int]
    ) -> Tensor:
        """Draw objects and ignored objects; of two on one cell, the later one decides whether it is a centre."""
        batch, slots = labels.shape
        classes = torch.arange(self.num_classes, device=labels.device)
        real = in_frame[..., None] & (labels[..., None] == classes)  # batch, slots, classes
        of_every_class = (labels == -2 - self.num_classes)[..., None]
        ignored = in_frame[..., None] & ((labels[..., None] == -2 - classes) | of_every_class)
        planes = classes.expand(batch, slots, -1)
        cell_of_plane, size_of_plane = (
            rows[:, :, None].expand(-1, -1, self.num_classes, -1).flatten(1, 2) for rows in (cell, size)
        )
        drawn = (real | ignored).flatten(1)
        heatmap = self.draw(planes.flatten(1), cell_of_plane, size_of_plane, drawn, self.num_classes, input_size)

        height, width = heatmap.shape[-2:]
        index = cell[..., 1] * width + cell[..., 0]
        later = torch.ones(slots, slots, dtype=torch.bool, device=labels.device).triu(diagonal=1)
        covered = (index[:, :, None] == index[:, None]) & later  # batch, slots, later slots
        is_center_again = (covered[..., None] & real[:, None]).any(dim=2)
        marked = (ignored & ~is_center_again).flatten()
        first_cell = torch.arange(batch * self.num_classes, device=labels.device).view(batch, 1, -1) * height * width
        flat_index = (first_cell + index[..., None]).flatten()
        # The Gaussian left a 1 there. Rows that are not marked go to cell 0, with a value that lowers nothing.
        heatmap.view(-1).scatter_reduce_(
            0,
            torch.where(marked, flat_index, 0),
            torch.where(marked, heatmap.new_tensor(_NEARLY_A_CENTER), torch.inf),
            reduce="amin",
        )
        return heatmap

    def _fields(self, boxes: Tensor, extra: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = tuple(boxes.shape[:2])
        fields = {}
        for name, expected in {"depth": rows, "dimensions": (*rows, 3), "alpha": rows}.items():
            if name not in extra or extra[name].shape != expected:
                got = f"a shape of {tuple(extra[name].shape)}" if name in extra else "none"
                raise DetectorError(
                    f"{self.name} needs {name} of shape {expected} beside boxes of shape {tuple(boxes.shape)}, and "
                    f"got {got}. Train it on annotations with depth, dimensions and alpha, such as KITTI's."
                )
            fields[name] = in_slots(extra[name].float(), self.settings.max_objects)
        return fields


def depth_of(raw: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Depth in metres from the raw output of its head (eq. 10 of the paper)."""
    return 1 / (raw.sigmoid() + 1e-6) - 1


def mean_over_slots(
    values: Float[Tensor, "batch objects coordinates"],
    targets: Float[Tensor, "batch objects coordinates"],
    mask: Bool[Tensor, "batch objects"],
) -> Float[Tensor, ""]:
    """Mean absolute difference over all entries; those outside of `mask` count as 0.

    Source:
        xingyizhou/CenterNet, src/lib/models/losses.py, `L1Loss`.
    """
    return torch.where(mask[..., None], values - targets, 0).abs().mean()


def orientation_bins(alpha: Float[Tensor, "*any"]) -> tuple[Bool[Tensor, "*any 2"], Float[Tensor, "*any 2"]]:
    """Find the bins, of two, that an angle is in, and its distance from their middles, -pi/2 and pi/2.

    Args:
        alpha: observation angle in radians, -pi .. pi.

    Returns:
        Around 0 and pi, an angle is in both bins; outside of a bin the distance is 0.
    """
    sixth = math.pi / 6
    in_bin = torch.stack(((alpha < sixth) | (alpha > 5 * sixth), (alpha > -sixth) | (alpha < -5 * sixth)), dim=-1)
    middles = alpha.new_tensor([-math.pi / 2, math.pi / 2])
    return in_bin, torch.where(in_bin, alpha[..., None] - middles, 0)


def rotation_loss(
    values: Float[Tensor, "batch objects 8"],
    in_bin: Bool[Tensor, "batch objects 2"],
    rotation: Float[Tensor, "batch objects 2"],
    mask: Bool[Tensor, "batch objects"],
) -> Float[Tensor, ""]:
    """Cross-entropy on whether the angle is in a bin, and smooth L1 on sine and cosine if it is.

    The cross-entropies are means over all slots: an empty one, whose logits become 0, adds log 2.

    Args:
        values: for each bin the logits of "out" and "in", the sine, the cosine.
        in_bin: the angle is in this bin.
        rotation: distance from the middle of each bin, in radians.
        mask: slots that hold an object.

    Source:
        xingyizhou/CenterNet, src/lib/models/losses.py, `BinRotLoss`. The paper says L1 for sine and cosine.
    """
    total = values.new_zeros(())
    for number, of_bin in enumerate((values[..., :4], values[..., 4:])):
        logits, sine, cosine = of_bin[..., :2] * mask[..., None], of_bin[..., 2], of_bin[..., 3]
        inside, angle = in_bin[..., number], rotation[..., number]
        total = total + functional.cross_entropy(logits.flatten(0, 1), inside.flatten().long())
        missed = functional.smooth_l1_loss(sine, angle.sin(), reduction="none")
        missed = missed + functional.smooth_l1_loss(cosine, angle.cos(), reduction="none")
        total = total + torch.where(inside, missed, 0).sum() / inside.sum().clamp_min(1)
    return total


def surer_angle(rotation: Float[Tensor, "*any 8"]) -> Float[Tensor, "*any"]:
    """Observation angle in radians, from the bin whose logit of "in" is larger.

    Args:
        rotation: raw output of the head; see `rotation_loss`.

    Source:
        xingyizhou/CenterNet, src/lib/utils/post_process.py, `get_alpha`.
    """
    first = torch.atan2(rotation[..., 2], rotation[..., 3]) - math.pi / 2
    second = torch.atan2(rotation[..., 6], rotation[..., 7]) + math.pi / 2
    return torch.where(rotation[..., 1] > rotation[..., 5], first, second)


def centernet_dla34_3d(num_classes: int = 3, **settings: Any) -> CenterNet3D:
    """DLA-34 for KITTI's pedestrians, cars and cyclists in 3D: 20.6 M parameters."""
    network, chosen = configure("centernet_dla34_3d", settings, DLASettings(), CenterNet3DSettings())
    return CenterNet3D(num_classes, partial(DLANetwork, network), chosen)
