"""A trained detector with all that its use needs: weights, classes, settings, thresholds and identity."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import detectors
from data_shards.counting import counted
from data_shards.format.manifest import CocoClass, Manifest, coco_class
from detectors import Detector
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import differences, from_dict, to_dict, with_flags
from pipelines.recipes.settings import Recipe
from pipelines.tracking import tracking_uri
from pipelines.tracking.models import download_weights
from pipelines.trained.checkpoint_facts import facts_of
from pipelines.trained.exported_file import is_exported, open_exported
from pipelines.trained.find import find_checkpoint
from pipelines.trained.weights_file import (
    Description,
    described,
    find_description,
    no_description,
    open_detector,
)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The origin of a trained detector; every file that is made with it records this."""

    location: str
    """The checkpoint or the file that was opened, as people would write it."""
    run: str = ""
    """Name of the run; empty if the file does not say."""
    step: int = 0
    """Optimizer steps that were trained; 0 if the file does not say."""
    mlflow_run: str = ""
    """Id of the run in MLflow; empty if there is none."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained detector, ready to use."""

    detector: Detector
    """In evaluation mode, on `device`."""
    classes: tuple[CocoClass, ...]
    """In the order of the labels."""
    recipe: Recipe
    """Its `data` and `evaluation` say how images are shown to the detector."""
    identity: Identity
    device: torch.device
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Score of the best F1 of each class, by the class's name, in the run's evaluation; empty if it is unknown."""

    def describe(self) -> Description:
        """Describe the weights, for a file that holds them."""
        return described(
            self.recipe,
            self.classes,
            run=self.identity.run,
            step=self.identity.step,
            mlflow_run=self.identity.mlflow_run,
            thresholds=self.thresholds,
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return tuple(one.name for one in self.classes)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input, in pixels, for geometries with a fixed one."""
        return self.recipe.evaluation.input_size or self.recipe.data.input_size


def open_trained(
    source: str | Path, *, flags: Sequence[str] = (), newest: bool = False, device: torch.device | None = None
) -> Trained:
    """Open a trained detector.

    Args:
        source: a run's folder (its best checkpoint), a checkpoint's, a weights file that describes itself, an
            exported file, or the address of a registered model, such as models:/cells@champion.
        flags: fields of the recipe to change, as on the command line: those of `data` and `evaluation`; `tracking.uri`
            names the MLflow that has the model.
        newest: of a run, take the newest checkpoint instead of the best.
        device: where the network runs; None takes a GPU if there is one and the recipe allows it.

    Raises:
        ConfigError: there is no trained detector, a file does not describe its detector, or a flag belongs to the
            trained weights.
        DetectorError: the weights do not fit the detector.
    """
    path = Path(source)
    if newest and (path.is_file() or is_model_address(source)):
        raise ConfigError(f"newest (--newest) chooses among the checkpoints of a run, unlike {source}; leave it out.")
    if is_exported(source):
        return _open_file(path, flags, device)
    if is_model_address(source):
        opened = _open_model(str(source), flags)
    elif path.is_file():
        opened = _open_weights_file(path, flags)
    else:
        opened = _open_checkpoint(path, flags, newest)
    device = device or default_device(opened.recipe)
    return replace(opened, detector=opened.detector.to(device).eval(), device=device)


def _open_checkpoint(path: Path, flags: Sequence[str], newest: bool) -> Trained:
    checkpoint = find_checkpoint(path, newest)
    facts = facts_of(checkpoint)
    recipe = with_evaluation_flags(from_dict(facts.recipe), flags)
    classes = tuple(coco_class(one) for one in facts.classes)
    detector = detectors.build(recipe.detector.name, len(classes), **recipe.detector.settings)
    detector.load_state_dict(checkpoint.weights())
    return Trained(
        detector=detector,
        classes=classes,
        recipe=recipe,
        identity=Identity(
            location=str(checkpoint.path), run=facts.run, step=checkpoint.step, mlflow_run=facts.mlflow_run
        ),
        device=torch.device("cpu"),
        thresholds=facts.thresholds,
    )


