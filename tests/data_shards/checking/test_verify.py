import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_shards.building.build import BuildReport, build_shards
from data_shards.building.transfer import push_shards
from data_shards.checking import verify
from data_shards.checking.examine import examine
from data_shards.checking.verify import VerifyProgress, verify_shards
from data_shards.errors import UnavailableError
from data_shards.reading.shards import Shards
from data_shards.settings import ReadSettings
from pipelines.stand_ins.object_server import Fault, ObjectServer
from tests.data_shards.reading.test_shards import flip_a_bit
from tests.data_shards.samples import document, write_coco


def test_verify_counts_everything_and_names_every_wrong_shard(copied: Path, built: BuildReport) -> None:
    seen = []
    report = verify_shards(str(copied), decode=True, progress=seen.append)
    assert report.problems == ()
    assert (report.boxes, report.decoded_images) == (built.manifest.source.boxes, 14)
    assert (seen[-1].images, seen[-1].shards) == (14, 3)
    assert "3 shards with 14 images and 19 boxes match" in report.describe()  # images 0 to 13 have i % 4 boxes

    flip_a_bit(copied / "train-000000.tar", 700)
    (copied / "train-000002.tar").unlink()
    problems = verify_shards(str(copied)).problems
    assert len(problems) == 2
    assert "train-000000.tar does not match the manifest" in problems[0]
    assert "train-000002.tar cannot be opened (No such file or directory)" in problems[1]


def test_a_stopped_verification_resumes(
    built: BuildReport, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(at: VerifyProgress) -> None:
        if at.shards == 2:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"decode": True, "cache_folder": tmp_path / "cache"}
    flip_a_bit(copied / "train-000001.tar", 700)
    with pytest.raises(KeyboardInterrupt):
        verify_shards(str(copied), progress=stop, **options)
    (notes,) = (tmp_path / "cache" / "verified").iterdir()
    with open(notes, "a") as file:
        file.write('\n["train-0000')  # a line that a kill cut off

    read: list[int] = []
    original = verify._count_verified

    def counting(shards: Shards, shard: int, decode: bool) -> int:
        read.append(int(shards.manifest.shards[0].name[6:12]))
        return original(shards, shard, decode)

    monkeypatch.setattr(verify, "_count_verified", counting)
    report = verify_shards(str(copied), **options)
    assert read == [1, 2]  # the wrong shard is read again, the intact one is not
    assert (report.kept_shards, report.decoded_images, len(report.problems)) == (
        1,
        14 - built.manifest.shards[1].samples,
        1,
    )
    # It finished, so the next one reads everything.
    assert list((tmp_path / "cache" / "verified").iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        verify_shards(str(copied), progress=stop, **options)
    os.utime(copied / "train-000000.tar", (1, 1))  # touched since
    read.clear()
    assert verify_shards(str(copied), **options).kept_shards == 0
    assert read == [0, 1, 2]
    # A record that cannot be read or written only costs reading again.
    with pytest.raises(KeyboardInterrupt):
        verify_shards(str(copied), progress=stop, **options)
    notes.unlink()
    notes.mkdir()
    read.clear()
    assert len(verify_shards(str(copied), **options).problems) == 1
    assert read == [0, 1, 2]


@pytest.mark.slow  # it starts processes
def test_processes_verify_as_one_does(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "BYTES_WORTH_A_PROCESS", 1)
    (copied / "train-000002.tar").unlink()
    alone, together = (verify_shards(str(copied), decode=True, processes=count) for count in (1, 2))
    assert alone == together
    assert len(alone.problems) == 1


def test_verify_reads_a_bucket(built: BuildReport, s3: str, tmp_path: Path) -> None:
    push_shards(built.location, f"{s3}/train")
    report = verify_shards(f"{s3}/train", decode=True, cache_folder=tmp_path / "cache")
    assert (report.problems, report.decoded_images) == ((), 14)


def test_a_lost_server_ends_a_verification_that_can_resume(
    built: BuildReport, served: str, object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_shards.storage.open.ReadSettings", lambda: ReadSettings(deadline_seconds=0.5))
    seen: list[VerifyProgress] = []

    def lose(at: VerifyProgress) -> None:
        seen.append(at)
        for shard in built.manifest.shards[1:]:
            object_server.order(f"bucket/train/{shard.name}", Fault("slow_down"), always=True)

    with pytest.raises(UnavailableError, match=r"cannot read s3://bucket/train/train-000001\.tar .* SlowDown"):
        verify_shards(served, cache_folder=tmp_path / "cache", progress=lose)
    assert len(seen) == 1
    report = verify_shards(built.location, cache_folder=tmp_path / "cache")
    assert report.problems == ()
    # Nor is a cache without space the fault of any shard.
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "shards").write_text("no folder")
    with pytest.raises(UnavailableError, match=r"cannot keep shards in .*full/shards: Not a directory"):
        verify_shards(served, cache_folder=tmp_path / "full")


def test_reading_a_bucket_keeps_to_a_cache_that_is_smaller(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations, images = write_coco(tmp_path, document(24))
    manifest = build_shards(annotations, images, f"{s3}/sets", split="train", shard_bytes=1).manifest
    largest = max(shard.bytes for shard in manifest.shards)
    location, cache = f"{s3}/sets/train", tmp_path / "cache"
    monkeypatch.setenv("AWEIGH_CACHE", str(cache))

    def held() -> int:
        return sum(path.stat().st_size for path in (cache / "shards").iterdir())

    assert verify_shards(location, decode=True, cache_bytes=largest).problems == ()
    assert held() <= largest
    # The doctor's threads are at several shards: the last 16 stay.
    found = examine(location, cache_bytes=18 * largest)
    assert 0 < held() <= 18 * largest < manifest.num_bytes
    assert found.numbers[location].images == 24


def test_decoding_finds_what_checksums_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations, images = write_coco(tmp_path, document(5))
    (images / "107.jpg").write_bytes((images / "107.jpg").read_bytes()[:-400])
    shutil.copyfile(images / "100.jpg", images / "121.jpg")  # of another class of sizes: 48 x 64
    content = document(5)
    assert (content["images"][3]["id"], content["images"][3]["width"]) == (121, 64)
    # A builder that checked nothing.
    monkeypatch.setattr("data_shards.building.shard_writing._problem", lambda image, data: None)
    build_shards(annotations, images, str(tmp_path), split="train")
    assert verify_shards(str(tmp_path / "train")).problems == ()
    (problem,) = verify_shards(str(tmp_path / "train"), decode=True).problems
    assert "image 107, 107.jpg: does not decode (the JPEG ends early)" in problem
