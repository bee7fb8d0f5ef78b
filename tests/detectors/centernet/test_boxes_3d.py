"""3D: targets against the published procedure object by object, losses and geometry against written-out numbers."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import detectors
from detectors.centernet.boxes_3d import (
    CenterNet3D,
    depth_of,
    mean_over_slots,
    orientation_bins,
    rotation_loss,
    surer_angle,
)

INPUT = (96, 128)
"""Height and width of the input; the maps are 24 x 32."""


def detector(**settings: object) -> CenterNet3D:
    with torch.device("meta"):
        built = detectors.build("centernet_dla34_3d", **{"max_objects": 12, **settings})
    assert isinstance(built, CenterNet3D)
    return built


def objects(seed: int, batch: int = 2, count: int = 15) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    random = np.random.default_rng(seed)
    # Few distinct centres, so that objects and ignored ones meet in a cell.
    center = random.integers(1, 5, (batch, count, 2)) * 24.0
    half = np.exp(random.uniform(np.log(4), np.log(70), (batch, count, 2))) / 2
    boxes = torch.tensor(np.concatenate((center - half, center + half), axis=-1)).float()
    labels = torch.tensor(random.integers(-5, 3, (batch, count)))
    extra = {
        "depth": torch.tensor(random.uniform(2, 60, (batch, count))).float(),
        "dimensions": torch.tensor(random.uniform(0.5, 5, (batch, count, 3))).float(),
        "alpha": torch.tensor(random.uniform(-math.pi, math.pi, (batch, count))).float(),
    }
    return boxes, labels, extra


def one_by_one(
    boxes: np.ndarray, labels: np.ndarray, extra: dict[str, np.ndarray], slots: int
) -> dict[str, np.ndarray]:
    height, width = INPUT[0] // 4, INPUT[1] // 4
    found = {
        "heatmap": np.zeros((3, height, width), np.float32),
        "size": np.zeros((slots, 2), np.float32),
        "object_mask": np.zeros(slots, bool),
        "center_index": np.zeros(slots, np.int64),
        "depth": np.zeros((slots, 1), np.float32),
        "dimensions": np.zeros((slots, 3), np.float32),
        "in_bin": np.zeros((slots, 2), bool),
        "rotation": np.zeros((slots, 2), np.float32),
    }
    for slot in range(min(slots, len(boxes))):
        label = int(labels[slot])
        if label == -1:
            continue
        x1, y1, x2, y2 = boxes[slot] / np.float32(4)
        x1, x2 = np.clip([x1, x2], 0, width - 1).astype(np.float32)
        y1, y2 = np.clip([y1, y2], 0, height - 1).astype(np.float32)
        w, h = x2 - x1, y2 - y1
        if w <= 0 or h <= 0:
            continue
        total, area = float(w) + float(h), float(w) * float(h)  # not rounded up
        radius = int((-1.4 * total + math.sqrt((1.4 * total) ** 2 + 3.36 * area)) / 2)
        column, row = int((x1 + x2) / 2), int((y1 + y2) / 2)
        classes = [label] if label >= 0 else [0, 1, 2] if label == -5 else [-2 - label]
        sigma = (2 * radius + 1) / 6
        for c in classes:
            for y in range(max(0, row - radius), min(height, row + radius + 1)):
                for x in range(max(0, column - radius), min(width, column + radius + 1)):
                    value = np.float32(math.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * sigma * sigma)))
                    found["heatmap"][c, y, x] = max(found["heatmap"][c, y, x], value)
            if label < 0:
                found["heatmap"][c, row, column] = 0.9999
        if label < 0:
            continue
        found["size"][slot], found["object_mask"][slot] = (w, h), True
        found["center_index"][slot] = row * width + column
        found["depth"][slot], found["dimensions"][slot] = extra["depth"][slot], extra["dimensions"][slot]
        alpha = extra["alpha"][slot]
        if alpha < np.pi / 6 or alpha > 5 * np.pi / 6:
            found["in_bin"][slot, 0], found["rotation"][slot, 0] = True, alpha + np.pi / 2
        if alpha > -np.pi / 6 or alpha < -5 * np.pi / 6:
            found["in_bin"][slot, 1], found["rotation"][slot, 1] = True, alpha - np.pi / 2
    return found


@pytest.mark.parametrize("seed", range(6))
def test_targets_are_those_of_the_published_procedure(seed: int) -> None:
    boxes, labels, extra = objects(seed)
    targets = detector().encode(boxes, labels, INPUT, **extra)
    for image in range(2):
        fields = {name: value[image].numpy() for name, value in extra.items()}
        expected = one_by_one(boxes[image].numpy(), labels[image].numpy(), fields, slots=12)
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(targets, name)[image], value, rtol=2e-7, atol=2e-7, err_msg=name)
    assert torch.equal(targets.metric_mask, targets.object_mask)


def encode(labels: list[int], **more: Tensor) -> object:
    count = len(labels)
    boxes = torch.tensor([[16.0, 16, 64, 64]]).expand(count, 4)[None]
    extra = {"depth": torch.ones(1, count), "dimensions": torch.ones(1, count, 3), "alpha": torch.zeros(1, count)}
    return detector().encode(boxes, torch.tensor([labels]), INPUT, **extra, **more)


@pytest.mark.parametrize(
    ("labels", "centers"),
    [
        ([1], [0, 1, 0]),
        ([-3], [0, 0.9999, 0]),  # -2 - 1: ignored for class 1
        ([-5], [0.9999, 0.9999, 0.9999]),  # -2 - 3: for every class
        ([1, -3], [0, 0.9999, 0]),  # the ignored one comes later
        ([-3, 1], [0, 1, 0]),  # the object does
        ([1, -5, 2, -2], [0.9999, 0.9999, 1]),
        ([-1], [0, 0, 0]),
    ],
)
def test_the_last_of_several_on_a_cell_says_what_it_is(labels: list[int], centers: list[float]) -> None:
    targets = encode(labels)
    assert_close(targets.heatmap[0, :, 10, 10], torch.tensor(centers, dtype=torch.float32), rtol=0, atol=0)
    assert targets.object_mask[0].tolist() == [label >= 0 for label in labels] + [False] * (12 - len(labels))


def test_a_rescaled_image_teaches_no_metres() -> None:
    targets = encode([1, 2], rescaled=torch.tensor([True]))
    assert targets.object_mask.sum() == 2
    assert not targets.metric_mask.any()
    assert targets.in_bin[0, :2].all()
    maps = {name: torch.ones(1, count, 24, 32) for name, count in detector().head_channels().items()}
    parts = detector().losses([maps], targets)
    assert (parts["depth"].item(), parts["dimension"].item()) == (0, 0)
    # 12 x 12 cells where the head says 1, of 12 slots two are taken: 4 coordinates miss by 11, of 24.
    assert parts["size"].item() == pytest.approx(4 * 11 / 24)


def test_angles_lie_in_one_bin_or_two() -> None:
    degrees = torch.tensor([-170.0, -90.0, -10.0, 10.0, 90.0, 170.0])
    in_bin, rotation = orientation_bins(torch.deg2rad(degrees))
    assert in_bin.tolist() == [[True, True], [True, False], [True, True], [True, True], [False, True], [True, True]]
    expected = [[-80, -260], [0, 0], [80, -100], [100, -80], [0, 0], [260, 80]]
    assert_close(torch.rad2deg(rotation), torch.tensor(expected, dtype=torch.float32))


def test_the_mean_is_over_all_slots() -> None:
    values, targets = torch.tensor([[[1.0, 2.0], [9.0, 9.0]]]), torch.tensor([[[0.0, 4.0], [0.0, 0.0]]])
    mask = torch.tensor([[True, False]])
    assert mean_over_slots(values, targets, mask).item() == 0.75  # (1 + 2) / 4 entries


def test_rotation_loss_of_one_object_and_an_empty_slot() -> None:
    # The object is in bin 0 only, 30 degrees from its middle; logits 1 and 3, sine 0.5 and cosine 0.
    values = torch.tensor([[[1.0, 3.0, 0.5, 0.0, 2.0, 0.0, 9.0, 9.0], [7.0] * 8]])
    in_bin = torch.tensor([[[True, False], [False, False]]])
    rotation = torch.tensor([[[math.pi / 6, 0.0], [0.0, 0.0]]])
    loss = rotation_loss(values, in_bin, rotation, torch.tensor([[True, False]]))
    log2 = math.log(2)
    first, second = math.log(1 + math.exp(-2)), math.log(1 + math.exp(-2))  # -log softmax of a lead of 2
    # sin 30 = 0.5 is met; cos 30 = 0.866 is missed by 0.866: 0.866^2 / 2 = 0.375.
    assert loss.item() == pytest.approx((first + log2) / 2 + (second + log2) / 2 + 0.375, rel=1e-5)


def test_without_objects_only_the_bins_of_empty_slots_cost() -> None:
    values = torch.randn(1, 5, 8, requires_grad=True)
    nothing = torch.zeros(1, 5, 2, dtype=torch.bool)
    loss = rotation_loss(values, nothing, torch.zeros(1, 5, 2), torch.zeros(1, 5, dtype=torch.bool))
    assert loss.item() == pytest.approx(2 * math.log(2))
    loss.backward()
    assert values.grad is not None
    assert not values.grad.any()


def test_depth_of_the_raw_output() -> None:
    # 1 / 0.5 - 1 = 1; 1 / sigmoid(-3) - 1 = e^3
    assert_close(depth_of(torch.tensor([0.0, -3.0])), torch.tensor([1.0, math.exp(3)]), rtol=1e-4, atol=1e-5)


def test_losses_are_weighted_as_published() -> None:
    boxes, labels, extra = objects(0)
    built = detector()
    targets = built.encode(boxes, labels, INPUT, **extra)
    generator = torch.Generator().manual_seed(0)
    maps = {name: torch.randn(2, count, 24, 32, generator=generator) for name, count in built.head_channels().items()}
    parts = built.losses([maps], targets)
    assert set(parts) == {"heatmap", "size", "offset", "depth", "dimension", "rotation", "loss"}
    rest = sum(parts[name] for name in ("heatmap", "offset", "depth", "dimension", "rotation"))
    assert_close(parts["loss"], rest + 0.1 * parts["size"])
    weighted = detector(depth_weight=0.0, dimension_weight=2.0, rotation_weight=0.5).losses([maps], targets)["loss"]
    assert_close(weighted, parts["loss"] - parts["depth"] + parts["dimension"] - 0.5 * parts["rotation"])
    total = 0.0
    for image, slot in targets.object_mask.nonzero().tolist():
        y, x = divmod(int(targets.center_index[image, slot]), 32)
        raw = float(maps["dep"][image, 0, y, x])
        total += abs(1 / (1 / (1 + math.exp(-raw)) + 1e-6) - 1 - float(targets.depth[image, slot]))
    assert parts["depth"].item() == pytest.approx(total / (2 * 12), rel=1e-4)  # 2 images of 12 slots


def test_the_surer_bin_says_the_angle() -> None:
    rotation = torch.tensor([[0.0, 2.0, 1.0, 0.0, 5.0, 1.0, 9.0, 9.0], [0.0, 1.0, 9.0, 9.0, 0.0, 2.0, 0.0, 1.0]])
    # Bin 0, atan2(1, 0) - pi/2 = 0; bin 1, atan2(0, 1) + pi/2. The logits of "out" do not matter.
    assert_close(surer_angle(rotation), torch.tensor([0.0, math.pi / 2]))


def test_decoding_reads_everything_at_the_peak() -> None:
    built = detector()
    maps = {name: torch.zeros(1, count, 24, 32) for name, count in built.head_channels().items()}
    maps["hm"] -= 9
    maps["hm"][0, 1, 10, 20] = 2.0
    maps["reg"][0, :, 10, 20] = torch.tensor([0.5, 0.25])
    maps["wh"][0, :, 10, 20] = torch.tensor([6.0, 4.0])
    maps["dep"][0, 0, 10, 20] = -3.0
    maps["dim"][0, :, 10, 20] = torch.tensor([1.5, 1.6, 3.9])
    maps["rot"][0, :, 10, 20] = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    best = built.decode([maps], INPUT, limit=1)[0]
    assert best.box3d is not None
    expected = [82, 41, math.exp(3), 1.5, 1.6, 3.9, math.pi]
    assert_close(best.box3d, torch.tensor([expected], dtype=torch.float32), rtol=1e-4, atol=1e-4)
    assert best.boxes.tolist() == [[70, 33, 94, 49]]
    assert best.labels.tolist() == [1]


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    built = detectors.build("centernet_dla34_3d", width=4, head_channels=8)
    images = torch.randn(2, 3, 64, 96)
    boxes = torch.tensor([[[4.0, 6, 40, 50]], [[10, 10, 50, 60]]])
    extra = {
        "depth": torch.tensor([[10.0], [20.0]]),
        "dimensions": torch.tensor([[[1.5, 1.6, 3.9]], [[1.7, 0.6, 0.8]]]),
        "alpha": torch.tensor([[0.1], [-2.0]]),
    }
    targets = built.encode(boxes, torch.tensor([[1], [0]]), (64, 96), **extra)
    optimizer = torch.optim.Adam(built.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = built.losses(built(images), targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


def test_preprocessing_is_imagenets_on_bgr() -> None:
    preprocessing = detector().preprocessing
    assert (preprocessing.channel_order, preprocessing.mean) == ("bgr", (0.485, 0.456, 0.406))
    assert preprocessing.std == (0.229, 0.224, 0.225)


def test_what_cannot_be_honoured_is_refused() -> None:
    boxes, labels, extra = objects(0)
    message = r"needs depth of shape \(2, 15\) beside boxes of shape \(2, 15, 4\), and got none"
    with pytest.raises(detectors.DetectorError, match=message):
        detector().encode(boxes, labels, INPUT)
    with pytest.raises(detectors.DetectorError, match=r"needs dimensions of shape .* got a shape of \(2, 15\)"):
        detector().encode(boxes, labels, INPUT, **{**extra, "dimensions": extra["depth"]})
    with pytest.raises(detectors.DetectorError, match="regression_loss has to be 'l1' in 3D"):
        detector(regression_loss="smooth_l1")
    with pytest.raises(detectors.DetectorError, match="depth_weight is -1; a weight has to be a number"):
        detector(depth_weight=-1)
