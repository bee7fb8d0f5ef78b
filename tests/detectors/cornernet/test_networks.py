"""Networks of the CornerNet family: published keys, maps of the right shapes, one image like many."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import detectors
from tests.detectors.cornernet.owners import NETWORKS, owner

LAYOUTS = Path(__file__).parents[1] / "layouts"

PUBLISHED = [
    ("cornernet", "cornernet", 201_035_212),
    ("squeeze", "cornernet_squeeze", 31_771_852),
    ("saccade", "cornernet_saccade", 116_969_339),
    ("triplets_104", "centernet_triplets_104", 210_062_960),
    ("triplets_52", "centernet_triplets_52", 104_844_152),
]
SIDE = {"saccade": 63}
"""Side of the smallest useful input, where it is not 127."""


def side(name: str) -> int:
    return SIDE.get(name, 127)


def described(state: dict[str, Tensor]) -> list[tuple[str, list[int], str]]:
    return [(f"module.{key}", list(value.shape), str(value.dtype)[6:]) for key, value in state.items()]


@pytest.mark.parametrize(("name", "layout", "num_parameters"), PUBLISHED)
def test_keys_shapes_and_order_are_the_published_ones(name: str, layout: str, num_parameters: int) -> None:
    with torch.device("meta"):
        detector = owner(name)
    published = [tuple(entry) for entry in json.loads((LAYOUTS / f"{layout}.json").read_text())]
    assert described(detector.state_dict()) == published
    assert sum(parameter.numel() for parameter in detector.parameters()) == num_parameters
    # Checkpoints of optimizers go by the order of parameters.
    parameters = dict(detector.named_parameters())
    assert list(parameters) == [key for key in detector.state_dict() if key in parameters]


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_have_the_network_s_stride_and_all_stacks_are_trained(name: str) -> None:
    torch.manual_seed(0)
    detector = owner(name, 3, width=8).train()
    outputs = detector(torch.randn(2, 3, side(name), 2 * side(name) + 1))
    assert len(outputs) == detector.network.stacks == {"triplets_52": 1, "saccade": 3}.get(name, 2)
    cells = (side(name) + 1) // detector.network.stride
    channels = {"heatmap": 3, "tag": 1, "offset": 2}
    for maps in outputs:
        parts = {output: values for output, values in maps.items() if not output.startswith("attention")}
        expected = {f"{point}_{part}": channels[part] for part in channels for point in ("top_left", "bottom_right")}
        if "triplets" in name:
            expected |= {"center_heatmap": 3, "center_offset": 2}
        assert {output: tuple(values.shape) for output, values in parts.items()} == {
            output: (2, count, cells, 2 * cells) for output, count in expected.items()
        }
        attention = {output: tuple(maps[output].shape[-2:]) for output in maps.keys() - parts.keys()}
        if name == "saccade":
            sides = {stride: (side(name) + 1) // stride for stride in (16, 8, 4)}
            assert attention == {f"attention_{stride}": (cells, 2 * cells) for stride, cells in sides.items()}
        else:
            assert not attention
        assert all(values.dtype == torch.float32 for values in maps.values())
    # The first stack learns from its own heads and from the later stacks.
    torch.stack([values.sum() for maps in outputs for values in maps.values()]).sum().backward()
    assert all(parameter.grad is not None for parameter in detector.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_returns_the_last_stack(name: str) -> None:
    torch.manual_seed(0)
    detector = owner(name, 3, width=8)
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    images = torch.randn(1, 3, side(name), side(name))
    with torch.no_grad():
        trained, (evaluated,) = detector(images), detector.eval()(images)
    assert trained[-1].keys() == evaluated.keys()
    for output, values in evaluated.items():
        assert torch.equal(trained[-1][output], values)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_is_computed_like_its_images_one_by_one(name: str) -> None:
    torch.manual_seed(0)
    detector, images = owner(name, 3, width=8).eval(), torch.randn(3, 3, side(name), side(name))
    with torch.no_grad():
        (together,) = detector(images)
        alone = [detector(image[None])[0] for image in images]
    for output, values in together.items():
        assert_close(values, torch.cat([maps[output] for maps in alone]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_close_to_float32(name: str) -> None:
    torch.manual_seed(0)
    detector, images = owner(name, 3, width=16).eval(), torch.randn(1, 3, side(name), side(name))
    with torch.no_grad():
        (exact,) = detector(images)
        with torch.autocast("cpu", torch.bfloat16):
            (result,) = detector(images)
    for output, values in result.items():
        assert values.dtype == torch.float32
        assert_close(values, exact[output], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", NETWORKS)
def test_activation_checkpointing_changes_no_bit_of_outputs_gradients_and_statistics(name: str) -> None:
    results = []
    for active in (False, True):
        torch.manual_seed(0)
        detector = owner(name, 3, width=8, activation_checkpointing=active).train()
        outputs = detector(torch.randn(2, 3, side(name), side(name)))
        values = [values for maps in outputs for values in maps.values()]
        torch.stack([one.square().mean() for one in values]).sum().backward()
        gradients = [parameter.grad for parameter in detector.parameters()]
        results.append([value.detach() for value in (*values, *gradients, *detector.buffers())])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NETWORKS)
def test_heatmaps_and_attention_start_low_and_all_else_as_in_pytorch(name: str) -> None:
    torch.manual_seed(0)
    state = owner(name, 3, width=16).state_dict()
    low = {key for key, value in state.items() if key.endswith("bias") and value.eq(-2.19).all()}
    heads = {key for key in state if ("heats" in key or "att_" in key) and key.endswith(".1.bias")}
    assert low == heads
    hidden = next(value for key, value in state.items() if "tl_heats.0.0.conv.weight" in key)
    # Uniform within 1 / sqrt(fan in), of standard deviation 1 / sqrt(3 × fan in).
    assert hidden.std() == pytest.approx((3 * hidden[0].numel()) ** -0.5, rel=0.05)


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("cornernet", {127, 255, 383, 511, 767}),
        ("squeeze", {127, 255, 383, 511, 767}),
        ("triplets_52", {127, 255, 383, 511, 767}),
        ("saccade", {31, 63, 127, 159, 255}),
    ],
)
def test_sides_are_one_less_than_multiples(name: str, fits: set[int]) -> None:
    with torch.device("meta"):
        sizes = owner(name).sizes
    assert all(sizes.fits(one, one) for one in fits)
    assert not any(sizes.fits(one + 1, one) or sizes.fits(one, one - 1) for one in fits)


def test_squeeze_refuses_a_width_that_fire_modules_cannot_halve() -> None:
    with pytest.raises(detectors.DetectorError, match=r"width is 10; fire modules halve 1\.5 times as many\. Choose"):
        owner("squeeze", 3, width=10)
    with pytest.raises(detectors.DetectorError, match="width is 9; an hourglass has levels of half"):
        owner("cornernet", 3, width=9)
