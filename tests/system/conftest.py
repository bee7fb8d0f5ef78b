"""A small demo set, and one uninterrupted run on it that other runs are compared with; each is made once a session."""

from pathlib import Path

import pytest

from data_shards.building.build import build_shards
from data_shards.demo.write import write_demo
from tests.system.commands import train


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    written = write_demo(folder, train_images=40, val_images=8)
    for split, annotations in (("train", written.train_annotations), ("val", written.val_annotations)):
        build_shards(annotations, written.images, str(folder / "shards"), split=split, shard_bytes=200_000)
    return folder / "shards"


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def whole(shards: Path, runs: Path) -> Path:
    """Folder with the uninterrupted run `whole`: 40 images in batches of 8, 8 epochs, 40 steps."""
    train(shards, runs, "whole", "--tracking.log_model", "true").finish()
    return runs
