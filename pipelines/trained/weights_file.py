"""Weights files that describe themselves: the detector, its settings and classes, how images are shown to it, its run.

A file alone rebuilds its detector. The description is JSON in the file (`detectors.weights.description`), and untrusted
like the rest of it. Places of the machine that trained, and with them all secrets, stay out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import detectors
import detectors.weights.published
from data_shards.format.manifest import CocoClass, coco_class
from detectors import Detector
from detectors.weights.description import KEY, read_description
from pipelines.errors import ConfigError
from pipelines.files import read_json, replacing
from pipelines.recipes.recipe import from_dict, to_dict
from pipelines.recipes.settings import Recipe
from pipelines.trained.checkpoint_facts import CheckpointFacts

_FORMAT = 1
_PLACES = ("train", "validation", "cache_folder")
"""Fields of `data` that name places of one machine."""
_OF_A_CHECKPOINT = ("weights.safetensors", "ema.safetensors")


@dataclass(frozen=True, kw_only=True)
class Description:
    """All that rebuilds and uses a detector, except its weights."""

    detector: str
    """Name of the detector."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Its settings, as `detector.settings` of a recipe."""
    num_classes: int
    """0 in files of earlier versions that do not record it, which have the publication's."""
    classes: tuple[CocoClass, ...] = ()
    """In the order of the labels; empty if their names are unknown."""
    recipe: str = ""
    """Name of the recipe."""
    data: dict[str, Any] = field(default_factory=dict)
    """Fields of the recipe's `data`, without places."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """Fields of the recipe's `evaluation`."""
    run: str = ""
    """Name of the run; empty if the weights are not of a run of ours."""
    step: int = 0
    """Optimizer steps that were trained."""
    mlflow_run: str = ""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Score of the best F1 of each class, by its name; empty if it is unknown."""
    source: str = ""
    """Name of the file that the weights were imported from."""

    def to_json(self) -> str:
        """Return the text that `parse_description` reads."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True)

    def as_recipe(self, where: str) -> Recipe:
        """Return a recipe that shows images to the detector as its own did; its other fields have defaults.

        Args:
            where: the file, for errors.

        Raises:
            ConfigError: a field has a wrong value, or is of a later version.
        """
        values = {
            "recipe": self.recipe or "weights",
            "detector": {"name": self.detector, "settings": self.settings},
            "data": self.data,
            "evaluation": self.evaluation,
        }
        return from_dict(values, where=f"{where} describes its detector with other fields than this version has: ")


def described(
    recipe: Recipe,
    classes: Sequence[CocoClass],
    *,
    run: str = "",
    step: int = 0,
    mlflow_run: str = "",
    thresholds: Mapping[str, float] | None = None,
) -> Description:
    """Describe the weights of a recipe's detector."""
    values = to_dict(recipe)
    return Description(
        detector=recipe.detector.name,
        settings=dict(recipe.detector.settings),
        num_classes=len(classes),
        classes=tuple(classes),
        recipe=recipe.recipe,
        data={name: value for name, value in values["data"].items() if name not in _PLACES},
        evaluation=values["evaluation"],
        run=run,
        step=step,
        mlflow_run=mlflow_run,
        thresholds=dict(thresholds or {}),
    )


def described_by_facts(facts: CheckpointFacts, step: int) -> Description:
    """Describe the weights of a checkpoint."""
    classes = [coco_class(one) for one in facts.classes]
    return described(
        from_dict(facts.recipe),
        classes,
        run=facts.run,
        step=step,
        mlflow_run=facts.mlflow_run,
        thresholds=facts.thresholds,
    )


def find_description(path: Path) -> Description | None:
    """Return the description of a weights file; None if it has none.

    A file inside a checkpoint of a version that did not describe its files is described by its checkpoint, and one that
    such a version imported by the little that it wrote, which lacks the classes.

    Raises:
        ConfigError: the description is damaged, or of a later version.
        DetectorError: it is too large, or not text.
    """
    if text := read_description(path):
        return parse_description(text, str(path))
    if path.name in _OF_A_CHECKPOINT and (state := read_json(path.parent / "state.json")):
        try:
            return described_by_facts(CheckpointFacts.from_dict(state), int(state["step"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path.parent / 'state.json'} does not describe {path.name} ({error!r}). Choose another checkpoint."
            ) from error
    return _of_an_earlier_import(path)


def parse_description(text: str, where: str) -> Description:
    """Read the JSON of a description.

    Args:
        text: untrusted.
        where: the file, for errors.

    Raises:
        ConfigError: it is damaged, or of a later version.
    """
    try:
        values = json.loads(text)
        if (version := int(values.pop("format"))) > _FORMAT:
            raise ConfigError(f"{where} is described in format {version}; this aweigh reads {_FORMAT}. Update aweigh.")
        # Fields that a later version of this format adds are additions: the detector is the same without them.
        known = {name: values[name] for name in Description.__dataclass_fields__ if name in values}
        found = Description(**known | {"classes": tuple(map(_class, known.get("classes", ())))})
        _check_types(found)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{where} describes its detector in another form than aweigh does ({type(error).__name__}: {error}). "
            f"Export or import the weights again."
        ) from error
    return found


