import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import webdataset
from PIL import Image

from data_shards.building.build import BuildReport, Progress, build_shards
from data_shards.checking.verify import verify_shards
from data_shards.errors import DataError
from data_shards.format.manifest import load_manifest
from data_shards.format.shard_index import ShardIndex
from data_shards.reading.shards import Shards
from data_shards.storage.open import open_store
from data_shards.storage.store import Store
from tests.data_shards.reading.test_shards import flip_a_bit
from tests.data_shards.samples import document, jpeg, photo, write_coco


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_webdataset_library_reads_the_same_samples(tmp_path: Path) -> None:
    content = document(9)
    annotations, images = write_coco(tmp_path, content)
    report = build_shards(annotations, images, str(tmp_path / "out"), split="val", shard_bytes=12_000)
    names = [str(Path(report.location) / shard.name) for shard in report.manifest.shards]
    assert names[0].endswith("/out/val/val-000000.tar")
    assert len(names) > 1
    samples = list(webdataset.WebDataset(names, shardshuffle=False))

    assert len(samples) == 9
    of_image = {image["id"]: image for image in content["images"]}
    for sample in samples:
        described = json.loads(sample["json"])
        image = of_image.pop(described["image_id"])
        assert sample["__key__"] == f"{image['id']:012d}"
        assert sample["jpg"] == (images / image["file_name"]).read_bytes()
        own = [item for item in content["annotations"] if item["image_id"] == image["id"]]
        assert described["annotations"] == own
        assert {name: described[name] for name in ("file_name", "width", "height")} == {
            name: image[name] for name in ("file_name", "width", "height")
        }
    assert of_image == {}


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(8))
    folders = []
    for name in ("one", "two"):
        report = build_shards(annotations, images, str(tmp_path / name), split="train", shard_bytes=16_000)
        folders.append(contents(Path(report.location)))
    assert folders[0] == folders[1]
    assert len(folders[0]) == 2 * len(report.manifest.shards) + 1
    with tarfile.open(fileobj=io.BytesIO(folders[0]["train-000000.tar"])) as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "aweigh", 0o444)


@pytest.mark.slow  # each process imports torch, with webdataset
def test_several_processes_build_the_same_bytes_and_refuse_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_shards.building.build.BYTES_WORTH_A_PROCESS", 1)
    annotations, images = write_coco(tmp_path, document(8))
    one, two = (
        build_shards(
            annotations, images, str(tmp_path / f"by{processes}"), split="train", shard_bytes=9_000, processes=processes
        )
        for processes in (1, 2)
    )
    assert len(one.manifest.shards) > 2
    assert contents(Path(one.location)) == contents(Path(two.location))
    (images / "107.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 8 images of .* cannot be used: image 107"):
        build_shards(annotations, images, str(tmp_path / "bad"), split="train", shard_bytes=9_000, processes=2)


def test_the_order_does_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    content = document(8)
    annotations, images = write_coco(tmp_path, content)
    build_shards(annotations, images, str(tmp_path / "a"), split="train")
    annotations.write_text(json.dumps(content | {"images": content["images"][::-1]}))
    build_shards(annotations, images, str(tmp_path / "b"), split="train")
    first, second = (contents(tmp_path / name / "train") for name in "ab")
    assert first["train-000000.tar"] == second["train-000000.tar"]


def test_the_index_describes_the_tar_as_tarfile_reads_it(built: BuildReport) -> None:
    folder = Path(built.location)
    label_of = {1: 0, 18: 1, 44: 2}
    for shard in built.manifest.shards:
        index = ShardIndex.from_bytes((folder / shard.index).read_bytes(), shard.index)
        assert len(index) == shard.samples
        assert hashlib.sha256((folder / shard.name).read_bytes()).hexdigest() == shard.sha256
        assert (folder / shard.name).stat().st_size == shard.bytes
        with tarfile.open(folder / shard.name) as archive:
            members = archive.getmembers()
            for row, (image, described) in enumerate(zip(members[::2], members[1::2], strict=True)):
                assert (index.image_offsets[row], index.image_sizes[row]) == (image.offset_data, image.size)
                assert (index.json_offsets[row], index.json_sizes[row]) == (described.offset_data, described.size)
                assert index.image_crc32[row] == zlib.crc32(archive.extractfile(image).read())
                sample = json.loads(archive.extractfile(described).read())
                assert index.image_ids[row] == sample["image_id"]
                assert (index.widths[row], index.heights[row]) == (sample["width"], sample["height"])
                first, last = index.row_splits[row : row + 2]
                expected = [
                    [x, y, x + width, y + height]
                    for x, y, width, height in (item["bbox"] for item in sample["annotations"])
                ]
                assert index.boxes[first:last].tolist() == expected
                assert index.labels[first:last].tolist() == [
                    label_of[item["category_id"]] for item in sample["annotations"]
                ]
                assert index.iscrowd[first:last].tolist() == [bool(item["iscrowd"]) for item in sample["annotations"]]
    # 14 images with i % 4 boxes: 3 × (0 + 1 + 2 + 3) + 0 + 1.
    assert built.manifest.source.boxes == 19


