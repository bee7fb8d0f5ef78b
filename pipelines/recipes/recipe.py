"""Recipes as values: read from YAML or a checkpoint, changed by flags, written beside the run.

A recipe starts as a function in `pipelines.recipes` or as a YAML file, is changed by flags, and ends as YAML that can
be read again. YAML and flags go through the same validation, so both fail with the same words.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from cluster.errors import ClusterError
from data_shards.addresses import shown_address
from data_shards.errors import DataError
from pipelines.errors import ConfigError
from pipelines.hints import did_you_mean
from pipelines.recipes.secrets import without_secrets
from pipelines.recipes.settings import IMAGENET, Recipe

# Fields that may change between two attempts of one run, because they do not decide what is learnt. (A different number
# of workers groups the images of BatchNorm differently; samples, schedule and global batch stay the same.)
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
    # They decide when training ends, and a run that they ended can train on.
    "schedule.patience",
    "schedule.min_improvement",
    "engine.zero_stage",
    "engine.not_finite",
    "cluster",
    "evaluation",
    "checkpoint",
    "tracking",
    "run",
)

# Fields that are part of a derived run name only if they are set, because earlier versions did not have them.
_NEWER_FIELDS = (
    "detector.match_classes",
    "detector.freeze",
    "optimizer.layer_decay",
    "optimizer.stage_learning_rate_factors",
    "engine.gradient_exchange",
    "engine.tf32",
    "engine.deterministic",
)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Convert a recipe to plain YAML and JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def to_yaml(recipe: Recipe) -> str:
    """Write the resolved recipe as YAML, which `from_yaml` and `aweigh train FILE.yaml` read."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True, width=100)


