"""Shards that several tests read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_shards.building.build import BuildReport, build_shards
from pipelines.stand_ins.object_server import ObjectServer
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


@pytest.fixture
def object_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """A server that does what S3 does on a bad day; `s3://bucket/…` reaches it, and retries come soon."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("data_shards.storage.s3_object._FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr("data_shards.storage.s3_object._LONGEST_DELAY_SECONDS", 0.1)
    with ObjectServer() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        yield server


@pytest.fixture
def served(built: BuildReport, object_server: ObjectServer) -> str:
    """The shards on that server, as `s3://bucket/train`."""
    for path in Path(built.location).iterdir():
        object_server.objects[f"bucket/train/{path.name}"] = path.read_bytes()
    return "s3://bucket/train"
