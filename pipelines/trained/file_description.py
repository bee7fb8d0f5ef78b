"""The description inside an exported file: all that shows images to it and names what it finds.

Each field is JSON under its name: in the metadata of an ONNX file, or in the extra file of a `.pt2`. It may come from a
stranger, so every value is checked before it is used.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_shards.format.manifest import CocoClass
from detectors.detector import Preprocessing
from detectors.sizes import InputSizes, Multiples, OneLessThanMultiples
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import from_dict
from pipelines.recipes.settings import Recipe

FORMAT_VERSION = 1
"""Raise it when older versions of aweigh must not read new files; a new field with a default needs no new number."""
EXTRA_FILE = "metadata.json"
"""Name of the description inside a `.pt2` file."""

# Fields of a recipe that decide how images are shown and results are measured. Others name places on the machine that
# trained, or have nothing to do with a trained detector.
_DATA_FIELDS = ("input_size", "max_objects", "crowd", "box_ends", "resizing")


@dataclass(frozen=True, kw_only=True)
class DescribedInput:
    """The image tensor that a file takes: (batch, 3, height, width), RGB, 0 to 255."""

    dtype: Literal["uint8", "float32"]
    batch: int | None = None
    """Images of a call; None for any number."""
    height: int | None = None
    """In pixels; None for any that fits `sizes`."""
    width: int | None = None
    least_side: int = 1
    """Least height and width of files that take any size."""

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width, if the file takes no other."""
        return None if self.height is None or self.width is None else (self.height, self.width)

    def __str__(self) -> str:
        batch = "any number of" if self.batch is None else self.batch
        size = f"{self.height} x {self.width} pixels" if self.fixed_size else "any size"
        return f"{batch} {'image' if self.batch == 1 else 'images'} of {size}, {self.dtype}"


@dataclass(frozen=True, kw_only=True)
class FileSizes:
    """Input sizes that the network takes; see `InputSizes`."""

    kind: Literal["multiples", "one_less_than_multiples"]
    divisor: int
    keeps_last_pixel: bool = False

    @classmethod
    def of(cls, sizes: InputSizes) -> "FileSizes":
        """Describe the sizes of a detector."""
        if isinstance(sizes, OneLessThanMultiples):
            return cls(kind="one_less_than_multiples", divisor=sizes.divisor, keeps_last_pixel=sizes.keeps_last_pixel)
        return cls(kind="multiples", divisor=sizes.divisor)

    def as_input_sizes(self) -> InputSizes:
        """Return the sizes, as a detector has them."""
        if self.kind == "multiples":
            return Multiples(self.divisor)
        return OneLessThanMultiples(self.divisor, self.keeps_last_pixel)


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """The border that the detector moves its boxes to, which a file that sees only an input cannot know."""

    to: Literal["input", "content", "photograph"] = "input"
    """input: the file does all. content: the part of the input that the photograph fills, as FCOS clips. photograph:
    the photograph inside a black border, as CornerNet clips."""
    last_pixel: float = 0.0
    """1 if boxes end on their last pixel."""
    drops_empty: bool = False
    """Leave out boxes without width or height."""


@dataclass(frozen=True, kw_only=True)
class FileIdentity:
    """The training that the weights come from."""

    run: str = ""
    step: int = 0
    mlflow_run: str = ""
    weights_sha256: str = ""
    """Of the weights by name; see `sha256_of`."""


