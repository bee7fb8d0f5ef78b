"""State dicts have the published keys, in the published order, and start from the published values."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import detectors
from detectors.backbones.resnet import ResNet

LAYOUTS = Path(__file__).parents[1] / "layouts"
"""Key, shape and dtype of every entry of the authors' (and torchvision's) state dicts, made by running their code."""

PUBLISHED = [
    ("centernet_resnet18", "centernet_res_18", 15_820_372),
    ("centernet_resdcn18", "centernet_resdcn_18", 14_437_349),
    ("centernet_resdcn101", "centernet_resdcn_101", 49_673_189),
    ("centernet_dla34", "centernet_dla_34", 20_188_892),
    ("centernet_dla34_original", "centernet_dlav0_34", 18_474_476),
    ("centernet_hourglass104", "centernet_hourglass", 191_284_008),
    ("centernet_dla34_pose", "centernet_multi_pose_dla_34", 20_625_346),
    ("centernet_dla34_3d", "centernet_ddd_dla_34", 20_615_323),
]


def layout(name: str) -> list[tuple[str, list[int], str]]:
    return [tuple(entry) for entry in json.loads((LAYOUTS / f"{name}.json").read_text())]


def described(state: dict[str, Tensor]) -> list[tuple[str, list[int], str]]:
    return [(key, list(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in state.items()]


@pytest.mark.parametrize(("name", "layout_name", "num_parameters"), PUBLISHED)
def test_keys_shapes_and_order_are_the_published_ones(name: str, layout_name: str, num_parameters: int) -> None:
    with torch.device("meta"):
        detector = detectors.build(name)
    assert described(detector.state_dict()) == layout(layout_name)
    assert sum(parameter.numel() for parameter in detector.parameters()) == num_parameters


@pytest.mark.parametrize("name", detectors.names())
def test_parameters_have_the_names_and_order_of_the_state_dict(name: str) -> None:
    """Checkpoints are stored by the names, optimizer states by the order of `named_parameters`."""
    with torch.device("meta"):
        detector = detectors.build(name)
    parameters = dict(detector.named_parameters())
    assert list(parameters) == [key for key in detector.state_dict() if key in parameters]


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_trunk_keys_are_torchvisions_without_the_classifier(depth: int) -> None:
    with torch.device("meta"):
        trunk = ResNet(depth)
    without_classifier = [e for e in layout(f"resnet{depth}_torchvision") if not e[0].startswith("fc.")]
    assert described(trunk.state_dict()) == without_classifier


def test_plain_resnet101_has_the_trunk_of_torchvision_and_the_heads_of_resnet18() -> None:
    with torch.device("meta"):
        keys = described(detectors.build("centernet_resnet101").state_dict())
    trunk = [entry for entry in layout("resnet101_torchvision") if not entry[0].startswith("fc.")]
    above = [e for e in layout("centernet_res_18") if not e[0].startswith(("conv1", "bn1", "layer"))]
    assert above[0] == ("deconv_layers.0.weight", [512, 256, 4, 4], "float32")
    above[0] = ("deconv_layers.0.weight", [2048, 256, 4, 4], "float32")
    assert keys == trunk + above


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        # torchvision's 44,549,160 - 2,049,000 (classifier); transposed convolutions 16 × 256 × (2048 + 256 + 256)
        # and their norms 3 × 512; heads 3 × (256 × 64 × 9 + 64) + 65 × 84.
        ("centernet_resnet101", 42_500_160 + 10_485_760 + 1_536 + 442_560 + 5_460),
        # Of boxes 2 stacks × (3 × (256 × 256 × 9 + 256) + 257 × 84) are heads; of pose 2 × (6 × ... + 257 × 58).
        ("centernet_hourglass104_pose", 191_284_008 - 2 * (1_770_240 + 21_588) + 2 * (3_540_480 + 14_906)),
        # 17 blocks more than ResNet-50, each 2 × 1024 × 256 + 256 × 256 × 9; frozen norms are no parameters.
        ("fcos_resnet101", 32_244_250 + 17 * (524_288 + 589_824)),
    ],
)
def test_parameters_of_networks_without_a_published_layout(name: str, num_parameters: int) -> None:
    with torch.device("meta"):
        detector = detectors.build(name)
    assert sum(parameter.numel() for parameter in detector.parameters()) == num_parameters


def test_the_hourglass_for_pose_has_the_trunk_for_boxes_and_six_heads() -> None:
    with torch.device("meta"):
        keys = described(detectors.build("centernet_hourglass104_pose").state_dict())
    heads = {"hm": 1, "wh": 2, "hps": 34, "reg": 2, "hm_hp": 17, "hp_offset": 2}
    trunk = [entry for entry in layout("centernet_hourglass") if entry[0].split(".")[0] not in heads]
    expected = [
        entry
        for head, channels in heads.items()
        for stack in (0, 1)
        for entry in (
            (f"{head}.{stack}.0.conv.weight", [256, 256, 3, 3], "float32"),
            (f"{head}.{stack}.0.conv.bias", [256], "float32"),
            (f"{head}.{stack}.1.weight", [channels, 256, 1, 1], "float32"),
            (f"{head}.{stack}.1.bias", [channels], "float32"),
        )
    ]
    assert keys == trunk + expected


def test_heatmaps_of_joints_start_low_too() -> None:
    torch.manual_seed(0)
    state = detectors.build("centernet_dla34_pose", width=4, head_channels=8).state_dict()
    assert_close(state["hm_hp.2.bias"], torch.full((17,), -2.19))
    assert not state["hps.2.bias"].any()
    assert not state["hp_offset.2.bias"].any()


def test_a_narrow_network_is_the_same_network_with_fewer_channels() -> None:
    settings = {"width": 16, "deconv_channels": [32, 24, 16], "head_channels": 8}
    state = detectors.build("centernet_resnet18", 3, **settings).state_dict()
    assert list(state) == [key for key, _, _ in layout("centernet_res_18")]
    assert state["layer4.1.conv2.weight"].shape == (128, 128, 3, 3)  # 16 × 2^3
    assert state["deconv_layers.0.weight"].shape == (128, 32, 4, 4)
    assert state["deconv_layers.6.weight"].shape == (24, 16, 4, 4)
    assert state["hm.2.weight"].shape == (3, 8, 1, 1)


@pytest.mark.parametrize("depth", [34, 50, 152])
def test_trunk_parameters_of_other_depths_are_torchvisions(depth: int) -> None:
    # torchvision's counts (21,797,672; 25,557,032; 60,192,808) less the classifier: 1000 × (512 or 2048) + 1000.
    with torch.device("meta"):
        trunk = ResNet(depth)
    expected = {34: 21_797_672 - 513_000, 50: 25_557_032 - 2_049_000, 152: 60_192_808 - 2_049_000}
    assert sum(parameter.numel() for parameter in trunk.parameters()) == expected[depth]


def test_an_unknown_depth_is_refused() -> None:
    with pytest.raises(detectors.DetectorError, match="no ResNet has 20 layers; known are 18, 34, 50, 101, 152"):
        ResNet(20)


def test_the_stride_of_a_bottleneck_is_in_its_3x3_convolution() -> None:
    with torch.device("meta"):
        first = ResNet(50).layer2[0]
    assert (first.conv1.stride, first.conv2.stride, first.conv3.stride) == ((1, 1), (2, 2), (1, 1))


def heads_start(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    detector = detectors.build(name, 3, width=8)
    return detector, detector.state_dict()


def test_plain_resnet_starts_as_published() -> None:
    _, state = heads_start("centernet_resnet18")
    assert_close(state["hm.2.bias"], torch.full((3,), -2.19))
    assert_close(state["wh.2.bias"], torch.zeros(2))
    assert_close(state["reg.2.bias"], torch.zeros(2))
    assert state["wh.2.weight"].std() == pytest.approx(0.001, rel=0.3)  # 128 values
    assert state["deconv_layers.3.weight"].std() == pytest.approx(0.001, rel=0.01)
    # PyTorch's default: uniform within 1/sqrt(256 × 9) = 0.0208, of standard deviation 0.0208/sqrt(3) = 0.0120.
    assert state["wh.0.weight"].std() == pytest.approx(0.0120, rel=0.02)
    assert state["wh.0.bias"].abs().max() > 0
    # Uniform within 1/sqrt(64) = 0.125: 0.0722.
    assert state["hm.2.weight"].std() == pytest.approx(0.0722, rel=0.15)


def test_a_plain_resnet_takes_a_hidden_convolution_of_as_many_channels_for_the_last() -> None:
    """The published code asks each convolution of a head for its number of outputs, not for its place."""
    torch.manual_seed(0)
    settings = {"width": 4, "deconv_channels": (8, 8, 8), "head_channels": 64}
    state = detectors.build("centernet_resnet18", 64, **settings).state_dict()
    assert_close(state["hm.0.bias"], torch.full((64,), -2.19))
    assert_close(state["hm.2.bias"], torch.full((64,), -2.19))
    assert state["wh.0.bias"].abs().max() > 0
    # Two hidden channels are as many as a size has.
    state = detectors.build("centernet_resnet18", 32, **{**settings, "head_channels": 2}).state_dict()
    assert state["hm.0.bias"].min() > -1
    assert state["wh.0.weight"].std() == pytest.approx(0.001, rel=0.2)  # 144 values
    assert not state["wh.0.bias"].any()
    # The deformable one goes by the place.
    state = detectors.build("centernet_resdcn18", 64, **settings).state_dict()
    assert state["hm.0.bias"].min() > -1


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("centernet_resnet18", "layer1.0.conv2.weight"),
        ("centernet_resdcn18", "layer1.0.conv2.weight"),
        ("centernet_dla34", "base.level2.tree1.conv2.weight"),
        ("centernet_dla34_pose", "base.level2.tree1.conv2.weight"),
        ("centernet_dla34_3d", "base.level2.tree1.conv2.weight"),
    ],
)
def test_trunks_start_as_pytorch_makes_them_unless_he_is_asked_for(name: str, key: str) -> None:
    """CenterNet's code initialises no trunk; 32 channels in and out, so fan in and out are 288."""
    torch.manual_seed(0)
    width = {"width": 32 if "resnet" in name or "resdcn" in name else 8}
    weight = detectors.build(name, 3, **width).state_dict()[key]
    assert weight.shape == (32, 32, 3, 3)
    # Uniform within 1/sqrt(288) = 0.0589, of standard deviation 0.0340.
    assert weight.abs().max() <= 288**-0.5
    assert weight.std() == pytest.approx(0.0340, rel=0.03)
    # Normal of standard deviation sqrt(2/288) = 0.0833.
    weight = detectors.build(name, 3, **width, trunk_start="he").state_dict()[key]
    assert weight.std() == pytest.approx(0.0833, rel=0.03)


