"""Shards of a folder: built once for each content, and never half."""

import json
from pathlib import Path

import pytest

from data_shards.building.annotated_folder import read_annotated_folder
from data_shards.errors import DataError
from data_shards.format.manifest import load_manifest
from data_shards.reading.split import open_split
from pipelines.errors import ConfigError
from pipelines.finetuning import shards
from pipelines.finetuning.shards import BuiltShards, built_shards, content_digest
from tests.data_shards.building.folders import Photo, document, photos, put, put_json, put_labels, roboflow_yolo
from tests.data_shards.samples import jpeg, photo


def _build(folder: Path, cache: Path, share: float = 0.2, seed: int = 0) -> BuiltShards:
    found = read_annotated_folder(folder)
    digest = content_digest(found, share, seed)
    return built_shards(found, folder.name, digest, cache, share=share, seed=seed)


def _single(folder: Path, images: list[Photo]) -> Path:
    put(folder / "images", images)
    put_labels(folder / "labels", images)
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder


def _names(location: str) -> set[str]:
    split = open_split(location)
    reader = split.shards()
    try:
        return {
            Path(reader.read_json(number, row)["file_name"]).name
            for number, shard in enumerate(split.manifest.shards)
            for row in range(shard.samples)
        }
    finally:
        reader.close()


def test_a_single_set_is_split_and_built(tmp_path: Path) -> None:
    built = _build(_single(tmp_path / "pets", photos(10)), tmp_path / "cache")
    assert built.splits == ("train", "val")
    train, val = _names(built.location("train")), _names(built.location("val"))
    assert (len(train), len(val), train & val) == (8, 2, set())
    assert built.split == "10 images into 8 to train on and 2 to validate on (share 0.2, seed 0)"
    assert load_manifest(built.location("train")).class_names == load_manifest(built.location("val")).class_names
    assert built.location("test") == ""


def test_near_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    images = photos(6)
    again = [Photo(f"again {number}.jpg", jpeg(photo(number), 70)) for number in range(6)]
    built = _build(_single(tmp_path / "pets", [*images, *again]), tmp_path / "cache")
    val = _names(built.location("val"))
    assert {name.replace("photo", "again") for name in val} == {name for name in val if name.startswith("again")}
    assert "; 6 groups of near-duplicates stay on one side, such as " in built.split


def test_the_same_files_are_built_once_and_changed_ones_anew(tmp_path: Path) -> None:
    folder, cache = _single(tmp_path / "pets", photos(10)), tmp_path / "cache"
    first = _build(folder, cache)
    written = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.tar")}
    (folder / "README.txt").write_text("not data")
    (folder / "images" / "photo 0.jpg").touch()
    again = _build(folder, cache)
    assert (first.built, again.built) == (True, False)
    assert (again.folder, again.splits, again.split) == (first.folder, first.splits, first.split)
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.tar")} == written
    assert _build(folder, cache, seed=1).folder != first.folder
    label = folder / "labels" / "photo 0.txt"
    label.write_text(label.read_text().replace("0 ", "1 ", 1))
    other = _build(folder, cache)
    assert other.built
    assert other.folder != first.folder


def test_a_build_that_was_killed_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = _single(tmp_path / "pets", photos(10)), tmp_path / "cache"
    build_split, calls = shards._build_split, []

    def killed(*arguments: object) -> list[str]:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return build_split(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "_build_split", killed)
    with pytest.raises(KeyboardInterrupt):
        _build(folder, cache)
    monkeypatch.undo()
    resumed = _build(folder, cache)
    assert resumed.built
    assert not _build(folder, cache).built
    fresh = _build(folder, tmp_path / "other")
    for split in ("train", "val"):
        assert load_manifest(resumed.location(split)).digest == load_manifest(fresh.location(split)).digest


@pytest.mark.parametrize("spoiled", ["manifest.json", "train-000000.tar"])
def test_shards_that_lost_a_file_are_built_again(tmp_path: Path, spoiled: str) -> None:
    folder, cache = _single(tmp_path / "pets", photos(10)), tmp_path / "cache"
    first = _build(folder, cache)
    digest = load_manifest(first.location("train")).digest
    (Path(first.location("train")) / spoiled).unlink()
    assert _build(folder, cache).built
    assert load_manifest(first.location("train")).digest == digest
    (Path(first.location("train")) / "manifest.json").write_text("{")
    assert _build(folder, cache).built
    assert load_manifest(first.location("train")).digest == digest


def test_given_splits_are_kept(tmp_path: Path) -> None:
    folder = roboflow_yolo(tmp_path / "pets", {"train": photos(4), "valid": photos(2, 4), "test": photos(1, 6)})
    built = _build(folder, tmp_path / "cache")
    assert (built.splits, built.split) == (("train", "val", "test"), "")
    assert [len(_names(built.location(split))) for split in built.splits] == [4, 2, 1]


def test_no_share_validates_on_nothing(tmp_path: Path) -> None:
    built = _build(_single(tmp_path / "pets", photos(3)), tmp_path / "cache", share=0)
    assert (built.splits, built.location("val")) == (("train",), "")


def test_what_building_drops_is_said(tmp_path: Path) -> None:
    images = photos(4)
    images[0] = Photo(images[0].name, images[0].data, ())
    folder = tmp_path / "pets"
    put(folder, images)
    content = document(images)
    content["annotations"][0]["bbox"] = [4, 4, 0, 24]
    put_json(folder / "a.json", content)
    built = _build(folder, tmp_path / "cache", share=0)
    assert built.notes == (
        "train: 1 box without area or outside its image dropped",
        "train: 1 image without objects, kept as background",
    )


def test_joints_and_ids_of_coco_files_are_kept(tmp_path: Path) -> None:
    images = photos(4)
    put(tmp_path / "pets", images)
    content = document(images, first_id=17)
    content["categories"][0]["keypoints"] = ["nose"]
    for item in content["annotations"]:
        item["keypoints"] = [5, 6, 2] if item["category_id"] == 17 else []
    put_json(tmp_path / "pets" / "a.json", content)
    manifest = load_manifest(_build(tmp_path / "pets", tmp_path / "cache").location("train"))
    assert ([item.id for item in manifest.classes], manifest.joints) == ([17, 18], 1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (photos(1), "has a single annotated image, which cannot be split .* --validation-share 0"),
        (
            [Photo(f"{number}.jpg", jpeg(photo(0), 80 + number)) for number in range(4)],
            "all 4 images are near-duplicates of each other.* pass --validation-share 0",
        ),
        (
            [Photo("0.jpg", b"no image"), *photos(4, 1)],
            "cannot read the image .*0.jpg",
        ),
    ],
)
def test_images_that_cannot_be_used_are_refused_and_nothing_counts_as_built(
    images: list[Photo], message: str, tmp_path: Path
) -> None:
    folder = _single(tmp_path / "pets", images)
    for _ in range(2):
        with pytest.raises(DataError, match=message):
            _build(folder, tmp_path / "cache")


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        ConfigError, match=r"shards cannot be written to .*cache/pets-.*or give --shards another folder"
    ):
        _build(_single(tmp_path / "pets", photos(4)), tmp_path / "cache")


def test_names_of_folders_are_plain_and_short(tmp_path: Path) -> None:
    built = _build(_single(tmp_path / f"my 猫 & dogs {'x' * 80}", photos(4)), tmp_path / "cache")
    assert built.folder.name.startswith("my-猫---dogs-xxx")
    assert len(built.folder.name.encode()) <= 70
    assert json.loads((built.folder / "finetune.json").read_text())["splits"] == ["train", "val"]
