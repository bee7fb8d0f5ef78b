"""Where a run's checkpoints lie, whether one fits, and what was lost since it was written."""

from collections.abc import Callable
from pathlib import Path

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointFolder
from cluster.checkpoints.remote import RemoteCheckpoints
from cluster.heartbeat import Standing
from data_shards.counting import counted
from data_shards.format.manifest import Manifest
from data_shards.storage.store import open_store
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.recipes.settings import Recipe
from pipelines.training.checkpoint_facts import facts_of


def checkpoint_places(
    recipe: Recipe, run: str, folder: Path, warn: Callable[[str], None]
) -> tuple[CheckpointFolder, RemoteCheckpoints | None]:
    """The folder in which a run's checkpoints become current, and the bucket that gets a copy of each.

    Args:
        recipe: says where, and how many stay.
        run: its name, below `checkpoint.location`.
        folder: the run's folder.
        warn: told about checkpoints that are passed over.
    """
    settings = recipe.checkpoint
    local = CheckpointFolder(folder / "checkpoints", settings.keep, warn=warn)
    if "://" not in settings.location:
        return local, None
    return local, RemoteCheckpoints(open_store(f"{settings.location.rstrip('/')}/{run}"), settings.keep, warn=warn)


def newest_checkpoint(local: CheckpointFolder, remote: RemoteCheckpoints | None) -> Checkpoint | None:
    """The newest whole checkpoint of a run wherever it lies; one that only the bucket has is brought here."""
    return remote.newest(local) if remote else local.latest()


def link_checkpoints(recipe: Recipe, run: str, folder: Path) -> None:
    """Let a run's `checkpoints` be a link to the folder that `checkpoint.location` names.

    Raises:
        ConfigError: the run has checkpoints elsewhere already, or the folder cannot be made.
    """
    location, link = recipe.checkpoint.location, folder / "checkpoints"
    if not location or "://" in location:
        if link.is_symlink() and not location:
            raise ConfigError(
                f"run {run} keeps its checkpoints in {link.resolve()}; give --checkpoint.location "
                f"{link.resolve().parent}."
            )
        return
    target = Path(location) / run
    try:
        target.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() or not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(target.resolve())
    except OSError as error:
        raise ConfigError(f"checkpoint.location {location} cannot be used: {error.strerror or error}.") from error
    if link.resolve() != target.resolve():
        raise ConfigError(
            f"run {run} has checkpoints in {link} already, checkpoint.location says {target}. Move them there, or "
            f"leave checkpoint.location as it was."
        )


def lost_line(standing: Standing | None, step: int, batch_size: int, saved_at: float) -> str:
    """What has to be trained again, in samples and time.

    Args:
        standing: where rank 0 of the last attempt stood when it ended.
        step: of the checkpoint.
        batch_size: samples of a step.
        saved_at: Unix time at which the checkpoint was taken; 0 where it is not known.
    """
    if standing is None:
        return "lost      not known: the last attempt left no trace in this folder"
    steps = max(0, standing.step - step)
    if steps == 0 and standing.last:
        return "lost      nothing: the last attempt ended with this checkpoint"
    if steps == 0:
        return "lost      less than a second of training: the last attempt was killed just after this checkpoint"
    spent = f" and {console.duration(standing.written - saved_at)}" if saved_at else ""
    again = counted(steps, "step")
    return f"lost      {again}: {steps * batch_size:,} samples{spent} of training are done again"


def check_fits(checkpoint: Checkpoint, recipe: Recipe, manifest: Manifest) -> None:
    """Refuse a checkpoint of another detector, class list or data set.

    Raises:
        ConfigError: names what differs.
    """
    facts = facts_of(checkpoint)
    if facts.detector != recipe.detector.name:
        raise ConfigError(
            f"{checkpoint.path} is of detector {facts.detector}, the recipe says {recipe.detector.name}; "
            f"set detector.name to it, or choose another --run.name."
        )
    check_classes(checkpoint, manifest)
    if facts.manifest != manifest.digest:
        raise ConfigError(
            f"{checkpoint.path} was trained on shards {facts.manifest[:12]}, data.train is {manifest.digest[:12]}; "
            f"the sample order would be another. Use the same shards, or choose another --run.name."
        )


def check_classes(checkpoint: Checkpoint, manifest: Manifest) -> None:
    """Refuse a checkpoint whose class list is not that of the shards.

    Raises:
        ConfigError: names the first class that differs.
    """
    theirs = [(item["id"], item["name"]) for item in facts_of(checkpoint).classes]
    ours = [(item.id, item.name) for item in manifest.classes]
    if theirs == ours:
        return
    if len(theirs) != len(ours):
        what = f"{len(theirs)} classes, the shards have {len(ours)}"
    else:
        old, new = next((old, new) for old, new in zip(theirs, ours, strict=True) if old != new)
        what = f"class {old[0]} {old[1]!r} where the shards have {new[0]} {new[1]!r}"
    raise ConfigError(f"{checkpoint.path} is of another class list: it has {what}. Use the shards it was trained for.")
