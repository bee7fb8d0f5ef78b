"""A description survives both kinds of files, holds no place of the machine, and is checked when it is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.settings import CheckpointSettings
from detectors.sizes import Multiples, OneLessThanMultiples
from pipelines import recipes
from pipelines.errors import ConfigError
from pipelines.recipes.settings import DataSettings, DetectorSettings, Recipe, RunSettings, TrackingSettings
from pipelines.trained.file_description import FileSizes, described_recipe, from_metadata
from tests.pipelines.trained.tiny_files import description

PATH = Path("model.onnx")


def test_what_is_written_is_read() -> None:
    assert from_metadata(description().as_metadata(), PATH) == description()


def test_keys_of_others_are_left_out() -> None:
    assert from_metadata(description().as_metadata() | {"author": "somebody", "names": "{0: 'cat'}"}, PATH)


@pytest.mark.parametrize("sizes", [Multiples(32), OneLessThanMultiples(128), OneLessThanMultiples(64, True)])
def test_sizes_survive(sizes: Any) -> None:
    assert FileSizes.of(sizes).as_input_sizes() == sizes


def test_no_address_and_no_path_is_carried() -> None:
    place = "/home/somebody/place"
    recipe = Recipe(
        recipe="demo",
        purpose=place,
        detector=DetectorSettings(name="centernet_resnet18", weights=place, settings={"width": 24}),
        data=DataSettings(train=place, validation=place, cache_folder=place),
        checkpoint=CheckpointSettings(location="s3://somebody/place"),
        tracking=TrackingSettings(uri="http://somebody:5000"),
        run=RunSettings(name="somebody", folder=place),
    )
    assert "somebody" not in json.dumps(described_recipe(recipe))


@pytest.mark.parametrize("name", recipes.names())
def test_the_recipe_says_how_images_are_shown(name: str) -> None:
    recipe = recipes.get(name)
    read = from_metadata(description(recipe=described_recipe(recipe)).as_metadata(), PATH).whole_recipe
    assert read.evaluation == recipe.evaluation
    assert read.detector.settings == recipe.detector.settings
    for field in ("input_size", "box_ends", "resizing", "crowd"):
        assert getattr(read.data, field) == getattr(recipe.data, field)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("aweigh", 2, "was written by a later aweigh: its form is 2, this one reads 1. Update aweigh."),
        ("aweigh", "1", "was not written by `aweigh export`"),
        ("limit", 0, "limit is 0"),
        ("limit", "many", "limit is not as"),
        ("classes", [], "it has no classes"),
        ("classes", [{"id": 1}], "classes.0.name is not as"),
        ("input", {"dtype": "uint8", "batch": -1, "height": 32, "width": 32}, "input.batch is -1"),
        ("input", {"dtype": "uint8", "height": 32}, "its height is fixed and its width is not"),
        ("input", {"dtype": "int64"}, "input.dtype is not as"),
        ("sizes", {"kind": "multiples", "divisor": 0}, "sizes.divisor is 0"),
        ("outputs", ["scores"], "its outputs are scores"),
        ("recipe", {"recipe": "x", "evaluation": {"geometry": "round"}}, "evaluation.geometry"),
        ("preprocessing", {"channel_order": "rgb", "mean": [0, 0, 0], "std": [1, 0, 1]}, "divides by 0"),
        ("recipe", None, "recipe is not as"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(key: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_metadata(description().as_metadata() | {key: json.dumps(value)}, PATH)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "model.onnx" in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "NaN", "null"])
def test_a_damaged_value_is_one_line(text: str) -> None:
    for key in ("classes", "aweigh"):
        with pytest.raises(ConfigError, match=r"model\.onnx"):
            from_metadata(description().as_metadata() | {key: text}, PATH)
