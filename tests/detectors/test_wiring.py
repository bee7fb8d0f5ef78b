"""What is connected to what: each network against its publication's forward pass, spelled out over its weights.

The references know nothing of our modules: they take weights by published key and call convolutions by hand, in
evaluation mode. Deformable convolutions have offsets of 0 here, so each is half a convolution plus its bias.
"""

import functools

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

import detectors
from tests.detectors.cornernet.owners import owner


class ByHand:
    """Layers as functions of a key in the state dict."""

    def __init__(self, detector: detectors.Detector) -> None:
        self.state = detector.state_dict()

    def conv(self, x: Tensor, key: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{key}.weight"]
        return functional.conv2d(x, weight, self.state.get(f"{key}.bias"), stride, padding=weight.shape[-1] // 2)

    def half_conv(self, x: Tensor, key: str) -> Tensor:
        return functional.conv2d(x, self.state[f"{key}.weight"] / 2, self.state[f"{key}.bias"], padding=1)

    def bn(self, x: Tensor, key: str) -> Tensor:
        mean, var = self.state[f"{key}.running_mean"], self.state[f"{key}.running_var"]
        weight, bias = self.state[f"{key}.weight"], self.state[f"{key}.bias"]
        return functional.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    def cbr(self, x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        return self.bn(self.conv(x, conv, stride), bn).relu()

    def enlarge(self, x: Tensor, key: str, factor: int = 2, groups: int = 1) -> Tensor:
        return functional.conv_transpose2d(x, self.state[f"{key}.weight"], None, factor, factor // 2, groups=groups)

    def block(self, x: Tensor, key: str, stride: int, shortcut: Tensor) -> Tensor:
        hidden = self.cbr(x, f"{key}.conv1", f"{key}.bn1", stride)
        return (self.bn(self.conv(hidden, f"{key}.conv2"), f"{key}.bn2") + shortcut).relu()

    def head(self, x: Tensor, key: str) -> Tensor:
        return self.conv(self.conv(x, f"{key}.0").relu(), f"{key}.2")


def randomised(name: str, **settings: object) -> detectors.Detector:
    """All weights but the offsets' at random, as large as keeps the signal, and batch statistics too."""
    torch.manual_seed(0)
    return with_random_weights(detectors.build(name, 3, **settings).eval())


def with_random_weights(detector: detectors.Detector) -> detectors.Detector:
    with torch.no_grad():
        for key, value in detector.state_dict().items():
            if "conv_offset_mask" in key or not value.is_floating_point():
                continue
            if value.dim() == 4:
                value.normal_(std=(2 / value[0].numel()) ** 0.5)
            else:
                value.uniform_(0.5, 1.5)
    return detector


def compare(detector: detectors.Detector, expected: list[dict[str, Tensor]], images: Tensor) -> None:
    with torch.no_grad():
        outputs = detector(images)
    assert len(outputs) == len(expected)
    for given, wanted in zip(outputs, expected, strict=True):
        for head, values in wanted.items():
            assert values.std() > 0.01
            assert_close(given[head], values, rtol=1e-3, atol=1e-3 * float(values.abs().max()))


def resnet18(hand: ByHand, images: Tensor) -> Tensor:
    x = functional.max_pool2d(hand.cbr(images, "conv1", "bn1", 2), 3, 2, 1)
    for layer in (1, 2, 3, 4):
        for number in (0, 1):
            key, stride = f"layer{layer}.{number}", 2 if layer > 1 and number == 0 else 1
            shortcut = x
            if stride == 2:
                shortcut = hand.bn(hand.conv(x, f"{key}.downsample.0", 2), f"{key}.downsample.1")
            x = hand.block(x, key, stride, shortcut)
    return x


def test_plain_resnet() -> None:
    detector = randomised("centernet_resnet18", width=8, deconv_channels=(8, 6, 4), head_channels=8)
    hand, images = ByHand(detector), torch.randn(1, 3, 64, 96)
    x = resnet18(hand, images)
    for layer in (0, 3, 6):
        x = hand.bn(hand.enlarge(x, f"deconv_layers.{layer}"), f"deconv_layers.{layer + 1}").relu()
    compare(detector, [{head: hand.head(x, head) for head in ("hm", "wh", "reg")}], images)


def test_deformable_resnet() -> None:
    detector = randomised("centernet_resdcn18", width=8, deconv_channels=(8, 6, 4), head_channels=8)
    hand, images = ByHand(detector), torch.randn(1, 3, 64, 96)
    x = resnet18(hand, images)
    for layer in (0, 6, 12):
        x = hand.bn(hand.half_conv(x, f"deconv_layers.{layer}"), f"deconv_layers.{layer + 1}").relu()
        x = hand.bn(hand.enlarge(x, f"deconv_layers.{layer + 3}"), f"deconv_layers.{layer + 4}").relu()
    compare(detector, [{head: hand.head(x, head) for head in ("hm", "wh", "reg")}], images)


def test_bottlenecks() -> None:
    detector = randomised("centernet_resnet101", width=4, deconv_channels=(8, 6, 4), head_channels=8)
    hand, images = ByHand(detector), torch.randn(1, 3, 64, 64)
    x = functional.max_pool2d(hand.cbr(images, "conv1", "bn1", 2), 3, 2, 1)
    for layer, blocks in enumerate((3, 4, 23, 3), start=1):
        for number in range(blocks):
            key, stride = f"layer{layer}.{number}", 2 if layer > 1 and number == 0 else 1
            shortcut = x
            if number == 0:
                shortcut = hand.bn(hand.conv(x, f"{key}.downsample.0", stride), f"{key}.downsample.1")
            hidden = hand.cbr(x, f"{key}.conv1", f"{key}.bn1")
            hidden = hand.cbr(hidden, f"{key}.conv2", f"{key}.bn2", stride)
            x = (hand.bn(hand.conv(hidden, f"{key}.conv3"), f"{key}.bn3") + shortcut).relu()
    for layer in (0, 3, 6):
        x = hand.bn(hand.enlarge(x, f"deconv_layers.{layer}"), f"deconv_layers.{layer + 1}").relu()
    compare(detector, [{head: hand.head(x, head) for head in ("hm", "wh", "reg")}], images)


def dla34(hand: ByHand, images: Tensor) -> list[Tensor]:
    """The levels at strides 4, 8, 16 and 32."""

    def tree(x: Tensor, key: str, stride: int, children: list[Tensor]) -> Tensor:
        """Two blocks and their root, which also takes `children`."""
        bottom = functional.max_pool2d(x, 2) if stride == 2 else x
        shortcut = bottom
        if f"{key}.project.0.weight" in hand.state:
            shortcut = hand.bn(hand.conv(bottom, f"{key}.project.0"), f"{key}.project.1")
        first = hand.block(x, f"{key}.tree1", stride, shortcut)
        second = hand.block(first, f"{key}.tree2", 1, first)
        together = torch.cat([second, first, *children], dim=1)
        return hand.cbr(together, f"{key}.root.conv", f"{key}.root.bn")

    x = hand.cbr(images, "base.base_layer.0", "base.base_layer.1")
    x = hand.cbr(x, "base.level0.0", "base.level0.1")
    x = hand.cbr(x, "base.level1.0", "base.level1.1", 2)
    levels = [tree(x, "base.level2", 2, [])]
    for level in (3, 4):
        x = levels[-1]
        first = tree(x, f"base.level{level}.tree1", 2, [])
        levels.append(tree(first, f"base.level{level}.tree2", 1, [functional.max_pool2d(x, 2), first]))
    levels.append(tree(levels[-1], "base.level5", 2, [functional.max_pool2d(levels[-1], 2)]))
    return levels


def test_dla() -> None:
    detector = randomised("centernet_dla34", width=4, head_channels=8)
    hand, images = ByHand(detector), torch.randn(1, 3, 64, 96)

    levels = dla34(hand, images)

    def deformable(x: Tensor, key: str) -> Tensor:
        return hand.bn(hand.half_conv(x, f"{key}.conv"), f"{key}.actf.0").relu()

    def merge(coarse: Tensor, fine: Tensor, key: str, step: int, factor: int) -> Tensor:
        """`node(up(proj(x[i])) + x[i-1])`."""
        up = hand.enlarge(deformable(coarse, f"{key}.proj_{step}"), f"{key}.up_{step}", factor, groups=fine.shape[1])
        return deformable(up + fine, f"{key}.node_{step}")

    stride4, stride8, stride16, stride32 = levels
    at16 = merge(stride32, stride16, "dla_up.ida_0", 1, 2)
    from16 = merge(stride16, stride8, "dla_up.ida_1", 1, 2)
    at8 = merge(at16, from16, "dla_up.ida_1", 2, 2)
    from8 = merge(stride8, stride4, "dla_up.ida_2", 1, 2)
    from16 = merge(from16, from8, "dla_up.ida_2", 2, 2)
    at4 = merge(at8, from16, "dla_up.ida_2", 3, 2)
    x = merge(at8, at4, "ida_up", 1, 2)
    x = merge(at16, x, "ida_up", 2, 4)
    compare(detector, [{head: hand.head(x, head) for head in ("hm", "wh", "reg")}], images)


def test_original_dla() -> None:
    detector = randomised("centernet_dla34_original", width=4, head_channels=8)
    hand, images = ByHand(detector), torch.randn(1, 3, 64, 96)

    def merge(fine: Tensor, coarse: Tensor, key: str, step: int) -> Tensor:
        """`node(concatenate(fine, up(proj(coarse))))`."""
        projected = hand.cbr(coarse, f"{key}.proj_{step}.0", f"{key}.proj_{step}.1")
        up = hand.enlarge(projected, f"{key}.up_{step}", groups=fine.shape[1])
        return hand.cbr(torch.cat([fine, up], dim=1), f"{key}.node_{step}.0", f"{key}.node_{step}.1")

    stride4, stride8, stride16, stride32 = dla34(hand, images)
    at16 = merge(stride16, stride32, "dla_up.ida_0", 1)
    from16 = merge(stride8, stride16, "dla_up.ida_1", 1)
    at8 = merge(from16, at16, "dla_up.ida_1", 2)
    from8 = merge(stride4, stride8, "dla_up.ida_2", 1)
    from16 = merge(from8, from16, "dla_up.ida_2", 2)
    x = merge(from16, at8, "dla_up.ida_2", 3)
    compare(detector, [{head: hand.head(x, head) for head in ("hm", "wh", "reg")}], images)


def residual_by(hand: ByHand, x: Tensor, key: str, stride: int = 1) -> Tensor:
    shortcut = x
    if f"{key}.skip.0.weight" in hand.state:
        shortcut = hand.bn(hand.conv(x, f"{key}.skip.0", stride), f"{key}.skip.1")
    return hand.block(x, key, stride, shortcut)


def test_hourglass() -> None:
    detector = randomised("centernet_hourglass104", width=8)
    hand, images = ByHand(detector), torch.randn(1, 3, 128, 128)
    residual = functools.partial(residual_by, hand)

    def hourglass(x: Tensor, key: str, depth: int) -> Tensor:
        up = residual(residual(x, f"{key}.up1.0"), f"{key}.up1.1")
        low = residual(residual(x, f"{key}.low1.0", 2), f"{key}.low1.1")
        if depth > 1:
            low = hourglass(low, f"{key}.low2", depth - 1)
        else:
            for number in range(4):
                low = residual(low, f"{key}.low2.{number}")
        low = residual(residual(low, f"{key}.low3.0"), f"{key}.low3.1")
        return up + low.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    x = residual(hand.cbr(images, "pre.0.conv", "pre.0.bn", 2), "pre.1", 2)
    expected = []
    for stack in (0, 1):
        features = hand.cbr(hourglass(x, f"kps.{stack}", 5), f"cnvs.{stack}.conv", f"cnvs.{stack}.bn")
        heads = ("hm", "wh", "reg")
        hidden = {head: hand.conv(features, f"{head}.{stack}.0.conv").relu() for head in heads}
        expected.append({head: hand.conv(hidden[head], f"{head}.{stack}.1") for head in heads})
        if stack == 0:
            kept = hand.bn(hand.conv(x, "inters_.0.0"), "inters_.0.1")
            new = hand.bn(hand.conv(features, "cnvs_.0.0"), "cnvs_.0.1")
            x = residual((kept + new).relu(), "inters.0")
    compare(detector, expected, images)


def fire_by(hand: ByHand, x: Tensor, key: str, stride: int = 1) -> Tensor:
    """1x1 and norm, then 1x1 beside a 3x3 that keeps channels apart, and norm."""
    squeezed = hand.bn(hand.conv(x, f"{key}.conv1"), f"{key}.bn1")
    depthwise = hand.state[f"{key}.conv_3x3.weight"]
    apart = functional.conv2d(squeezed, depthwise, None, stride, padding=1, groups=len(depthwise))
    both = hand.bn(torch.cat([hand.conv(squeezed, f"{key}.conv_1x1", stride), apart], dim=1), f"{key}.bn2")
    return (both + x).relu() if both.shape == x.shape else both.relu()


def pooled_by_cummax(x: Tensor, side: str) -> Tensor:
    if side in ("bottom", "right"):
        return x.cummax(-2 if side == "bottom" else -1).values
    dim = -2 if side == "top" else -1
    return x.flip(dim).cummax(dim).values.flip(dim)


CORNER_NETWORKS = {
    # Residuals on each path of the levels; residuals or fire modules.
    "cornernet": ((2, 2, 2, 2, 2, 4), residual_by),
    "squeeze": ((2, 2, 2, 2, 4), fire_by),
    "saccade": ((1, 1, 1, 1), residual_by),
    "triplets_104": ((2, 2, 2, 2, 2, 4), residual_by),
    "triplets_52": ((2, 2, 2, 2, 2, 4), residual_by),
}


@pytest.mark.parametrize("name", CORNER_NETWORKS)
def test_corner_networks(name: str) -> None:
    torch.manual_seed(0)
    detector = with_random_weights(owner(name, 3, width=8).eval())
    # All stacks have heads in training; the norms remain in evaluation mode.
    detector.training = True
    hand, images = ByHand(detector), torch.randn(1, 3, 127, 255)
    blocks, block = CORNER_NETWORKS[name]
    lite = name in ("squeeze", "saccade")
    trunk, hourglasses, pooling, offsets = ("hg.", "hgs", "modules", "offs") if lite else ("", "kps", "cnvs", "regrs")

    def chain(x: Tensor, key: str, count: int, stride: int = 1) -> Tensor:
        for number in range(count):
            x = block(hand, x, f"{key}.{number}", stride if number == 0 else 1)
        return x

    def hourglass(x: Tensor, key: str, blocks: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
        up, low, merged = chain(x, f"{key}.up1", blocks[0]), chain(x, f"{key}.low1", blocks[0], 2), []
        if len(blocks) > 2:
            low, merged = hourglass(low, f"{key}.low2", blocks[1:])
        else:
            low = chain(low, f"{key}.low2", blocks[1])
        low = chain(low, f"{key}.low3", blocks[0])
        if f"{key}.up2.weight" in hand.state:
            weight, bias = hand.state[f"{key}.up2.weight"], hand.state[f"{key}.up2.bias"]
            merge = up + functional.conv_transpose2d(low, weight, bias, stride=2, padding=1)
        else:
            merge = up + low.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return merge, [*merged, merge]

    def cbr(x: Tensor, key: str) -> Tensor:
        return hand.cbr(x, f"{key}.conv", f"{key}.bn")

    def pool(x: Tensor, key: str, vertical: str, horizontal: str) -> Tensor:
        if f"{key}.P1_look_conv.weight" in hand.state:
            looked = pooled_by_cummax(cbr(x, f"{key}.look_conv1"), horizontal)
            first = hand.conv(cbr(x, f"{key}.p1_conv1") + looked, f"{key}.P1_look_conv")
            looked = pooled_by_cummax(cbr(x, f"{key}.look_conv2"), vertical)
            second = hand.conv(cbr(x, f"{key}.p2_conv1") + looked, f"{key}.P2_look_conv")
        else:
            first, second = cbr(x, f"{key}.p1_conv1"), cbr(x, f"{key}.p2_conv1")
        if vertical == "both":
            both = pooled_by_cummax(pooled_by_cummax(first, "top"), "bottom")
            both = both + pooled_by_cummax(pooled_by_cummax(second, "left"), "right")
        else:
            both = pooled_by_cummax(first, vertical) + pooled_by_cummax(second, horizontal)
        both = hand.bn(hand.conv(both, f"{key}.p_conv1"), f"{key}.p_bn1")
        return cbr((both + hand.bn(hand.conv(x, f"{key}.conv1"), f"{key}.bn1")).relu(), f"{key}.conv2")

    def head(x: Tensor, key: str) -> Tensor:
        return hand.conv(hand.conv(x, f"{key}.0.conv").relu(), f"{key}.1")

    x = residual_by(hand, hand.cbr(images, f"{trunk}pre.0.conv", f"{trunk}pre.0.bn", 2), f"{trunk}pre.1", 2)
    if name == "squeeze":
        x = residual_by(hand, x, f"{trunk}pre.2", 2)
    points = {"top_left": ("tl", "top", "left"), "bottom_right": ("br", "bottom", "right")}
    if "triplets" in name:
        points["center"] = ("ct", "both", "both")
    expected: list[dict[str, Tensor]] = []
    for stack in range({"saccade": 3, "triplets_52": 1}.get(name, 2)):
        result, merged = hourglass(x, f"{trunk}{hourglasses}.{stack}", blocks)
        features = cbr(result, f"{trunk}cnvs.{stack}")
        maps = {}
        for point, (short, vertical, horizontal) in points.items():
            pooled = pool(features, f"{short}_{pooling}.{stack}", vertical, horizontal)
            maps[f"{point}_heatmap"] = head(pooled, f"{short}_heats.{stack}")
            maps[f"{point}_offset"] = head(pooled, f"{short}_{offsets}.{stack}")
            if point != "center":
                maps[f"{point}_tag"] = head(pooled, f"{short}_tags.{stack}")
        if name == "saccade":
            for number, (stride, level) in enumerate(zip((16, 8, 4), merged, strict=True)):
                maps[f"attention_{stride}"] = head(level, f"att_modules.{stack}.{number}")
        expected.append(maps)
        if f"{trunk}inters.{stack}.conv1.weight" in hand.state:
            kept = hand.bn(hand.conv(x, f"{trunk}inters_.{stack}.0"), f"{trunk}inters_.{stack}.1")
            new = hand.bn(hand.conv(features, f"{trunk}cnvs_.{stack}.0"), f"{trunk}cnvs_.{stack}.1")
            x = residual_by(hand, (kept + new).relu(), f"{trunk}inters.{stack}")
    compare(detector, expected, images)