def test_shards_are_cut_at_the_wanted_size_and_progress_is_reported(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(6))
    seen: list[Progress] = []
    report = build_shards(
        annotations, images, str(tmp_path / "out"), split="train", shard_bytes=1, progress=seen.append
    )
    # No image fits into a byte, and one image is never divided.
    assert [shard.samples for shard in report.manifest.shards] == [1] * 6
    assert seen == [Progress(number, 6, number, 6) for number in range(1, 7)]


def test_the_report_counts_what_was_dropped_and_kept(tmp_path: Path) -> None:
    content = document(6)
    content["annotations"][0]["bbox"] = [5, 5, 0, 5]
    content["annotations"][1]["bbox"] = [500, 5, 5, 5]
    annotations, images = write_coco(tmp_path, content)
    report = build_shards(annotations, images, str(tmp_path / "out"), split="train")
    assert (report.zero_size_boxes, report.outside_boxes) == (1, 1)
    # Boxes 0, 1, 2, 3, 0, 1 an image; the only box of the second is gone.
    assert (report.crowd_boxes, report.images_without_boxes) == (1, 3)
    assert "5 boxes of 3 classes; 2 dropped (1 without area, 1 outside); 1 crowd, 3 images" in report.describe()
    with pytest.raises(DataError, match="which has no area"):
        build_shards(annotations, images, str(tmp_path / "no"), split="train", degenerate_boxes="refuse")
    assert not (tmp_path / "no").exists()


def test_images_that_do_not_decode_are_refused_named_and_counted(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(8))
    whole = (images / "107.jpg").read_bytes()
    (images / "107.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "121.jpg").write_bytes(b"")
    (images / "135.jpg").write_bytes(b"GIF89a and more")
    # Small shards, so that the bad ones are in several and good ones were written before.
    with pytest.raises(DataError, match=r"3 of 8 images of .*instances\.json cannot be used: ") as raised:
        build_shards(annotations, images, str(tmp_path / "out"), split="train", shard_bytes=12_000)
    text = str(raised.value)
    assert "image 107, 107.jpg: does not decode (the JPEG ends early)" in text
    assert "image 121, 121.jpg: neither a JPEG nor a PNG, but an empty file: copy it again" in text
    assert "image 135, 135.jpg: neither a JPEG nor a PNG, but a GIF picture: convert it to JPEG or PNG" in text
    assert text.endswith("Correct or remove them; nothing was built.")
    assert "\n" not in text
    assert not (tmp_path / "out" / "train").exists()


def test_images_that_are_gone_while_they_are_built_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(8))

    def vanish(_: Progress) -> None:
        for path in images.iterdir():
            path.unlink()

    with pytest.raises(DataError, match=r"of 8 images of .* cannot be used: .*\.jpg: cannot be read \(No such file or"):
        build_shards(annotations, images, str(tmp_path / "out"), split="train", shard_bytes=12_000, progress=vanish)
    assert not (tmp_path / "out" / "train").exists()


def test_an_image_of_another_size_than_the_annotations_say_is_refused(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(3))
    (images / "107.jpg").write_bytes(jpeg(photo(1, 30, 20)))
    with pytest.raises(DataError, match=r"image 107, 107\.jpg: is 20 x 30 pixels, but the annotations say 48 x 64"):
        build_shards(annotations, images, str(tmp_path / "out"), split="train")


def test_boxes_drawn_on_an_unturned_exif_image_are_recognised(tmp_path: Path) -> None:
    content = document(1)
    annotations, images = write_coco(tmp_path, content)
    (images / "100.jpg").write_bytes(with_orientation(jpeg(photo(1, 48, 64)), 6))
    with pytest.raises(
        DataError,
        match=r"image 100, 100\.jpg: is 48 x 64 pixels, .* 64 x 48 \(its EXIF orientation turns it; the boxes",
    ):
        build_shards(annotations, images, str(tmp_path / "out"), split="train")
    content["images"][0] |= {"width": 48, "height": 64}
    annotations.write_text(json.dumps(content))
    assert build_shards(annotations, images, str(tmp_path / "out"), split="train").manifest.num_samples == 1


