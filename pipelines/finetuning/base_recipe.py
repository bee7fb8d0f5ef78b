"""The recipe that a fine-tuning starts from: the published one of its detector, with a schedule to be derived."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipelines import recipes
from pipelines.recipes.settings import DetectorSettings, Recipe, Schedule

# Settings of a detector that decide which of its published recipes fits: boxes and resizing differ between them.
_TELLING = ("variant", "align")


def base_recipe(name: str, settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe for fine-tuning a detector: geometry, augmentation and optimizer are as published.

    Batch, rate and drops are those of the publication and are derived later; epochs have no drops yet, so that a flag
    for one of them needs no flag for the other.

    Args:
        name: of the detector.
        settings: of the detector, as the user set them.
    """
    wanted = {key: settings[key] for key in _TELLING if key in settings}
    known = [recipe for recipe in map(recipes.get, recipes.names()) if _is_base(recipe, name)]
    fitting = [
        recipe for recipe in known if wanted.items() <= {**dict.fromkeys(wanted), **recipe.detector.settings}.items()
    ]
    # A detector of another package has no recipe; CenterNet's geometry takes any input of one size.
    published = next(iter(fitting or known), None) or Recipe(recipe=name, detector=DetectorSettings(name=name))
    return replace(
        published,
        recipe="finetune",
        purpose=f"fine-tuning of {name}, from its recipe {published.recipe}",
        detector=replace(published.detector, settings={**published.detector.settings, **settings}),
        schedule=replace(published.schedule, epochs=Schedule.epochs, drops_at=(), steps=0, drops_at_steps=()),
    )


def _is_base(recipe: Recipe, name: str) -> bool:
    """True for the recipes on COCO with the published network; the demo's is narrower."""
    return (
        recipe.detector.name == name
        and recipe.recipe not in ("demo", "finetune")
        and not (recipe.recipe.startswith("ablation_") or "_voc_" in recipe.recipe)
    )
