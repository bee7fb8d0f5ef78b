"""`aweigh tracking flush`: what a run keeps on disk is delivered to MLflow."""

from pathlib import Path

from data_shards.counting import counted
from pipelines import tracking
from pipelines.errors import ConfigError


def flush_run(folder: Path) -> bool:
    """Deliver a run's spool, each point once; gives whether nothing is left.

    Raises:
        ConfigError: the folder is no run's.
    """
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
