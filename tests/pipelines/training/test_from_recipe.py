"""What the optimizer is given: one group, or biases apart."""

import torch

import detectors
from pipelines import recipes
from pipelines.training.from_recipe import parameter_groups


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
