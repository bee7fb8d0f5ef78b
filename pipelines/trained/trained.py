"""A trained detector with all that its use needs: weights, classes, settings, thresholds and identity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

import detectors
from data_shards.counting import counted
from data_shards.format.manifest import CocoClass, Manifest, coco_class
from detectors import Detector
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import differences, from_dict, to_dict, with_flags
from pipelines.recipes.settings import Recipe
from pipelines.trained.checkpoint_facts import facts_of
from pipelines.trained.exported_file import is_exported, open_exported
from pipelines.trained.find import find_checkpoint


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
        source: a run's folder (its best checkpoint), a checkpoint's, or a file of `aweigh export`.
        flags: fields of the recipe to change, as on the command line: those of `data` and `evaluation`.
        newest: of a run, take the newest checkpoint instead of the best.
        device: where the network runs; None takes a GPU if there is one and the recipe allows it.

    Raises:
        ConfigError: there is no trained detector, or a flag belongs to the trained weights.
        DetectorError: the weights do not fit the detector.
    """
    if is_exported(source):
        return _open_file(Path(source), flags, device)
    checkpoint = find_checkpoint(Path(source), newest)
    facts = facts_of(checkpoint)
    recipe = with_evaluation_flags(from_dict(facts.recipe), flags)
    classes = tuple(coco_class(one) for one in facts.classes)
    device = device or default_device(recipe)
    detector = detectors.build(recipe.detector.name, len(classes), **recipe.detector.settings).to(device)
    detector.load_state_dict(checkpoint.weights())
    return Trained(
        detector=detector.eval(),
        classes=classes,
        recipe=recipe,
        identity=Identity(
            location=str(checkpoint.path), run=facts.run, step=checkpoint.step, mlflow_run=facts.mlflow_run
        ),
        device=device,
    )


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
