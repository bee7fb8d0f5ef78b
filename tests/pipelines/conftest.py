"""Shards built once a session."""

from pathlib import Path

import pytest

from data_shards.building.build import build_shards
from tests.data_shards.samples import document, write_coco


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A location with splits `train` (12 images), `val` (6) and `other` (6, with a vase in place of the bottle)."""
    folder = tmp_path_factory.mktemp("shards")
    for split, count in (("train", 12), ("val", 6), ("other", 6)):
        content = document(count)
        if split == "other":
            content["categories"] = [*content["categories"][:2], {"id": 44, "name": "vase"}]
        annotations, images = write_coco(folder / split, content)
        build_shards(annotations, images, str(folder / "shards"), split=split)
    return folder / "shards"
