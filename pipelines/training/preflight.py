"""`aweigh preflight`: check the cluster, the data and MLflow from the nodes that the workers will run on."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import ClusterError
from cluster.preflight import Cache, Finding, Probe, SharedFolder, examine, examine_gpus_here
from data_shards.counting import counted
from data_shards.reading.split import DataSplit
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import absolute, run_name
from pipelines.recipes.settings import IMAGENET, DataSettings, Recipe
from pipelines.tracking import tracking_uri


def preflight(recipe: Recipe, as_json: bool) -> bool:
    """Print the findings as a table or JSON; return True if nothing is wrong."""
    findings = _examine(recipe)
    if as_json:
        print(json.dumps({"ok": _is_fine(findings), "findings": [dataclasses.asdict(one) for one in findings]}))
    else:
        print(table(findings))
    return _is_fine(findings)


def before_training(recipe: Recipe, splits: Sequence[DataSplit]) -> None:
    """Check the nodes of a training on several, or the GPUs of one; print what needs attention.

    Raises:
        ClusterError: something would make the training fail, or lose it.
    """
    _heed(_examine(recipe, splits, only_several_nodes=True))


def check_gpus_here(recipe: Recipe) -> None:
    """Check the GPUs of this machine, if workers will use them; print what needs attention.

    Raises:
        ClusterError: torch cannot use them.
    """
    _heed(examine_gpus_here(recipe.cluster))


def _heed(findings: Sequence[Finding]) -> None:
    """Print what needs attention, and refuse what would make the training fail."""
    if not findings:
        return
    for finding in findings:
        if finding.verdict != "ok" or "all-reduce" in finding.check:
            console.say("preflight", f"{finding.check}: {finding.found}" + (f"; {finding.fix}" if finding.fix else ""))
    wrong = [one for one in findings if one.verdict == "wrong" and one.stops_training]
    if wrong:
        raise ClusterError(
            f"preflight: {wrong[0].check}: {wrong[0].found}. Fix: {wrong[0].fix}. "
            f"`aweigh preflight` shows all of it; --cluster.preflight false skips it."
        )
    warnings = sum(one.verdict != "ok" for one in findings)
    checks = counted(len(findings), "check")
    console.say("preflight", f"{checks}, {counted(warnings, 'warning')}" if warnings else f"all {checks} passed")


def table(findings: Sequence[Finding]) -> str:
    """Format a row for each check, with the fix below it if there is one."""
    width = max(len(one.check) for one in findings)
    lines = [f"{'check':<{width}}  verdict  found"]
    for one in findings:
        lines.append(f"{one.check:<{width}}  {one.verdict.upper() if one.verdict != 'ok' else 'ok':<7}  {one.found}")
        if one.fix:
            lines.append(f"{'':<{width}}           → {one.fix}")
    return "\n".join(lines)


def _is_fine(findings: Sequence[Finding]) -> bool:
    return all(one.verdict != "wrong" for one in findings)


def _examine(
    recipe: Recipe, splits: Sequence[DataSplit] | None = None, *, only_several_nodes: bool = False
) -> list[Finding]:
    recipe = absolute(recipe)
    folders, probes = _places(recipe)
    uri = tracking_uri(recipe)
    probes.append(
        Probe(
            "MLflow",
            functools.partial(read_tracking, uri),
            fix="start it, or correct tracking.uri; training would run and deliver its metrics later",
            everywhere=False,
            stops_training=False,
        )
    )
    found = examine(
        recipe.cluster,
        folders=folders,
        probes=probes,
        cache=_cache(recipe, splits),
        say=lambda line: console.say("preflight", line),
        only_several_nodes=only_several_nodes,
    )
    return [_sqlite(one, uri) if found.nodes > 1 else one for one in found.findings]


def _places(recipe: Recipe) -> tuple[list[SharedFolder], list[Probe]]:
    """Return the folders and services that every node reads or writes: run folder, checkpoints, shards, weights."""
    run, location = run_name(recipe), recipe.checkpoint.location
    folders = [SharedFolder("run folder", Path(recipe.run.folder) / run, "run.folder")]
    probes = [_data_probe(recipe, name, place) for name, place in _shards(recipe) if place]
    if "://" in location:
        fix = "give the nodes write access (AWS: an instance profile, or AWS_* variables of the job)"
        probes.append(Probe("checkpoints", functools.partial(write_data, f"{location.rstrip('/')}/{run}"), fix=fix))
    elif location:
        folders.append(SharedFolder("checkpoints", Path(location) / run, "checkpoint.location"))
    weights = recipe.detector.weights
    if weights and weights != IMAGENET and "://" not in weights:
        fix = "put it on S3, or on a file system that every node mounts under this path"
        probes.append(Probe("weights", functools.partial(find_weights, weights), fix=fix))
    return folders, probes


def _shards(recipe: Recipe) -> list[tuple[str, str]]:
    return [("data.train", recipe.data.train), ("data.validation", recipe.data.validation)]


def _data_probe(recipe: Recipe, name: str, location: str) -> Probe:
    fix = (
        "give the nodes read access (AWS: an instance profile, or AWS_* variables of the job), and check the location"
        if "://" in location
        else "put the shards on S3, or on a file system that every node mounts under this path"
    )
    return Probe(name, functools.partial(read_data, recipe.data, location), fix=fix)


def read_data(data: DataSettings, location: str) -> str:
    """Read the manifest of shards and look for the first shard; runs on a node.

    Raises:
        DataError: one of them cannot be read.
    """
    split = data.split(location)
    manifest = split.manifest
    shard = manifest.shards[0].name
    if not split.store.exists(shard):
        from data_shards.errors import DataError

        raise DataError(f"{location} has a manifest, but its first shard {shard} is missing")
    return f"{location}, {manifest.num_samples:,} images, manifest {manifest.digest[:6]}"


def find_weights(path: str) -> str:
    """Look for a file of weights; runs on a node.

    Raises:
        ConfigError: the file does not exist.
    """
    if not Path(path).is_file():
        raise ConfigError(f"there is no file {path} on this node")
    return f"{path}, {Path(path).stat().st_size:,} bytes"


def write_data(location: str) -> str:
    """Write a small object and delete it; runs on a node.

    Raises:
        DataError: the location cannot be written.
    """
    from data_shards.storage.open import open_store

    open_store(location).check_writable()
    return f"{location}, writable"


def read_tracking(uri: str) -> str:
    """Ask MLflow for an experiment; runs on the node of rank 0, the only one that tracks.

    Raises:
        ConfigError: MLflow does not answer.
    """
    from data_shards.addresses import shown_address
    from pipelines.tracking.mlflow_client import cause, open_client, quiet_retries

    try:
        with quiet_retries():
            open_client(uri).search_experiments(max_results=1)
    except Exception as error:
        raise ConfigError(f"{shown_address(uri)} does not answer: {cause(error, uri)}") from None
    return f"{shown_address(uri)} answers"


def _sqlite(finding: Finding, uri: str) -> Finding:
    """Warn about a database file: it answers, but it does not replace a tracking server for several machines."""
    if finding.check != "MLflow" or finding.verdict != "ok" or not uri.startswith("sqlite"):
        return finding
    return dataclasses.replace(
        finding,
        verdict="warn",
        found=f"{uri}, a file; locks of SQLite do not hold on every network file system",
        fix="run `mlflow server` and set tracking.uri, or MLFLOW_TRACKING_URI, to its address",
    )


def _cache(recipe: Recipe, splits: Sequence[DataSplit] | None) -> Cache | None:
    """Return the disk space needed for shards that are fetched; None if all are read in place."""
    from data_shards.storage.node_cache import default_cache_folder

    if splits is None:
        splits = [recipe.data.split(location) for _, location in _shards(recipe) if "://" in location]
    shards = [shard.bytes for split in splits if "://" in split.location for shard in split.manifest.shards]
    if not shards:
        return None
    folder = recipe.data.cache_folder or str(default_cache_folder())
    return Cache(folder=folder, whole_bytes=sum(shards), least_bytes=4 * max(shards))
