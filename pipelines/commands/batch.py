"""`aweigh batch`: the largest microbatch that fits."""

import argparse

from pipelines.commands.arguments import Commands, add_device, add_json, add_recipe, resolved, takes_fields
from pipelines.errors import ConfigError


def add(commands: Commands) -> None:
    """Add `batch`."""
    batch = commands.add_parser(
        "batch",
        help="find the largest microbatch that fits a worker's device",
        description="On a GPU, train steps of growing microbatches until the memory is full. On the CPU, estimate the "
        "memory from two small steps, and print the arithmetic. Ends with the flags to paste. The images are black "
        "ones of the recipe's largest input, and nothing is kept.",
    )
    add_recipe(batch)
    add_device(batch)
    batch.add_argument(
        "--memory",
        type=float,
        default=0.0,
        metavar="GB",
        help="memory of a worker (default: what is free now, on the CPU divided among the workers)",
    )
    add_json(batch)
    takes_fields(batch, run)


def run(known: argparse.Namespace) -> None:
    """Find the microbatch."""
    if not 0 <= known.memory < float("inf"):
        raise ConfigError(f"--memory is {known.memory:g}; give GB above 0, or leave it out.")
    recipe = resolved(known.recipe, known.rest)
    from pipelines.bench.device import chosen_device
    from pipelines.training.microbatch import find_batch

    find_batch(recipe, chosen_device(known.device), known.memory, known.json)
