"""The checkpoint that a path means."""

from pathlib import Path

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointFolder, open_checkpoint
from pipelines import console
from pipelines.errors import ConfigError


def find_checkpoint(path: Path, newest: bool = False) -> Checkpoint:
    """Return the checkpoint at a path, or the best of the run at a path (the newest if none has a score).

    Raises:
        ConfigError: there is no checkpoint.
    """
    if (path / "checkpoint.json").exists() or path.name.startswith("step-"):
        return open_checkpoint(path)
    folder = CheckpointFolder(path / "checkpoints", warn=lambda line: console.say("warning", line))
    found = folder.latest() if newest else folder.best() or folder.latest()
    if found is None:
        raise ConfigError(f"{path} has no checkpoint. Give a run's folder, such as runs/NAME, or one checkpoint's.")
    return found