def with_orientation(data: bytes, orientation: int) -> bytes:
    """The JPEG with an EXIF segment that holds nothing but an orientation."""
    tiff = b"MM\0*\0\0\0\x08" + b"\0\x01" + b"\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0" + b"\0" * 4
    payload = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload + data[2:]


def test_a_png_keeps_its_bytes_and_its_kind(tmp_path: Path) -> None:
    content = document(1)
    content["images"][0]["file_name"] = "100.png"
    annotations, images = write_coco(tmp_path, content)
    data = cv2.imencode(".png", photo(5))[1].tobytes()
    (images / "100.png").write_bytes(data)
    report = build_shards(annotations, images, str(tmp_path / "out"), split="train")
    (sample,) = webdataset.WebDataset(str(Path(report.location) / "train-000000.tar"), shardshuffle=False)
    assert sample["png"] == data
    assert Shards(open_store(report.location), report.manifest).read_image(0, 0) == data


def test_a_second_build_of_the_same_changes_nothing(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(6))
    first = build_shards(annotations, images, str(tmp_path / "out"), split="train", shard_bytes=12_000)
    before = contents(Path(first.location))
    second = build_shards(annotations, images, str(tmp_path / "out"), split="train", shard_bytes=12_000)
    assert not first.unchanged
    assert second.unchanged
    assert contents(Path(second.location)) == before
    # Both splits of a set share a location.
    build_shards(annotations, images, str(tmp_path / "out"), split="val")
    assert contents(Path(second.location)) == before


def test_another_data_set_is_replaced_only_when_asked(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(6))
    output = str(tmp_path / "out")
    first = build_shards(annotations, images, output, split="train", shard_bytes=1)
    other, _ = write_coco(tmp_path / "other", document(4))
    with pytest.raises(
        DataError,
        match=rf"/out/train already holds another data set \(6 images, manifest {first.manifest.digest[:6]}\)\. "
        "Choose another --output, or pass --overwrite",
    ):
        build_shards(other, images, output, split="train")
    assert load_manifest(first.location) == first.manifest
    second = build_shards(other, images, output, split="train", overwrite=True)
    assert set(contents(Path(output) / "train")) == {"manifest.json", "train-000000.tar", "train-000000.index.npz"}
    assert load_manifest(second.location) == second.manifest


def test_images_that_changed_since_are_not_mixed_with_the_old_ones(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(6))
    output = str(tmp_path / "out")
    build_shards(annotations, images, output, split="train")
    before = contents(Path(output) / "train")
    (images / "107.jpg").write_bytes(jpeg(photo(77, 64, 48)))
    with pytest.raises(DataError, match=r"shard train-000000\.tar would differ: images have changed since"):
        build_shards(annotations, images, output, split="train")
    assert contents(Path(output) / "train") == before


def test_a_build_that_is_cut_off_leaves_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations, images = write_coco(tmp_path, document(6))

    def stop(progress: Progress) -> None:
        if progress.shards == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_shards(annotations, images, str(tmp_path / "out"), split="train", shard_bytes=1, progress=stop)
    with pytest.raises(DataError, match=r"there are no shards at .*/out/train: it has no manifest\.json\. Build them"):
        load_manifest(str(tmp_path / "out" / "train"))
    assert build_shards(annotations, images, str(tmp_path / "out"), split="train", shard_bytes=1)


KILLED = """
import multiprocessing, os, sys
import data_shards.building.build as build

build.BYTES_WORTH_A_PROCESS = 1
annotations, images, output, processes, last = sys.argv[1:]


def end(at):
    if at.shards == int(last):
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        os.kill(os.getpid(), 9)


if __name__ == "__main__":
    build.build_shards(
        annotations, images, output, split="train", shard_bytes=1, processes=int(processes), progress=end
    )
"""


