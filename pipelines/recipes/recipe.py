"""Recipes as values: read from YAML or a checkpoint, changed by flags, written beside the run.

A recipe starts as a function in `pipelines.recipes` or as a YAML file, is changed by flags, and ends as YAML that can
be passed back. Both YAML and flags go through one validation, so they fail with the same words.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from cluster.errors import ClusterError
from data_shards.errors import DataError
from pipelines.errors import ConfigError
from pipelines.recipes.settings import IMAGENET, Recipe

# What may change between two attempts of one run: none of it is meant to change what is learnt. (Another number of
# workers groups the images of BatchNorm anew; samples, schedule and global batch stay.)
_FREE_TO_CHANGE = (
    "purpose",
    "data.train",
    "data.validation",
    "data.threads",
    "data.prefetch",
    "data.cache_folder",
    "data.cache_gb",
    "data.decoded_cache_gb",
    "data.undecodable",
    "data.read_timeout_seconds",
    "data.read_deadline_seconds",
    "engine.zero_stage",
    "engine.not_finite",
    "cluster",
    "evaluation",
    "checkpoint",
    "tracking",
    "run",
)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain YAML and JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe; `from_yaml` and `aweigh train FILE.yaml` take it back."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True, width=100)


def from_yaml(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        ConfigError: the file is missing or is not YAML, or a field is unknown or wrong.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"recipe {path} is not YAML: {problem}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {path} must be fields and values, such as `aweigh recipe show demo` prints.")
    return from_dict(values, where=f"recipe {path}: ")


def from_dict(values: Mapping[str, Any], where: str = "") -> Recipe:
    """Validate plain values into a recipe; `where` starts the error message."""
    import pydantic

    try:
        return pydantic.TypeAdapter(Recipe).validate_python(dict(values))
    except pydantic.ValidationError as error:
        raise ConfigError(where + _explain(error)) from error
    except (ClusterError, DataError) as error:
        raise ConfigError(f"{where}{error}") from error


def with_flags(recipe: Recipe, flags: Sequence[str]) -> Recipe:
    """The recipe changed by `--field.subfield value` flags.

    Several values make a list (`--schedule.drops_at 90 120`), `--field=value` works too, and a dash in a name counts
    as an underscore. A flag below `detector.settings` or `engine.deepspeed` may name any key.

    Raises:
        ConfigError: a flag is unknown (the nearest is named), lacks its value, or the value does not fit.
    """
    values = to_dict(recipe)
    for name, words in _grouped(flags):
        _set(values, name, words)
    return from_dict(values)


def fields(kind: type = Recipe, prefix: str = "") -> dict[str, Any]:
    """Every settable field by its dotted name, with its type."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for one in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[one.name]):
            found |= fields(hints[one.name], f"{prefix}{one.name}.")
        else:
            found[prefix + one.name] = hints[one.name]
    return found


def field_help() -> list[tuple[str, str, str]]:
    """Name, default and meaning of every field, from the strings under them."""
    import pydantic

    schema = pydantic.TypeAdapter(Recipe).json_schema()
    defaults = flatten(to_dict(Recipe(recipe="")))

    def walk(node: dict[str, Any], prefix: str) -> list[tuple[str, str, str]]:
        rows = []
        for name, entry in node["properties"].items():
            reference = entry.get("$ref") or (entry.get("allOf") or [{}])[0].get("$ref")
            if reference:
                rows += walk(schema["$defs"][reference.rsplit("/", 1)[1]], f"{prefix}{name}.")
            else:
                default = defaults.get(prefix + name)
                rows.append((prefix + name, "" if default is None else str(default), entry.get("description", "")))
        return rows

    return walk(schema, "")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def absolute(recipe: Recipe) -> Recipe:
    """Paths as every process finds them; workers do not share the driver's working directory."""

    def path(text: str) -> str:
        return text if not text or "://" in text else str(Path(text).expanduser().resolve())

    data = dataclasses.replace(
        recipe.data,
        train=path(recipe.data.train),
        validation=path(recipe.data.validation),
        cache_folder=path(recipe.data.cache_folder),
    )
    weights = recipe.detector.weights
    detector = dataclasses.replace(
        recipe.detector, weights=path(weights) if weights and weights != IMAGENET else weights
    )
    return dataclasses.replace(
        recipe,
        data=data,
        detector=detector,
        checkpoint=dataclasses.replace(recipe.checkpoint, location=path(recipe.checkpoint.location)),
        run=dataclasses.replace(recipe.run, folder=path(recipe.run.folder)),
    )


def run_name(recipe: Recipe) -> str:
    """The run's name: given, or the recipe's with a digest of what it computes."""
    if recipe.run.name:
        return recipe.run.name
    decided = {name: value for name, value in flatten(to_dict(recipe)).items() if not _is_free(name)}
    # The data is part of what a run computes, though a resumed run may find it elsewhere.
    decided["data.train"] = recipe.data.train
    return f"{recipe.recipe}-{hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:6]}"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Fields that decide what is learnt and differ between two recipes, as "field: was → is"."""
    old, new = flatten(before), flatten(after)
    return [
        f"{name}: {old.get(name)} → {new.get(name)}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name) and not _is_free(name)
    ]


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(free + ".") for free in _FREE_TO_CHANGE)


def _grouped(flags: Sequence[str]) -> list[tuple[str, list[str]]]:
    groups: list[tuple[str, list[str]]] = []
    for word in flags:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            groups.append((name.replace("-", "_"), [value] if equals else []))
        elif groups:
            groups[-1][1].append(word)
        else:
            raise ConfigError(f"{word!r} is not a flag; fields are set as --field.subfield value.")
    return groups


def _set(values: dict[str, Any], name: str, words: list[str]) -> None:
    known = fields()
    owner = next((one for one in known if name == one or name.startswith(one + ".")), None)
    if owner is None or (name != owner and typing.get_origin(known[owner]) is not dict):
        raise ConfigError(f"unknown field --{name}{_nearest(name, list(known))}")
    if not words:
        raise ConfigError(f"--{name} needs a value; {name} is {flatten(values).get(name)!r} now.")
    kind = known[owner]
    value: Any = words[0] if len(words) == 1 else words
    if name != owner or not _takes_text(kind):
        try:
            parsed = [yaml.safe_load(word) for word in words]
        except yaml.YAMLError:
            raise ConfigError(f"--{name} {' '.join(words)!r} is not a YAML value.") from None
        value = parsed[0] if len(parsed) == 1 else parsed
    if _is_tuple(kind) and name == owner and value is not None and not isinstance(value, list):
        value = [value]
    path = name.split(".")
    node = values
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--{name}: {part} is a value, not a group of fields.")
    node[path[-1]] = value


def _is_tuple(kind: Any) -> bool:
    """Also where there may be none."""
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    return any(typing.get_origin(option) is tuple for option in options)


def _takes_text(kind: Any) -> bool:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_takes_text(option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return any(isinstance(option, str) for option in typing.get_args(kind))
    return kind is str


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"; did you mean --{close[0]}?" if close else "; `aweigh train --fields` lists them."


def _explain(error: Any) -> str:
    """The first thing wrong in a pydantic ValidationError, in our words."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown field {name}{_nearest(name, list(fields())).replace('--', '', 1)}"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "missing" and isinstance(first["loc"][-1], int):
        return f"{name.rpartition('.')[0]} is {list(first['input'])}; it takes more values than that."
    if first["type"] == "too_long":
        return f"{name} is {list(first['input'])}; it takes {first['ctx']['max_length']} values."
    if first["type"] in ("missing", "missing_argument"):
        return f"{name} is missing."
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{name} is {first['input']!r}: {message}."
