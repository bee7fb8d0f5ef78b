"""FCOS whole: published keys, a forward pass spelled out, losses by loops, training, and the contract."""

import functools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn, tensor
from torch.nn import functional
from torch.testing import assert_close

import detectors
from detectors import DetectorError
from detectors.backbones.resnet import CaffeResNet, ResNet
from detectors.fcos.fcos import FCOS, FCOSTargets
from detectors.fcos.network import TrainingOutputs
from detectors.layers.frozen_batch_norm import FrozenBatchNorm2d
from detectors.sizes import Multiples

VARIANTS = ("original", "improved", "torchvision")
LAYOUTS = Path(__file__).parents[1] / "layouts"


def fcos(variant: str, num_classes: int = 3, **settings: object) -> FCOS:
    torch.manual_seed(0)
    detector = detectors.build("fcos_resnet50", num_classes, variant=variant, width=8, channels=64, **settings)
    assert isinstance(detector, FCOS)
    return detector


def objects() -> tuple[Tensor, Tensor]:
    boxes = tensor([[[10.0, 10.0, 60.0, 70.0], [5.0, 5.0, 30.0, 30.0]], [[0.0, 0.0, 90.0, 120.0], [0.0] * 4]])
    return boxes, tensor([[0, 2], [1, -1]])