def killed(folder: Path, annotations: Path, images: Path, output: str, processes: int, last: int) -> list[int]:
    """Build in a process that is killed with -9 after `last` shards; return the processes that it had started."""
    (folder / "killed.py").write_text(KILLED)
    words = [annotations, images, output, processes, last]
    root = str(Path(__file__).parents[3])
    ended = subprocess.run(
        [sys.executable, str(folder / "killed.py"), *map(str, words)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return [int(word) for word in ended.stdout.split()]


def test_a_killed_build_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations, images = write_coco(tmp_path, document(8))
    whole = build_shards(annotations, images, str(tmp_path / "whole"), split="train", shard_bytes=1)
    output = tmp_path / "out" / "train"
    killed(tmp_path, annotations, images, str(tmp_path / "out"), 1, 5)
    left = set(contents(output))
    assert {f"train-00000{number}.built.json" for number in range(5)} <= left
    assert "manifest.json" not in left
    (output / ".train-000005.tar.0123.part").write_bytes(b"half")
    (output / "train-000099.tar").write_bytes(b"of a build with other settings that was killed, too")
    flip_a_bit(output / "train-000001.tar", 700)  # rotten since: not kept
    touched = images / json.loads(read_tar(output / "train-000002.tar"))["file_name"]
    os.utime(touched, (1, 1))  # perhaps another image now: not kept

    seen: list[Progress] = []
    writes: list[str] = []
    folder_store = type(open_store(tmp_path))
    original = folder_store.write_bytes

    def counting(self: Store, name: str, data: bytes) -> None:
        writes.append(name)
        original(self, name, data)

    monkeypatch.setattr(folder_store, "write_bytes", counting)
    report = build_shards(
        annotations, images, str(tmp_path / "out"), split="train", shard_bytes=1, progress=seen.append
    )
    assert report.manifest == whole.manifest
    assert contents(output) == contents(Path(whole.location))  # and nothing else is left there
    assert [name for name in writes if name.endswith(".tar")] == [
        f"train-00000{number}.tar" for number in (1, 2, 5, 6, 7)
    ]
    assert report.kept_shards == seen[-1].kept_images == 3
    assert "3 shards of an earlier build kept, every byte compared" in report.describe()


def test_a_killed_build_with_other_settings_is_not_mixed_in(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(6))
    killed(tmp_path, annotations, images, str(tmp_path / "out"), 1, 3)
    report = build_shards(annotations, images, str(tmp_path / "out"), split="train", shard_bytes=1, max_size=40)
    assert report.kept_shards == 0
    clean = build_shards(annotations, images, str(tmp_path / "clean"), split="train", shard_bytes=1, max_size=40)
    assert contents(Path(report.location)) == contents(Path(clean.location))


@pytest.mark.slow  # each process imports torch, with webdataset
def test_the_processes_of_a_killed_build_end_with_it(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(8))
    started = killed(tmp_path, annotations, images, str(tmp_path / "out"), 2, 2)
    assert len(started) == 2
    left = [psutil.Process(number) for number in started if psutil.pid_exists(number)]
    assert psutil.wait_procs(left, timeout=30)[1] == []


def test_a_killed_build_into_s3_is_gone_on_with(tmp_path: Path, s3: str) -> None:
    annotations, images = write_coco(tmp_path, document(5))
    killed(tmp_path, annotations, images, f"{s3}/set", 1, 3)
    store = open_store(f"{s3}/set/train")
    assert sum(name.endswith(".built.json") for name in store.list_names()) == 3
    report = build_shards(annotations, images, f"{s3}/set", split="train", shard_bytes=1)
    assert report.kept_shards == 3
    here = build_shards(annotations, images, str(tmp_path / "here"), split="train", shard_bytes=1)
    assert {name: store.read_bytes(name) for name in store.list_names()} == contents(Path(here.location))


def read_tar(path: Path) -> bytes:
    """The JSON of the one sample of a shard."""
    with tarfile.open(path) as archive:
        member = archive.extractfile(archive.getmembers()[1])
        assert member is not None
        return member.read()


def test_images_without_an_object_are_dropped_when_asked(tmp_path: Path) -> None:
    content = document(9)
    # Of images with i % 4 boxes three have none; of the one with a single box, that is a pixel wide now.
    content["annotations"][0]["bbox"] = [3, 3, 1, 9]
    annotations, images = write_coco(tmp_path, content)
    report = build_shards(annotations, images, str(tmp_path / "out"), split="train", empty_images="drop")
    assert report.manifest.num_samples == 5
    assert (report.manifest.source.empty_images, report.manifest.source.dropped_images) == ("drop", 4)
    assert "4 images without an object dropped" in report.describe()
    assert load_manifest(report.location) == report.manifest
    with pytest.raises(DataError, match="already holds another data set"):
        build_shards(annotations, images, str(tmp_path / "out"), split="train")


def test_shards_in_s3_are_those_of_a_folder(tmp_path: Path, s3: str) -> None:
    annotations, images = write_coco(tmp_path, document(5))
    here = build_shards(annotations, images, str(tmp_path / "out"), split="train", shard_bytes=12_000)
    there = build_shards(annotations, images, f"{s3}/sets/demo", split="train", shard_bytes=12_000)
    assert there.location == "s3://shards-test/sets/demo/train"
    assert there.manifest == here.manifest == load_manifest(there.location)
    store = open_store(there.location)
    assert {name: store.read_bytes(name) for name in store.list_names()} == contents(Path(here.location))


def test_a_location_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, s3: str) -> None:
    annotations, images = write_coco(tmp_path, document(2))
    with pytest.raises(DataError, match=r"cannot write s3://no-such-bucket-here/x/train/.*: there is no bucket"):
        build_shards(annotations, images, "s3://no-such-bucket-here/x", split="train")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*/file/train/"):
        build_shards(annotations, images, str(tmp_path / "file"), split="train")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"shard_bytes": 0}, r"shard_bytes \(--shard-megabytes\) is 0 bytes; set it between 1 and"),
        ({"processes": 0}, "processes is 0; set it to 1 or more"),
        ({"split": "a/b"}, "split is 'a/b'; give one word"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, setting: dict[str, object], message: str) -> None:
    annotations, images = write_coco(tmp_path, document(1))
    with pytest.raises(DataError, match=message):
        build_shards(annotations, images, str(tmp_path / "out"), **({"split": "train"} | setting))  # type: ignore[arg-type]


