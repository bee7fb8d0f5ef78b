"""Everything that is refused before a worker starts: settings, data, detector, and the run's folder."""

import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import detectors
from cluster.checkpoints.checkpoint import Checkpoint
from cluster.engine.engine import BatchSplit, check_deepspeed, split_batch
from cluster.workers import dividing_worlds
from data_shards.counting import counted
from data_shards.format.manifest import CocoClass, Manifest
from data_shards.loading.batch import Batch
from data_shards.loading.batch_arrays import BatchArrays
from data_shards.order.plan import Plan
from data_shards.reading.split import DataSplit
from data_shards.storage.open import open_store
from detectors import Detector
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import differences, from_dict, to_dict
from pipelines.recipes.settings import IMAGENET, DataSettings, Recipe
from pipelines.trained.checkpoint_facts import facts_of, was_begun_ungrouped
from pipelines.training.from_recipe import build_detector, sample_order, stage_factors

_LONGEST_NAME = 200  # of the 255 bytes that file systems allow; other names are derived from it


def check(recipe: Recipe, *, fresh: bool = True) -> tuple[list[DataSplit], Plan]:
    """Refuse whatever can be known to be wrong before a worker starts.

    Args:
        recipe: with absolute paths.
        fresh: also fetch and load the initial weights; a run that resumes does not need them.

    Returns:
        The opened splits, the one to train on first, and the order of its samples.

    Raises:
        ConfigError, ClusterError: settings that contradict each other or the data.
        DataError: shards that are missing or damaged.
        DetectorError: a detector that cannot be built, or cannot learn from this data.
    """
    _check_settings(recipe)
    if "://" in recipe.checkpoint.location:
        open_store(recipe.checkpoint.location).check_writable()
    splits = [split for split in recipe.data.splits() if split is not None]
    manifest = splits[0].manifest
    plan = sample_order(recipe, splits[0])
    for split in splits:
        found = split.manifest
        if found.classes != manifest.classes:
            raise ConfigError(
                f"{split.location} has other classes than {recipe.data.train}: "
                f"{_difference(found.classes, manifest.classes)}. Build it again with --classes-from "
                f"{shlex.quote(recipe.data.train)}."
            )
        _check_shards(split)
    detector = build_detector(recipe, manifest, initial=fresh)
    stage_factors(detector, recipe.optimizer)
    check_input_size(recipe, detector)
    _check_max_objects(recipe, detector)
    detector.check_test_mode(recipe.evaluation.tta, recipe.evaluation.soft_nms)
    _check_labels(recipe, detector, manifest)
    if "keypoints" in detector.needs:
        _warn_of_empty_images(splits[0])
    return splits, plan


def _check_settings(recipe: Recipe) -> None:
    """Check what needs neither data nor a network."""
    check_run_name(recipe.run.name)
    if not recipe.data.train:
        raise ConfigError(
            "data.train is empty: give --data.train LOCATION/SPLIT, the shards that `aweigh shards build` wrote."
        )
    hang, deadline = recipe.cluster.hang_seconds, recipe.data.read_deadline_seconds
    if "://" in recipe.data.train and 0 < hang < deadline:
        raise ConfigError(
            f"data.read_deadline_seconds is {deadline:g} and cluster.hang_seconds is {hang:g}: a worker that waits for "
            f"S3 would be taken for a hung one. Raise cluster.hang_seconds to {deadline:g} or more."
        )
    geometry = recipe.augmentation.geometry
    if recipe.data.group_by_aspect_ratio and geometry != "shorter_side":
        raise ConfigError(
            f"data.group_by_aspect_ratio is true, but with augmentation.geometry {geometry} all inputs have one size "
            "and no padding to save. Set it to false, or augmentation.geometry to shorter_side."
        )
    split_on_most_workers(recipe)
    check_deepspeed(recipe.engine)


