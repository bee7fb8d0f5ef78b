"""Folders as tools export them, and those that cannot be understood."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_shards.building.annotated_folder import AnnotatedFolder, read_annotated_folder
from data_shards.errors import DataError
from tests.data_shards.building.folders import (
    CLASSES,
    Photo,
    document,
    photos,
    put,
    put_json,
    put_labels,
    put_xml,
    roboflow_coco,
    roboflow_yolo,
)

TRAIN, VAL = photos(4), photos(2, first=4)
ALL = [*TRAIN, *VAL]
Make = Callable[[Path], object]


def _yolo(root: Path, yaml: str, split: bool = True) -> None:
    for name, images in (("train", TRAIN), ("val", VAL)) if split else (("", ALL),):
        put(root / "images" / name, images)
        put_labels(root / "labels" / name, images)
    (root / "data.yaml").write_text(yaml)


def _lists(root: Path) -> None:
    _yolo(root, "train: train.txt\nval: val.txt\nnames: {0: cat, 1: dog}\n", split=False)
    for name, images in (("train", TRAIN), ("val", VAL)):
        (root / f"{name}.txt").write_text("".join(f"./images/{image.name}\n" for image in images))


def _listed_folders(root: Path) -> None:
    for name, images in (("day", TRAIN[:1]), ("night", TRAIN[1:]), ("val", VAL)):
        put(root / name / "images", images)
        put_labels(root / name / "labels", images)
    (root / "data.yaml").write_text("path: .\ntrain: [day, night/images]\nval: val/images\nnames: [cat, dog]\n")


def _coco(root: Path) -> None:
    for name, images in (("train2017", TRAIN), ("val2017", VAL)):
        put(root / name, images)
        put_json(root / "annotations" / f"instances_{name}.json", document(images))
        put_json(root / "annotations" / f"person_keypoints_{name}.json", document(images, classes=["person", "x"]))
        put_json(root / "annotations" / f"captions_{name}.json", {"images": [], "annotations": []})


def _cvat(root: Path) -> None:
    for name, images in (("train", TRAIN), ("val", VAL)):
        put(root / "images" / name, images)
        put_json(root / "annotations" / f"instances_{name}.json", document(images, f"images/{name}/"))


def _voc(root: Path) -> None:
    put(root / "VOC2012" / "JPEGImages", ALL)
    put_xml(root / "VOC2012" / "Annotations", ALL)
    sets = root / "VOC2012" / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    for name, images in (("train", TRAIN), ("val", VAL), ("trainval", ALL)):
        (sets / f"{name}.txt").write_text("".join(f"{Path(image.name).stem}\n" for image in images))
    # The challenge of 2007 ships the annotations of its test images apart.
    (sets / "test.txt").write_text("000001\n")


def _flat_voc(root: Path) -> None:
    for name, images in (("train", TRAIN), ("valid", VAL)):
        put(root / name, images)
        put_xml(root / name, images)


SPLIT: dict[str, tuple[str, Make]] = {
    "Roboflow's YOLO": ("YOLO", lambda root: roboflow_yolo(root, {"train": TRAIN, "valid": VAL})),
    "Roboflow's COCO": ("COCO", lambda root: roboflow_coco(root, {"train": TRAIN, "valid": VAL})),
    "Roboflow's VOC": ("Pascal VOC", _flat_voc),
    "YOLO, images/train": (
        "YOLO",
        lambda root: _yolo(root, "train: images/train\nval: images/val\nnames: [cat, dog]\n"),
    ),
    "YOLO of another machine": (
        "YOLO",
        lambda root: _yolo(root, "path: /home/me/sets/pets\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"),
    ),
    "YOLO, absolute paths of Windows": (
        "YOLO",
        lambda root: _yolo(root, "train: 'C:\\sets\\images\\train'\nval: 'C:\\sets\\images\\val'\nnames: [cat, dog]\n"),
    ),
    "YOLO without paths": ("YOLO", lambda root: _yolo(root, "names: [cat, dog]\n")),
    "YOLO, lists of images": ("YOLO", _lists),
    "YOLO, lists of folders": ("YOLO", _listed_folders),
    "COCO itself": ("COCO", _coco),
    "CVAT's COCO": ("COCO", _cvat),
    "a folder in a folder": ("COCO", lambda root: _coco(root / "pets v2" / "export")),
}


@pytest.mark.parametrize("name", SPLIT)
def test_splits_are_found_in_the_layouts_of_the_tools(name: str, tmp_path: Path) -> None:
    kind, make = SPLIT[name]
    make(tmp_path)
    found = read_annotated_folder(tmp_path)
    assert (found.kind, list(found.documents), found.class_names) == (kind, ["train", "val"], list(CLASSES))
    assert _names(found) == {"train": {image.name for image in TRAIN}, "val": {image.name for image in VAL}}
    _check_boxes(found)


def _names(found: AnnotatedFolder) -> dict[str, set[str]]:
    return {
        split: {Path(image["file_name"]).name for image in document["images"]}
        for split, document in found.documents.items()
    }


def _check_boxes(found: AnnotatedFolder) -> None:
    """Every image is there, with its own two boxes."""
    for content in found.documents.values():
        name_of = {item["id"]: item["name"] for item in content["categories"]}
        for image in content["images"]:
            assert (found.images / image["file_name"]).is_file()
            boxes = [item for item in content["annotations"] if item["image_id"] == image["id"]]
            assert [name_of[item["category_id"]] for item in boxes] == list(CLASSES)
            assert [[round(value, 3) for value in item["bbox"]] for item in boxes] == [[4, 4, 20, 24], [30, 10, 30, 30]]


def test_the_lists_of_the_challenge_are_followed(tmp_path: Path) -> None:
    _voc(tmp_path)
    found = read_annotated_folder(tmp_path)
    assert (found.kind, list(found.documents)) == ("Pascal VOC", ["train", "val"])
    assert {split: len(content["images"]) for split, content in found.documents.items()} == {"train": 4, "val": 2}
    _check_boxes(found)


def _label_studio_coco(root: Path) -> None:
    put(root / "images", ALL)
    content = document(ALL, first_id=0)
    for image in content["images"]:
        image["file_name"] = f"images\\{image['file_name']}"
    put_json(root / "result.json", content)


def _label_studio_yolo(root: Path) -> None:
    put(root / "images", ALL)
    put_labels(root / "labels", ALL)
    (root / "classes.txt").write_text("cat\ndog\n")
    put_json(root / "notes.json", {"categories": [], "info": {}})


def _darknet(root: Path) -> None:
    put(root / "obj_train_data", ALL)
    put_labels(root / "obj_train_data", ALL)
    (root / "obj.names").write_text("cat\ndog\n")
    (root / "obj.data").write_text("classes = 2\n")
    (root / "train.txt").write_text("".join(f"data/obj_train_data/{image.name}\n" for image in ALL))


SINGLE: dict[str, tuple[str, Make]] = {
    "Label Studio's COCO": ("COCO", _label_studio_coco),
    "Label Studio's YOLO": ("YOLO", _label_studio_yolo),
    "CVAT's default task": (
        "COCO",
        lambda root: (
            put(root / "images" / "default", ALL),
            put_json(root / "annotations" / "instances_default.json", document(ALL)),
        ),
    ),
    "FiftyOne's COCO": ("COCO", lambda root: (put(root / "data", ALL), put_json(root / "labels.json", document(ALL)))),
    "a JSON beside the images": (
        "COCO",
        lambda root: put_json(put(root, ALL) / "_annotations.coco.json", document(ALL)),
    ),
    "only a train split": ("COCO", lambda root: roboflow_coco(root, {"train": ALL})),
    "CVAT's YOLO": ("YOLO", _darknet),
    "YOLO, all in one folder": (
        "YOLO",
        lambda root: (put_labels(put(root, ALL), ALL), (root / "classes.txt").write_text("cat\ndog\n")),
    ),
    "YOLO, the same images twice": (
        "YOLO",
        lambda root: _yolo(root, "train: images\nval: images\nnames: [cat, dog]\n", split=False),
    ),
    "VOC beside the images": ("Pascal VOC", lambda root: put_xml(put(root, ALL), ALL)),
    "VOC, images and annotations": (
        "Pascal VOC",
        lambda root: (put(root / "images", ALL), put_xml(root / "annotations", ALL)),
    ),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_set_is_found_in_the_layouts_of_the_tools(name: str, tmp_path: Path) -> None:
    kind, make = SINGLE[name]
    make(tmp_path)
    found = read_annotated_folder(tmp_path)
    assert (found.kind, found.class_names) == (kind, list(CLASSES))
    assert _names(found) == {"all": {image.name for image in ALL}}
    _check_boxes(found)


def test_the_description_names_what_was_found(tmp_path: Path) -> None:
    roboflow_coco(tmp_path, {"train": TRAIN, "valid": VAL})
    found = read_annotated_folder(tmp_path)
    assert found.describe() == (
        "COCO, 2 classes (cat, dog): train 4 images (train/_annotations.coco.json); val 2 images "
        "(valid/_annotations.coco.json)"
    )
    assert found.notes == ("category 'pets' has no object and is the parent of all others, so it is left out",)


def test_a_data_yaml_that_points_elsewhere_is_followed_and_said(tmp_path: Path) -> None:
    roboflow_yolo(tmp_path, {"train": TRAIN, "valid": VAL})
    assert read_annotated_folder(tmp_path).notes[0] == (
        f"data.yaml says train: ../train/images; using {tmp_path / 'train' / 'images'}"
    )


def test_test_images_validate_if_nothing_else_does(tmp_path: Path) -> None:
    roboflow_coco(tmp_path, {"train": TRAIN, "test": VAL})
    found = read_annotated_folder(tmp_path)
    assert list(found.documents) == ["train", "val"]
    assert "there is no validation split, so test is used for it" in found.notes


def test_three_splits_stay_three(tmp_path: Path) -> None:
    roboflow_yolo(tmp_path, {"train": TRAIN, "valid": VAL, "test": photos(1, first=6)})
    assert {name: len(content["images"]) for name, content in read_annotated_folder(tmp_path).documents.items()} == {
        "train": 4,
        "val": 2,
        "test": 1,
    }


def test_splits_exported_one_by_one_have_the_same_classes(tmp_path: Path) -> None:
    put(tmp_path / "train", TRAIN)
    put(tmp_path / "val", VAL)
    put_json(tmp_path / "train" / "a.json", document(TRAIN))
    other = document(VAL, classes=["dog", "cat"], first_id=5)
    for item in other["annotations"]:
        item["category_id"] = 11 - item["category_id"]
    put_json(tmp_path / "val" / "b.json", other)
    found = read_annotated_folder(tmp_path)
    assert [content["categories"] for content in found.documents.values()] == [document([])["categories"]] * 2
    _check_boxes(found)


def test_a_class_of_one_split_only_is_said(tmp_path: Path) -> None:
    put(tmp_path / "train", TRAIN)
    put(tmp_path / "val", VAL)
    put_json(tmp_path / "train" / "a.json", document(TRAIN))
    put_json(tmp_path / "val" / "b.json", document(VAL, classes=["cat", "dog", "bird"]))
    found = read_annotated_folder(tmp_path)
    assert found.class_names == ["cat", "dog", "bird"]
    assert found.notes == ("train/a.json does not list bird",)


def test_the_challenges_own_files_count_pixels_from_1(tmp_path: Path) -> None:
    put_xml(put(tmp_path, ALL), ALL, database="The VOC2007 Database")
    boxes = read_annotated_folder(tmp_path).documents["all"]["annotations"]
    assert boxes[0]["bbox"] == [3, 3, 21, 25]


def test_folders_of_runs_are_not_looked_into(tmp_path: Path) -> None:
    roboflow_coco(tmp_path, {"train": ALL})
    put_json(tmp_path / "runs" / "shards" / "annotations" / "train.json", document(TRAIN))
    found = read_annotated_folder(tmp_path, without=[tmp_path / "runs"])
    assert _names(found) == {"all": {image.name for image in ALL}}


def test_names_in_any_alphabet_and_links_are_read(tmp_path: Path) -> None:
    odd = [Photo(f"été {word} & (1).jpg", image.data) for word, image in zip(("猫", "собака"), TRAIN, strict=False)]
    put(tmp_path / "elsewhere" / "三角", odd)
    put_json(tmp_path / "pets" / "labels.json", document(odd))
    (tmp_path / "pets" / "data").symlink_to(tmp_path / "elsewhere" / "三角")
    (tmp_path / "pets" / "loop").symlink_to(tmp_path / "pets")
    _check_boxes(read_annotated_folder(tmp_path / "pets"))


def test_nothing_is_written_in_the_folder(tmp_path: Path) -> None:
    roboflow_yolo(tmp_path, {"train": TRAIN, "valid": VAL})
    before = sorted(os.walk(tmp_path))
    read_annotated_folder(tmp_path)
    assert sorted(os.walk(tmp_path)) == before


REFUSED: dict[str, tuple[Make, str]] = {
    "nothing": (lambda root: None, r"no annotations were found in an empty folder. Looked for YOLO \(data.yaml, or"),
    "images without labels": (lambda root: put(root, TRAIN), "no annotations were found in 4 images. Looked for"),
    "YOLO without labels": (
        lambda root: (
            put(root / "train" / "images", ALL),
            (root / "data.yaml").write_text("train: train\nnames: [cat]\n"),
        ),
        "none of the 6 images in .* has a text file in",
    ),
    "labels without images": (
        lambda root: put_json(root / "instances.json", document(TRAIN)),
        "4 of the 4 images of .*instances.json are not in",
    ),
    "two kinds": (
        lambda root: (roboflow_coco(root, {"train": ALL}), put_xml(root / "train", ALL)),
        r"annotations of more than one kind: COCO \(train/_annotations.coco.json\) and Pascal VOC \(train\)",
    ),
    "two sets": (
        lambda root: (
            put(root, ALL),
            put_json(root / "a.json", document(TRAIN)),
            put_json(root / "b.json", document(VAL)),
        ),
        "has 2 COCO files whose names do not contain train, val or test: a.json, b.json",
    ),
    "a set that may be any": (
        lambda root: (
            put(root, ALL),
            put_json(root / "a.json", document(TRAIN)),
            put_json(root / "train.json", document(VAL)),
        ),
        "unclear which split a.json belongs to, beside train",
    ),
    "nothing to train on": (
        lambda root: roboflow_coco(root, {"valid": TRAIN, "test": VAL}),
        "has COCO annotations of test and val, but none to train on",
    ),
    "paths that lead nowhere": (
        lambda root: _yolo(root, "train: images/train\nval: ../validation/pictures\nnames: [cat, dog]\n"),
        r"data.yaml: val is ../validation/pictures, but neither this path nor an end of it is in",
    ),
    "two data.yaml": (
        lambda root: [
            (put(root / name, ALL), (root / name / "data.yaml").write_text("names: [cat]\n")) for name in "ab"
        ],
        "has 2 YAML files with names of classes: a/data.yaml, b/data.yaml",
    ),
    "LabelMe": (lambda root: put_json(put(root, ALL) / "photo 0.json", {"shapes": []}), "in the format of LabelMe"),
    "Label Studio's own JSON": (
        lambda root: (root / "project.json").write_text(json.dumps([{"data": {}, "annotations": []}])),
        "in the format of Label Studio's own JSON, which is not read. Export the data as COCO, YOLO or VOC.",
    ),
    "CVAT's XML": (
        lambda root: (put(root, ALL) / "annotations.xml").write_text(
            "<annotations><version>1.1</version></annotations>"
        ),
        "is in CVAT's own format",
    ),
    "VOC without objects": (
        lambda root: put_xml(put(root, ALL), [Photo(image.name, image.data, ()) for image in ALL]),
        "has an object, so there is nothing to detect",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_is_not_understood_says_what_was_looked_for(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        read_annotated_folder(tmp_path)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none does not exist; give the folder with the images"):
        read_annotated_folder(tmp_path / "none")