def test_another_start_of_the_trunk_is_refused() -> None:
    with pytest.raises(detectors.DetectorError, match="trunk_start is 'xavier'; known are 'pytorch', 'he'"):
        detectors.build("centernet_resdcn18", 3, trunk_start="xavier")


def test_deformable_resnet_starts_as_published() -> None:
    _, state = heads_start("centernet_resdcn18")
    assert_close(state["hm.2.bias"], torch.full((3,), -2.19))
    assert state["hm.0.bias"].abs().max() > 0
    for name in ("wh", "reg"):
        assert state[f"{name}.0.weight"].std() == pytest.approx(0.001, rel=0.02)
        assert state[f"{name}.2.weight"].std() == pytest.approx(0.001, rel=0.3)
        assert not state[f"{name}.0.bias"].any()
        assert not state[f"{name}.2.bias"].any()
    assert not state["deconv_layers.0.conv_offset_mask.weight"].any()
    assert not state["deconv_layers.0.conv_offset_mask.bias"].any()
    assert not state["deconv_layers.0.bias"].any()
    bound = (64 * 9) ** -0.5  # width 8: 64 channels come out of the trunk
    weight = state["deconv_layers.0.weight"]
    assert weight.abs().max() <= bound
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_bilinear_start_goes_into_output_channel_0_only() -> None:
    _, state = heads_start("centernet_resdcn18")
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    for layer in (3, 9, 15):
        weight = state[f"deconv_layers.{layer}.weight"]  # in, out, 4, 4
        assert_close(weight[:, 0], torch.outer(row, row).expand(len(weight), 4, 4))
        assert weight[:, 1:].abs().max() < 0.1
        assert weight[:, 1:].std() > 0


