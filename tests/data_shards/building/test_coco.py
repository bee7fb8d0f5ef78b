import json
from pathlib import Path
from typing import Any

import pytest

from data_shards.building.coco import read_coco
from data_shards.errors import DataError
from data_shards.format.manifest import CocoClass
from tests.data_shards.samples import document, write_coco


def read(tmp_path: Path, content: Any, **options: Any) -> Any:
    path = tmp_path / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_coco(path, **options)


def test_a_file_is_read_with_its_crowds_and_its_images_without_boxes(tmp_path: Path) -> None:
    content = document(6)
    dataset = read(tmp_path, content)
    # Labels follow the ids, not the order of the file: 1 person, 18 dog, 44 bottle.
    assert dataset.classes == (CocoClass(1, "person"), CocoClass(18, "dog"), CocoClass(44, "bottle"))
    assert [image.id for image in dataset.images] == [100, 107, 114, 121, 128, 135]
    assert [len(image.annotations) for image in dataset.images] == [0, 1, 2, 3, 0, 1]
    assert dataset.num_boxes == 7
    assert sum(item["iscrowd"] for item in dataset.images[3].annotations) == 1
    # Untouched, whatever fields they have.
    assert [item for image in dataset.images for item in image.annotations] == content["annotations"]


def test_a_missing_annotation_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no annotation file .*/instances\.json; check the path"):
        read_coco(tmp_path / "instances.json")


@pytest.mark.parametrize("keep", [0.1, 0.37, 0.5, 0.731, 0.99])
def test_json_cut_short_is_reported_wherever_it_is_cut(tmp_path: Path, keep: float) -> None:
    text = json.dumps(document(6), indent=1)
    with pytest.raises(
        DataError, match=r"instances\.json is cut short: its JSON stops in the middle after [\d,]+ char"
    ):
        read(tmp_path, text[: int(len(text) * keep)])


def test_json_cut_anywhere_is_never_accepted(tmp_path: Path) -> None:
    text = json.dumps(document(2))
    for length in range(0, len(text), 5):
        with pytest.raises(DataError, match=r"is cut short|is not JSON"):
            read(tmp_path, text[:length])


def test_json_with_a_mistake_is_reported_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not JSON: .* at line 2, column 12\. Correct it there"):
        read(tmp_path, '{\n "images": oops,\n "annotations": []}')


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "data.yaml",
            "names: [dog]\n",
            r"data\.yaml is YAML, not COCO JSON; for YOLO data run `aweigh shards import-yolo` f",
        ),
        ("a.YML", "train: images/train\nnc: 1", r"a\.YML is YAML, not COCO JSON; for YOLO data"),
        (
            "a.xml",
            "<annotation/>",
            r"a\.xml is XML, not COCO JSON; for Pascal VOC data run `aweigh shards import-voc` first",
        ),
    ],
)
def test_annotations_of_another_format_are_recognised(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_coco(tmp_path / name)
    # JSON is YAML as well: a COCO file may have this name.
    (tmp_path / name).write_text(json.dumps(document(3)))
    assert len(read_coco(tmp_path / name).images) == 3


def test_an_annotation_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match=r"binary\.json is not text: .*\. Give the COCO instances JSON\."):
        read_coco(tmp_path / "binary.json")
    with pytest.raises(DataError, match=r"cannot read the annotation file .*: Is a directory\. Check the path and its"):
        read_coco(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image_id": 1, "bbox": [1, 2, 3, 4]}], "holds a list, not COCO's dictionary.* a list of results"),
        ({"images": [], "annotations": []}, "has no list 'categories', so it is not a COCO instances file"),
        ({"images": [], "annotations": [], "categories": []}, "has no categories; there is nothing to detect"),
        ({"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}, "has no images"),
    ],
)
def test_a_file_that_is_not_an_instances_file_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)


def test_an_annotation_naming_an_image_that_is_not_there_is_refused(tmp_path: Path) -> None:
    content = document(6)
    content["annotations"][2]["image_id"] = 999
    content["annotations"][4]["image_id"] = 998
    with pytest.raises(
        DataError, match=r"annotation 1002 names image 999, which is not among its images \(1 more like it\)\. Add"
    ):
        read(tmp_path, content)


def test_an_unknown_category_id_is_refused(tmp_path: Path) -> None:
    content = document(6)
    content["annotations"][0]["category_id"] = 2
    with pytest.raises(
        DataError,
        match=r"annotation 1000 of image 107 has category id 2, which is not among its categories\. "
        r"Add the category, or correct the id; known ids: 1, 18, 44\.",
    ):
        read(tmp_path, content)


