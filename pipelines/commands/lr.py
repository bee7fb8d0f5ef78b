"""`aweigh lr`: a learning-rate range test."""

import argparse

from pipelines.commands.arguments import Commands, add_device, add_json, add_recipe, resolved, takes_fields


def add(commands: Commands) -> None:
    """Add `lr`."""
    lr = commands.add_parser(
        "lr",
        help="find a learning rate with a range test",
        description="Train a few steps on this machine with a rate that rises from --from to --to, and suggest the one "
        "at which the smoothed loss falls most steeply. Prints the table, draws the plot, and logs both to MLflow as a "
        "run of its own. The recipe's own run and its checkpoints are left alone.",
    )
    add_recipe(lr)
    add_device(lr)
    lr.add_argument("--from", dest="first", type=float, default=1e-6, metavar="RATE", help="first rate (default: 1e-6)")
    lr.add_argument("--to", dest="last", type=float, default=1.0, metavar="RATE", help="last rate (default: 1)")
    lr.add_argument("--steps", type=int, default=100, help="optimizer steps (default: 100)")
    add_json(lr)
    takes_fields(lr, run)


def run(known: argparse.Namespace) -> None:
    """Run the test."""
    recipe = resolved(known.recipe, known.rest)
    from pipelines.bench.device import chosen_device
    from pipelines.training.rate_range import find_rate

    find_rate(recipe, chosen_device(known.device), (known.first, known.last), known.steps, known.json)
