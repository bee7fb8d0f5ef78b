"""Shards that several tests read."""

from pathlib import Path

import pytest

from data_shards.build import BuildReport, build_shards
from tests.data_shards.samples import document, write_coco


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    """Fourteen images of three sizes in three shards, in a folder."""
    folder = tmp_path_factory.mktemp("built")
    annotations, images = write_coco(folder, document(14))
    report = build_shards(annotations, images, str(folder / "shards"), split="train", shard_bytes=25_000)
    assert len(report.manifest.shards) == 3
    return report


@pytest.fixture
def copied(built: BuildReport, tmp_path: Path) -> Path:
    """A copy of those shards that a test may damage."""
    import shutil

    return Path(shutil.copytree(built.location, tmp_path / "copied"))
