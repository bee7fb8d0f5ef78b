"""CenterNet for human pose: joints as displacements from the centre, moved to the nearest peak of their own.

In addition to the heads for boxes, `hps` is the place of each joint relative to the centre's cell, `hm_hp` a heatmap
for each joint, and `hp_offset` a joint's place inside its cell (Objects as Points, section 5 "human pose estimation").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from detectors.backbones.hourglass import HourglassSettings
from detectors.centernet.centernet import STRIDE, CenterNet, CenterNetSettings, CenterNetTargets
from detectors.centernet.networks import (
    DLANetwork,
    DLASettings,
    HourglassNetwork,
)
from detectors.detections import Detections, DetectionTensors
from detectors.errors import DetectorError
from detectors.settings import configure, require_count, require_weight
from detectors.shapes import Bool, Float, Int
from detectors.shared.losses import (
    at_centers,
    masked_l1_loss,
    masked_smooth_l1_loss,
    penalty_reduced_focal_loss,
)
from detectors.shared.network import Outputs
from detectors.shared.peaks import column_and_row, suppress_neighbours
from detectors.shared.slots import in_slots
from detectors.shared.test_time_augmentation import averaged_with_mirror, exchange_joints, mirror_displacements

_NEARLY_A_CENTER = 0.9999
"""Value of the whole heatmap of an image that was rotated: below 1 there is no positive, and so near 1 no penalty."""
_SURE_ENOUGH = 0.1
"""Score above which a joint's peak may replace the regressed joint."""
_NEAR_ENOUGH = 0.3
"""Largest distance between the two, as a share of the box's longer side."""


@dataclass(frozen=True, kw_only=True)
class CenterNetPoseSettings(CenterNetSettings):
    """Settings of pose; the defaults are the published COCO training."""

    max_objects: int = 32
    """Annotations of an image that are used, the first ones in file order."""
    joints: int = 17
    """Joints of a person."""
    joint_weight: float = 1.0
    """Weight of the loss on the displacements of joints."""
    joint_heatmap_weight: float = 1.0
    """Weight of the focal loss on the joints' heatmaps."""
    joint_offset_weight: float = 1.0
    """Weight of the loss on the place of a joint inside its cell."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("joints", self.joints)
        for name in ("joint_weight", "joint_heatmap_weight", "joint_offset_weight"):
            require_weight(name, getattr(self, name))


@dataclass(frozen=True)
class CenterNetPoseTargets(CenterNetTargets):
    """Targets of a batch. A person without a labelled joint stays in the heatmap, but not in `object_mask`."""

    displacement: Float[Tensor, "batch max_objects coordinates"]
    """x, y of each joint minus those of the centre's cell, joint after joint."""
    displacement_mask: Bool[Tensor, "batch max_objects coordinates"]
    joint_heatmap: Float[Tensor, "batch joints height width"]
    joint_offset: Float[Tensor, "batch joint_slots 2"]
    """Slot after slot, and joint after joint in each; as the next two."""
    joint_index: Int[Tensor, "batch joint_slots"]
    joint_mask: Bool[Tensor, "batch joint_slots"]


