from pathlib import Path
from typing import Any

import filelock
import pytest

from data_shards.building.build import BuildReport, build_shards
from data_shards.building.transfer import pull_shards, push_shards
from data_shards.errors import DataError
from data_shards.format.manifest import load_manifest
from data_shards.storage.folder import FolderStore
from data_shards.storage.open import open_store
from data_shards.storage.store import Sink
from tests.data_shards.reading.test_shards import flip_a_bit
from tests.data_shards.samples import document, write_coco


def files(folder: Path | str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_push_and_pull_copy_every_byte_and_resume_where_they_stopped(
    built: BuildReport, s3: str, tmp_path: Path
) -> None:
    seen = []
    pushed = push_shards(built.location, f"{s3}/sets/train", progress=seen.append)
    assert (pushed.copied_shards, pushed.copied_bytes) == (3, built.manifest.num_bytes)
    assert [at.shards for at in seen] == [1, 2, 3]
    assert seen[-1].bytes == built.manifest.num_bytes

    pulled = pull_shards(f"{s3}/sets/train", tmp_path / "train")
    assert files(tmp_path / "train") == files(built.location)
    assert f"3 shards with 14 images, manifest {built.manifest.digest[:6]}" in pulled.describe()

    # One shard lost, one damaged: only those two are copied again. Nothing is uploaded twice.
    shards = built.manifest.shards
    (tmp_path / "train" / shards[0].name).unlink()
    flip_a_bit(tmp_path / "train" / shards[1].name, 700)
    assert pull_shards(f"{s3}/sets/train", tmp_path / "train").copied_shards == 2
    assert files(tmp_path / "train") == files(built.location)
    assert push_shards(built.location, f"{s3}/sets/train").copied_shards == 0


def test_a_damaged_shard_is_never_pushed(copied: Path, s3: str) -> None:
    flip_a_bit(copied / "train-000001.tar", 700)
    with pytest.raises(DataError, match=r"copied/train-000001\.tar does not match the manifest .*, 2 times: sha256"):
        push_shards(copied, f"{s3}/train")
    assert "manifest.json" not in open_store(f"{s3}/train").list_names()
    assert "train-000001.tar" not in open_store(f"{s3}/train").list_names()


def test_an_object_that_changed_in_the_bucket_never_reaches_the_folder(
    built: BuildReport, s3: str, tmp_path: Path
) -> None:
    push_shards(built.location, f"{s3}/train")
    store = open_store(f"{s3}/train")
    damaged = bytearray(store.read_bytes("train-000002.tar"))
    damaged[600] ^= 1
    store.write_bytes("train-000002.tar", bytes(damaged))
    with pytest.raises(DataError, match=r"s3://shards-test/train/train-000002\.tar does not match the manifest"):
        pull_shards(f"{s3}/train", tmp_path / "train")
    left = files(tmp_path / "train")
    assert "manifest.json" not in left
    assert not [name for name in left if "train-000002.tar" in name or name.startswith(".")]
    # A push repairs the bucket, and the next pull fetches what was missing.
    assert push_shards(built.location, f"{s3}/train").copied_shards == 1
    pull_shards(f"{s3}/train", tmp_path / "train")
    assert files(tmp_path / "train") == files(built.location)


@pytest.mark.parametrize("location", ["folder", "bucket"])
def test_a_file_that_is_larger_than_the_manifest_allows_is_not_copied_to_its_end(
    copied: Path, s3: str, tmp_path: Path, location: str
) -> None:
    source = str(copied) if location == "folder" else f"{s3}/train"
    if location == "bucket":
        push_shards(copied, source)
    shard, *_ = load_manifest(source).shards
    store = open_store(source)
    content = store.read_bytes(shard.name)
    store.write_bytes(shard.name, content + bytes(5_000_000))
    message = rf"{shard.name} is larger than the {shard.bytes:,} bytes that the manifest of {source} allows\. Build or"
    with pytest.raises(DataError, match=message):
        pull_shards(source, tmp_path / "train")
    assert not [name for name in files(tmp_path / "train") if shard.name in name]
    store.write_bytes(shard.name, content)
    store.write_bytes(shard.index, bytes(40_000_000))
    with pytest.raises(DataError, match=rf"{shard.index} is larger than the 16,\d+,\d+ bytes that the manifest of"):
        pull_shards(source, tmp_path / "again")


def test_bytes_that_are_damaged_on_the_way_are_copied_again(
    built: BuildReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, damaged = FolderStore.stream, []

    def once(self: FolderStore, name: str, sink: Sink, **options: Any) -> None:
        if name == "train-000000.tar" and not damaged:
            damaged.append(name)
            sink.write(b"cut")
        else:
            real(self, name, sink, **options)

    monkeypatch.setattr(FolderStore, "stream", once)
    pull_shards(built.location, tmp_path / "train")
    assert damaged == ["train-000000.tar"]
    assert files(tmp_path / "train") == files(built.location)


def test_another_data_set_is_replaced_only_when_asked(built: BuildReport, tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path / "coco", document(30))
    other = build_shards(annotations, images, str(tmp_path), split="train", shard_bytes=25_000)
    assert len(other.manifest.shards) > 3
    with pytest.raises(DataError, match=r"already holds another data set \(30 images.*pass --overwrite"):
        pull_shards(built.location, tmp_path / "train")
    assert load_manifest(str(tmp_path / "train")).num_samples == 30
    pull_shards(built.location, tmp_path / "train", overwrite=True)
    assert files(tmp_path / "train") == files(built.location)


def test_what_a_killed_pull_left_is_swept_and_two_at_a_time_are_refused(built: BuildReport, tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    (folder / ".train-000000.tar.0123.part").write_bytes(b"half")
    with (
        filelock.FileLock(folder / ".transfer.lock"),
        pytest.raises(DataError, match="another transfer is writing"),
    ):
        pull_shards(built.location, folder)
    pull_shards(built.location, folder)
    assert files(folder) == files(built.location)


def test_locations_that_cannot_be_used_are_refused(built: BuildReport, s3: str, tmp_path: Path) -> None:
    for arguments, message in [
        ((f"{s3}/nothing", tmp_path / "a"), "there are no shards at s3://shards-test/nothing"),
        ((built.location, f"{s3}/train"), "give a folder. `aweigh shards push` writes to S3"),
        (("s3://no-such-bucket/train", tmp_path / "b"), "there is no bucket 'no-such-bucket'"),
    ]:
        with pytest.raises(DataError, match=message):
            pull_shards(*arguments)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
    with pytest.raises(DataError, match="cannot push from s3://shards-test/train: give a folder"):
        push_shards(f"{s3}/train", built.location)
    with pytest.raises(DataError, match="threads is 0"):
        push_shards(built.location, f"{s3}/train", threads=0)
