"""Loaders by location, for tests: options go to the split, the reading or the loader they belong to."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from data_shards.loading.evaluation_loader import EvaluationLoader
from data_shards.loading.training_loader import TrainingLoader
from data_shards.order.plan import Plan, World
from data_shards.reading.reading import Reading
from data_shards.reading.split import open_split
from detectors.sizes import Multiples

_OF_SPLIT = ("read_settings", "cache_folder", "cache_bytes")


def training_loader(location: str | Path, plan: Plan, world: World, **options: Any) -> TrainingLoader:
    """A `TrainingLoader` of the shards at a location."""
    options = {"sizes": Multiples(32), **options}
    return TrainingLoader(_reading(location, options), plan, world, **options)


def evaluation_loader(location: str | Path, world: World, **options: Any) -> EvaluationLoader:
    """An `EvaluationLoader` of the shards at a location, with all annotations unless `max_objects` is given."""
    options = {"max_objects": None, "sizes": Multiples(32), **options}
    return EvaluationLoader(_reading(location, options), world, **options)


def _reading(location: str | Path, options: dict[str, Any]) -> Reading:
    """The reading that some of the options describe; these are taken out."""
    split = open_split(location, **{name: options.pop(name) for name in _OF_SPLIT if name in options})
    names = [item.name for item in fields(Reading) if item.name in options]
    return Reading(split=split, **{name: options.pop(name) for name in names})
