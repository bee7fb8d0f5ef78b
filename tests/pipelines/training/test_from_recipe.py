"""What the optimizer is given: one group, biases apart, stages apart."""

from dataclasses import replace

import pytest
import torch

import detectors
from detectors import DetectorError
from pipelines import recipes
from pipelines.errors import ConfigError
from pipelines.recipes.settings import OptimizerSettings
from pipelines.training.from_recipe import parameter_groups, stage_factors


def test_biases_of_fcos_have_a_rate_and_a_decay_of_their_own() -> None:
    with torch.device("meta"):
        detector = detectors.build("fcos_resnet50")
    others, biases = parameter_groups(detector, recipes.get("fcos_resnet50_1x").optimizer)
    assert (others["lr"], others["lr_factor"], others["weight_decay"], others["momentum"]) == (0.01, 1, 1e-4, 0.9)
    assert (biases["lr"], biases["lr_factor"], biases["weight_decay"], biases["momentum"]) == (0.02, 2, 0, 0.9)
    names = {parameter: name for name, parameter in detector.named_parameters()}
    # Of each tower 4 convolutions and 4 norms; 3 last layers; 6 convolutions of the pyramid, P6 and P7.
    assert len(biases["params"]) == 2 * 8 + 3 + 8
    assert all(names[parameter].endswith("bias") for parameter in biases["params"])
    # Weights of group norm do decay, and neither the stem nor the first stage is there.
    assert "rpn.head.cls_tower.1.weight" in {names[parameter] for parameter in others["params"]}
    learning = [names[parameter] for group in (others, biases) for parameter in group["params"]]
    assert sorted(learning) == sorted(name for name, one in detector.named_parameters() if one.requires_grad)
    assert not any("stem" in name or "layer1" in name for name in learning)


def test_without_rules_for_biases_there_is_one_group_in_the_networks_order() -> None:
    with torch.device("meta"):
        detector = detectors.build("centernet_resnet18")
    (group,) = parameter_groups(detector, recipes.get("centernet_resnet18_1x").optimizer)
    assert [id(one) for one in group["params"]] == [id(one) for one in detector.parameters()]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (5e-4, 0, (0.9, 0.999))


def test_the_rate_decays_from_the_heads_to_the_stem() -> None:
    with torch.device("meta"):
        detector = detectors.build("centernet_resnet18")
    optimizer = OptimizerSettings(learning_rate=0.1, layer_decay=0.5)
    assert stage_factors(detector, optimizer) == {
        "stem": 1 / 64,
        "layer1": 1 / 32,
        "layer2": 1 / 16,
        "layer3": 1 / 8,
        "layer4": 1 / 4,
        "deconv_layers": 1 / 2,
    }
    names = {parameter: name for name, parameter in detector.named_parameters()}
    rates = {names[one]: group["lr"] for group in parameter_groups(detector, optimizer) for one in group["params"]}
    assert rates.keys() == set(names.values())
    assert (rates["conv1.weight"], rates["layer4.0.bn1.bias"], rates["deconv_layers.0.weight"], rates["hm.2.bias"]) == (
        *(0.1 / 64, 0.1 / 4, 0.05, 0.1),
    )


def test_factors_of_single_stages_replace_the_decay_and_multiply_with_that_of_biases() -> None:
    with torch.device("meta"):
        detector = detectors.build("fcos_resnet50")
    published = recipes.get("fcos_resnet50_1x").optimizer
    optimizer = replace(published, layer_decay=0.5, stage_learning_rate_factors={"layer3": 0.25, "fpn": 1.0})
    # The stem and the first stage are frozen as published.
    assert stage_factors(detector, optimizer) == {"layer2": 1 / 16, "layer3": 0.25, "layer4": 0.25, "fpn": 1}
    groups = parameter_groups(detector, optimizer)
    factors = [(group["lr_factor"], group["weight_decay"]) for group in groups]
    # FCOS's frozen norms leave the trunk without biases that learn.
    assert factors == [(1 / 16, 1e-4), (0.25, 1e-4), (1, 1e-4), (2, 0)]
    assert [group["lr"] for group in groups] == [0.01 / 16, 0.0025, 0.01, 0.02]


def test_a_frozen_stage_is_in_no_group_and_has_no_rate() -> None:
    with torch.device("meta"):
        detector = detectors.build("centernet_resnet18")
    detector.freeze(["stem", "layer1"])
    optimizer = OptimizerSettings(layer_decay=0.5)
    assert list(stage_factors(detector, optimizer)) == ["layer2", "layer3", "layer4", "deconv_layers"]
    names = {parameter: name for name, parameter in detector.named_parameters()}
    learning = {names[one] for group in parameter_groups(detector, optimizer) for one in group["params"]}
    assert learning == {name for name in names.values() if not name.startswith(("conv1.", "bn1.", "layer1."))}
    with pytest.raises(ConfigError, match=r"stage_learning_rate_factors names stem, which is not trained"):
        stage_factors(detector, OptimizerSettings(stage_learning_rate_factors={"layer2": 0.5, "stem": 0.1}))


def test_a_factor_for_an_unknown_stage_is_refused_with_the_known_ones() -> None:
    with torch.device("meta"):
        detector = detectors.build("centernet_dla34")
    with pytest.raises(DetectorError, match=r"has no stage 'layer1'; its stages are base_layer, level0, .*, ida_up\.$"):
        stage_factors(detector, OptimizerSettings(stage_learning_rate_factors={"layer1": 0.5}))
