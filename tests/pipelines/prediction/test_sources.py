"""Sources: every image once, under a name that is unique and the same in every run, and a clear line otherwise."""

import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_shards.building.build import build_shards
from data_shards.errors import DataError
from data_shards.reading.split import open_split
from data_shards.storage.open import open_store
from pipelines.errors import ConfigError
from pipelines.prediction.sources import Sources, UnreadableError, find_sources, natural_key, plain_name
from tests.data_shards.samples import document, write_coco


def photo(path: Path, color: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded, data = cv2.imencode(path.suffix.lower(), np.full((8, 12, 3), color, dtype=np.uint8))
    assert encoded
    path.write_bytes(data.tobytes())
    return path


def video(path: Path, frames: int = 5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 16))
    for number in range(frames):
        writer.write(np.full((16, 32, 3), 40 * number, dtype=np.uint8))
    writer.release()
    return path


def found(*words: object, **settings: Any) -> Sources:
    return find_sources([str(word) for word in words], open_split=open_split, **settings)


def names(sources: Sources) -> list[str]:
    return [one.name for one in sources]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b/10.jpg", "b/9.JPG", "a.png", "b/note.txt", ".hidden.jpg", "b/._9.jpg", "__MACOSX/x.jpg", "c.webp"):
        photo(tmp_path / "photos" / name) if Path(name).suffix.lower() in (".jpg", ".png", ".webp") else (
            (tmp_path / "photos" / name).write_text("no image")
        )
    return tmp_path / "photos"


def test_a_folder_is_searched_to_the_bottom_and_sorted_as_people_count(photos: Path) -> None:
    sources = found(photos)
    assert names(sources) == ["a.png", "b/9.JPG", "b/10.jpg", "c.webp"]
    assert [one.stem for one in sources] == ["a", "b/9", "b/10", "c"]
    assert [one.image_id for one in sources] == [1, 2, 3, 4]
    assert sources[1].read().shape == (8, 12, 3)
    assert sources.describe() == f"4 images in {photos}"


def test_the_same_file_named_twice_counts_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    (photos / "link.jpg").symlink_to(photos / "b" / "10.jpg")
    sources = found("photos/b/10.jpg", photos / "b" / ".." / "b" / "10.jpg", "photos/b", photos, "photos/*.png")
    assert sorted(names(sources)) == ["a.png", "b/10.jpg", "b/9.JPG", "c.webp"]


def test_names_start_at_the_folder_that_holds_all_files(tmp_path: Path) -> None:
    one, other = photo(tmp_path / "x" / "one" / "1.jpg"), photo(tmp_path / "x" / "two" / "1.jpg")
    assert names(found(one)) == ["1.jpg"]
    assert names(found(one, other)) == ["one/1.jpg", "two/1.jpg"]
    assert names(found(one.parent, other)) == ["one/1.jpg", "two/1.jpg"]


def test_files_that_differ_in_their_ending_have_output_files_of_their_own(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg"), photo(tmp_path / "a.png"), photo(tmp_path / "b.jpg")
    assert [one.stem for one in found(tmp_path)] == ["a_jpg", "a_png", "b"]


def test_a_pattern_and_one_that_matches_nothing(photos: Path) -> None:
    assert names(found(photos / "**" / "*.jpg")) == ["b/10.jpg"]
    assert names(found(photos / "b" / "*.[jJ]*")) == ["9.JPG", "10.jpg"]
    with pytest.raises(ConfigError, match=r"\*\.gif matches no file; "):
        found(photos / "*.gif")
    with pytest.raises(ConfigError, match=r"\*\.txt matches 1 file, but no image or video"):
        found(photos / "b" / "*.txt")


def test_a_file_that_has_the_name_of_a_pattern_is_that_file(tmp_path: Path) -> None:
    assert names(found(photo(tmp_path / "photo[1].jpg"))) == ["photo[1].jpg"]


def test_a_link_to_a_folder_above_is_not_followed_forever(photos: Path) -> None:
    (photos / "b" / "up").symlink_to(photos)
    assert len(found(photos)) == 4


def test_an_explicit_file_is_read_whatever_its_ending(tmp_path: Path) -> None:
    path = photo(tmp_path / "picture.jpg").rename(tmp_path / "upload")
    (source,) = found(path)
    assert (source.name, source.stem) == ("upload", "upload")
    assert source.read().shape == (8, 12, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file: copy it again"),
        (b"<html><body>log in", "an HTML page"),
        (b"\xff\xd8\xff\xe0 cut", "the JPEG ends early"),
    ],
)
def test_a_file_without_an_image_is_unreadable_with_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=reason):
        found(path)[0].read()


