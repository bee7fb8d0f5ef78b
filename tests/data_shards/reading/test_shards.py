import hashlib
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from data_shards.building.build import BuildReport, build_shards
from data_shards.errors import DataError
from data_shards.format.manifest import Manifest
from data_shards.reading.shards import Shards
from data_shards.storage.node_cache import default_cache_folder
from data_shards.storage.open import open_store
from data_shards.storage.store import Store
from tests.data_shards.samples import document, write_coco


def flip_a_bit(path: Path, offset: int) -> None:
    """Change one bit and leave size and modification time as they were."""
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def read_everything(shards: Shards) -> dict[int, bytes]:
    return {
        shards.read_json(number, row)["image_id"]: shards.read_image(number, row)
        for number, shard in enumerate(shards.manifest.shards)
        for row in range(shard.samples)
    }


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read whole to be verified, as it happens."""
    from data_shards.reading import shards

    seen: list[str] = []
    original = shards._sha256

    def counting(file: int) -> str:
        seen.append(os.readlink(f"/proc/self/fd/{file}"))
        return original(file)

    monkeypatch.setattr(shards, "_sha256", counting)
    return seen


def test_samples_in_a_folder_are_the_images_themselves(tmp_path: Path) -> None:
    content = document(6)
    annotations, images = write_coco(tmp_path, content)
    report = build_shards(annotations, images, str(tmp_path / "out"), split="train", shard_bytes=12_000)
    found = read_everything(Shards(open_store(report.location), report.manifest))
    assert found == {image["id"]: (images / image["file_name"]).read_bytes() for image in content["images"]}


def test_a_shard_is_verified_once_and_again_when_it_changed(
    built: BuildReport, copied: Path, counted: list[str]
) -> None:
    for _ in range(3):
        read_everything(Shards(open_store(copied), built.manifest))
    first = str(copied / built.manifest.shards[0].name)
    assert counted.count(first) == 1
    assert len(counted) == len(built.manifest.shards)
    # The same bytes as a new file: checked anew, and found right.
    shutil.copy(first, f"{first}.new")
    os.replace(f"{first}.new", first)
    read_everything(Shards(open_store(copied), built.manifest))
    assert counted.count(first) == 2


@pytest.mark.parametrize("where", [0, 700, -1])
def test_a_shard_with_one_wrong_bit_is_refused(built: BuildReport, copied: Path, where: int) -> None:
    shard = built.manifest.shards[1]
    path = copied / shard.name
    flip_a_bit(path, where % shard.bytes)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(
        DataError,
        match=rf"shard .*/copied/{shard.name} does not match the manifest: sha256 {found}, expected {shard.sha256}\. "
        "It is not the shard that was built",
    ):
        Shards(open_store(copied), built.manifest).read_image(1, 0)


def test_a_shard_of_another_length_or_a_missing_one_is_refused(built: BuildReport, copied: Path) -> None:
    shard = built.manifest.shards[0]
    path = copied / shard.name
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(
        DataError, match=rf"{shard.name} has {shard.bytes - 512:,} bytes, but the manifest says {shard.bytes:,}\."
    ):
        Shards(open_store(copied), built.manifest).read_image(0, 0)
    path.unlink()
    with pytest.raises(DataError, match=rf"shard .*/{shard.name} cannot be opened \(No such file"):
        Shards(open_store(copied), built.manifest).read_image(0, 0)


def test_an_index_that_is_not_the_one_of_the_manifest_is_refused(built: BuildReport, copied: Path) -> None:
    shard = built.manifest.shards[0]
    flip_a_bit(copied / shard.index, 200)
    with pytest.raises(DataError, match=rf"index .*/{shard.index} does not match the manifest: sha256 "):
        Shards(open_store(copied), built.manifest).index(0)


def test_bytes_that_rot_after_the_check_are_noticed_by_their_image(built: BuildReport, copied: Path) -> None:
    shards = Shards(open_store(copied), built.manifest)
    shards.read_image(0, 0)
    # The file system shows no change, so only the image's own checksum can tell.
    flip_a_bit(copied / built.manifest.shards[0].name, int(shards.index(0).image_offsets[1]) + 30)
    image_id = int(shards.index(0).image_ids[1])
    with pytest.raises(
        DataError, match=rf"train-000000\.tar, image {image_id}: its bytes do not match the index \(CRC"
    ):
        shards.read_image(0, 1)


@pytest.fixture
def remote(built: BuildReport, s3: str) -> str:
    """The shards in S3, as `s3://bucket/set/train`."""
    store = open_store(f"{s3}/set/train")
    for path in Path(built.location).iterdir():
        store.upload(path, path.name)
    return store.location


def test_a_shard_in_s3_is_fetched_once_and_kept_under_its_hash(
    built: BuildReport, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    original = type(open_store(remote)).fetch

    def counting(self: Store, name: str, file: int, **options: Any) -> int:
        fetched.append(name)
        return original(self, name, file, **options)

    monkeypatch.setattr(type(open_store(remote)), "fetch", counting)
    everything: list[dict[int, bytes]] = []
    # Three readers at once, as three ranks of a node would be.
    threads = [
        threading.Thread(
            target=lambda: everything.append(
                read_everything(Shards(open_store(remote), built.manifest, tmp_path / "cache"))
            )
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert everything == [read_everything(Shards(open_store(built.location), built.manifest))] * 3
    assert sorted(fetched) == [shard.name for shard in built.manifest.shards]
    kept = {path.name for path in (tmp_path / "cache" / "shards").iterdir()}
    assert kept == {f"{shard.sha256}.tar" for shard in built.manifest.shards}


def test_a_wrong_shard_in_s3_is_refused_and_not_kept(built: BuildReport, remote: str, tmp_path: Path) -> None:
    shard = built.manifest.shards[0]
    data = bytearray(open_store(remote).read_bytes(shard.name))
    data[5000] ^= 4
    open_store(remote).write_bytes(shard.name, bytes(data))
    message = rf"shard s3://shards-test/set/train/{shard.name} does not match the manifest: sha256 "
    with pytest.raises(DataError, match=message):
        Shards(open_store(remote), built.manifest, tmp_path / "cache").read_image(0, 0)
    assert [path.name for path in (tmp_path / "cache" / "shards").iterdir()] == []


def test_a_shard_or_index_in_s3_that_is_too_large_is_not_fetched_to_its_end(
    built: BuildReport, remote: str, tmp_path: Path
) -> None:
    shard, store = built.manifest.shards[0], open_store(remote)
    content = store.read_bytes(shard.name)
    store.write_bytes(shard.name, content + bytes(5_000_000))
    message = (
        rf"{shard.name} is larger than the {shard.bytes:,} bytes that the manifest says\. .* It was fetched 3 times\."
    )
    with pytest.raises(DataError, match=message):
        Shards(store, built.manifest, tmp_path / "cache").read_image(0, 0)
    store.write_bytes(shard.name, content)
    store.write_bytes(shard.index, bytes(40_000_000))
    with pytest.raises(
        DataError, match=rf"{shard.index} is larger than 16 MiB, more than the index of its shard can be"
    ):
        Shards(store, built.manifest, tmp_path / "cache-2").index(0)


def test_a_damaged_file_of_the_cache_is_fetched_again(built: BuildReport, remote: str, tmp_path: Path) -> None:
    shard = built.manifest.shards[0]
    cached = tmp_path / "cache" / "shards" / f"{shard.sha256}.tar"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"what a full disk left behind")
    expected = Shards(open_store(built.location), built.manifest).read_image(0, 0)
    assert Shards(open_store(remote), built.manifest, tmp_path / "cache").read_image(0, 0) == expected
    assert cached.stat().st_size == shard.bytes


def test_a_shard_that_is_gone_from_s3_is_named(built: BuildReport, remote: str, tmp_path: Path) -> None:
    shard = built.manifest.shards[0]
    open_store(remote).delete(shard.name)
    with pytest.raises(DataError, match=rf"bucket 'shards-test' has no object 'set/train/{shard.name}'"):
        Shards(open_store(remote), built.manifest, tmp_path / "cache").read_image(0, 0)


def test_a_cache_folder_that_cannot_be_made_is_named(built: BuildReport, remote: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=r"cannot keep shards in .*/file/cache/shards: .*or choose another cache folder"
    ):
        Shards(open_store(remote), built.manifest, tmp_path / "file" / "cache").read_image(0, 0)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWEIGH_CACHE", str(tmp_path))
    assert default_cache_folder() == tmp_path
    monkeypatch.delenv("AWEIGH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_folder() == tmp_path / "xdg" / "aweigh"


def test_an_empty_manifest_reads_nothing(built: BuildReport) -> None:
    empty = Manifest("train", built.manifest.classes, (), built.manifest.source)
    assert read_everything(Shards(open_store(built.location), empty)) == {}


def test_bytes_damaged_on_the_way_are_fetched_again(
    built: BuildReport, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[str] = []
    original = type(open_store(remote)).fetch

    def flaky(self: Store, name: str, file: int, **options: Any) -> int:
        size = original(self, name, file, **options)
        downloads.append(name)
        if len(downloads) == 1:
            os.pwrite(file, bytes([os.pread(file, 1, 3000)[0] ^ 1]), 3000)
        return size

    monkeypatch.setattr(type(open_store(remote)), "fetch", flaky)
    expected = Shards(open_store(built.location), built.manifest).read_image(0, 1)
    assert Shards(open_store(remote), built.manifest, tmp_path / "cache").read_image(0, 1) == expected
    assert len(downloads) == 2
