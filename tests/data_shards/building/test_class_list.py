import json
from pathlib import Path
from typing import Any

import pytest

from data_shards.building.build import build_shards
from data_shards.errors import DataError
from data_shards.format.manifest import CocoClass
from data_shards.reading.split import open_split
from tests.data_shards.samples import document, write_coco


def build(folder: Path, categories: list[dict[str, Any]], split: str, **options: Any) -> Any:
    """Three boxes of each category; `document` has the ids 18, 1 and 44."""
    content = document(8)
    new_ids = dict(zip((18, 1, 44), (item["id"] for item in categories), strict=True))
    for item in content["annotations"]:
        item["category_id"] = new_ids[item["category_id"]]
        del item["keypoints"]
    content["categories"] = categories
    annotations, images = write_coco(folder / split, content)
    return build_shards(annotations, images, str(folder), split=split, **options)


TRAIN = [{"id": 5, "name": "dog"}, {"id": 6, "name": "cup", "keypoints": ["rim"]}, {"id": 9, "name": "cat"}]
VAL = [{"id": 0, "name": "cat"}, {"id": 5, "name": "cup"}, {"id": 7, "name": "dog"}]


def test_a_split_takes_over_the_ids_and_joints_of_another(tmp_path: Path) -> None:
    train = build(tmp_path, TRAIN, "train")
    alone = build(tmp_path, VAL, "alone")
    for number, source in enumerate(
        (train.location, f"{train.location}/manifest.json", str(tmp_path / "train" / "instances.json"))
    ):
        val = build(tmp_path, VAL, f"val{number}", classes_from=source)
        assert (
            val.manifest.classes
            == train.manifest.classes
            == (
                CocoClass(5, "dog"),
                CocoClass(6, "cup", ("rim",)),
                CocoClass(9, "cat"),
            )
        )
        mine, others = open_split(val.location).shards(), open_split(alone.location).shards()
        assert {item["category_id"] for item in mine.read_json(0, 3)["annotations"]} <= {5, 6, 9}
        renamed = [val.manifest.class_names[label] for label in mine.index(0).labels]
        assert renamed == [alone.manifest.class_names[label] for label in others.index(0).labels]


def test_a_class_that_the_other_split_lacks_is_refused_unless_it_is_not_learnt(tmp_path: Path) -> None:
    train = build(tmp_path, TRAIN, "train")
    categories = [{"id": 1, "name": "dogs"}, {"id": 5, "name": "cup"}, {"id": 7, "name": "cat"}]
    with pytest.raises(
        DataError, match=r"has the category 'dogs', which the split .* lacks; did you mean 'dog'\? Rename"
    ):
        build(tmp_path, categories, "val", classes_from=train.location)
    val = build(tmp_path, categories, "val", classes_from=train.location, leave_out=["dogs"])
    assert val.manifest.classes == train.manifest.classes
    ignored = build(tmp_path, categories, "ignored", classes_from=train.location, ignore={"dogs": "dog"})
    assert ignored.manifest.classes == train.manifest.classes
    assert [(item.name, item.label) for item in ignored.manifest.ignored] == [("dogs", 0)]


def test_classes_that_names_do_not_tell_apart_are_refused(tmp_path: Path) -> None:
    train = build(tmp_path, TRAIN, "train")
    joints = [
        {"id": 1, "name": "dog"},
        {"id": 5, "name": "cup", "keypoints": ["rim", "foot"]},
        {"id": 7, "name": "cat"},
    ]
    with pytest.raises(DataError, match=r"category 'cup' has 2 joints \(rim, foot\), but .* has 1 joint \(rim\)"):
        build(tmp_path, joints, "val", classes_from=train.location)
    twice = [{"id": 1, "name": "dog"}, {"id": 5, "name": "dog"}, {"id": 7, "name": "cat"}]
    with pytest.raises(DataError, match="has two classes with one name"):
        build(tmp_path, twice, "val", classes_from=train.location)
    with pytest.raises(DataError, match="there are no shards at"):
        build(tmp_path, VAL, "val", classes_from=str(tmp_path / "nowhere"))


def test_another_list_of_classes_is_another_data_set(tmp_path: Path) -> None:
    train = build(tmp_path, TRAIN, "train")
    build(tmp_path, VAL, "val")
    with pytest.raises(DataError, match="already holds another data set"):
        build(tmp_path, VAL, "val", classes_from=train.location)
    build(tmp_path, VAL, "val", classes_from=train.location, overwrite=True)
    assert build(tmp_path, VAL, "val", classes_from=train.location).unchanged
    assert json.loads((tmp_path / "val" / "instances.json").read_text())["categories"] == VAL
