"""Arguments that several commands take."""

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin

from pipelines.errors import ConfigError
from pipelines.files import PICTURE_SUFFIXES

if TYPE_CHECKING:
    from pipelines.recipes.settings import Recipe

Commands: TypeAlias = "argparse._SubParsersAction[Any]"
Run: TypeAlias = Callable[[argparse.Namespace], None]

RESUMES = "run the same command again to resume from the last checkpoint"
"""Said when a training is stopped with Ctrl-C."""


def add_actions(parser: argparse.ArgumentParser, metavar: str) -> Commands:
    """Let a command have actions of its own, such as `aweigh shards build`."""
    return parser.add_subparsers(dest="action", metavar=metavar, required=True, parser_class=type(parser))


def takes_fields(parser: argparse.ArgumentParser, run: Run) -> None:
    """Let a command take any field of a recipe as a flag; `run` receives them in `known.rest`."""
    # An abbreviation could be meant for a field as well as for an argument of the command.
    parser.allow_abbrev = False
    parser.set_defaults(run=run, takes_fields=True)
    # Only the command that is being typed: a hundred fields for each of a dozen parsers take a second.
    if completing() and os.environ.get("COMP_LINE", "").startswith(f"{parser.prog} "):
        from pipelines.recipes.recipe import fields

        for name, kind in fields().items():
            # `--recipe` is an argument of `aweigh shards show`, and the name of a field that nobody sets.
            if f"--{name}" not in parser._option_string_actions:
                completes(parser.add_argument(f"--{name}", nargs="*"), _field_values(name, kind))


def add_recipe(parser: argparse.ArgumentParser, *, optional: bool = False, meaning: str = "") -> None:
    """Add the recipe that a command works on."""
    meaning = meaning or "a name of `aweigh recipes`, or a recipe.yaml"
    completes(parser.add_argument("recipe", nargs="?" if optional else None, help=meaning), recipe_names)


def add_json(parser: argparse.ArgumentParser, what: str = "the figures") -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one (default: auto)")


def check_picture(path: Path, argument: str) -> None:
    """Refuse a picture file whose name does not say PNG or JPEG, before any work is done for it.

    Raises:
        ConfigError: the name ends in something else.
    """
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise ConfigError(f"{argument} {path}: pictures are written as PNG or JPEG; end the name in .png or .jpg.")


def resolved(name: str, flags: Sequence[str]) -> "Recipe":
    """Return the recipe of that name, changed by flags."""
    from pipelines import recipes
    from pipelines.recipes.recipe import with_flags

    return with_flags(recipes.get(name), flags)


def completing() -> bool:
    """True while argcomplete asks for the words that could follow, and nothing is run."""
    return "_ARGCOMPLETE" in os.environ


def completes(action: argparse.Action, words: Callable[[], Iterable[str]]) -> None:
    """Name the words that argcomplete suggests for an argument."""
    if completing():
        action.completer = lambda **_: words()  # type: ignore[attr-defined]


def recipe_names() -> list[str]:
    """Names of all recipes."""
    from pipelines import recipes

    return recipes.names()


def detector_names() -> list[str]:
    """Names of the detectors that recipes train; importing `detectors` would take seconds for each press of Tab."""
    from pipelines import recipes

    return sorted({recipes.get(name).detector.name for name in recipes.names()})


def _field_values(name: str, kind: Any) -> Callable[[], Iterable[str]]:
    if name == "detector.name":
        return detector_names
    if kind is bool:
        return lambda: ("true", "false")
    return lambda: map(str, get_args(kind)) if get_origin(kind) is Literal else ()