def test_a_file_that_is_deleted_meanwhile_is_unreadable(tmp_path: Path) -> None:
    sources = found(photo(tmp_path / "a.jpg"))
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UnreadableError, match="there is no file"):
        sources[0].read()


def test_a_mistyped_path_gets_a_suggestion(photos: Path) -> None:
    with pytest.raises(ConfigError, match=f"there is no file or folder .*fotos; did you mean {photos}"):
        found(photos.parent / "fotos")
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere either"):
        found(photos.parent / "nowhere" / "photos")


def test_a_folder_without_images_says_what_it_has(tmp_path: Path) -> None:
    video(tmp_path / "clips" / "a.avi")
    with pytest.raises(ConfigError, match=r"clips has no images; it has 1 video: give '.*clips/\*\.avi'"):
        found(tmp_path / "clips")
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "IMG_1.HEIC").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"1 picture such as IMG_1\.HEIC; convert"):
        found(tmp_path / "phone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"files that end in \.jpg"):
        found(tmp_path / "empty")


def test_videos_and_other_pictures_in_folders_are_mentioned(photos: Path) -> None:
    video(photos / "clip.avi")
    (photos / "phone.heic").write_bytes(b"x")
    sources = found(photos)
    assert len(sources) == 4
    assert "1 video in folders left out" in sources.notes[0]
    assert "1 picture in folders left out" in sources.notes[1]


def test_results_in_a_folder_of_sources_are_no_sources(photos: Path) -> None:
    photo(photos / "found" / "pictures" / "a.jpg")
    assert len(found(photos, without=photos / "found")) == 4
    assert len(found(photos / "*" / "**" / "*.jpg", without=photos / "found")) == 1


def test_frames_are_numbered_from_0_and_videos_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one, other = video(tmp_path / "x" / "clip.avi", 2), video(tmp_path / "y" / "clip.avi", 1)
    photo(tmp_path / "photos" / "clip" / "a.jpg")
    assert names(found(one, one)) == ["clip/frame_000000.jpg", "clip/frame_000001.jpg"]
    assert names(found(one, other, tmp_path / "photos")) == [
        "clip-2/frame_000000.jpg",
        "clip-2/frame_000001.jpg",
        "clip-3/frame_000000.jpg",
        "clip/a.jpg",
    ]


def test_frames_are_those_of_the_file(tmp_path: Path) -> None:
    sources = found(video(tmp_path / "clip.avi"))
    assert len(sources) == 5
    # Grays of 0, 40, 80 …; JPEG changes them a little.
    assert [round(float(sources[number].read().mean()) / 40) for number in (0, 1, 4, 2)] == [0, 1, 4, 2]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    content = document(5)
    content["images"][1]["calib"] = [[70.0, 0, 60, 0], [0, 70, 18, 0], [0, 0, 1, 0]]
    annotations, images = write_coco(tmp_path / "raw", content)
    build_shards(annotations, images, str(tmp_path / "shards"), split="train", shard_bytes=20_000)
    return tmp_path / "shards" / "train"


def test_shards_keep_ids_names_and_cameras(shards: Path) -> None:
    sources = found(shards)
    raw = json.loads((shards.parents[1] / "raw" / "instances.json").read_text())["images"]
    by_id = {one["id"]: one for one in raw}
    assert {one.image_id for one in sources} == set(by_id)
    for one in sources:
        loaded = one.load()
        assert one.stem == f"{one.image_id:012d}"
        assert loaded.name == by_id[one.image_id]["file_name"]
        assert (loaded.camera is None) == ("calib" not in by_id[one.image_id])
        original = cv2.cvtColor(cv2.imread(str(shards.parents[1] / "raw" / "images" / loaded.name)), cv2.COLOR_BGR2RGB)
        assert np.array_equal(loaded.image, original)
    assert names(found(shards / "manifest.json")) == names(sources)


def test_the_folder_above_shards_is_refused_with_the_splits(shards: Path) -> None:
    with pytest.raises(ConfigError, match=f"has no images; give the shards of a split: {shards}"):
        found(shards.parent)


def test_a_manifest_of_another_tool_does_not_make_a_folder_shards(photos: Path) -> None:
    (photos / "manifest.json").write_text('{"name": "an app"}')
    assert len(found(photos)) == 4


def test_sources_of_all_kinds_together(photos: Path, shards: Path, tmp_path: Path) -> None:
    sources = found(video(tmp_path / "clip.avi", 2), shards, photos, limit=8)
    assert len(sources) == 8
    assert names(sources)[:2] == ["clip/frame_000000.jpg", "clip/frame_000001.jpg"]
    assert all(name.startswith("train/") for name in names(sources)[2:7])
    assert names(sources)[7:] == ["photos/a.png"]
    # Ids of shards would clash with those of files.
    assert [one.image_id for one in sources] == list(range(1, 9))
    assert [(first, end) for first, end, _ in sources.places()] == [(0, 2), (2, 7), (7, 8)]
    assert "the first 8 of them" in sources.describe()


def test_sources_read_the_same_in_another_process(photos: Path, shards: Path, tmp_path: Path) -> None:
    sources = found(video(tmp_path / "clip.avi", 3), shards, photos)
    first = [one.read() for one in sources]
    again: Sequence[Any] = pickle.loads(pickle.dumps(sources))
    assert [one.name for one in again] == names(sources)
    assert all(np.array_equal(one, other.read()) for one, other in zip(first, again, strict=True))
    sources.close()


def test_a_digest_tells_whether_the_images_are_the_same(photos: Path) -> None:
    before = found(photos).digest()
    assert found(photos).digest() == before
    assert found(photos, limit=3).digest() != before
    photo(photos / "new.jpg")
    assert found(photos).digest() != before


@pytest.mark.parametrize(
    ("word", "message"), [("https://host/a.jpg", "cannot be read"), ("s3://b/a.mp4", "is a video")]
)
def test_an_address_that_cannot_be_read_is_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        found(word)


def test_a_limit_below_1_is_refused(photos: Path) -> None:
    with pytest.raises(ConfigError, match="--limit is 0"):
        found(photos, limit=0)


def test_a_prefix_of_images_in_s3(s3: str, photos: Path) -> None:
    store = open_store(s3)
    for name in ("in/b/10.jpg", "in/b/9.jpg", "in/readme.txt"):
        store.upload(photos / "b" / "10.jpg", name)
    sources = found(f"{s3}/in/")
    assert names(sources) == ["b/9.jpg", "b/10.jpg"]
    assert sources[0].read().shape == (8, 12, 3)
    assert names(found(f"{s3}/in/b/9.jpg")) == ["9.jpg"]
    assert names(found(f"{s3}/in", photos / "a.png")) == ["in/b/9.jpg", "in/b/10.jpg", "photos/a.png"]
    store.delete("in/b/9.jpg")
    with pytest.raises(UnreadableError, match="no object"):
        sources[0].read()
    with pytest.raises(ConfigError, match="nothing has no images; check the prefix"):
        found(f"{s3}/nothing")


def test_shards_in_s3(s3: str, shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWEIGH_CACHE", str(tmp_path / "cache"))
    store = open_store(f"{s3}/set/train")
    for path in shards.iterdir():
        store.upload(path, path.name)
    remote, local = found(f"{s3}/set/train"), found(shards)
    assert names(remote) == names(local)
    assert np.array_equal(remote[3].read(), local[3].read())
    with pytest.raises(ConfigError, match=f"has no images; give its shards, such as {s3}/set/train"):
        found(f"{s3}/set")


def test_keys_that_expire_end_the_job_instead_of_listing_every_image(
    s3: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(s3)
    store.upload(photos / "b" / "10.jpg", "in/1.jpg")
    source = found(f"{s3}/in")[0]

    def refuse(self: object, name: str, **_: object) -> bytes:
        raise DataError("the AWS credentials have expired")

    monkeypatch.setattr("data_shards.storage.s3.S3Store.read_bytes", refuse)
    with pytest.raises(DataError, match="have expired") as error:
        source.read()
    assert not isinstance(error.value, UnreadableError)


def test_natural_order() -> None:
    words = ["b1", "a10", "a9", "A2", "a09", "a"]
    assert sorted(words, key=natural_key) == ["a", "A2", "a09", "a9", "a10", "b1"]


@pytest.mark.parametrize(
    ("name", "plain"),
    [("a/b.jpg", "a/b.jpg"), ("/etc/x.jpg", "etc/x.jpg"), ("../../x.jpg", "x.jpg"), ("C:\\d\\x.jpg", "d/x.jpg")],
)
def test_a_name_from_annotations_stays_inside_its_folder(name: str, plain: str) -> None:
    assert plain_name(name) == plain


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_listed_is_refused(photos: Path) -> None:
    (photos / "b").chmod(0)
    try:
        with pytest.raises(ConfigError, match=r"cannot list .*b: Permission denied"):
            found(photos)
    finally:
        (photos / "b").chmod(0o755)
