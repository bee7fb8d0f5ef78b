"""`aweigh tracking flush`: deliver to MLflow what a run keeps on disk."""

import argparse
from pathlib import Path

from pipelines.commands.arguments import Commands, add_actions


def add(commands: Commands) -> None:
    """Add `tracking`."""
    tracking = commands.add_parser("tracking", help="deliver metrics that MLflow has not received")
    flush = add_actions(tracking, "flush").add_parser(
        "flush", help="deliver what a run keeps on disk because the server could not be reached"
    )
    flush.add_argument("run_folder", type=Path, metavar="RUN", help="a run's folder")
    flush.set_defaults(run=run)


def run(known: argparse.Namespace) -> None:
    """Deliver a run's spool; exit with status 1 if something is left."""
    from pipelines.console import fail

    if not flush_run(known.run_folder):
        fail("not everything was delivered; run the same command again when the server can be reached.", 1)


def flush_run(folder: Path) -> bool:
    """Deliver each point of a run's spool once; return True if nothing is left.

    Raises:
        ConfigError: the folder does not belong to a run.
    """
    from data_shards.counting import counted
    from pipelines import tracking
    from pipelines.errors import ConfigError

    spool = folder / "tracking"
    record = tracking.RunRecord.load(spool)
    if not record.run_name:
        raise ConfigError(f"{folder} has no tracking/run.json. Give a run's folder, such as runs/NAME.")
    points, artifacts = tracking.Delivery(spool).count_left()
    what = f"{counted(points, 'point')} and {counted(artifacts, 'artifact')}"
    if not (points or artifacts or record.pending or record.status):
        print(f"run {record.run_name}: everything is delivered")
        return True
    if not tracking.deliver_spool(spool):
        return False
    print(f"run {record.run_name}: {what} delivered")
    return True
