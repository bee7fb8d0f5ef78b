"""Build, push, pull, stream and resume against Ceph's radosgw: real signatures, true ranges, real multipart uploads."""

import os
from pathlib import Path

import pytest
import torch

from data_shards.errors import DataError
from data_shards.format.manifest import load_manifest
from data_shards.order.plan import World, make_plan
from data_shards.storage.open import open_store
from tests.data_shards.building.test_transfer import files
from tests.data_shards.loaders import training_loader
from tests.data_shards.samples import document, write_coco
from tests.system.commands import Command

pytestmark = pytest.mark.slow


def build(folder: Path, output: str) -> str:
    """Build shards of 60 images by the command; return what it prints."""
    annotations, images = write_coco(folder, document(60))
    return Command(
        *("shards", "build", "--annotations", annotations, "--images", images, "--output", output, "--split", "train"),
        *("--shard-megabytes", 0.04, "--processes", 2),
    ).finish()


def test_shards_are_built_pushed_pulled_streamed_and_resumed(radosgw: str, tmp_path: Path) -> None:
    printed = build(tmp_path, f"{radosgw}/built")
    assert "60 images" in printed
    assert build(tmp_path, str(tmp_path / "folder")).splitlines()[0].split()[1:] == printed.splitlines()[0].split()[1:]

    # The bucket holds the same bytes, a pull brings them back, and a push copies them to another place.
    report = Command("shards", "pull", f"{radosgw}/built/train", tmp_path / "pulled").finish()
    assert "every byte compared" in report
    here = files(tmp_path / "folder" / "train")
    assert files(tmp_path / "pulled") == here
    assert "every byte compared" in Command("shards", "push", tmp_path / "pulled", f"{radosgw}/pushed/train").finish()
    assert {name: open_store(f"{radosgw}/pushed/train").read_bytes(name) for name in here} == here
    assert "match manifest" in Command("shards", "verify", f"{radosgw}/pushed/train", "--decode").finish()

    # Streamed, and resumed at another world size, the batches are those of the folder.
    manifest = load_manifest(f"{radosgw}/built/train")
    plan = make_plan(manifest, seed=1, global_batch_size=4)
    steps, resumed_at = 2 * plan.steps_per_epoch, plan.steps_per_epoch + 2

    def batches(location: object, start: int, world: World) -> list[torch.Tensor]:
        with training_loader(
            str(location), plan, world, input_size=(64, 64), start_step=start, stop_step=steps,
            cache_folder=tmp_path / f"cache-{start}",
        ) as loader:  # fmt: skip
            return [batch.images for batch in loader]

    expected = batches(tmp_path / "folder" / "train", 0, World(1, 0))
    assert len(expected) == steps
    for found, image in zip(batches(f"{radosgw}/built/train", 0, World(1, 0)), expected, strict=True):
        assert torch.equal(found, image)
    halves = [batches(f"{radosgw}/built/train", resumed_at, World(2, rank)) for rank in range(2)]
    for first, second, image in zip(*halves, expected[resumed_at:], strict=True):
        assert torch.equal(torch.cat([first, second]), image)
    assert not list((tmp_path / "cache-0").rglob("*.part"))


def test_objects_of_many_parts_go_up_and_come_down_in_ranges(radosgw: str, tmp_path: Path) -> None:
    content = os.urandom(20 * 1024 * 1024)
    store = open_store(f"{radosgw}/large")
    store.write_bytes("object.bin", content)
    for ranges in (1, 4):
        with open(tmp_path / "down.bin", "w+b") as file:
            assert store.fetch("object.bin", file.fileno(), ranges=ranges) == len(content)
            assert file.read() == content


def test_a_wrong_secret_is_one_line(radosgw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(f"{radosgw}/x").write_bytes("object.bin", b"x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(
        DataError, match=r"\(1 attempt\): bucket 'test-\w+' refuses these credentials \(SignatureDoesNotMatch\)"
    ):
        open_store(f"{radosgw}/x").read_bytes("object.bin")
    command = Command("shards", "verify", f"{radosgw}/x")
    command.finish(status=2)
    assert len(command.lines) == 1
    assert "refuses these credentials" in command.lines[0]