@dataclass(frozen=True, kw_only=True)
class FileDescription:
    """The description; its fields are the keys of an ONNX file's metadata."""

    aweigh: int
    """Version of this form."""
    detector: str
    """Name of the detector."""
    precision: Literal["float32", "float16"]
    """Of the network; decoding is always in float32."""
    classes: tuple[CocoClass, ...]
    """In the order of the labels."""
    preprocessing: Preprocessing
    """Normalisation, which is part of the file; padding takes its mean."""
    input: DescribedInput
    outputs: tuple[str, ...]
    """Names of the outputs, in their order."""
    sizes: FileSizes
    strides: tuple[int, ...] = ()
    """Input pixels per cell of the network's maps."""
    limit: int
    """Detections of an image; unused places have label -1."""
    needs: tuple[str, ...] = ()
    """Annotations that the detector was trained with, beside boxes and classes."""
    box_corners: Literal["indexes", "edges"] = "indexes"
    clipping: Clipping = field(default_factory=Clipping)
    thresholds: dict[str, float] = field(default_factory=dict)
    """Score of the best F1 of each class, by the class's name."""
    recipe: dict[str, Any]
    """Parts of the recipe that say how images are shown and results are measured."""
    identity: FileIdentity = field(default_factory=FileIdentity)
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of what wrote the file, and the opset of ONNX."""

    def as_metadata(self) -> dict[str, str]:
        """Return each field as JSON by its name."""
        return {name: json.dumps(value, ensure_ascii=False) for name, value in self.as_dict().items()}

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def whole_recipe(self) -> Recipe:
        """The recipe; fields that the file does not carry have their defaults."""
        return from_dict(self.recipe, where="the recipe of the file: ")


def described_recipe(recipe: Recipe) -> dict[str, Any]:
    """Choose the fields of a recipe that a file carries: none of them is an address or a path."""
    values = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return {
        "recipe": recipe.recipe,
        "detector": {"name": recipe.detector.name, "settings": values["detector"]["settings"]},
        "data": {name: values["data"][name] for name in _DATA_FIELDS},
        "evaluation": values["evaluation"],
    }


def from_metadata(metadata: Mapping[str, Any], path: Path) -> FileDescription:
    """Read the description of a file.

    Args:
        metadata: texts by key; keys of others are left out.
        path: of the file, for messages.

    Raises:
        ConfigError: the file was not written by `aweigh export`, or by a later version, or is damaged.
    """
    names = {one.name for one in dataclasses.fields(FileDescription)}
    try:
        values = {name: json.loads(text) for name, text in metadata.items() if name in names}
    except (TypeError, ValueError, RecursionError):
        # Others use such names, too.
        values = {}
    return _parsed(values, path)


def _parsed(values: dict[str, Any], path: Path) -> FileDescription:
    import pydantic

    version = values.get("aweigh")
    if type(version) is not int:
        raise ConfigError(
            f"{path} was not written by `aweigh export`: it does not say which classes it finds and how images are "
            "shown to it. Export the run again, or use the file with the tool that wrote it."
        )
    if version > FORMAT_VERSION:
        raise ConfigError(
            f"{path} was written by a later aweigh: its form is {version}, this one reads {FORMAT_VERSION}. Update "
            "aweigh."
        )
    try:
        found: FileDescription = pydantic.TypeAdapter(FileDescription).validate_python(values)
        _check(found)
        _ = found.whole_recipe
    except (pydantic.ValidationError, RecursionError) as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) if isinstance(error, pydantic.ValidationError) else ""
        raise _damaged(path, f"{place or 'its nesting'} is not as `aweigh export` writes it") from error
    except (ConfigError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    return found


def _check(found: FileDescription) -> None:
    """Refuse numbers that would fail far from here.

    Raises:
        ValueError: with the field and its value.
    """
    counts = {
        "aweigh": found.aweigh,
        "limit": found.limit,
        "sizes.divisor": found.sizes.divisor,
        "input.batch": found.input.batch,
        "input.height": found.input.height,
        "input.width": found.input.width,
        "input.least_side": found.input.least_side,
    }
    for name, value in counts.items():
        if value is not None and not 1 <= value <= 1 << 24:
            raise ValueError(f"{name} is {value}")
    if (found.input.height is None) != (found.input.width is None):
        raise ValueError("its height is fixed and its width is not")
    if not found.classes:
        raise ValueError("it has no classes")
    if found.outputs[:3] != ("boxes", "scores", "labels"):
        raise ValueError(f"its outputs are {', '.join(found.outputs)}")
    if 0.0 in found.preprocessing.std or not found.preprocessing.scale:
        raise ValueError("its preprocessing divides by 0")


def _damaged(path: Path, what: str) -> ConfigError:
    return ConfigError(f"{path} is damaged, or was changed after `aweigh export`: {what}. Export the run again.")