def test_the_digest_names_the_content(built: BuildReport, copied: Path) -> None:
    manifest = load_manifest(str(copied))
    assert manifest == built.manifest
    document = json.loads((copied / "manifest.json").read_text())
    assert document.pop("sha256") == manifest.digest
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert manifest.digest == hashlib.sha256(canonical.encode()).hexdigest()
    first = replace(manifest.shards[0], sha256="0" * 64)
    assert replace(manifest, shards=(first, *manifest.shards[1:])).digest != manifest.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "aweigh-shards", "ver', r"manifest\.json is damaged \(Unterminated string"),
        ('{"format": "aweigh-shards", "version": 1}', r"manifest\.json is damaged \('split'\): build the shards again"),
        ('{"format": "aweigh-shards", "version": 3}', "has version 3, but this aweigh reads versions up to 2"),
        ('{"some": "json"}', "is not a manifest of shards; give the folder"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(copied: Path, text: str, message: str) -> None:
    (copied / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=message):
        load_manifest(str(copied))


def test_the_bytes_of_an_index_are_always_the_same_and_damage_is_refused(built: BuildReport) -> None:
    path = Path(built.location) / built.manifest.shards[0].index
    index = ShardIndex.from_bytes(path.read_bytes(), "x")
    assert index.to_bytes() == path.read_bytes()
    with pytest.raises(DataError, match=r"there/x\.npz is not the index of a shard"):
        ShardIndex.from_bytes(path.read_bytes()[:-30], "there/x.npz")
    assert np.array_equal(ShardIndex.from_bytes(index.to_bytes(), "x").boxes, index.boxes)


def test_a_relative_output_with_a_slash_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations, images = write_coco(tmp_path, document(2))
    monkeypatch.chdir(tmp_path)
    assert build_shards(annotations, images, "out/", split="train").location == "out/train"
    shutil.rmtree("out")


def test_a_damaged_jpeg_with_an_end_marker_is_named(tmp_path: Path) -> None:
    content = document(6)
    annotations, images = write_coco(tmp_path, content)
    data = (images / "107.jpg").read_bytes()
    (images / "107.jpg").write_bytes(data[: len(data) * 2 // 3] + b"\xff\xd9")
    with pytest.raises(
        DataError, match=r"image 107, 107\.jpg: does not decode \(the JPEG is damaged: premature end of"
    ):
        build_shards(annotations, images, str(tmp_path / "out"), split="train")


def test_boxes_drawn_on_the_unturned_pixels_of_a_png_are_refused_with_the_reason(tmp_path: Path) -> None:
    content = document(1)
    annotations, images = write_coco(tmp_path, content)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(1, 48, 64)).save(images / "100.jpg", "PNG", exif=exif.tobytes())
    with pytest.raises(
        DataError, match=r"is 48 x 64 pixels, but the annotations say 64 x 48 \(its EXIF orientation turns"
    ):
        build_shards(annotations, images, str(tmp_path / "out"), split="train")
    for image in content["images"]:
        del image["width"], image["height"]
    annotations.write_text(json.dumps(content))
    report = build_shards(annotations, images, str(tmp_path / "out"), split="train")
    assert verify_shards(report.location, decode=True, cache_folder=tmp_path / "cache").problems == ()
