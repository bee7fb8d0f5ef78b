"""The published recipe that a fine-tuning changes."""

import pytest

import detectors
from pipelines import recipes
from pipelines.finetuning.base_recipe import base_recipe


@pytest.mark.parametrize("name", detectors.names())
def test_every_detector_keeps_the_geometry_and_batch_of_its_publication(name: str) -> None:
    recipe = base_recipe(name, {})
    published = recipes.get(recipe.purpose.rpartition(" ")[2])
    assert (recipe.recipe, recipe.detector.name, published.detector.name) == ("finetune", name, name)
    assert recipe.augmentation == published.augmentation
    assert recipe.data == published.data
    assert (recipe.batch, recipe.optimizer) == (published.batch, published.optimizer)
    assert (recipe.schedule.steps, recipe.schedule.drops_at, recipe.schedule.drops_at_steps) == (0, (), ())


@pytest.mark.parametrize(
    ("name", "settings", "published"),
    [
        ("centernet_resnet18", {}, "centernet_resnet18_1x"),
        ("centernet_resnet18", {"width": 24}, "centernet_resnet18_1x"),
        ("fcos_resnet50", {}, "fcos_resnet50_1x"),
        ("fcos_resnet50", {"variant": "torchvision"}, "fcos_torchvision_resnet50"),
        ("fcos_resnet50", {"variant": "mmdetection"}, "fcos_mmdetection_resnet50_1x"),
        ("foveabox_resnet50", {"align": True}, "foveabox_align_resnet50_2x"),
        ("cornernet_squeeze", {}, "cornernet_squeeze"),
    ],
)
def test_the_settings_of_a_detector_choose_among_its_recipes(name: str, settings: dict, published: str) -> None:  # type: ignore[type-arg]
    recipe = base_recipe(name, settings)
    assert recipe.purpose == f"fine-tuning of {name}, from its recipe {published}"
    assert settings.items() <= recipe.detector.settings.items()


def test_a_detector_of_another_package_has_a_recipe_too() -> None:
    recipe = base_recipe("their_detector", {"depth": 3})
    assert (recipe.detector.name, recipe.detector.settings) == ("their_detector", {"depth": 3})
