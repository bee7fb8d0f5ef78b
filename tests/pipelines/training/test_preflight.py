"""Which places the preflight has every node read and write."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import recipes
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import with_flags
from pipelines.training.preflight import _places, find_weights, write_data


def _checked(*flags: str) -> tuple[list[tuple[str, str]], list[str]]:
    recipe = with_flags(recipes.get("demo"), ["--run.folder", "/runs", "--run.name", "first", *flags])
    recipe = replace(recipe, data=replace(recipe.data, train="s3://b/train", validation=""))
    folders, probes = _places(recipe)
    return [(one.check, str(one.path)) for one in folders], [one.check for one in probes]


def test_checkpoints_that_lie_elsewhere_are_a_place_to_look_at() -> None:
    assert _checked() == ([("run folder", "/runs/first")], ["data.train"])
    elsewhere = [("run folder", "/runs/first"), ("checkpoints", "/fast/first")]
    assert _checked("--checkpoint.location", "/fast") == (elsewhere, ["data.train"])
    assert _checked("--checkpoint.location", "s3://b/c") == (elsewhere[:1], ["data.train", "checkpoints"])


def test_weights_in_a_file_have_to_be_on_every_node(tmp_path: Path) -> None:
    assert _checked("--detector.weights", "/weights.pth")[1] == ["data.train", "weights"]
    assert _checked("--detector.weights", "s3://b/weights.pth")[1] == ["data.train"]
    (tmp_path / "weights.pth").write_bytes(b"1234")
    assert find_weights(str(tmp_path / "weights.pth")).endswith("weights.pth, 4 bytes")
    with pytest.raises(ConfigError, match=r"there is no file /nowhere\.pth"):
        find_weights("/nowhere.pth")


def test_a_bucket_is_written_to_and_left_as_it_was(s3: str) -> None:
    from data_shards.errors import DataError
    from data_shards.storage.open import open_store

    assert write_data(f"{s3}/checkpoints/first") == f"{s3}/checkpoints/first, writable"
    assert open_store(s3).list_names() == []
    with pytest.raises(DataError, match="there is no bucket 'nowhere'"):
        write_data("s3://nowhere/first")
