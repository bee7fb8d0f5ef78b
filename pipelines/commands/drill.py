"""`aweigh drill`: train under faults, and compare with the same training undisturbed."""

import argparse
from pathlib import Path

from pipelines.commands.arguments import Commands, add_json, add_recipe, takes_fields


def add(commands: Commands) -> None:
    """Add `drill`."""
    drill = commands.add_parser(
        "drill",
        help="train under a fault, and compare bit for bit with the same training undisturbed",
        description="Train a recipe, made short by flags, once undisturbed and once under each fault, with real "
        "processes and kills. Print `bitwise equal`, or the first step, tensor and samples that differ.",
    )
    add_recipe(
        drill,
        optional=True,
        meaning="a name of `aweigh recipes`, or a recipe.yaml (default: the demo, in 30 steps)",
    )
    drill.add_argument("--fault", nargs="+", default=[], metavar="NAME", help="faults to try (default: all)")
    drill.add_argument("--faults", action="store_true", help="list the faults")
    drill.add_argument("--folder", type=Path, default=Path("drill"), help="folder for the runs (default: drill)")
    add_json(drill, "the verdicts")
    takes_fields(drill, run)


def run(known: argparse.Namespace) -> None:
    """List the faults, or train under them."""
    from pipelines.console import fail, print_rows
    from pipelines.drill.faults import FAULTS

    if known.faults:
        print_rows((one.name, one.meaning) for one in FAULTS.values())
        return
    flags = known.rest
    if not known.recipe:
        from pipelines.drill.small_course import small_course

        flags = [*small_course(known.folder), *flags]
    from pipelines.drill.command import run_drill

    if not run_drill(known.recipe or "demo", flags, known.fault, known.folder, as_json=known.json):
        fail("at least one fault changed the result or could not be tried; the lines above say which.", 1)
