"""`aweigh recipes` and `aweigh recipe show`: the recipes, and one of them with all its settings."""

import argparse

from pipelines.commands.arguments import Commands, add_actions, add_recipe, resolved, takes_fields


def add(commands: Commands) -> None:
    """Add `recipes` and `recipe`."""
    every = commands.add_parser("recipes", help="list the recipes and their purposes")
    every.set_defaults(run=run)
    one = commands.add_parser("recipe", help="show one recipe")
    show = add_actions(one, "show").add_parser(
        "show", help="print a recipe with all its settings, as YAML that `aweigh train FILE.yaml` accepts"
    )
    add_recipe(show)
    takes_fields(show, _show)


def run(known: argparse.Namespace) -> None:
    """List the recipes."""
    from pipelines import recipes
    from pipelines.console import print_rows

    print_rows((name, recipes.get(name).purpose) for name in recipes.names())
    print("\n`aweigh recipe show NAME` prints one; `aweigh train NAME --data.train LOCATION/SPLIT` trains it.")


def _show(known: argparse.Namespace) -> None:
    from pipelines.recipes.recipe import to_yaml

    print(to_yaml(resolved(known.recipe, known.rest)), end="")