def check_run_name(name: str) -> None:
    """Refuse a name that is not a path inside `run.folder`, or that breaks the lines it is printed on.

    Any alphabet is fine, and so are slashes, which make folders in folders.

    Raises:
        ConfigError: names the part that cannot be used.
    """
    if not name:
        return
    # Control characters, line and paragraph separators, halves of surrogate pairs.
    if broken := [sign for sign in name if unicodedata.category(sign) in ("Cc", "Zl", "Zp", "Cs")]:
        raise ConfigError(
            f"run.name {name!r} contains {broken[0]!r}, a line break or control character. Choose a name without it."
        )
    parts = name.split("/")
    if any(part.strip() in ("", ".", "..") for part in parts):
        raise ConfigError(
            f"run.name {name!r} is not a path inside run.folder: it must not start or end with a slash, nor contain "
            f"empty parts, . or .. between slashes. Choose another name, and set the place with run.folder."
        )
    if long := [part for part in parts if len(part.encode()) > _LONGEST_NAME]:
        raise ConfigError(
            f"run.name contains {len(long[0].encode())} bytes between slashes; a folder's name may have "
            f"{_LONGEST_NAME}. Choose a shorter one."
        )


def split_on_most_workers(recipe: Recipe) -> BatchSplit:
    """Divide the batch among the workers, the largest possible number of them if it is elastic.

    Raises:
        ClusterError: the workers cannot share the batch equally.
    """
    cluster, batch = recipe.cluster, recipe.batch
    workers = max(dividing_worlds(batch.global_size, cluster)) if cluster.elastic else cluster.max_workers
    return split_batch(batch.global_size, workers, batch.microbatch_limit)


def _check_shards(split: DataSplit) -> None:
    """Compare shards in a folder with their manifest; a node compares shards of S3 when it fetches them."""
    if split.store.local_path("manifest.json") is not None:
        split.shards().verify()


def _warn_of_empty_images(split: DataSplit) -> None:
    """Say that a training of pose has images without an object, which the published one leaves out."""
    if split.manifest.source.empty_images == "drop":
        return
    shards = split.shards()
    # Samples are in random order, so that one shard of a bucket tells as much as a download from each of them.
    read = range(len(split.manifest.shards)) if split.store.local_path("manifest.json") is not None else range(1)
    boxes = [np.diff(shards.index(number).row_splits) for number in read]
    shards.close()
    images, empty = sum(map(len, boxes)), sum(int((counts == 0).sum()) for counts in boxes)
    if empty:
        part = "" if images == split.manifest.num_samples else "the first "
        console.say(
            "warning",
            f"{empty:,} of {part}{counted(images, 'image')} in {split.location} have no object, and the published "
            f"training of pose leaves such images out: build the split with --empty-images drop.",
        )


def _difference(found: Sequence[CocoClass], expected: Sequence[CocoClass]) -> str:
    """Say in a few words what differs between two lists of classes."""
    if [item.name for item in found] != [item.name for item in expected]:
        return f"{_names(found)} instead of {_names(expected)}"
    if renumbered := [(one, other) for one, other in zip(found, expected, strict=True) if one.id != other.id]:
        one, other = renumbered[0]
        return f"{one.name} has id {one.id} instead of {other.id}{_more(renumbered)}"
    changed = [(one, other) for one, other in zip(found, expected, strict=True) if one != other]
    one, other = changed[0]
    if one.keypoints != other.keypoints:
        return (
            f"{one.name} has the joints {', '.join(one.keypoints) or 'none'} instead of "
            f"{', '.join(other.keypoints) or 'none'}{_more(changed)}"
        )
    return f"{one.name} has other lines between its joints (skeleton){_more(changed)}"


def _names(classes: Sequence[CocoClass]) -> str:
    names = [item.name for item in classes]
    return ", ".join(names[:6]) + (f", … ({len(names)} in all)" if len(names) > 6 else "")


def _more(differing: Sequence[object]) -> str:
    return f" ({counted(len(differing) - 1, 'more class')})" if len(differing) > 1 else ""


def check_input_size(recipe: Recipe, detector: Detector) -> None:
    """Refuse an input that the network cannot halve as often as it does.

    Raises:
        ConfigError: with the nearest size that it can.
    """
    for name, size in (("data", recipe.data.input_size), ("evaluation", recipe.evaluation.input_size)):
        if size and not detector.sizes.fits(*size):
            height, width = detector.sizes.nearest(*size)
            raise ConfigError(
                f"{name}.input_size is {list(size)}; {recipe.detector.name} needs {detector.sizes}, such as "
                f"{height} {width}."
            )


def _check_max_objects(recipe: Recipe, detector: Detector) -> None:
    """Refuse a number of boxes that was raised in vain: the detector would leave the rest out without a word."""
    places = detector.max_objects
    if places is not None and recipe.data.max_objects > max(places, DataSettings.max_objects):
        raise ConfigError(
            f"data.max_objects is {recipe.data.max_objects}, but {recipe.detector.name} trains on the first {places} "
            f"boxes of an image: set data.max_objects to {places}, or detector.settings.max_objects to "
            f"{recipe.data.max_objects}."
        )


