"""FoveaBox whole: published keys, a forward pass spelled out, losses by loops, training, and the contract."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, tensor
from torch.nn import functional
from torch.testing import assert_close

import detectors
from detectors import DetectorError
from detectors.foveabox.foveabox import FoveaBox
from detectors.foveabox.network import Outputs
from detectors.layers.feature_pyramid import grid_sizes
from detectors.layers.frozen_batch_norm import FixedStatisticsBatchNorm2d
from detectors.sizes import Multiples
from detectors.weights import published

LAYOUTS = Path(__file__).parents[1] / "layouts"
ALIGN = pytest.mark.parametrize("align", [False, True], ids=["plain", "align"])


def foveabox(align: bool, num_classes: int = 3, **settings: object) -> FoveaBox:
    torch.manual_seed(0)
    detector = detectors.build("foveabox_resnet50", num_classes, align=align, width=8, channels=64, **settings)
    assert isinstance(detector, FoveaBox)
    return detector


def objects() -> tuple[Tensor, Tensor]:
    boxes = tensor([[[10.0, 10.0, 60.0, 70.0], [5.0, 5.0, 30.0, 30.0]], [[0.0, 0.0, 90.0, 120.0], [0.0] * 4]])
    return boxes, tensor([[0, 2], [1, -1]])


def described(state: dict[str, Tensor]) -> list[tuple[str, list[int], str]]:
    return [(key, list(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in state.items()]


def test_keys_shapes_and_order_are_the_published_ones() -> None:
    with torch.device("meta"):
        detector = detectors.build("foveabox_resnet50")
    layout = json.loads((LAYOUTS / "fovea_r50_mmdet.json").read_text())
    assert described(detector.state_dict()) == [tuple(entry) for entry in layout]
    # torchvision's ResNet-50 without its classifier; laterals 256 × (512 + 1024 + 2048) and biases; 3x3 convolutions
    # 256 × 256 × 9 with biases, of the pyramid 4 and P6, of the towers 8; 84 outputs.
    trunk, convolution = 25_557_032 - 2_049_000, 256 * 256 * 9 + 256
    pyramid = 256 * 3584 + 3 * 256 + 4 * convolution + 2048 * 256 * 9 + 256
    assert sum(p.numel() for p in detector.parameters()) == trunk + pyramid + 8 * convolution + 84 * (256 * 9 + 1)


def test_keys_with_alignment_are_those_of_the_published_head() -> None:
    with torch.device("meta"):
        plain, aligned = detectors.build("foveabox_resnet50"), detectors.build("foveabox_resnet50", align=True)
    below = [entry for entry in described(plain.state_dict()) if not entry[0].startswith("bbox_head.")]
    tower = [
        entry
        for i in range(4)
        for entry in (
            (f"bbox_head.reg_convs.{i}.conv.weight", [256, 256, 3, 3], "float32"),
            (f"bbox_head.reg_convs.{i}.gn.weight", [256], "float32"),
            (f"bbox_head.reg_convs.{i}.gn.bias", [256], "float32"),
        )
    ]
    rest = [
        ("bbox_head.conv_reg.weight", [4, 256, 3, 3], "float32"),
        ("bbox_head.conv_reg.bias", [4], "float32"),
        ("bbox_head.cls_convs.0.conv.weight", [1024, 256, 3, 3], "float32"),
        ("bbox_head.cls_convs.0.gn.weight", [1024], "float32"),
        ("bbox_head.cls_convs.0.gn.bias", [1024], "float32"),
        ("bbox_head.cls_convs.1.conv.weight", [1024, 1024, 1, 1], "float32"),
        ("bbox_head.cls_convs.1.gn.weight", [1024], "float32"),
        ("bbox_head.cls_convs.1.gn.bias", [1024], "float32"),
        ("bbox_head.feature_adaption.conv_offset.weight", [72, 4, 1, 1], "float32"),  # 4 groups × 9 taps × 2
        ("bbox_head.feature_adaption.conv_adaption.weight", [256, 256, 3, 3], "float32"),
        ("bbox_head.conv_cls.weight", [80, 1024, 3, 3], "float32"),
        ("bbox_head.conv_cls.bias", [80], "float32"),
    ]
    assert described(aligned.state_dict()) == below + tower + rest


def test_resnet101_has_17_more_blocks_in_its_third_stage() -> None:
    with torch.device("meta"):
        small, large = detectors.build("foveabox_resnet50"), detectors.build("foveabox_resnet101")
    assert "backbone.layer3.22.conv3.weight" in large.state_dict()
    # Three convolutions a block, each with four tensors and a counter of its norm.
    assert len(large.state_dict()) == len(small.state_dict()) + 17 * 3 * 6


def test_statistics_stay_and_the_first_stage_does_not_learn() -> None:
    detector = foveabox(align=False).train()
    before = detector.state_dict()["backbone.layer4.0.bn1.running_mean"].clone()
    detector(torch.randn(2, 3, 64, 64))
    assert torch.equal(detector.state_dict()["backbone.layer4.0.bn1.running_mean"], before)
    frozen = {name for name, p in detector.named_parameters() if not p.requires_grad}
    assert {name.split(".")[1] for name in frozen} == {"conv1", "bn1", "layer1"}
    assert len(frozen) == 11 * 3  # 1 + 3 × 3 + 1 convolutions, with scale and shift of their norms
    # Scale and shift of the other norms learn, unlike FCOS's.
    norms = [module for module in detector.modules() if isinstance(module, FixedStatisticsBatchNorm2d)]
    assert sum(norm.weight.requires_grad for norm in norms) == 53 - 11
    assert not any(norm.training for norm in norms)


@ALIGN
def test_weights_start_as_published(align: bool) -> None:
    state = foveabox(align).state_dict()
    assert_close(state["bbox_head.conv_cls.bias"], torch.full((3,), -math.log(99)))
    for layer in ("conv_cls", "conv_reg", "reg_convs.2.conv", "cls_convs.1.conv"):
        assert state[f"bbox_head.{layer}.weight"].std().item() == pytest.approx(0.01, rel=0.1)
    assert not state["bbox_head.conv_reg.bias"].any()
    if align:
        assert state["bbox_head.feature_adaption.conv_offset.weight"].std().item() == pytest.approx(0.1, rel=0.15)
        assert state["bbox_head.feature_adaption.conv_adaption.weight"].std().item() == pytest.approx(0.01, rel=0.1)
    # Glorot: uniform within sqrt(6 / (fan in + fan out)); a third of its square is the variance. The lateral of 128
    # channels has 128 + 64: a standard deviation of sqrt(2 / 192) = 0.102.
    assert state["neck.lateral_convs.1.conv.weight"].std().item() == pytest.approx(0.102, rel=0.05)
    assert not state["neck.fpn_convs.3.conv.bias"].any()


class ByHand:
    """The network as functions of keys."""

    def __init__(self, detector: FoveaBox) -> None:
        self.state = detector.state_dict()

    def conv(self, x: Tensor, key: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{key}.weight"]
        return functional.conv2d(x, weight, self.state.get(f"{key}.bias"), stride, padding=weight.shape[-1] // 2)

    def norm(self, x: Tensor, key: str) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(self.state[f"{key}.{n}"] for n in names), eps=1e-5)

    def body(self, x: Tensor) -> list[Tensor]:
        x = functional.max_pool2d(self.norm(self.conv(x, "backbone.conv1", 2), "backbone.bn1").relu(), 3, 2, 1)
        stages = []
        for layer, blocks in enumerate((3, 4, 6, 3), start=1):
            for number in range(blocks):
                key, stride = f"backbone.layer{layer}.{number}", 2 if layer > 1 and number == 0 else 1
                shortcut = x
                if number == 0:
                    shortcut = self.norm(self.conv(x, f"{key}.downsample.0", stride), f"{key}.downsample.1")
                x = self.norm(self.conv(x, f"{key}.conv1"), f"{key}.bn1").relu()
                x = self.norm(self.conv(x, f"{key}.conv2", stride), f"{key}.bn2").relu()
                x = (self.norm(self.conv(x, f"{key}.conv3"), f"{key}.bn3") + shortcut).relu()
            stages.append(x)
        return stages[1:]

    def pyramid(self, stages: list[Tensor]) -> list[Tensor]:
        m5 = self.conv(stages[2], "neck.lateral_convs.2.conv")
        m4 = self.conv(stages[1], "neck.lateral_convs.1.conv") + m5.repeat_interleave(2, 2).repeat_interleave(2, 3)
        m3 = self.conv(stages[0], "neck.lateral_convs.0.conv") + m4.repeat_interleave(2, 2).repeat_interleave(2, 3)
        levels = [self.conv(m, f"neck.fpn_convs.{i}.conv") for i, m in enumerate((m3, m4, m5))]
        p6 = self.conv(stages[2], "neck.fpn_convs.3.conv", 2)
        return [*levels, p6, self.conv(p6, "neck.fpn_convs.4.conv", 2)]

    def layer(self, x: Tensor, key: str) -> Tensor:
        x = self.conv(x, f"{key}.conv")
        if f"{key}.gn.weight" in self.state:
            x = functional.group_norm(x, 32, self.state[f"{key}.gn.weight"], self.state[f"{key}.gn.bias"])
        return x.relu()

    def head(self, x: Tensor, align: bool) -> tuple[Tensor, Tensor]:
        boxes = classes = x
        for i in range(4):
            boxes = self.layer(boxes, f"bbox_head.reg_convs.{i}")
        log_sides = self.conv(boxes, "bbox_head.conv_reg")
        if align:
            adaption = "bbox_head.feature_adaption."
            offsets = self.conv(log_sides.exp(), f"{adaption}conv_offset")
            classes = shifted_convolution(x, offsets, self.state[f"{adaption}conv_adaption.weight"]).relu()
        for i in range(2 if align else 4):
            classes = self.layer(classes, f"bbox_head.cls_convs.{i}")
        return self.conv(classes, "bbox_head.conv_cls"), log_sides


def shifted_convolution(x: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """A 3x3 convolution with offsets for each of four groups of channels, by `grid_sample`."""
    batch, channels, height, width = x.shape
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    result = torch.zeros(batch, len(weight), height, width)
    for group in range(4):
        mine = slice(group * channels // 4, (group + 1) * channels // 4)
        for tap in range(9):
            dy, dx = offsets[:, 18 * group + 2 * tap], offsets[:, 18 * group + 2 * tap + 1]
            y, x_ = rows + tap // 3 - 1 + dy, columns + tap % 3 - 1 + dx
            # Without align_corners, -1 and 1 are the outer edges of the first and the last cell.
            grid = torch.stack(((2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
            sampled = functional.grid_sample(x[:, mine], grid, padding_mode="zeros", align_corners=False)
            result += torch.einsum("bchw,oc->bohw", sampled, weight[:, mine, tap // 3, tap % 3])
    return result


@ALIGN
def test_the_network_is_wired_as_published(align: bool) -> None:
    detector = foveabox(align)
    with torch.no_grad():
        for value in detector.state_dict().values():
            if value.dim() == 4:
                value.normal_(std=(1 / value[0].numel()) ** 0.5)
            elif value.is_floating_point():
                value.uniform_(0.5, 1.0)
        images = torch.randn(1, 3, 128, 64)
        hand = ByHand(detector)
        expected = [hand.head(level, align) for level in hand.pyramid(hand.body(images))]
        for mode in (True, False):
            outputs = detector.train(mode)(images)
            for given, wanted in zip(zip(*outputs, strict=True), expected, strict=True):
                for ours, theirs in zip(given, wanted, strict=True):
                    scale = float(theirs.abs().max())
                    assert scale > 0.1
                    assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * scale)


def random_outputs(size: tuple[int, int], batch: int = 2, classes: int = 3) -> Outputs:
    generator = torch.Generator().manual_seed(1)
    grids = grid_sizes(size)
    return Outputs(
        [torch.randn(batch, classes, *grid, generator=generator) for grid in grids],
        [torch.randn(batch, 4, *grid, generator=generator) for grid in grids],
    )


def test_losses_are_those_of_a_loop_over_cells() -> None:
    detector = foveabox(align=False)
    targets = detector.encode(*objects(), (128, 96))
    outputs = random_outputs((128, 96))
    focal = boxes = 0.0
    positives = 0
    for logits, log_sides, labels, wanted in zip(*outputs, targets.labels, targets.log_sides, strict=True):
        for image in range(2):
            for i in range(logits.shape[2]):
                for j in range(logits.shape[3]):
                    label = int(labels[image, i, j])
                    for number in range(3):
                        p = 1 / (1 + math.exp(-float(logits[image, number, i, j])))
                        if number == label:
                            focal -= 0.4 * (1 - p) ** 1.5 * math.log(p)
                        else:
                            focal -= 0.6 * p**1.5 * math.log(1 - p)
                    if label >= 0:
                        positives += 1
                        for side in range(4):
                            error = abs(float(log_sides[image, side, i, j]) - float(wanted[image, side, i, j]))
                            boxes += error**2 / (2 * 0.11) if error < 0.11 else error - 0.11 / 2
    losses = detector.losses(outputs, targets)
    assert positives > 10
    assert losses["classification"].item() == pytest.approx(focal / (positives + 2), rel=1e-4)  # 2 images
    assert losses["box"].item() == pytest.approx(boxes / positives, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(losses["classification"].item() + losses["box"].item(), rel=1e-6)
    weighted = foveabox(align=False, classification_weight=3, box_weight=0.5).losses(outputs, targets)["loss"]
    assert_close(weighted, 3 * losses["classification"] + 0.5 * losses["box"])


def test_one_positive_cell_by_hand() -> None:
    # One image, one class, P7 of one cell: the box 128 - 130 .. 128 + 130 around its middle, sides 64 in base lengths
    # of 256. Focal at logit 0: 0.4 × 0.5^1.5 × ln 2 for the cell, 0.6 × 0.5^1.5 × ln 2 for all others.
    detector = foveabox(align=False, num_classes=1)
    outputs = Outputs(*([torch.zeros(1, c, *grid) for grid in grid_sizes((128, 128))] for c in (1, 4)))
    nothing = detector.losses(outputs, detector.encode(torch.zeros(1, 1, 4), tensor([[-1]]), (128, 128)))
    cells = 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2 + 1
    unit = 0.5**1.5 * math.log(2)
    assert nothing["classification"].item() == pytest.approx(cells * 0.6 * unit, rel=1e-5)  # / (0 + 1 image)
    assert nothing["box"] == 0
    # 20 × 20 fits P3 alone; its fovea 59 - 4 .. 59 + 4 has the middle 60 of one cell in it.
    targets = detector.encode(tensor([[[49.0, 49.0, 69.0, 69.0]]]), tensor([[0]]), (128, 128))
    assert [int((labels >= 0).sum()) for labels in targets.labels] == [1, 0, 0, 0, 0]
    losses = detector.losses(outputs, targets)
    assert losses["classification"].item() == pytest.approx(((cells - 1) * 0.6 + 0.4) * unit / 2, rel=1e-5)
    # ln(11/16) = -0.375 and ln(9/16) = -0.575, twice each, less beta / 2.
    expected = 2 * (-math.log(11 / 16) - 0.055) + 2 * (-math.log(9 / 16) - 0.055)
    assert losses["box"].item() == pytest.approx(expected, rel=1e-5)


def test_losses_ask_no_other_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise AssertionError("an exchange between ranks")

    detector = foveabox(align=False).train()
    outputs, targets = random_outputs((128, 96)), detector.encode(*objects(), (128, 96))
    alone = detector.losses(outputs, targets)["loss"]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", refuse)
    assert torch.equal(detector.losses(outputs, targets)["loss"], alone)


@ALIGN
def test_without_objects_only_the_classes_learn(align: bool) -> None:
    detector = foveabox(align)
    outputs = detector(torch.randn(1, 3, 64, 64))
    targets = detector.encode(torch.zeros(1, 2, 4), torch.full((1, 2), -1), (64, 64))
    losses = detector.losses(outputs, targets)
    assert losses["box"] == 0
    assert losses["classification"] > 0
    losses["loss"].backward()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    # Aligned, the classes reach the boxes through the offsets.
    gradient = detector.bbox_head.conv_reg.bias.grad
    assert gradient is not None
    assert bool(gradient.any()) == align


@ALIGN
def test_steps_of_gradient_descent_lower_the_loss(align: bool) -> None:
    detector = foveabox(align)
    images, targets = torch.randn(2, 3, 128, 96), detector.encode(*objects(), (128, 96))
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.002)
    history = []
    for _ in range(3):
        loss = detector.losses(detector(images), targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[2] < history[1] < history[0]


@ALIGN
def test_outputs_and_losses_are_float32_under_autocast(align: bool) -> None:
    detector = foveabox(align)
    targets = detector.encode(*objects(), (128, 96))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = detector(torch.randn(2, 3, 128, 96))
        losses = detector.losses(outputs, targets)
    assert {value.dtype for maps in outputs for value in maps} == {torch.float32}
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert losses["loss"].isfinite()
    losses["loss"].backward()


@ALIGN
def test_a_batch_is_its_images_one_by_one_and_saving_keeps_it(align: bool, tmp_path: Path) -> None:
    detector = foveabox(align).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        together = detector(images)
        for row in range(2):
            for one, both in zip(detector(images[row : row + 1]), together, strict=True):
                for of_one, of_both in zip(one, both, strict=True):
                    assert_close(of_one[0], of_both[row], rtol=1e-4, atol=1e-4)
    torch.save(detector.state_dict(), tmp_path / "weights.pth")
    torch.manual_seed(5)
    again = detectors.build("foveabox_resnet50", 3, align=align, width=8, channels=64).eval()
    receipt = published.load(again, tmp_path / "weights.pth")
    assert not receipt.missing
    assert not receipt.library
    with torch.no_grad():
        assert torch.equal(again(images).logits[2], together.logits[2])


def test_the_contract() -> None:
    with torch.device("meta"):
        detector = detectors.build("foveabox_resnet50")
    assert detector.sizes == Multiples(32)
    assert detector.num_classes == 80
    assert detector.max_objects is None
    assert detector.preprocessing.channel_order == "rgb"
    assert detector.preprocessing.mean == (123.675, 116.28, 103.53)
    assert detector.preprocessing.std == (58.395, 57.12, 57.375)
    assert detector.preprocessing.scale == 1
    assert detector.published.imagenet_weights == "https://download.pytorch.org/models/resnet50-19c8e357.pth"
    assert detector.scales_shown("multiscale") == (1.0, 0.5, 1.5)
    with pytest.raises(DetectorError, match=r"foveabox_resnet50 was not published with soft-NMS\. Leave it off"):
        detector.check_test_mode("none", soft=True)


def test_settings_that_cannot_be_honoured_are_refused() -> None:
    for settings, message in (
        ({"box_ends": "middle"}, "box_ends is 'middle'; known are 'last_pixel', 'edge'"),
        ({"candidates_by": "box"}, "candidates_by is 'box'; known are 'location', 'class'"),
        ({"align": True, "channels": 48}, "channels is 48; with align, .* a multiple of 32 from 64 on"),
        ({"align": "yes"}, "align is 'yes'; it has to be True or False"),
        ({"fovea": 1.0}, "fovea is 1.0; it has to be between 0 and 1"),
        ({"box_weights": 2}, "foveabox_resnet50 has no setting 'box_weights'; did you mean 'box_weight'"),
    ):
        with pytest.raises(DetectorError, match=message):
            detectors.build("foveabox_resnet50", **settings)
    with torch.device("meta"):
        assert detectors.build("foveabox_resnet50", channels=20).bbox_head.conv_reg.in_channels == 20
