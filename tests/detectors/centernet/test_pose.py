"""Pose: targets and matching against the published procedure, one person and joint after the other."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import detectors
from detectors.centernet.pose import CenterNetPose, CenterNetPoseTargets

INPUT = (96, 128)
"""Height and width of the input; the maps are 24 x 32."""
JOINTS = 4


def detector(**settings: object) -> CenterNetPose:
    with torch.device("meta"):
        built = detectors.build("centernet_dla34_pose", **{"joints": JOINTS, "max_objects": 6, **settings})
    assert isinstance(built, CenterNetPose)
    return built


def people(seed: int, batch: int = 2, objects: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    random = np.random.default_rng(seed)
    center = random.uniform(-20, 150, (batch, objects, 2))
    half = np.exp(random.uniform(np.log(2), np.log(90), (batch, objects, 2))) / 2
    boxes = np.concatenate((center - half, center + half), axis=-1)
    joints = center[:, :, None] + random.uniform(-1, 1, (batch, objects, JOINTS, 2)) * half[:, :, None]
    visible = random.integers(0, 3, (batch, objects, JOINTS, 1))
    visible[random.random((batch, objects)) < 0.3] = 0
    keypoints = np.concatenate((joints, visible), axis=-1)
    labels = np.where(random.random((batch, objects)) < 0.15, -1, 0)
    return torch.tensor(boxes).float(), torch.tensor(labels), torch.tensor(keypoints).float()


def radius_of(w: float, h: float) -> int:
    total, area = math.ceil(w) + math.ceil(h), math.ceil(w) * math.ceil(h)
    return int((-1.4 * total + math.sqrt((1.4 * total) ** 2 + 3.36 * area)) / 2)


def draw(plane: np.ndarray, column: int, row: int, radius: int) -> None:
    sigma = (2 * radius + 1) / 6
    for y in range(max(0, row - radius), min(plane.shape[0], row + radius + 1)):
        for x in range(max(0, column - radius), min(plane.shape[1], column + radius + 1)):
            value = math.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * sigma * sigma))
            plane[y, x] = max(plane[y, x], np.float32(value))


def one_by_one(boxes: np.ndarray, labels: np.ndarray, keypoints: np.ndarray, slots: int) -> dict[str, np.ndarray]:
    height, width = INPUT[0] // 4, INPUT[1] // 4
    found = {
        "heatmap": np.zeros((1, height, width), np.float32),
        "joint_heatmap": np.zeros((JOINTS, height, width), np.float32),
        "object_mask": np.zeros(slots, bool),
        "displacement": np.zeros((slots, 2 * JOINTS), np.float32),
        "displacement_mask": np.zeros((slots, 2 * JOINTS), bool),
        "joint_offset": np.zeros((slots * JOINTS, 2), np.float32),
        "joint_index": np.zeros(slots * JOINTS, np.int64),
        "joint_mask": np.zeros(slots * JOINTS, bool),
    }
    for slot in range(min(slots, len(boxes))):
        x1, y1, x2, y2 = boxes[slot] / np.float32(4)
        x1, x2 = np.clip([x1, x2], 0, width - 1).astype(np.float32)
        y1, y2 = np.clip([y1, y2], 0, height - 1).astype(np.float32)
        if labels[slot] < 0 or x2 <= x1 or y2 <= y1:
            continue
        radius = radius_of(x2 - x1, y2 - y1)
        center = (int((x1 + x2) / 2), int((y1 + y2) / 2))
        draw(found["heatmap"][0], *center, radius)
        found["object_mask"][slot] = keypoints[slot, :, 2].sum() > 0
        for joint, (x, y, visible) in enumerate(keypoints[slot]):
            x, y = np.float32(x) / 4, np.float32(y) / 4
            if visible > 0 and 0 <= x < width and 0 <= y < height:
                found["displacement"][slot, 2 * joint : 2 * joint + 2] = (x - center[0], y - center[1])
                found["displacement_mask"][slot, 2 * joint : 2 * joint + 2] = True
                row = slot * JOINTS + joint
                found["joint_offset"][row] = (x - int(x), y - int(y))
                found["joint_index"][row] = int(y) * width + int(x)
                found["joint_mask"][row] = True
                draw(found["joint_heatmap"][joint], int(x), int(y), radius)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_targets_are_those_of_the_published_procedure(seed: int) -> None:
    boxes, labels, keypoints = people(seed)
    targets = detector().encode(boxes, labels, INPUT, keypoints=keypoints)
    for image in range(2):
        expected = one_by_one(boxes[image].numpy(), labels[image].numpy(), keypoints[image].numpy(), slots=6)
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(targets, name)[image], value, rtol=1.2e-7, atol=0, err_msg=name)
    assert targets.joint_mask.any()


def test_of_a_turned_image_only_joint_heatmaps_are_learnt() -> None:
    boxes, labels, keypoints = people(3)
    rotated = torch.tensor([False, True])
    network = detector()
    plain = network.encode(boxes, labels, INPUT, keypoints=keypoints)
    turned = network.encode(boxes, labels, INPUT, keypoints=keypoints, rotated=rotated)
    for name, value in vars(turned).items():
        assert torch.equal(value[0], getattr(plain, name)[0]), name
    assert_close(turned.heatmap[1], torch.full_like(turned.heatmap[1], 0.9999))
    assert not turned.object_mask[1].any()
    assert not turned.displacement_mask[1].any()
    # People whose unturned box has left the frame count here, with a Gaussian of a single cell.
    assert (turned.joint_mask[1] & plain.joint_mask[1]).equal(plain.joint_mask[1])
    expected = np.zeros((JOINTS, 24, 32), np.float32)
    count = 0
    for box, label, joints in zip(boxes[1, :6].numpy(), labels[1, :6], keypoints[1, :6].numpy(), strict=True):
        x1, y1, x2, y2 = np.clip(box / 4, 0, [31, 23, 31, 23])
        gone = x2 <= x1 or y2 <= y1
        for joint, (x, y, visible) in enumerate(joints / np.float32([4, 4, 1])):
            if label >= 0 and visible > 0 and 0 <= x < 32 and 0 <= y < 24:
                draw(expected[joint], int(x), int(y), 0 if gone else radius_of(x2 - x1, y2 - y1))
                count += 1
    assert int(turned.joint_mask[1].sum()) == count
    assert_close(turned.joint_heatmap[1], torch.tensor(expected), atol=1e-6, rtol=0)


def test_a_person_without_joints_is_a_centre_but_regresses_nothing() -> None:
    boxes, keypoints = torch.tensor([[[16.0, 16, 80, 80]]]), torch.zeros(1, 1, JOINTS, 3)
    targets = detector().encode(boxes, torch.zeros(1, 1, dtype=torch.int64), INPUT, keypoints=keypoints)
    assert targets.heatmap[0, 0, 12, 12] == 1
    assert not targets.object_mask.any()
    assert not targets.displacement_mask.any()
    assert not targets.joint_heatmap.any()


def test_joints_may_stand_in_the_last_cell() -> None:
    # Boxes are clipped at cell 31; joints count up to 32: x = 126 is in cell 31, x = 128 is outside.
    boxes = torch.tensor([[[16.0, 16, 200, 80]]])
    keypoints = torch.zeros(1, 1, JOINTS, 3)
    keypoints[0, 0, 0] = torch.tensor([126.0, 40, 2])
    keypoints[0, 0, 1] = torch.tensor([128.0, 40, 2])
    targets = detector().encode(boxes, torch.zeros(1, 1, dtype=torch.int64), INPUT, keypoints=keypoints)
    assert targets.joint_mask[0].nonzero().flatten().tolist() == [0]
    assert targets.joint_index[0, 0] == 10 * 32 + 31
    assert targets.joint_offset[0, 0].tolist() == [0.5, 0]
    # The box is 4 .. 31 by 4 .. 20 cells, its centre's cell (17, 12).
    assert targets.displacement[0, 0, :2].tolist() == [31.5 - 17, 10 - 12]


def maps_and_targets(built: CenterNetPose) -> tuple[list[dict[str, Tensor]], CenterNetPoseTargets]:
    boxes, labels, keypoints = people(0)
    generator = torch.Generator().manual_seed(0)
    maps = {
        name: torch.randn(2, channels, 24, 32, generator=generator) for name, channels in built.head_channels().items()
    }
    return [maps], built.encode(boxes, labels, INPUT, keypoints=keypoints)


def test_losses_by_their_definitions() -> None:
    built = detector()
    outputs, targets = maps_and_targets(built)
    parts = built.losses(outputs, targets)
    total = count = 0.0
    for image, slot, row in targets.displacement_mask.nonzero().tolist():
        y, x = divmod(int(targets.center_index[image, slot]), 32)
        total += abs(float(outputs[0]["hps"][image, row, y, x] - targets.displacement[image, slot, row]))
        count += 1
    assert parts["joints"].item() == pytest.approx(total / (count + 1e-4), rel=1e-5)
    total = count = 0.0
    for image, row in targets.joint_mask.nonzero().tolist():
        y, x = divmod(int(targets.joint_index[image, row]), 32)
        total += float((outputs[0]["hp_offset"][image, :, y, x] - targets.joint_offset[image, row]).abs().sum())
        count += 2
    assert parts["joint_offset"].item() == pytest.approx(total / (count + 1e-4), rel=1e-5)
    expected = parts["heatmap"] + 0.1 * parts["size"] + parts["offset"]
    expected = expected + parts["joints"] + parts["joint_heatmap"] + parts["joint_offset"]
    assert_close(parts["loss"], expected)

    chosen = detector(joint_weight=2.0, joint_heatmap_weight=0.5, joint_offset_weight=0.25)
    weighted = chosen.losses(outputs, targets)["loss"]
    assert_close(weighted, expected + parts["joints"] - 0.5 * parts["joint_heatmap"] - 0.75 * parts["joint_offset"])


def test_two_stacks_are_averaged() -> None:
    built = detector()
    outputs, targets = maps_and_targets(built)
    other = [{name: values - 0.5 for name, values in outputs[0].items()}]
    both, first, second = (built.losses(stacks, targets) for stacks in (outputs + other, outputs, other))
    for name, value in both.items():
        assert_close(value, (first[name] + second[name]) / 2)


def matched_by_loops(maps: dict[str, Tensor], image: int, detections: detectors.Detections, limit: int) -> np.ndarray:
    """Keypoints of the detections of one image: the published decoding with every tensor written out as a loop."""
    heatmap = maps["hm_hp"][image].sigmoid().numpy()
    offset, vectors = maps["hp_offset"][image].numpy(), maps["hps"][image].numpy()
    centers = maps["hm"][image].sigmoid().numpy()
    peaks: list[list[tuple[float, float, float]]] = []
    for plane in heatmap:
        of_joint = []
        for y, x in np.ndindex(*plane.shape):
            if plane[y, x] == plane[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max():
                of_joint.append((float(plane[y, x]), x + float(offset[0, y, x]), y + float(offset[1, y, x])))
        peaks.append(sorted(of_joint, reverse=True)[:limit])
    rows = []
    for box, score, label in zip(detections.boxes / 4, detections.scores, detections.labels, strict=True):
        row, column = np.argwhere(centers[int(label)] == score.item())[0]
        left, top, right, bottom = box.tolist()
        of_person = []
        for joint in range(JOINTS):
            x, y = column + vectors[2 * joint, row, column], row + vectors[2 * joint + 1, row, column]
            best, chosen = math.inf, (x, y, 0.0)
            for peak_score, peak_x, peak_y in peaks[joint]:
                distance = math.hypot(peak_x - x, peak_y - y)
                if peak_score > 0.1 and distance < best:
                    inside = left <= peak_x <= right and top <= peak_y <= bottom
                    best = distance
                    trusted = inside and distance <= 0.3 * max(right - left, bottom - top)
                    chosen = (peak_x, peak_y, peak_score) if trusted else (x, y, 0.0)
            of_person.append((4 * chosen[0], 4 * chosen[1], chosen[2]))
        rows.append(of_person)
    return np.array(rows)


def test_joints_are_matched_as_published() -> None:
    built = detector()
    generator = torch.Generator().manual_seed(5)
    maps = {
        name: torch.randn(2, channels, 24, 32, generator=generator) for name, channels in built.head_channels().items()
    }
    maps["wh"] = 12 + 4 * maps["wh"]
    maps["hps"] = 3 * maps["hps"]
    maps["hm_hp"] = 2 * maps["hm_hp"] - 3  # about one cell in nine scores above 0.1
    snapped = 0
    for image, detections in enumerate(built.decode([maps], INPUT, limit=30)):
        assert detections.keypoints is not None
        assert detections.keypoints.shape == (30, JOINTS, 3)
        np.testing.assert_allclose(
            detections.keypoints, matched_by_loops(maps, image, detections, limit=30), rtol=1e-4, atol=1e-3
        )
        snapped += int((detections.keypoints[..., 2] > 0).sum())
    assert 20 < snapped < 2 * 30 * JOINTS - 20  # both ways are taken


def test_a_joint_without_a_sure_peak_stays_where_it_was_regressed() -> None:
    built = detector()
    maps = {name: torch.zeros(1, channels, 24, 32) for name, channels in built.head_channels().items()}
    maps["hm"] -= 9
    maps["hm"][0, 0, 10, 8] = 2.0
    maps["wh"] += 10
    maps["hm_hp"] -= 9
    maps["hm_hp"][0, 1, 11, 9] = -2.3  # sigmoid 0.091
    maps["hm_hp"][0, 2, 11, 9] = -2.1  # sigmoid 0.109
    maps["hm_hp"][0, 3, 14, 8] = 5.0  # 4 cells away, more than 0.3 × 10
    best = built.decode([maps], INPUT, limit=1)[0]
    assert best.keypoints is not None
    assert best.keypoints[0, :, :2].tolist() == [[32, 40], [32, 40], [36, 44], [32, 40]]
    assert best.keypoints[0, :, 2].tolist() == pytest.approx([0, 0, 1 / (1 + math.exp(2.1)), 0])


def test_training_lowers_the_loss_on_both_networks() -> None:
    for name, settings, side in (
        ("centernet_dla34_pose", {"width": 4, "head_channels": 8}, 64),
        ("centernet_hourglass104_pose", {"width": 8}, 128),
    ):
        torch.manual_seed(0)
        built = detectors.build(name, **settings)
        images = torch.randn(2, 3, side, side)
        boxes = torch.tensor([[[4.0, 6, 40, 50]], [[10, 10, 50, 60]]])
        keypoints = torch.cat((20 + 10 * torch.rand(2, 1, 17, 2), torch.full((2, 1, 17, 1), 2.0)), dim=-1)
        targets = built.encode(boxes, torch.zeros(2, 1, dtype=torch.int64), (side, side), keypoints=keypoints)
        optimizer = torch.optim.Adam(built.parameters(), lr=3e-4)
        losses = []
        for _ in range(3):
            loss = built.losses(built(images), targets)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[2] < losses[0]
        assert losses[1] < losses[0]


def test_missing_or_misshapen_keypoints_are_refused() -> None:
    boxes, labels, keypoints = people(0)
    message = r"needs keypoints of shape \(2, 8, 4, 3\) beside boxes of shape \(2, 8, 4\), and got none"
    with pytest.raises(detectors.DetectorError, match=message):
        detector().encode(boxes, labels, INPUT)
    with pytest.raises(detectors.DetectorError, match=r"and got a shape of \(2, 8, 3, 3\). .* joints=4"):
        detector().encode(boxes, labels, INPUT, keypoints=keypoints[:, :, :3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"joints": 0}, "joints is 0; it has to be a whole number of at least 1"),
        ({"joint_weight": -1}, "joint_weight is -1; a weight has to be a number of at least 0"),
        ({"joint_wieght": 1}, "centernet_dla34_pose has no setting 'joint_wieght'; did you mean 'joint_weight'"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(detectors.DetectorError, match=message):
        detector(**settings)
