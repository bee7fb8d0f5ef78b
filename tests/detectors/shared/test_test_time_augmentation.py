"""Flip and multi-scale: literal arithmetic, networks that a mirror does not change, and merging against plain loops."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, tensor
from torch.nn import functional
from torch.testing import assert_close

import detectors
from detectors import Detections, Detector, DetectorError
from detectors.shared.test_time_augmentation import (
    exchange_joints,
    merge_by_soft_nms,
    mirror_content,
    mirror_displacements,
)
from tests.detectors.fcos.test_decode import fcos, joined, silent
from tests.detectors.shared.test_suppression import published_soft_nms


@functools.cache
def on_meta(name: str, **settings: object) -> Detector:
    with torch.device("meta"):
        return detectors.build(name, **settings)  # type: ignore[arg-type]


def box_maps(fill: float, width: int = 8) -> dict[str, Tensor]:
    return {
        "hm": torch.full((1, 3, 8, width), fill),
        "wh": torch.zeros(1, 2, 8, width),
        "reg": torch.zeros(1, 2, 8, width),
    }


def test_heatmap_and_size_are_averaged_and_the_offset_is_the_images_own() -> None:
    image, mirror = box_maps(-9.0), box_maps(-9.0)
    image["hm"][0, 1, 5, 2] = 0.0
    mirror["hm"][0, 1, 5, 5] = np.log(0.25 / 0.75)  # column 5 of 8 is column 2 in the mirror
    image["wh"][0, :, 5, 2], mirror["wh"][0, :, 5, 5] = tensor([3.0, 2.0]), tensor([5.0, 2.0])
    image["reg"][0, :, 5, 2], mirror["reg"][0, :, 5, 5] = tensor([0.25, 0.5]), tensor([0.9, 0.9])
    best = on_meta("centernet_resnet18", num_classes=3).candidates([image], (32, 32), 1, mirrored=[mirror])[0]
    # (0.5 + 0.25) / 2, not the sigmoid of the mean logit (0.366); 4 cells wide around (2.25, 5.5) cells.
    assert_close(best.scores, tensor([0.375]))
    assert_close(best.boxes, tensor([[1.0, 18.0, 17.0, 26.0]]))
    assert best.labels.tolist() == [1]


def test_joints_of_the_mirror_change_sides() -> None:
    assert exchange_joints(17) == [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
    assert exchange_joints(5) == [0, 1, 2, 3, 4]
    displacement = torch.arange(34.0).view(1, 34, 1, 1).expand(1, 34, 1, 2).clone()
    displacement[..., 1] += 100
    turned = mirror_displacements(displacement)
    # Joint 1 is joint 2 of the mirror (channels 4 and 5), x negated; the first column is the mirror's second.
    assert turned[0, 2:4, 0, 0].tolist() == [-104.0, 105.0]
    assert turned[0, 0:2, 0, 1].tolist() == [0.0, 1.0]


class Symmetric(torch.nn.Module):
    """Maps of pose from local means of the pixels: what it says of a mirror is the mirror of what it says."""

    def __init__(self, joints: int = 17) -> None:
        super().__init__()
        self.joints = joints

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        red, green, blue = functional.avg_pool2d(images, 4).split(1, dim=1)
        side = torch.zeros(self.joints)
        side[1::2], side[2::2] = 1, -1  # left joints go right by what right ones go left
        x = red * 3 * side.view(1, -1, 1, 1)
        y = (green * 2).expand_as(x)
        return [
            {
                "hm": red + green,
                "wh": torch.cat((3 + blue, 4 + red), dim=1),
                "reg": torch.cat((torch.full_like(red, 0.5), green.sigmoid()), dim=1),
                "hps": torch.stack((x, y), dim=2).flatten(1, 2),
                "hm_hp": (blue * 4).expand(-1, self.joints, -1, -1),
                "hp_offset": torch.cat((torch.full_like(red, 0.5), blue.sigmoid()), dim=1),
            }
        ]


@pytest.mark.parametrize("name", ["centernet_dla34", "centernet_dla34_pose"])
def test_a_network_that_a_mirror_does_not_change_finds_the_same_with_it(name: str) -> None:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    network, detector = Symmetric(), on_meta(name, num_classes=1)
    alone = detector.candidates(network(images), (64, 96))
    mirrored = network(detector.mirror(images, tensor([96, 96])))
    both = detector.candidates(network(images), (64, 96), mirrored=mirrored)
    for one, other in zip(alone, both, strict=True):
        assert_close(one.boxes, other.boxes)
        assert_close(one.scores, other.scores)
        if one.keypoints is not None and other.keypoints is not None:
            assert_close(one.keypoints, other.keypoints)
            assert (one.keypoints[..., 2] > 0).any()  # some joints moved to their peaks


def test_a_batch_gives_what_its_images_give_one_by_one() -> None:
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    network, detector = Symmetric(), on_meta("centernet_dla34_pose")

    def found(images: Tensor) -> list[Detections]:
        return detector.candidates(network(images), (64, 64), 20, mirrored=network(images.flip(-1).square()))

    for row, of_batch in enumerate(found(images)):
        alone = found(images[row : row + 1])[0]
        assert_close(of_batch.boxes, alone.boxes)
        assert_close(of_batch.scores, alone.scores)


def plain_merge(parts: list[Detections], limit: int) -> list[tuple[float, int, list[float]]]:
    """Every class by the published loop over single boxes, stale rows left in; then the threshold over all."""
    found = []
    for label in range(80):
        boxes = torch.cat([part.boxes[part.labels == label] for part in parts])
        scores = torch.cat([part.scores[part.labels == label] for part in parts])
        table, _ = published_soft_nms(boxes, scores, 0.5, 0.001)
        found += [(float(row[4]), label, row[:4].tolist()) for row in table]
    if len(found) > limit:
        least = sorted((entry[0] for entry in found), reverse=True)[limit - 1]
        found = [entry for entry in found if entry[0] >= least]
    return sorted(found, key=lambda entry: -entry[0])


@functools.cache
def real_detections() -> list[Detections]:
    """The 100 best boxes of a trained CenterNet on three photos (see data/README.md)."""
    rows = json.loads((Path(__file__).parents[1] / "data" / "centernet_top100.json").read_text())
    tables = [tensor(table) for table in rows.values()]
    return [Detections(table[:, :4], table[:, 4], table[:, 5].long()) for table in tables]


@pytest.mark.parametrize("image", [0, 1, 2])
def test_five_scales_merge_as_the_published_loops_do(image: int) -> None:
    generator = torch.Generator().manual_seed(image)
    one = real_detections()[image]
    parts = [
        Detections(
            one.boxes + torch.randn(100, 4, generator=generator) * 2,
            (one.scores * (0.7 + 0.3 * torch.rand(100, generator=generator))).clone(),
            one.labels,
        )
        for _ in range(5)
    ]
    expected = plain_merge(parts, 100)
    given = merge_by_soft_nms(parts, 100)
    assert given.labels.tolist() == [label for _, label, _ in expected]
    assert_close(given.scores, tensor([score for score, _, _ in expected]), rtol=1e-4, atol=1e-7)
    assert_close(given.boxes, tensor([box for _, _, box in expected]))
    assert len(given.scores) == 100


def test_stale_rows_stay_in_and_ties_for_the_last_place_all_stay() -> None:
    # Two equal boxes: the second's score falls to 0.004 exp(-1 / 0.5) = 0.00054 < 0.001 and it is dropped, which
    # copies the last row over it and leaves that one behind too: 0.9, 0.8, 0.8, though there were two objects.
    boxes = tensor([[0.0, 0, 9, 9], [0.0, 0, 9, 9], [50.0, 50, 59, 59]])
    part = Detections(boxes, tensor([0.9, 0.004, 0.8]), torch.zeros(3, dtype=torch.long))
    merged = merge_by_soft_nms([part], limit=100)
    assert_close(merged.scores, tensor([0.9, 0.8, 0.8]))
    assert_close(merged.boxes, boxes[[0, 2, 2]])
    # The second best scores 0.8, as does the third: both stay.
    assert len(merge_by_soft_nms([part], limit=2).scores) == 3


def test_keypoints_go_with_their_boxes() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(60, 2, generator=generator) * 400  # few overlap, and nothing is dropped
    parts = []
    for start in (0, 30):
        boxes = torch.cat((corners, corners + 20), dim=1)[start : start + 30]
        # Every joint stands on its box's top left corner.
        joints = boxes[:, None, :2].expand(-1, 17, -1)
        keypoints = torch.cat((joints, torch.ones(30, 17, 1)), dim=2)
        parts.append(
            Detections(boxes, torch.rand(30, generator=generator), torch.zeros(30, dtype=torch.long), keypoints)
        )
    merged = on_meta("centernet_dla34_pose").merge(parts, 40)
    assert merged.keypoints is not None
    assert merged.keypoints.shape == (60, 17, 3)  # poses are not cut off at the limit
    assert_close(merged.keypoints[:, 5, :2], merged.boxes[:, :2])


def test_stale_rows_of_poses_have_the_keypoints_of_what_was_dropped() -> None:
    # As in the test of stale rows; the published code copies the last row's box but swaps its keypoints.
    boxes = tensor([[0.0, 0, 9, 9], [0.0, 0, 9, 9], [50.0, 50, 59, 59]])
    keypoints = torch.arange(3.0).view(3, 1, 1).expand(3, 17, 3)
    part = Detections(boxes, tensor([0.9, 0.004, 0.8]), torch.zeros(3, dtype=torch.long), keypoints)
    merged = on_meta("centernet_dla34_pose").merge([part], soft=True)
    assert_close(merged.boxes, boxes[[0, 2, 2]])
    assert merged.keypoints is not None
    assert merged.keypoints[:, 0, 0].tolist() == [0.0, 2.0, 1.0]


def test_no_detections_merge_to_none() -> None:
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert len(merge_by_soft_nms([nothing, nothing], 100).scores) == 0
    detector = fcos("improved")
    found = detector.candidates(joined(silent((64, 64))), (64, 64), mirrored=joined(silent((64, 64))))
    assert len(detector.merge([found[0], found[0]]).scores) == 0


def test_a_single_scale_passes_untouched_without_soft_nms() -> None:
    detector, one = on_meta("centernet_resdcn18"), real_detections()[0]
    assert detector.merge([one], 100) is one
    softened = detector.merge([one], 100, soft=True)
    assert softened.scores.sum() < one.scores.sum()
    assert_close(softened.scores[0], one.scores[0])


def test_padding_stays_behind_the_mirrored_photograph() -> None:
    image = torch.arange(6.0).view(1, 1, 1, 6).repeat(2, 1, 1, 1)
    mirrored = mirror_content(image, tensor([4, 6]))
    assert mirrored[:, 0, 0].tolist() == [[3, 2, 1, 0, 4, 5], [5, 4, 3, 2, 1, 0]]


def test_fcos_turns_the_boxes_of_the_mirror_back() -> None:
    image, mirror = silent((64, 64)), silent((64, 64))
    # Cell (1, 2) of P3 is the point (20, 12); 10 to each side: 10, 2, 30, 22.
    mirror[0]["logits"][0, 1, 1, 2] = 4.0
    detector = fcos("original")
    found = detector.candidates(joined(image), (64, 64), mirrored=joined(mirror), content_sizes=tensor([[64, 50]]))[0]
    # x' = 50 - 1 - x, as the authors count pixels.
    assert found.boxes.tolist() == [[19.0, 2.0, 39.0, 22.0]]
    edges = fcos("torchvision").candidates(
        joined(image), (64, 64), mirrored=joined(mirror), content_sizes=tensor([[64, 50]])
    )[0]
    # Points are corners of cells there and distances are in strides: (16, 8), 80 to each side, clipped to 50 x 64.
    assert edges.boxes.tolist() == [[0.0, 0.0, 50.0, 64.0]]


@pytest.mark.parametrize("variant", ["original", "improved"])
def test_fcos_finds_the_same_when_the_mirror_says_the_same(variant: str) -> None:
    maps = silent((128, 128))
    for level, label, y, x, score in ((0, 0, 3, 2, 3.0), (0, 1, 9, 13, 2.0), (1, 2, 5, 3, 1.0)):
        maps[level]["logits"][0, label, y, x] = score
        sides = tensor([11.0, 8.0, 14.0, 9.0]) if variant == "original" else tensor([1.5, 1.0, 2.0, 1.25])
        maps[level]["distances"][0, :, y, x] = sides
    mirrored = [{name: values.flip(-1) for name, values in level.items()} for level in maps]
    for level in mirrored:
        level["distances"] = level["distances"][:, [2, 1, 0, 3]]
    detector = fcos(variant)
    alone = detector.decode(joined(maps), (128, 128))[0]
    candidates = detector.candidates(joined(maps), (128, 128), mirrored=joined(mirrored))[0]
    assert len(candidates.scores) == 6
    # The authors' x' = width - 1 - x puts the mirror's boxes one pixel to the left; NMS takes them away.
    assert_close(candidates.boxes[3:], candidates.boxes[:3] - tensor([1.0, 0.0, 1.0, 0.0]))
    merged = detector.merge([candidates])
    assert_close(merged.boxes, alone.boxes)
    assert_close(merged.scores, alone.scores)
    assert merged.labels.tolist() == alone.labels.tolist() == [0, 1, 2]


def test_one_nms_for_all_scales_of_fcos() -> None:
    detector = fcos("improved")
    boxes = tensor([[0.0, 0.0, 20.0, 20.0], [40.0, 40.0, 60.0, 60.0]])
    parts = [
        Detections(boxes, tensor([0.5, 0.9]), tensor([0, 1])),
        Detections(boxes + 1, tensor([0.6, 0.4]), tensor([0, 1])),
        Detections(boxes[:1], tensor([0.55]), tensor([2])),
    ]
    merged = detector.merge(parts, 100)
    assert_close(merged.scores, tensor([0.9, 0.6, 0.55]))
    assert merged.labels.tolist() == [1, 0, 2]
    assert_close(merged.boxes, torch.stack((boxes[1], boxes[0] + 1, boxes[0])))


@pytest.mark.parametrize(
    ("name", "mode", "soft", "message"),
    [
        ("centernet_dla34_3d", "flip", False, "centernet_dla34_3d has no test mode 'flip', only none"),
        ("centernet_dla34_3d", "none", True, "centernet_dla34_3d was not published with soft-NMS"),
        ("fcos_resnet50", "none", True, "fcos_resnet50 was not published with soft-NMS. Leave it off"),
    ],
)
def test_what_was_not_published_is_refused(name: str, mode: str, soft: bool, message: str) -> None:
    with pytest.raises(DetectorError, match=message):
        on_meta(name).check_test_mode(mode, soft)
    for published in ("centernet_resnet18", "centernet_dla34_pose", "fcos_resnet50"):
        for each in ("none", "flip", "multiscale"):
            on_meta(published).check_test_mode(each)
