"""Stages of a detector: declared in the order in which they compute, frozen without gradients or new statistics."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import detectors
from detectors import Detector, DetectorError
from detectors.sizes import OneLessThanMultiples

NARROW: dict[str, Any] = {"width": 8, "deconv_channels": (8, 8, 8), "head_channels": 8}


def narrow(name: str) -> Detector:
    torch.manual_seed(0)
    if name.startswith(("fcos", "fovea")):
        return detectors.build(name, 2, width=8, channels=64)
    if "resnet" in name or "resdcn" in name:
        return detectors.build(name, 2, **NARROW)
    return detectors.build(name, width=4)


def smallest_input(detector: Detector) -> Tensor:
    height, width = detector.sizes.nearest(127, 127) if isinstance(detector.sizes, OneLessThanMultiples) else (128, 128)
    return torch.rand(2, 3, height, width)


@pytest.mark.parametrize("name", detectors.names())
def test_stages_name_the_modules_before_the_heads_in_the_order_in_which_they_compute(name: str) -> None:
    detector = narrow(name)
    assert detector.stages
    began: list[str] = []
    paths = [path for paths in detector.stages.values() for path in paths]
    assert len(paths) == len(set(paths))
    for stage, paths_of_stage in detector.stages.items():
        for path in paths_of_stage:
            for module in detector.get_submodule(path).modules():
                if not list(module.children()) and list(module.parameters()):
                    module.register_forward_pre_hook(
                        lambda *_, stage=stage: began.append(stage) if stage not in began else None
                    )
    with torch.no_grad():
        detector.eval()(smallest_input(detector)[:1])
    assert began == list(detector.stages)
    # Everything else is a head.
    heads = {parameter for parameter, _ in detector.named_parameters() if not detector.stage_of(parameter)}
    assert heads
    assert all(f"{layer}.weight" in heads for layer in detector.published.class_layers)


def loss_of(outputs: Any) -> Tensor:
    maps = torch.utils._pytree.tree_leaves(outputs)
    return torch.stack([one.square().mean() for one in maps]).sum()


ONE_OF_EACH_NETWORK = (
    *("centernet_resnet18", "centernet_dla34", "centernet_hourglass104", "cornernet_squeeze"),
    *("fcos_resnet50", "foveabox_resnet50"),
)


@pytest.mark.parametrize("name", ONE_OF_EACH_NETWORK)
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(name: str) -> None:
    detector = narrow(name)
    first, *_, last = detector.stages
    frozen = [first, last] if len(detector.stages) > 2 else [first]
    untrained = {name for name, one in detector.named_parameters() if not one.requires_grad}
    detector.freeze(frozen)
    assert detector.frozen == tuple(frozen)
    detector.train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    loss_of(detector(smallest_input(detector))).backward()
    for parameter, value in detector.named_parameters():
        stage = detector.stage_of(parameter)
        assert value.requires_grad == (stage not in frozen and parameter not in untrained), parameter
        assert value.requires_grad or value.grad is None
    statistics = [key for key in before if key.endswith(("running_mean", "num_batches_tracked"))]
    moved = {key for key in statistics if not torch.equal(before[key], detector.state_dict()[key])}
    assert not any(detector.stage_of(key) in frozen for key in moved)
    # FCOS and FoveaBox have no statistics that move at all.
    if not name.startswith(("fcos", "fovea")):
        assert moved


def test_backward_does_no_work_below_and_in_frozen_stages() -> None:
    flops = {}
    images = torch.rand(2, 3, 64, 64)
    for frozen in ((), ("stem", "layer1", "layer2"), ("stem",), ("layer2",)):
        detector = narrow("centernet_resnet18")
        detector.freeze(frozen)
        outputs = detector.train()(images)
        with FlopCounterMode(display=False) as counter:
            loss_of(outputs).backward()
        flops[frozen] = counter.get_total_flops()
    forward = {}
    for stage in ("stem", "layer1", "layer2"):
        modules = [module for path in detector.stages[stage] for module in detector.get_submodule(path).modules()]
        forward[stage] = sum(_forward_flops(detector, images, module) for module in modules)
    # Backward computes two gradients of a convolution, each as costly as its forward: of weights and of features. The
    # images need none.
    whole = flops[()]
    above_stem = _forward_flops(detector, images, detector.get_submodule("layer1.0.conv1"))
    assert whole - flops["stem",] == forward["stem"] + above_stem
    below = forward["stem"] + 2 * (forward["layer1"] + forward["layer2"])
    above = [detector.get_submodule(path) for path in ("layer3.0.conv1", "layer3.0.downsample.0")]
    # The gradient of the features that layer3 receives is not computed either.
    above_layer2 = sum(_forward_flops(detector, images, module) for module in above)
    assert whole - flops["stem", "layer1", "layer2"] == below + above_layer2
    # A frozen stage above one that learns still passes the gradient of its features down.
    assert whole - flops["layer2",] == forward["layer2"]


def _forward_flops(detector: Detector, images: Tensor, module: nn.Module) -> int:
    if not isinstance(module, nn.Conv2d):
        return 0
    sizes: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, arguments, output: sizes.append(output))
    with torch.no_grad():
        detector.train()(images)
    handle.remove()
    height, width = module.kernel_size
    return 2 * sizes[0].numel() * module.in_channels * int(height) * int(width)


def test_freezing_twice_adds_and_evaluation_mode_comes_back() -> None:
    detector = narrow("centernet_resnet18")
    detector.freeze(["layer1"])
    detector.freeze(["stem"])
    assert detector.frozen == ("stem", "layer1")
    norm = detector.get_submodule("layer1.0.bn1")
    assert detector.training
    assert not norm.training
    assert detector.get_submodule("layer2.0.bn1").training
    detector.eval().train()
    assert not norm.training


def test_fcos_keeps_its_published_frozen_stages() -> None:
    detector = narrow("fcos_resnet50")
    detector.freeze(["layer2"])
    trained = {detector.stage_of(name) for name, one in detector.named_parameters() if one.requires_grad}
    assert trained == {"layer3", "layer4", "fpn", ""}


def test_a_wrong_name_prints_the_stages() -> None:
    with pytest.raises(DetectorError) as refusal:
        narrow("centernet_resnet18").freeze(["stem", "layer5"])
    assert str(refusal.value) == (
        "centernet_resnet18 has no stage 'layer5'; its stages are stem, layer1, layer2, layer3, layer4, deconv_layers."
    )


def test_stages_of_hourglasses() -> None:
    assert list(narrow("keypoint_triplets_hourglass104").stages) == ["pre", "stack0", "stack1"]
    assert narrow("cornernet_saccade").stages["stack2"] == (
        *("hg.inters_.1", "hg.cnvs_.1", "hg.inters.1"),
        *("hg.hgs.2", "hg.cnvs.2"),
    )
