"""`aweigh preflight`: check a cluster for a training, before a GPU minute is spent."""

import argparse
import sys

from pipelines.commands.arguments import Commands, add_json, add_recipe, resolved, takes_fields
from pipelines.commands.submit import add_submission_arguments, submit_command
from pipelines.errors import ConfigError


def add(commands: Commands) -> None:
    """Add `preflight`."""
    preflight = commands.add_parser(
        "preflight",
        help="check a cluster for a training, before a GPU minute is spent",
        description="Start one small process in the place of each worker, and print a row for each check, with what to "
        "do. Run it on the cluster with RAY_ADDRESS set, or from here with --address. Exit status 1 if a check fails.",
    )
    add_recipe(preflight, optional=True, meaning="the recipe to check for; without it, only the cluster is checked")
    add_json(preflight, "the findings")
    add_submission_arguments(preflight)
    preflight.set_defaults(detach=False)
    takes_fields(preflight, run)


def run(known: argparse.Namespace) -> None:
    """Check from here, or as a job on the cluster."""
    # Empty locations switch the checks of data off.
    flags = [*([] if known.recipe else ["--data.train", "", "--data.validation", ""]), *known.rest]
    name = known.recipe or "demo"
    recipe = resolved(name, flags)
    if not known.address:
        if known.env:
            raise ConfigError(f"--env {known.env[0]} is for a job: give --address too, or set the variable here.")
        from pipelines.training.preflight import preflight

        sys.exit(0 if preflight(recipe, known.json) else 1)
    if known.json:
        raise ConfigError(
            "--json cannot be used with --address, because a job's log has other lines too: run preflight on the "
            "cluster, with RAY_ADDRESS set and without --address."
        )
    from pipelines.recipes.recipe import run_name
    from pipelines.training.checks import check_places

    check_places(recipe)
    submit_command("preflight", name, recipe, flags, known, job_run=f"{run_name(recipe)}-preflight")