class CenterNetPose(CenterNet):
    """People as points: the heads of CenterNet and three for joints."""

    settings: CenterNetPoseSettings
    needs = ("keypoints",)
    takes_rotated_images = True

    def head_channels(self) -> dict[str, int]:
        """Output channels of each head, under the published names and in their order."""
        joints = self.settings.joints
        return {"hm": self.num_classes, "wh": 2, "hps": 2 * joints, "reg": 2, "hm_hp": joints, "hp_offset": 2}

    @torch.no_grad()
    def encode(
        self,
        boxes: Float[Tensor, "batch objects 4"],
        labels: Int[Tensor, "batch objects"],
        input_size: tuple[int, int],
        **extra: Tensor,
    ) -> CenterNetPoseTargets:
        """Encode the targets of a batch; boxes as in `CenterNet.encode`.

        A joint counts if it is labelled and inside the frame of cells (0 .. 128, not 127 as for boxes). The Gaussian
        of a joint is as wide as that of its person. An image that was rotated teaches only the joints' heatmap and
        offsets, even if its box, which is that of the image before rotation, is outside the frame.

        Args:
            boxes: x1, y1, x2, y2, unclipped, in the input frame.
            labels: -1 for padding.
            input_size: height and width of the input, in pixels.
            extra: `keypoints` float32 `(batch, objects, joints, 3)`: x and y in the input frame, and COCO's
                visibility, 0 for a joint that is not labelled; and optionally `rotated` bool `(batch,)`, images that
                augmentation has rotated.

        Raises:
            DetectorError: as in `CenterNet.encode`, or `keypoints` are missing or have another shape.

        Source:
            xingyizhou/CenterNet, src/lib/datasets/sample/multi_pose.py.
        """
        num_joints = self.settings.joints
        keypoints = self._keypoints(boxes, extra)
        # Boxes are encoded as always; those that rotation made wrong are masked below.
        people = super().encode(boxes, labels, input_size)
        height, width = input_size[0] // STRIDE, input_size[1] // STRIDE
        joints, labelled = keypoints[..., :2] / STRIDE, keypoints[..., 2] > 0
        inside = ((joints >= 0) & (joints < joints.new_tensor([width, height]))).all(dim=-1)
        rotated = extra.get("rotated", torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device))[:, None]
        is_person = people.object_mask | (rotated & (in_slots(labels, self.settings.max_objects, fill=-1) >= 0))
        joint_mask = is_person[..., None] & labelled & inside
        joints = torch.where(joint_mask[..., None], joints, 0)
        cell = joints.long()
        center_cell = torch.stack((people.center_index % width, people.center_index // width), dim=-1)
        displacement = torch.where(joint_mask[..., None], joints - center_cell[:, :, None], 0)
        plane = torch.arange(num_joints, device=boxes.device).expand(joint_mask.shape)
        extent = people.size.ceil()[:, :, None].expand_as(joints)
        joint_heatmap = self.draw(
            plane.flatten(1), cell.flatten(1, 2), extent.flatten(1, 2), joint_mask.flatten(1), num_joints, input_size
        )
        return CenterNetPoseTargets(
            heatmap=torch.where(rotated[..., None, None], _NEARLY_A_CENTER, people.heatmap),
            size=people.size,
            offset=people.offset,
            center_index=people.center_index,
            # As published: a person without a labelled joint teaches the centre's heatmap, but no size or offset.
            object_mask=people.object_mask & (keypoints[..., 2].sum(dim=-1) != 0) & ~rotated,
            displacement=displacement.flatten(2),
            displacement_mask=joint_mask.repeat_interleave(2, dim=-1) & ~rotated[..., None],
            joint_heatmap=joint_heatmap,
            joint_offset=(joints - cell).flatten(1, 2),
            joint_index=(cell[..., 1] * width + cell[..., 0]).flatten(1),
            joint_mask=joint_mask.flatten(1),
        )

    def losses(self, outputs: Outputs, targets: CenterNetTargets) -> dict[str, Tensor]:
        """The losses of CenterNet and those of the joints; displacements always by L1, per coordinate.

        Returns:
            Scalars float32 "heatmap", "size", "offset", "joints", "joint_heatmap" and "joint_offset", unweighted,
            and "loss".

        Source:
            xingyizhou/CenterNet, src/lib/trains/multi_pose.py.
        """
        targets = cast(CenterNetPoseTargets, targets)
        settings = self.settings
        regression_loss = masked_l1_loss if settings.regression_loss == "l1" else masked_smooth_l1_loss
        parts = super().losses(outputs, targets)
        joints = joint_heatmap = joint_offset = torch.zeros((), device=targets.heatmap.device)
        for maps in outputs:
            displacement = at_centers(maps["hps"], targets.center_index)
            offsets = at_centers(maps["hp_offset"], targets.joint_index)
            joints = joints + masked_l1_loss(displacement, targets.displacement, targets.displacement_mask)
            joint_heatmap = joint_heatmap + penalty_reduced_focal_loss(maps["hm_hp"], targets.joint_heatmap)
            joint_offset = joint_offset + regression_loss(offsets, targets.joint_offset, targets.joint_mask)
        of_joints = {"joints": joints, "joint_heatmap": joint_heatmap, "joint_offset": joint_offset}
        of_joints = {name: value / len(outputs) for name, value in of_joints.items()}
        loss = (
            parts.pop("loss")
            + settings.joint_weight * of_joints["joints"]
            + settings.joint_heatmap_weight * of_joints["joint_heatmap"]
            + settings.joint_offset_weight * of_joints["joint_offset"]
        )
        return {**parts, **of_joints, "loss": loss}

    def average_with_mirror(self, maps: dict[str, Tensor], mirrored: dict[str, Tensor]) -> dict[str, Tensor]:
        """Average heatmaps and sizes, and the joints' displacements and heatmaps with left and right swapped."""
        order = exchange_joints(self.settings.joints)
        return {
            **super().average_with_mirror(maps, mirrored),
            "hps": (maps["hps"] + mirror_displacements(mirrored["hps"])) / 2,
            "hm_hp": averaged_with_mirror(maps["hm_hp"], mirrored["hm_hp"][:, order]),
        }

    def merge(self, parts: Sequence[Detections], limit: int = 100, *, soft: bool = False) -> Detections:
        """Apply CenterNet's soft-NMS, but keep the candidates of all scales, whatever `limit`, as published.

        Source:
            xingyizhou/CenterNet, src/lib/detectors/multi_pose.py, `merge_outputs`.
        """
        return super().merge(parts, max(limit, sum(len(part.scores) for part in parts)), soft=soft)

    def decode_maps(self, maps: dict[str, Tensor], input_size: tuple[int, int], limit: int) -> DetectionTensors:
        """Boxes as CenterNet's, with keypoints `(people, joints, 3)`: x, y in the input frame, and a score.

        The nearest of the `limit` best peaks of its kind replaces a regressed joint, unless the peak scores less than
        0.1, is outside the box, or is farther away than 0.3 of the box's longer side. The third column is the score of
        that peak, or 0 if the regressed joint stayed.

        Source:
            xingyizhou/CenterNet, src/lib/models/decode.py, `multi_pose_decode`.
        """
        people = self.find(maps, input_size, limit)
        displacement = at_centers(maps["hps"], people.peaks.index)
        regressed = people.cell[:, :, None] + displacement.reshape(*people.cell.shape[:2], -1, 2)
        keypoints = move_to_peaks(regressed, people.boxes / STRIDE, *self._joint_peaks(maps, limit))
        keypoints = keypoints * keypoints.new_tensor([STRIDE, STRIDE, 1])
        return DetectionTensors(people.boxes, people.peaks.scores, people.peaks.labels, keypoints)

    def _joint_peaks(self, maps: dict[str, Tensor], limit: int) -> tuple[Tensor, Tensor]:
        """Places `(batch, joints, peaks, 2)` in cells and scores of the best peaks of every joint."""
        heatmap = maps["hm_hp"]
        width = heatmap.shape[-1]
        cells = suppress_neighbours(heatmap).flatten(2)
        scores, index = cells.topk(limit if limit <= cells.shape[2] else cells.shape[2])
        offset = at_centers(maps["hp_offset"], index.flatten(1)).reshape(*index.shape, 2)
        return torch.stack(column_and_row(index, width), dim=-1) + offset, scores

    def _keypoints(self, boxes: Tensor, extra: dict[str, Tensor]) -> Tensor:
        keypoints = extra.get("keypoints")
        expected = (*boxes.shape[:2], self.settings.joints, 3)
        if keypoints is None or keypoints.shape != expected:
            got = "none" if keypoints is None else f"a shape of {tuple(keypoints.shape)}"
            raise DetectorError(
                f"{self.name} needs keypoints of shape {expected} beside boxes of shape {tuple(boxes.shape)}, and got "
                f"{got}. Train it on COCO keypoint annotations, with joints={self.settings.joints} as the data has."
            )
        return in_slots(keypoints.float(), self.settings.max_objects)


def move_to_peaks(
    regressed: Float[Tensor, "batch people joints 2"],
    boxes: Float[Tensor, "batch people 4"],
    peaks: Float[Tensor, "batch joints peaks 2"],
    scores: Float[Tensor, "batch joints peaks"],
) -> Float[Tensor, "batch people joints 3"]:
    """Replace each regressed joint by the nearest peak of its kind, if that peak can be trusted.

    Args:
        regressed: x, y.
        boxes: x1, y1, x2, y2, in the unit of `regressed`.
        peaks: x, y, likewise.
        scores: of the peaks; those of at most 0.1 are not used.

    Returns:
        x, y, and the score of the peak, or 0 if there was none to trust.
    """
    usable = (scores > _SURE_ENOUGH)[:, None]  # batch, 1, joints, peaks
    distance = (regressed[:, :, :, None] - peaks[:, None]).square().sum(dim=-1).sqrt()
    nearest_distance, nearest = torch.where(usable, distance, torch.inf).min(dim=-1)
    people = regressed.shape[1]
    place = peaks[:, None].expand(-1, people, -1, -1, -1)
    place = place.gather(3, nearest[..., None, None].expand(-1, -1, -1, 1, 2))[:, :, :, 0]
    score = scores[:, None].expand(-1, people, -1, -1).gather(3, nearest[..., None])[..., 0]
    top_left, bottom_right = boxes[:, :, None, :2], boxes[:, :, None, 2:]
    inside = ((place >= top_left) & (place <= bottom_right)).all(dim=-1)
    longer_side = (bottom_right - top_left).amax(dim=-1)
    trusted = inside & (nearest_distance <= _NEAR_ENOUGH * longer_side)
    return torch.cat(
        (torch.where(trusted[..., None], place, regressed), torch.where(trusted, score, 0)[..., None]), dim=-1
    )


def centernet_dla34_pose(num_classes: int = 1, **settings: Any) -> CenterNetPose:
    """DLA-34 for human pose: 20.6 M parameters, 58.9 keypoint AP on COCO val2017 after 320 epochs."""
    network, chosen = configure("centernet_dla34_pose", settings, DLASettings(), CenterNetPoseSettings())
    return CenterNetPose(num_classes, partial(DLANetwork, network), chosen)


def centernet_hourglass104_pose(num_classes: int = 1, **settings: Any) -> CenterNetPose:
    """Hourglass-104 for human pose: 64.0 keypoint AP on COCO val2017 after 150 epochs."""
    network, chosen = configure("centernet_hourglass104_pose", settings, HourglassSettings(), CenterNetPoseSettings())
    return CenterNetPose(num_classes, partial(HourglassNetwork, network), chosen)