def _check_labels(recipe: Recipe, detector: Detector, manifest: Manifest) -> None:
    """Let the detector refuse data that lacks what it learns, such as joints, by encoding an image without objects."""
    empty = BatchArrays.empty(np.zeros(1, dtype=np.int64), recipe.data.input_size, 1, augmented=True, manifest=manifest)
    batch = Batch.over(empty, 0, 0)
    detector.encode(batch.boxes, batch.labels, batch.input_size, **batch.extra)
    if recipe.augmentation.rotation_probability and not detector.takes_rotated_images:
        raise ConfigError(
            f"augmentation.rotation_probability is {recipe.augmentation.rotation_probability:g}, which is for pose: "
            f"{recipe.detector.name} would learn boxes of the unturned image. Set it to 0."
        )


def check_before_submission(recipe: Recipe) -> None:
    """Refuse whatever can be known here to be wrong, before a training on another machine.

    Raises:
        ConfigError, ClusterError, DataError, DetectorError: as `check`; or a path that only this machine has.
    """
    _check_settings(recipe)
    check_places(recipe)
    if Path(recipe.data.train).is_dir():
        # The cluster's file system is mounted here, too. ImageNet's weights are fetched where the training runs.
        check(recipe, fresh=recipe.detector.weights != IMAGENET)
    else:
        # The number of classes is in the manifest, which this machine cannot read; any number will do for the checks.
        detector = detectors.build(recipe.detector.name, 80, **recipe.detector.settings)
        detector.freeze(recipe.detector.freeze)
        stage_factors(detector, recipe.optimizer)
        check_input_size(recipe, detector)
        _check_max_objects(recipe, detector)


def check_places(recipe: Recipe) -> None:
    """Refuse relative paths for a training on another machine.

    Raises:
        ConfigError: names the field.
    """
    for field, location in (
        ("run.folder", recipe.run.folder),
        ("data.train", recipe.data.train),
        ("data.validation", recipe.data.validation),
        ("detector.weights", "" if recipe.detector.weights == IMAGENET else recipe.detector.weights or ""),
        ("data.cache_folder", recipe.data.cache_folder),
        ("checkpoint.location", recipe.checkpoint.location),
    ):
        if location and "://" not in location and not Path(location).is_absolute():
            raise ConfigError(
                f"{field} {location!r} is relative to a folder of this machine, which the cluster does not see: give "
                f"s3://… or the absolute path of a file system that every node mounts."
            )


def check_run_folder_stays(folder: Path) -> None:
    """Refuse a run's folder that Ray would delete.

    Raises:
        ConfigError: with the setting to change.
    """
    # Ray unpacks a job's working directory there, and deletes it some time after the job.
    if "runtime_resources/working_dir_files/" in str(folder):
        raise ConfigError(
            "run.folder is relative to the working directory of a submitted job, which Ray deletes: give --run.folder "
            "the absolute path of a file system that every node mounts."
        )


def check_run_folder(folder: Path) -> None:
    """Refuse a run's folder that cannot be written; make it if it does not exist.

    Raises:
        ConfigError: with the cause.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"run folder {folder} cannot be written: {error.strerror}; set --run.folder to another folder."
        ) from error


def with_earlier_order(recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
    """Return the recipe without grouping by aspect ratio if the checkpoint is of a version that did not group.

    FCOS's recipes group today. A run that was begun without continues without, or it would repeat some samples of the
    epoch and skip others.
    """
    if not recipe.data.group_by_aspect_ratio or not was_begun_ungrouped(facts_of(checkpoint)):
        return recipe
    return replace(recipe, data=replace(recipe.data, group_by_aspect_ratio=False))


def check_same_settings(recipe: Recipe, checkpoint: Checkpoint, name: str) -> None:
    """Refuse to resume from a checkpoint with settings that would train something else.

    Raises:
        ConfigError: names each field with its old and new value.
    """
    # Read as a recipe first: a field that the checkpoint's version did not have takes its default.
    changed = differences(to_dict(from_dict(facts_of(checkpoint).recipe)), to_dict(recipe))
    if changed:
        raise ConfigError(
            f"run {name} was started with other settings ({'; '.join(changed)}). Use the earlier ones, or choose "
            f"another --run.name."
        )