def test_dla_starts_as_published() -> None:
    torch.manual_seed(0)
    state = detectors.build("centernet_dla34", 3, width=8, head_channels=32).state_dict()
    assert_close(state["hm.2.bias"], torch.full((3,), -2.19))
    assert state["hm.0.bias"].abs().max() > 0
    for name in ("wh", "reg"):
        # PyTorch's weights, not the small ones of the ResNets: within 1/sqrt(32 × 9), 0.0589 / sqrt(3) = 0.0340.
        assert state[f"{name}.0.weight"].std() == pytest.approx(0.0340, rel=0.03)
        assert not state[f"{name}.0.bias"].any()
        assert not state[f"{name}.2.bias"].any()
    # Enlarging by 4: the kernel rises 1/8, 3/8, 5/8, 7/8 and falls again.
    row = torch.tensor([1.0, 3.0, 5.0, 7.0, 7.0, 5.0, 3.0, 1.0]) / 8
    assert_close(state["ida_up.up_2.weight"], torch.outer(row, row).expand(32, 1, 8, 8))
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    assert_close(state["dla_up.ida_2.up_3.weight"], torch.outer(row, row).expand(32, 1, 4, 4))
    assert not state["dla_up.ida_0.proj_1.conv.conv_offset_mask.weight"].any()