@pytest.mark.parametrize(
    ("variant", "layout", "num_parameters"),
    [
        ("original", "fcos_r50_tianzhi", 32_244_250),
        ("improved", "fcos_r50_tianzhi", 32_244_250),
        ("torchvision", "fcos_r50_torchvision", 32_269_600),
    ],
)
def test_keys_shapes_and_order_are_the_published_ones(variant: str, layout: str, num_parameters: int) -> None:
    with torch.device("meta"):
        detector = detectors.build("fcos_resnet50", variant=variant)
    state = detector.state_dict()
    ours = [(key, list(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in state.items()]
    published = json.loads((LAYOUTS / f"{layout}.json").read_text())
    assert ours == [(key.removeprefix("module."), shape, dtype) for key, shape, dtype in published]
    assert sum(parameter.numel() for parameter in detector.parameters()) == num_parameters


def test_resnet101_has_17_more_blocks_in_its_third_stage() -> None:
    with torch.device("meta"):
        state = detectors.build("fcos_resnet101").state_dict()
    assert "backbone.body.layer3.22.conv3.weight" in state
    assert len(state) == 324 + 17 * 3 * 5  # three convolutions, each with four buffers of its norm


def test_the_stem_and_the_first_stage_do_not_learn() -> None:
    for variant in VARIANTS:
        detector = fcos(variant)
        frozen = {name.split(".")[2] for name, p in detector.named_parameters() if not p.requires_grad}
        assert frozen == ({"conv1", "layer1"} if variant == "torchvision" else {"stem", "layer1"})
        # 1 + 3 × 3 + 1 convolutions; norms are buffers.
        assert sum(not p.requires_grad for p in detector.parameters()) == 11


def test_strides_sit_where_each_trunk_was_trained() -> None:
    with torch.device("meta"):
        for trunk, strides in ((ResNet, (1, 2)), (CaffeResNet, (2, 1))):
            first = trunk(50).layer3[0]
            assert (first.conv1.stride[0], first.conv2.stride[0], first.downsample[0].stride[0]) == (*strides, 2)


def test_weights_start_as_published() -> None:
    for variant, prefix in (("original", "rpn.head."), ("torchvision", "head.classification_head.")):
        state = fcos(variant).state_dict()
        assert_close(state[f"{prefix}cls_logits.bias"], torch.full((3,), -math.log(99)))
        assert state[f"{prefix}cls_logits.weight"].std().item() == pytest.approx(0.01, rel=0.1)
    state = fcos("original").state_dict()
    assert state["rpn.head.scales.3.scale"].tolist() == [1.0]
    assert not state["rpn.head.bbox_tower.3.bias"].any()
    # Uniform within sqrt(3 / fan in): fan in 64 × 9 gives 0.0722 and a standard deviation of 0.0417.
    assert state["backbone.fpn.fpn_layer3.weight"].std().item() == pytest.approx(0.0417, rel=0.03)
    assert not state["backbone.fpn.top_blocks.p6.bias"].any()
    # The trunk's 3x3 convolution of 64 channels: sqrt(1 / 576) = 0.0417.
    assert state["backbone.body.layer4.0.conv2.weight"].std().item() == pytest.approx(0.0417, rel=0.03)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_frozen_norm_is_batch_norm_in_evaluation_in_any_mode(eps: float) -> None:
    frozen, learned = FrozenBatchNorm2d(4, eps), nn.BatchNorm2d(4, eps=eps).eval()
    for name in ("weight", "bias", "running_mean", "running_var"):
        values = torch.rand(4) * 1e-3 + 1e-4
        getattr(frozen, name).copy_(values)
        getattr(learned, name).data.copy_(values)
    features = torch.randn(2, 4, 3, 3)
    assert_close(frozen.train()(features), learned(features))
    assert not list(frozen.parameters())
    assert frozen(features.bfloat16()).dtype == torch.bfloat16


class ByHand:
    """The network as functions of keys, for one variant."""

    def __init__(self, detector: FCOS, variant: str) -> None:
        self.state, self.tv = detector.state_dict(), variant == "torchvision"
        self.variant = variant

    def conv(self, x: Tensor, key: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{key}.weight"]
        return functional.conv2d(x, weight, self.state.get(f"{key}.bias"), stride, padding=weight.shape[-1] // 2)

    def norm(self, x: Tensor, key: str) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(self.state[f"{key}.{n}"] for n in names), eps=1e-5 if self.tv else 0.0)

    def body(self, x: Tensor) -> list[Tensor]:
        stem = "backbone.body." if self.tv else "backbone.body.stem."
        x = functional.max_pool2d(self.norm(self.conv(x, f"{stem}conv1", 2), f"{stem}bn1").relu(), 3, 2, 1)
        stages = []
        for layer, blocks in enumerate((3, 4, 6, 3), start=1):
            for number in range(blocks):
                key, stride = f"backbone.body.layer{layer}.{number}", 2 if layer > 1 and number == 0 else 1
                shortcut = x
                if number == 0:
                    shortcut = self.norm(self.conv(x, f"{key}.downsample.0", stride), f"{key}.downsample.1")
                first, second = (1, stride) if self.tv else (stride, 1)
                x = self.norm(self.conv(x, f"{key}.conv1", first), f"{key}.bn1").relu()
                x = self.norm(self.conv(x, f"{key}.conv2", second), f"{key}.bn2").relu()
                x = (self.norm(self.conv(x, f"{key}.conv3"), f"{key}.bn3") + shortcut).relu()
            stages.append(x)
        return stages[1:]

    def pyramid(self, stages: list[Tensor]) -> list[Tensor]:
        fpn = "backbone.fpn."
        inner = [f"{fpn}inner_blocks.{i}.0" if self.tv else f"{fpn}fpn_inner{i + 2}" for i in range(3)]
        outer = [f"{fpn}layer_blocks.{i}.0" if self.tv else f"{fpn}fpn_layer{i + 2}" for i in range(3)]
        top = f"{fpn}extra_blocks" if self.tv else f"{fpn}top_blocks"
        m5 = self.conv(stages[2], inner[2])
        m4 = self.conv(stages[1], inner[1]) + m5.repeat_interleave(2, 2).repeat_interleave(2, 3)
        m3 = self.conv(stages[0], inner[0]) + m4.repeat_interleave(2, 2).repeat_interleave(2, 3)
        levels = [self.conv(m, key) for m, key in zip((m3, m4, m5), outer, strict=True)]
        p6 = self.conv(levels[2], f"{top}.p6", 2)
        return [*levels, p6, self.conv(p6.relu(), f"{top}.p7", 2)]

    def tower(self, x: Tensor, key: str) -> Tensor:
        for number in (0, 3, 6, 9):
            x = self.conv(x, f"{key}.{number}")
            weight, bias = self.state[f"{key}.{number + 1}.weight"], self.state[f"{key}.{number + 1}.bias"]
            x = functional.group_norm(x, 32, weight, bias).relu()
        return x

    def head(self, x: Tensor, level: int) -> dict[str, Tensor]:
        if self.tv:
            of_classes, of_boxes = "head.classification_head.", "head.regression_head."
            classes, boxes = self.tower(x, f"{of_classes}conv"), self.tower(x, f"{of_boxes}conv")
            return {
                "logits": self.conv(classes, f"{of_classes}cls_logits"),
                "distances": self.conv(boxes, f"{of_boxes}bbox_reg").relu(),
                "centerness": self.conv(boxes, f"{of_boxes}bbox_ctrness"),
            }
        classes, boxes = self.tower(x, "rpn.head.cls_tower"), self.tower(x, "rpn.head.bbox_tower")
        raw = self.conv(boxes, "rpn.head.bbox_pred") * self.state[f"rpn.head.scales.{level}.scale"]
        return {
            "logits": self.conv(classes, "rpn.head.cls_logits"),
            "distances": raw.exp() if self.variant == "original" else raw.relu(),
            "centerness": self.conv(classes if self.variant == "original" else boxes, "rpn.head.centerness"),
        }


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_network_is_wired_as_published(variant: str) -> None:
    detector = fcos(variant)
    with torch.no_grad():
        for value in detector.state_dict().values():
            if value.dim() == 4:
                value.normal_(std=(1 / value[0].numel()) ** 0.5)
            else:
                value.uniform_(0.5, 1.0)
        images = torch.randn(1, 3, 128, 64)
        hand = ByHand(detector, variant)
        expected = [hand.head(level, i) for i, level in enumerate(hand.pyramid(hand.body(images)))]
        for mode in (True, False):
            # As the authors' head: three lists of five levels, in this order.
            logits, distances, centerness = detector.train(mode)(images)
            if variant == "improved" and not mode:
                distances = [level / stride for level, stride in zip(distances, (8, 16, 32, 64, 128), strict=True)]
            given = {"logits": logits, "distances": distances, "centerness": centerness}
            for name, levels in given.items():
                assert len(levels) == 5
                for ours, theirs in zip(levels, expected, strict=True):
                    scale = float(theirs[name].abs().max())
                    assert scale > 0.1
                    assert_close(ours, theirs[name], rtol=1e-3, atol=1e-4 * scale)


def random_outputs(detector: FCOS, targets: FCOSTargets) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    outputs = []
    for height, width in ((16, 12), (8, 6), (4, 3), (2, 2), (1, 1)):
        shape = (len(targets.labels), height, width)
        outputs.append(
            {
                "logits": torch.randn(shape[0], 3, *shape[1:], generator=generator),
                "distances": torch.rand(shape[0], 4, *shape[1:], generator=generator) * 4,
                "centerness": torch.randn(shape[0], 1, *shape[1:], generator=generator),
            }
        )
    return outputs


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_are_those_of_a_loop_over_points(variant: str) -> None:
    detector = fcos(variant)
    targets = detector.encode(*objects(), (128, 96))
    outputs = random_outputs(detector, targets)
    focal = weighted = unweighted = entropy = weights = 0.0
    positives = 0
    for image in range(2):
        point = 0
        for maps in outputs:
            for i in range(maps["logits"].shape[2]):
                for j in range(maps["logits"].shape[3]):
                    label = int(targets.labels[image, point])
                    for number in range(3):
                        p = 1 / (1 + math.exp(-float(maps["logits"][image, number, i, j])))
                        focal -= 0.25 * (1 - p) ** 2 * math.log(p) if number == label else 0.75 * p**2 * math.log(1 - p)
                    if label >= 0:
                        positives += 1
                        left, top, right, bottom = maps["distances"][image, :, i, j].double().tolist()
                        x1, y1, x2, y2 = targets.distances[image, point].double().tolist()
                        w, h = min(left, x1) + min(right, x2), min(top, y1) + min(bottom, y2)
                        inter = w * h
                        union = (left + right) * (top + bottom) + (x1 + x2) * (y1 + y2) - inter
                        hull = (max(left, x1) + max(right, x2)) * (max(top, y1) + max(bottom, y2))
                        one = 0 if variant == "torchvision" else 1
                        loss = -math.log((inter + 1) / (union + 1))
                        if variant != "original":
                            loss = 1 - (inter + one) / (union + one) + (hull - union) / hull
                        weight = float(targets.centerness[image, point])
                        weighted, unweighted, weights = weighted + weight * loss, unweighted + loss, weights + weight
                        q = 1 / (1 + math.exp(-float(maps["centerness"][image, 0, i, j])))
                        entropy -= weight * math.log(q) + (1 - weight) * math.log(1 - q)
                    point += 1
    together = TrainingOutputs(*([level[name] for level in outputs] for name in outputs[0]))
    losses = detector.losses(together, targets)
    assert positives > 10
    assert losses["classification"].item() == pytest.approx(focal / positives, rel=1e-4)
    box = unweighted / positives if variant == "torchvision" else weighted / weights
    assert losses["box"].item() == pytest.approx(box, rel=1e-4)
    assert losses["centerness"].item() == pytest.approx(entropy / positives, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(sum(losses[k].item() for k in losses if k != "loss"), rel=1e-5)
    weighted_losses = fcos(variant, box_weight=2, centerness_weight=0.5, classification_weight=3).losses(
        together, targets
    )
    expected = 3 * losses["classification"] + 2 * losses["box"] + 0.5 * losses["centerness"]
    assert_close(weighted_losses["loss"], expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_objects_only_the_classes_learn(variant: str) -> None:
    detector = fcos(variant)
    outputs = detector(torch.randn(1, 3, 64, 64))
    targets = detector.encode(torch.zeros(1, 2, 4), torch.full((1, 2), -1), (64, 64))
    losses = detector.losses(outputs, targets)
    assert losses["box"] == losses["centerness"] == 0
    assert losses["classification"] > 0
    losses["loss"].backward()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_of_gradient_descent_lower_the_loss(variant: str) -> None:
    detector = fcos(variant)
    images, targets = torch.randn(2, 3, 128, 96), detector.encode(*objects(), (128, 96))
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.01)
    history = []
    for _ in range(3):
        loss = detector.losses(detector(images), targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[2] < history[1] < history[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_losses_are_float32_under_autocast(variant: str) -> None:
    detector = fcos(variant)
    targets = detector.encode(*objects(), (128, 96))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = detector(torch.randn(2, 3, 128, 96))
        losses = detector.losses(outputs, targets)
    assert {value.dtype for maps in outputs for value in maps} == {torch.float32}
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert losses["loss"].isfinite()
    losses["loss"].backward()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_is_its_images_one_by_one_and_saving_keeps_it(variant: str, tmp_path: Path) -> None:
    detector = fcos(variant).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        together = detector(images)
        for row in range(2):
            for one, both in zip(detector(images[row : row + 1]), together, strict=True):
                for of_one, of_both in zip(one, both, strict=True):
                    assert_close(of_one[0], of_both[row], rtol=1e-4, atol=1e-4)
    torch.save(detector.state_dict(), tmp_path / "weights.pth")
    torch.manual_seed(5)
    again = detectors.build("fcos_resnet50", 3, variant=variant, width=8, channels=64).eval()
    detectors.weights.published.load(again, tmp_path / "weights.pth")
    with torch.no_grad():
        assert torch.equal(again(images).logits[2], together.logits[2])


def test_preprocessing_is_each_familys_own() -> None:
    with torch.device("meta"):
        build = functools.partial(detectors.build, "fcos_resnet50")
        authors, torchvision = build().preprocessing, build(variant="torchvision").preprocessing
        assert build().sizes == build(variant="torchvision").sizes == Multiples(32)
        assert build(variant="torchvision").num_classes == 91
    assert (authors.channel_order, authors.scale, authors.std) == ("bgr", 1.0, (1.0, 1.0, 1.0))
    assert authors.mean == (102.9801, 115.9465, 122.7717)
    assert (torchvision.channel_order, torchvision.scale) == ("rgb", 1 / 255)
    assert torchvision.mean == (0.485, 0.456, 0.406)


def test_settings_that_cannot_be_honoured_are_refused() -> None:
    for settings, message in (
        ({"variant": "best"}, "variant is 'best'; known are 'original', 'improved', 'adelaidet', 'mmdetection', "),
        (
            {"channels": 32},
            "channels is 32; group normalisation has 32 groups of at least 2, .* multiple of 32 from 64 on",
        ),
        ({"nms_treshold": 0.5}, "fcos_resnet50 has no setting 'nms_treshold'; did you mean 'nms_threshold'"),
        ({"score_threshold": 1.5}, "score_threshold is 1.5; it has to be between 0 and 1"),
        ({"candidates": 0}, "candidates is 0; it has to be a whole number of at least 1"),
    ):
        with pytest.raises(DetectorError, match=message):
            detectors.build("fcos_resnet50", **settings)