def _open_weights_file(path: Path, flags: Sequence[str]) -> Trained:
    found = find_description(path)
    if found is None or not found.classes:
        raise no_description(path, found)
    recipe = with_evaluation_flags(found.as_recipe(str(path)), flags)
    return Trained(
        detector=open_detector(path, found),
        classes=found.classes,
        recipe=recipe,
        identity=Identity(location=str(path), run=found.run, step=found.step, mlflow_run=found.mlflow_run),
        device=torch.device("cpu"),
        thresholds=found.thresholds,
    )


def _open_model(address: str, flags: Sequence[str]) -> Trained:
    uri = tracking_uri(with_flags(Recipe(recipe="models"), flags))
    with tempfile.TemporaryDirectory() as folder:
        path, exact = download_weights(uri, address, Path(folder))
        opened = _open_weights_file(path, flags)
    # With the version: an alias may point to another one tomorrow.
    return replace(opened, identity=replace(opened.identity, location=exact))


def is_model_address(source: str | Path) -> bool:
    """Return True for the address of a model in MLflow, such as models:/cells@champion."""
    return str(source).startswith("models:")


def _open_file(path: Path, flags: Sequence[str], device: torch.device | None) -> Trained:
    detector, used_device = open_exported(path, device)
    description = detector.description
    recipe = with_evaluation_flags(description.whole_recipe, flags)
    size, geometry = description.input.fixed_size, recipe.evaluation.geometry
    if size and geometry in ("keep", "shorter_side"):
        raise ConfigError(
            f"{path} takes only images of {size[0]} x {size[1]} pixels, but evaluation.geometry is {geometry}, whose "
            "inputs differ in size. Set it to fixed, or export the run again with --dynamic."
        )
    origin = description.identity
    return Trained(
        detector=detector.eval(),
        classes=description.classes,
        recipe=recipe,
        identity=Identity(location=str(path), run=origin.run, step=origin.step, mlflow_run=origin.mlflow_run),
        device=used_device,
        thresholds=description.thresholds,
    )


def check_classes(trained_by: str, theirs: Sequence[CocoClass], manifest: Manifest) -> None:
    """Refuse shards whose class list differs from that of a trained detector.

    Args:
        trained_by: the checkpoint or file, as the message names it.
        theirs: classes of the detector.
        manifest: of the shards.

    Raises:
        ConfigError: names the first class that differs.
    """
    ours = manifest.classes
    if [(item.id, item.name) for item in theirs] == [(item.id, item.name) for item in ours]:
        return
    if len(theirs) != len(ours):
        what = f"{counted(len(theirs), 'class')}, the shards have {len(ours)}"
    else:
        old, new = next(
            (old, new) for old, new in zip(theirs, ours, strict=True) if (old.id, old.name) != (new.id, new.name)
        )
        what = f"class {old.id} {old.name!r} where the shards have {new.id} {new.name!r}"
    raise ConfigError(
        f"{trained_by} was trained with another class list: it has {what}. Use the shards that it was trained "
        f"for, or build these from the same class list."
    )


def with_evaluation_flags(recorded: Recipe, flags: Sequence[str]) -> Recipe:
    """Change the fields of a recipe that may differ from those that the weights were trained with.

    Raises:
        ConfigError: a flag is unknown, or belongs to the trained weights.
    """
    recipe = with_flags(recorded, flags)
    allowed = ("data.", "evaluation.", "cluster.device")
    if fixed := [line for line in differences(to_dict(recorded), to_dict(recipe)) if not line.startswith(allowed)]:
        raise ConfigError(f"{fixed[0]} belongs to the trained weights; set only data.* and evaluation.* here.")
    return recipe


def default_device(recipe: Recipe) -> torch.device:
    """Return the GPU if there is one and the recipe allows it, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() and recipe.cluster.device != "cpu" else "cpu")