@pytest.mark.parametrize("kind", ["images", "annotations", "categories"])
def test_an_id_used_twice_is_refused(tmp_path: Path, kind: str) -> None:
    content = document(6)
    content[kind] = [*content[kind], dict(content[kind][0])]
    singular = {"images": "image", "annotations": "annotation", "categories": "category"}[kind]
    number = content[kind][0]["id"]
    with pytest.raises(DataError, match=rf"{singular} id {number} is used more than once; give each its own"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        ("images", "width", "64", "image id 100 has width '64'; write a whole number of pixels"),
        ("images", "file_name", None, "image id 100 has file_name None; write a text"),
        ("images", "id", -4, r"image id -4 is negative\. Number the images from 0 or 1"),
        ("annotations", "bbox", 5, "annotation id 1000 has bbox 5; write a list x, y, width, height"),
        ("annotations", "bbox", [1, 2, 3], r"annotation 1000 of image 107 has the box \[1, 2, 3\]; write four finite"),
        ("annotations", "bbox", [1, 2, float("nan"), 4], "annotation 1000 .* four finite numbers"),
        ("annotations", "image_id", True, "annotation id 1000 has image_id True; write a whole number"),
        ("categories", "name", 7, "category id 18 has name 7; write a text"),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path: Path, kind: str, field: str, value: Any, message: str) -> None:
    content = document(6)
    content["categories"] = [dict(item) for item in content["categories"]]
    content[kind][0][field] = value
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)


def test_a_field_that_is_missing_is_named(tmp_path: Path) -> None:
    content = document(6)
    del content["annotations"][1]["category_id"]
    with pytest.raises(DataError, match="annotation id 1001 has no 'category_id'; write a whole number"):
        read(tmp_path, content)


def test_missing_image_files_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(6))
    (images / "114.jpg").unlink()
    (images / "128.jpg").unlink()
    with pytest.raises(
        DataError, match=r"2 of the 6 images of .*instances\.json are not in .*; the first is image 114, file 114\.jpg"
    ):
        read_coco(annotations, images)
    with pytest.raises(DataError, match=r"there is no folder of images .*/elsewhere; check the path"):
        read_coco(annotations, tmp_path / "elsewhere")


def test_a_file_name_that_cannot_be_looked_up_is_one_line(tmp_path: Path) -> None:
    content = document(2)
    annotations, images = write_coco(tmp_path, content)
    content["images"][1]["file_name"] = f"{300 * 'x'}.jpg"
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"cannot read .*xxx\.jpg: File name too long\. Check the path"):
        read_coco(annotations, images)


# The image is 64 wide and 48 high.
ZERO_SIZE = [[5, 5, 0, 4], [5, 5, 4, 0], [5, 5, -1, 4], [5, 5, 4, 1e-9]]
OUTSIDE = [[64, 5, 4, 4], [5, 48, 4, 4], [-4, 5, 4, 4], [5, -9, 4, 4]]
PARTLY = [[63.5, 5, 40, 4], [-3.9, 5, 4, 4], [-5, -5, 100, 100]]


def with_boxes(boxes: list[list[float]]) -> dict[str, Any]:
    content = document(1)
    content["annotations"] = [
        {"id": number, "image_id": 100, "category_id": 1, "bbox": box} for number, box in enumerate(boxes)
    ]
    return content


def test_degenerate_boxes_are_dropped_and_counted(tmp_path: Path) -> None:
    dataset = read(tmp_path, with_boxes([*ZERO_SIZE, *OUTSIDE, *PARTLY]))
    assert (dataset.zero_size_boxes, dataset.outside_boxes) == (4, 4)
    assert [item["bbox"] for item in dataset.images[0].annotations] == PARTLY


@pytest.mark.parametrize(("box", "reason"), [(ZERO_SIZE[0], "has no area"), (OUTSIDE[0], "is outside its image")])
def test_degenerate_boxes_are_refused_on_demand(tmp_path: Path, box: list[float], reason: str) -> None:
    x, y, width, height = box
    with pytest.raises(
        DataError,
        match=rf"annotation 1 of image 100 has the box x {x}, y {y}, width {width}, height {height}, "
        rf"which {reason} \(1 more like it\)\. Correct it, or set degenerate_boxes to 'drop'",
    ):
        read(tmp_path, with_boxes([PARTLY[0], box, box]), degenerate_boxes="refuse")


def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="degenerate_boxes is 'keep'; set it to 'drop' or 'refuse'"):
        read(tmp_path, document(1), degenerate_boxes="keep")


def test_a_file_without_objects_has_nothing_to_train_on_if_empty_images_are_dropped(tmp_path: Path) -> None:
    content = document(1)  # one image without boxes
    assert len(read(tmp_path, content).images) == 1
    with pytest.raises(DataError, match=r"no image with an object of a learnt class, so --empty-images drop leaves"):
        read(tmp_path, content, empty_images="drop")
