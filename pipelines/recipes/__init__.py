"""Recipes by name. Each is a function that returns a whole recipe; a variant states only its differences."""

from collections.abc import Callable
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.hints import did_you_mean
from pipelines.recipes import (
    ablations,
    centernet,
    centernet_tasks,
    cornernet,
    demo,
    fcos,
    finetune,
    foveabox,
    keypoint_triplets,
)
from pipelines.recipes.recipe import from_yaml
from pipelines.recipes.settings import Recipe

_RECIPES: dict[str, Callable[[], Recipe]] = {
    function.__name__: function
    for function in (
        demo.demo,
        finetune.finetune,
        centernet.centernet_resnet18_1x,
        centernet.centernet_resnet18_2x,
        centernet.centernet_resnet101_1x,
        centernet.centernet_resnet101_2x,
        centernet.centernet_resdcn18_1x,
        centernet.centernet_resdcn18_2x,
        centernet.centernet_resdcn101_1x,
        centernet.centernet_resdcn101_2x,
        centernet.centernet_dla34_1x,
        centernet.centernet_dla34_2x,
        centernet.centernet_dla34_original_1x,
        centernet.centernet_dla34_original_2x,
        centernet.centernet_hourglass104,
        centernet.centernet_resdcn18_voc_384,
        centernet.centernet_resdcn18_voc_512,
        centernet.centernet_resdcn101_voc_384,
        centernet.centernet_resdcn101_voc_512,
        centernet.centernet_dla34_voc_384,
        centernet.centernet_dla34_voc_512,
        centernet_tasks.centernet_dla34_pose_1x,
        centernet_tasks.centernet_dla34_pose_3x,
        centernet_tasks.centernet_hourglass104_pose_1x,
        centernet_tasks.centernet_hourglass104_pose_3x,
        centernet_tasks.centernet_dla34_3d_3dop,
        centernet_tasks.centernet_dla34_3d_sub,
        ablations.ablation_test_resolution_original,
        ablations.ablation_test_resolution_512,
        ablations.ablation_test_resolution_384,
        ablations.ablation_size_weight_0_2,
        ablations.ablation_size_weight_0_1,
        ablations.ablation_size_weight_0_02,
        ablations.ablation_loss_l1,
        ablations.ablation_loss_smooth_l1,
        ablations.ablation_epochs_140,
        ablations.ablation_epochs_230,
        fcos.fcos_resnet50_1x,
        fcos.fcos_resnet50_2x,
        fcos.fcos_resnet50_140,
        fcos.fcos_resnet50_230,
        fcos.fcos_resnet101_2x,
        fcos.fcos_improved_resnet50_1x,
        fcos.fcos_improved_resnet50_2x,
        fcos.fcos_improved_resnet50_140,
        fcos.fcos_improved_resnet50_230,
        fcos.fcos_improved_resnet101_2x,
        fcos.fcos_adelaidet_resnet50_1x,
        fcos.fcos_mmdetection_resnet50_1x,
        fcos.fcos_mmdetection_base_resnet50_1x,
        fcos.fcos_torchvision_resnet50,
        cornernet.cornernet_hourglass104,
        cornernet.cornernet_hourglass104_140,
        cornernet.cornernet_hourglass104_230,
        cornernet.cornernet_squeeze,
        cornernet.cornernet_squeeze_140,
        cornernet.cornernet_squeeze_230,
        cornernet.cornernet_saccade,
        cornernet.cornernet_saccade_140,
        cornernet.cornernet_saccade_230,
        keypoint_triplets.keypoint_triplets_hourglass104,
        keypoint_triplets.keypoint_triplets_hourglass104_140,
        keypoint_triplets.keypoint_triplets_hourglass104_230,
        keypoint_triplets.keypoint_triplets_hourglass52,
        keypoint_triplets.keypoint_triplets_hourglass52_140,
        keypoint_triplets.keypoint_triplets_hourglass52_230,
        foveabox.foveabox_resnet50_1x,
        foveabox.foveabox_resnet50_2x,
        foveabox.foveabox_resnet50_140,
        foveabox.foveabox_resnet50_230,
        foveabox.foveabox_align_resnet50_2x,
        foveabox.foveabox_align_resnet50_2x_two_scales,
        foveabox.foveabox_align_resnet50_140,
        foveabox.foveabox_align_resnet50_230,
        foveabox.foveabox_resnet101_1x,
        foveabox.foveabox_resnet101_2x,
        foveabox.foveabox_resnet101_140,
        foveabox.foveabox_resnet101_230,
        foveabox.foveabox_align_resnet101_2x,
        foveabox.foveabox_align_resnet101_2x_two_scales,
        foveabox.foveabox_align_resnet101_140,
        foveabox.foveabox_align_resnet101_230,
    )
}


def names() -> list[str]:
    """Names of all recipes, in the order in which a newcomer should read them."""
    return list(_RECIPES)


def get(name: str) -> Recipe:
    """Return the recipe of that name, or read it from a YAML file such as a run's own recipe.yaml.

    Raises:
        ConfigError: there is no such recipe; the message suggests the nearest names.
    """
    if name in _RECIPES:
        return _RECIPES[name]()
    if name.endswith((".yaml", ".yml")):
        return from_yaml(Path(name))
    hint = did_you_mean(name, _RECIPES, "`aweigh recipes` lists them.", cutoff=0.4)
    raise ConfigError(f"unknown recipe {name!r}; {hint}")