def from_yaml(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        ConfigError: the file is missing or is not YAML, or a field is unknown or has a wrong value.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"recipe {path} cannot be read: {error.strerror}. Give the path of a YAML file, or one of `aweigh recipes`."
        ) from error
    except (RecursionError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"recipe {path} is not YAML in UTF-8, or is nested too deeply. Correct it; `aweigh recipe show demo` "
            "prints an example."
        ) from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(
            f"recipe {path} is not YAML: {problem}. Correct it; `aweigh recipe show demo` prints an example."
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {path} must be fields and values, as `aweigh recipe show demo` prints them.")
    return from_dict(values, where=f"recipe {path}: ")


def from_dict(values: Mapping[str, Any], where: str = "") -> Recipe:
    """Validate plain values into a recipe. Secrets in its addresses move to the environment (`secrets.py`).

    Args:
        values: fields by name, in groups.
        where: start of the error message, such as the file's path.

    Raises:
        ConfigError: a field is unknown or has a wrong value.
    """
    import pydantic

    try:
        return without_secrets(_adapter().validate_python(dict(values)))
    except pydantic.ValidationError as error:
        raise ConfigError(where + shown_address(_explain(error))) from error
    except RecursionError as error:
        raise ConfigError(f"{where}the values are nested too deeply. Correct them.") from error
    except (ClusterError, DataError) as error:
        raise ConfigError(f"{where}{error}") from error


@functools.cache
def _adapter() -> Any:
    """Return pydantic's validator of a recipe, which takes a third of a second to build."""
    import pydantic

    return pydantic.TypeAdapter(Recipe)


def with_flags(recipe: Recipe, flags: Sequence[str]) -> Recipe:
    """Change a recipe by `--field.subfield value` flags.

    Several values make a list (`--schedule.drops_at 90 120`), `--field=value` works too, and a dash in a name counts
    as an underscore. A flag below `detector.settings` or `engine.deepspeed` may name any key.

    Raises:
        ConfigError: a flag is unknown, lacks its value, or its value does not fit.
    """
    values = to_dict(recipe)
    for name, words in _grouped(flags):
        _set(values, name, words)
    return from_dict(values)


def as_flags(values: Mapping[str, Any], prefix: str) -> list[str]:
    """Write settings as the flags that set them, the inverse of `with_flags`."""
    flags: list[str] = []
    for name, value in values.items():
        # One word is read as a single value, so a list of one needs its brackets.
        words = value if isinstance(value, list) and len(value) > 1 else [value]
        flags += [f"--{prefix}.{name}", *(_as_word(word) for word in words)]
    return flags


def _as_word(value: Any) -> str:
    """Write a value so that YAML reads it back."""
    # Inside a list, because YAML ends a bare value with a line of dots.
    return yaml.safe_dump([value], default_flow_style=True, width=float("inf")).strip()[1:-1]


def fields(kind: type = Recipe, prefix: str = "") -> dict[str, Any]:
    """Return the type of every settable field by its dotted name."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for one in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[one.name]):
            found |= fields(hints[one.name], f"{prefix}{one.name}.")
        else:
            found[prefix + one.name] = hints[one.name]
    return found


def field_help() -> list[tuple[str, str, str]]:
    """Return name, default and meaning of every field; the meanings are the strings below the fields."""
    schema = _adapter().json_schema()
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


def section_help() -> dict[str, str]:
    """Return the meaning of every group of fields, from the docstrings of the settings."""
    hints = typing.get_type_hints(Recipe)
    return {name: inspect.getdoc(kind) or "" for name, kind in hints.items() if dataclasses.is_dataclass(kind)}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted name."""
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
    """Return the run's name: as given, or the recipe's name with a digest of what it computes."""
    if recipe.run.name:
        return recipe.run.name
    decided = {name: value for name, value in flatten(to_dict(recipe)).items() if not _is_free(name)}
    # Earlier versions had no such fields, and the same command must find their runs.
    del decided["data.resizing"], decided["data.group_by_aspect_ratio"]
    defaults = flatten(to_dict(Recipe(recipe="")))
    for name in _NEWER_FIELDS:
        if decided.get(name) == defaults[name]:
            del decided[name]
    # The data is part of what a run computes, though a resumed run may find it elsewhere.
    decided["data.train"] = recipe.data.train
    return f"{recipe.recipe}-{hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:6]}"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """List the fields that decide what is learnt and differ between two recipes, as "field: was → is"."""
    old, new = flatten(before), flatten(after)
    return [
        f"{name}: {old.get(name)} → {new.get(name)}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name) and not _is_free(name)
    ]


def decides_what_is_learnt(name: str) -> bool:
    """True for a field that must stay the same when a run resumes."""
    return not _is_free(name)


def flag_names(flags: Sequence[str]) -> set[str]:
    """Return the names of the fields that flags set.

    Raises:
        ConfigError: a word is not a flag and follows none.
    """
    return {name for name, _ in _grouped(flags)}


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
        raise ConfigError(f"unknown field --{name}; {_nearest(name, '--{}')}")
    if not words:
        raise ConfigError(f"--{name} needs a value; {name} is {flatten(values).get(name)!r} now.")
    kind = known[owner]
    value: Any = words[0] if len(words) == 1 else words
    if name != owner or not _takes_text(kind):
        try:
            parsed = [_value(word) for word in words]
        except yaml.YAMLError:
            raise ConfigError(
                f"--{name} {' '.join(words)!r} is not a YAML value; give a number, a word, or a list such as [90, 120]."
            ) from None
        value = parsed[0] if len(parsed) == 1 else parsed
    if _is_tuple(kind) and name == owner and value is not None and not isinstance(value, list):
        value = [value]
    path = name.split(".")
    node = values
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(
                f"--{name}: {part} is a value, not a group of fields; set --{name.partition('.' + part)[0]}.{part}."
            )
    node[path[-1]] = value


def _value(word: str) -> Any:
    """Read a word as a YAML value."""
    # YAML 1.1 takes 1e-3 for text, because it has no point; a detector's settings have no type that would convert it.
    return float(word) if re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", word) else yaml.safe_load(word)


def _is_tuple(kind: Any) -> bool:
    """Return True for a tuple and for an optional tuple."""
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    return any(typing.get_origin(option) is tuple for option in options)


def _takes_text(kind: Any) -> bool:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_takes_text(option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return any(isinstance(option, str) for option in typing.get_args(kind))
    return kind is str


def _nearest(name: str, form: str) -> str:
    return did_you_mean(name, fields(), "`aweigh train --fields` lists them.", form=form, cutoff=0.4)


def _explain(error: Any) -> str:
    """Describe the first problem of a pydantic ValidationError in our words."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown field {name}; {_nearest(name, '{}')}"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "missing" and isinstance(first["loc"][-1], int):
        return f"{name.rpartition('.')[0]} is {list(first['input'])}; it takes more values than that."
    if first["type"] == "too_long":
        return f"{name} is {list(first['input'])}; it takes {first['ctx']['max_length']} values."
    if first["type"] in ("missing", "missing_argument"):
        return f"{name} is missing; add it."
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{name} is {first['input']!r}: {message}."