def open_detector(path: Path, description: Description) -> Detector:
    """Build the detector that a file describes, with the weights of the file, on the CPU.

    Raises:
        DetectorError: the weights do not fit the description.
        ConfigError: the file lacks weights.
    """
    detector = detectors.build(description.detector, description.num_classes or None, **description.settings)
    load_whole(detector, path)
    return detector


def load_whole(detector: Detector, path: Path) -> None:
    """Load a weights file that has all of the detector.

    Raises:
        DetectorError: the file cannot be read, or does not fit.
        ConfigError: the file lacks weights.
    """
    receipt = detectors.weights.published.load(detector, path)
    if lacking := [key for key, reason in receipt.missing.items() if reason == "not in the file"]:
        raise ConfigError(
            f"{path} has no {lacking[0]}: it does not hold all of {detector.name}, so it cannot be used as one. Give a "
            f"file of the whole detector, and the --detector.settings it was trained with."
        )


def write_weights(detector: Detector, path: Path, description: Description, argument: str = "--output") -> None:
    """Write a .safetensors file that describes itself.

    Args:
        detector: its weights are written, from any device.
        path: replaced in one rename.
        description: of these weights.
        argument: names the path on the command line, for errors.

    Raises:
        ConfigError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    metadata = {
        KEY: description.to_json(),
        # What earlier versions read.
        "detector": description.detector,
        "num_classes": str(description.num_classes),
        "settings": json.dumps(description.settings),
        **({"source": description.source} if description.source else {}),
    }
    state = {name: value.detach().cpu().contiguous() for name, value in detector.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            save_file(state, unfinished, metadata)
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be written: {cause}. Choose another {argument}.") from error


def no_description(path: Path, found: Description | None) -> ConfigError:
    """Return the error for a file that cannot be used alone.

    Args:
        path: the file.
        found: its description, if it has one that lacks the classes.
    """
    if found is not None:
        return ConfigError(
            f"{path} names its detector, {found.detector}, but not its classes. Write it "
            f"again with `aweigh weights import {path} --classes-from SHARDS --output FILE.safetensors`."
        )
    return ConfigError(
        f"{path} does not say which detector its weights are of. Write a file that does with `aweigh weights import "
        f"{path} --detector NAME --output FILE.safetensors`, or `aweigh weights export RUN --output FILE.safetensors`."
    )


def _of_an_earlier_import(path: Path) -> Description | None:
    """Read the metadata that `weights import` wrote before it wrote descriptions."""
    if path.suffix != ".safetensors":
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
        if "detector" not in said:
            return None
        found = Description(
            detector=said["detector"],
            settings=json.loads(said.get("settings", "{}")),
            num_classes=int(said.get("num_classes", 0)),
            source=said.get("source", ""),
        )
        _check_types(found)
    except (SafetensorError, OSError):
        return None  # whoever loads the weights says what is wrong with the file
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} describes its detector in another form than `aweigh weights import` does. Import the original "
            f"file again."
        ) from error
    return found


def _class(item: Any) -> CocoClass:
    found = coco_class(item)
    if type(found.id) is not int or not isinstance(found.name, str):
        raise TypeError(f"class {item!r}")
    joints, lines = found.keypoints, found.skeleton
    if not all(isinstance(joint, str) for joint in joints):
        raise TypeError(f"the joints of class {found.name!r}")
    if not all(len(pair) == 2 and all(type(end) is int for end in pair) for pair in lines):
        raise TypeError(f"the skeleton of class {found.name!r}")
    return found


def _check_types(found: Description) -> None:
    """Raise TypeError or ValueError for a value that no writer of ours has written."""
    kinds: dict[str, type] = {
        **dict.fromkeys(("detector", "recipe", "run", "mlflow_run", "source"), str),
        **dict.fromkeys(("settings", "data", "evaluation", "thresholds"), dict),
        **dict.fromkeys(("num_classes", "step"), int),
    }
    for name, kind in kinds.items():
        if type(getattr(found, name)) is not kind:
            raise TypeError(f"{name} is {getattr(found, name)!r}")
    if found.classes and len(found.classes) != found.num_classes:
        raise ValueError(f"{found.num_classes} classes, but {len(found.classes)} names")
    if not all(type(score) in (int, float) and 0 <= score <= 1 for score in found.thresholds.values()):
        raise ValueError("a threshold is not from 0 to 1")
