"""Recipes by name. Each is a function that returns a whole recipe; a variant shows only its difference."""

import difflib
from collections.abc import Callable
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.recipe import Recipe, from_yaml
from pipelines.recipes import centernet, demo

_RECIPES: dict[str, Callable[[], Recipe]] = {
    function.__name__: function
    for function in (
        demo.demo,
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
        centernet.centernet_hourglass104,
    )
}


def names() -> list[str]:
    """Recipes in the order a newcomer reads them."""
    return list(_RECIPES)


def get(name: str) -> Recipe:
    """The recipe of that name, or of a YAML file such as a run's own recipe.yaml.

    Raises:
        ConfigError: there is none; the nearest name is offered.
    """
    if name in _RECIPES:
        return _RECIPES[name]()
    if name.endswith((".yaml", ".yml")):
        return from_yaml(Path(name))
    close = difflib.get_close_matches(name, _RECIPES, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}?" if close else "`aweigh recipes` lists them."
    raise ConfigError(f"unknown recipe {name!r}; {hint}")