def test_the_original_dla_starts_as_published() -> None:
    torch.manual_seed(0)
    state = detectors.build("centernet_dla34_original", 3, width=8, head_channels=32).state_dict()
    assert_close(state["hm.2.bias"], torch.full((3,), -2.19))
    assert state["hm.0.bias"].abs().max() > 0
    for name in ("wh", "reg"):
        assert state[f"{name}.0.weight"].std() == pytest.approx(0.001, rel=0.03)
        assert not state[f"{name}.0.bias"].any()
        assert not state[f"{name}.2.bias"].any()
    # He's: a 3x3 convolution to 32 channels has a standard deviation of sqrt(2 / 288) = 0.0833.
    for key in ("base.level2.tree1.conv2.weight", "dla_up.ida_2.node_3.0.weight"):
        assert state[key].shape[::2] == (32, 3)
        assert state[key].std() == pytest.approx(0.0833, rel=0.03)
    # A 1x1 convolution to 64 channels: sqrt(2 / 64) = 0.1768.
    assert state["dla_up.ida_1.proj_2.0.weight"].std() == pytest.approx(0.1768, rel=0.03)
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    assert_close(state["dla_up.ida_2.up_3.weight"], torch.outer(row, row).expand(32, 1, 4, 4))
    # PyTorch's trunk is uniform, of standard deviation 0.0340.
    state = detectors.build("centernet_dla34_original", 3, width=8, trunk_start="pytorch").state_dict()
    assert state["base.level2.tree1.conv2.weight"].std() == pytest.approx(0.0340, rel=0.03)


def test_hourglass_starts_as_published() -> None:
    torch.manual_seed(0)
    state = detectors.build("centernet_hourglass104", 3, width=16).state_dict()
    for stack in (0, 1):
        assert_close(state[f"hm.{stack}.1.bias"], torch.full((3,), -2.19))
        assert state[f"wh.{stack}.1.bias"].abs().max() > 0
        # PyTorch's start: within 1/sqrt(16 × 9) = 0.0833, of standard deviation 0.0481.
        assert state[f"wh.{stack}.0.conv.weight"].std() == pytest.approx(0.0481, rel=0.03)


def test_batch_norm_starts_at_1_and_0_and_keeps_pytorchs_momentum() -> None:
    detector, _ = heads_start("centernet_resdcn18")
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 20 + 6  # trunk of ResNet-18; two per upsampling step
    for norm in norms:
        assert (norm.momentum, norm.eps) == (0.1, 1e-5)
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()
