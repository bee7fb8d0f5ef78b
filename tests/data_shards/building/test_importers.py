import json
import os
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import cv2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_shards.building.build import build_shards
from data_shards.building.importers import class_list, import_voc, import_yolo
from data_shards.errors import DataError
from tests.data_shards.samples import jpeg, photo

Box = tuple[str, float, float, float, float]


def write_images(folder: Path, names: list[str], height: int = 40, width: int = 80) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image = photo(number, height, width)
        data = jpeg(image) if not name.endswith(".png") else cv2.imencode(".png", image)[1].tobytes()
        (folder / name).write_bytes(data)
    return folder


def voc(folder: Path, name: str, boxes: list[Box], extra: str = "", size: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><name>{escape(label)}</name>{extra}<bndbox><xmin>{x1!r}</xmin><ymin>{y1!r}</ymin>"
        f"<xmax>{x2!r}</xmax><ymax>{y2!r}</ymax></bndbox></object>"
        for label, x1, y1, x2, y2 in boxes
    )
    size = size or "<size><width>80</width><height>40</height><depth>3</depth></size>"
    text = f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"
    (folder / name).with_suffix(".xml").write_text(text)


def boxes_of(path: Path) -> dict[str, list[Box]]:
    document = json.loads(path.read_text())
    names = {item["id"]: item["name"] for item in document["categories"]}
    files = {item["id"]: item["file_name"] for item in document["images"]}
    found: dict[str, list[Box]] = {name: [] for name in files.values()}
    for item in document["annotations"]:
        x, y, width, height = item["bbox"]
        assert item["area"] == width * height
        found[files[item["image_id"]]].append((names[item["category_id"]], x, y, x + width, y + height))
    return found


def test_voc_corners_are_edges_and_nothing_is_shifted(tmp_path: Path) -> None:
    images = write_images(tmp_path / "JPEGImages", ["b.jpg", "a.jpg", "c.png"])
    voc(tmp_path / "Annotations", "b.jpg", [("dog", 10.0, 5.0, 30.0, 25.0), ("cat & co", 0.0, 0.0, 80.0, 40.0)])
    voc(tmp_path / "Annotations", "a.jpg", [], size="<size><width>0</width><height>0</height></size>")
    voc(tmp_path / "Annotations", "c.png", [("dog", 1.5, 2.0, 3.0, 4.25)])
    report = import_voc(tmp_path / "Annotations", images, tmp_path / "voc.json")
    document = json.loads((tmp_path / "voc.json").read_text())
    assert document["categories"] == [{"id": 1, "name": "cat & co"}, {"id": 2, "name": "dog"}]
    assert [(item["id"], item["file_name"]) for item in document["images"]] == [
        (1, "a.jpg"),
        (2, "b.jpg"),
        (3, "c.png"),
    ]
    assert document["annotations"][0]["bbox"] == [10, 5, 20, 20]  # 30 - 10, 25 - 5
    assert (report.num_images, report.num_boxes, report.images_without_boxes) == (3, 3, 1)
    # What was imported builds, and importing again gives the same bytes.
    built = build_shards(report.annotations, report.images, str(tmp_path), split="train")
    assert built.manifest.class_names == ("cat & co", "dog")
    import_voc(tmp_path / "Annotations", images, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "voc.json").read_bytes()


def test_voc_files_that_count_from_one_give_the_whole_image_its_size(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    voc(tmp_path / "xml", "a.jpg", [("dog", 1.0, 1.0, 80.0, 40.0)])  # every pixel of 80 x 40
    import_voc(tmp_path / "xml", images, tmp_path / "voc.json", one_based=True)
    assert boxes_of(tmp_path / "voc.json") == {"a.jpg": [("dog", 0, 0, 80, 40)]}


def test_voc_image_sets_classes_and_difficult_objects(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", ["a.jpg", "b.jpg"])
    voc(tmp_path / "xml", "a.jpg", [("dog", 1.0, 1.0, 8.0, 9.0)], extra="<difficult>1</difficult>")
    voc(tmp_path / "xml", "b.jpg", [("cat", 1.0, 1.0, 8.0, 9.0)])
    (tmp_path / "train.txt").write_text("a -1\n")
    (tmp_path / "names.txt").write_text("dog\ncat\n\n")
    names = class_list([str(tmp_path / "names.txt")])
    assert names == class_list(["dog", "cat"])
    kept = import_voc(tmp_path / "xml", images, tmp_path / "1.json", classes=names, image_set=tmp_path / "train.txt")
    (annotation,) = json.loads(kept.annotations.read_text())["annotations"]
    assert (annotation["category_id"], annotation["difficult"]) == (1, 1)
    dropped = import_voc(tmp_path / "xml", images, tmp_path / "2.json", classes=names, difficult="drop")
    assert boxes_of(dropped.annotations) == {"a.jpg": [], "b.jpg": [("cat", 1, 1, 8, 9)]}
    assert "1 difficult objects left out" in dropped.describe()


def test_yolo_centres_and_sizes_are_parts_of_the_image(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images" / "train", ["x/b.jpg", "a.jpg"])
    labels = tmp_path / "labels" / "train"
    (labels / "x").mkdir(parents=True)
    (labels / "x" / "b.txt").write_text("1 0.5 0.5 0.25 0.5\n\n0 0.0625 0.125 0.125 0.25\n")
    (labels / "classes.txt").write_text("dog\ncat\n")
    (tmp_path / "data.yaml").write_text("path: ../somewhere\nnc: 2\nnames: {0: dog, 1: cat}\n")
    # 80 x 40: the centre 40, 20 and the size 20, 20 give x 30 to 50 and y 10 to 30
    expected = {"a.jpg": [], "x/b.jpg": [("cat", 30, 10, 50, 30), ("dog", 0, 0, 10, 10)]}
    report = import_yolo(None, images, tmp_path / "1.json", names=tmp_path / "data.yaml")
    assert boxes_of(report.annotations) == expected
    assert "1 image without a text file" in report.describe()
    import_yolo(labels, images, tmp_path / "2.json", names=labels / "classes.txt")
    assert (tmp_path / "2.json").read_bytes() == report.annotations.read_bytes()


CORNERS = st.tuples(
    st.sampled_from(["dog", "cat"]), st.integers(0, 39), st.integers(0, 19), st.integers(1, 40), st.integers(1, 20)
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(boxes=st.lists(CORNERS, min_size=1, max_size=5))
def test_boxes_survive_the_way_through_both_formats(tmp_path: Path, boxes: list[Any]) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    truth = [(name, float(x), float(y), float(x + width), float(y + height)) for name, x, y, width, height in boxes]
    voc(tmp_path / "xml", "a.jpg", truth)
    names = ["dog", "cat"]
    import_voc(tmp_path / "xml", images, tmp_path / "voc.json", classes=names, overwrite=True)
    assert boxes_of(tmp_path / "voc.json")["a.jpg"] == truth
    (tmp_path / "labels").mkdir(exist_ok=True)
    (tmp_path / "labels" / "a.txt").write_text(
        "\n".join(
            f"{names.index(name)} {(x1 + x2) / 160:.6f} {(y1 + y2) / 80:.6f} {(x2 - x1) / 80:.6f} {(y2 - y1) / 40:.6f}"
            for name, x1, y1, x2, y2 in truth
        )
    )
    (tmp_path / "names.txt").write_text("\n".join(names))
    import_yolo(None, images, tmp_path / "yolo.json", names=tmp_path / "names.txt", overwrite=True)
    for found, expected in zip(boxes_of(tmp_path / "yolo.json")["a.jpg"], truth, strict=True):
        assert found[0] == expected[0]
        assert found[1:] == pytest.approx(expected[1:], abs=1e-4)  # six digits of 80 pixels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"a\.xml is not XML"),
        ("<html/>", r"a\.xml is no VOC annotation: it begins with <html>"),
        (
            "<annotation><filename>a.jpg</filename><size><width>8</width><height>9</height></size></annotation>",
            r"a\.xml says its image is 8 x 9 pixels, .*a\.jpg is 80 x 40",
        ),
        ("<annotation><object><name>dog</name></object></annotation>", r"class 'dog' has no <bndbox>"),
        ("<annotation><object><bndbox/></object></annotation>", "an object has no <name>"),
        (
            "<annotation><object><name>dgo</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
            "</bndbox></object></annotation>",
            r"a\.xml has class 'dgo', which is not among --classes; did you mean 'dog'\?",
        ),
        (
            "<annotation><object><name>dog</name><bndbox><xmin>9</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
            "</bndbox></object></annotation>",
            "the box 9, 1, 2, 2 of class 'dog' ends before it begins",
        ),
        (
            "<annotation><object><name>dog</name><bndbox><xmin>nan</xmin></bndbox></object></annotation>",
            "<bndbox/xmin> is 'nan', not a number",
        ),
    ],
)
def test_bad_voc_files_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "a.xml").write_text(text)
    with pytest.raises(DataError, match=message) as refused:
        import_voc(tmp_path / "xml", images, tmp_path / "voc.json", classes=["dog"])
    assert "\n" not in str(refused.value)
    assert os.listdir(tmp_path) == ["images", "xml"] or not (tmp_path / "voc.json").exists()


def test_voc_folders_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    voc(tmp_path / "xml", "b.jpg", [("dog", 1.0, 1.0, 8.0, 9.0)])
    with pytest.raises(DataError, match=r"b\.xml names image b\.jpg, which is not in .*images"):
        import_voc(tmp_path / "xml", images, tmp_path / "voc.json")
    voc(tmp_path / "xml", "a.jpg", [])
    voc(tmp_path / "xml", "b.jpg", [])
    (tmp_path / "xml" / "b.xml").write_text("<annotation><filename>a.jpg</filename></annotation>")
    with pytest.raises(DataError, match=r"a\.xml and .*b\.xml both annotate"):
        import_voc(tmp_path / "xml", images, tmp_path / "voc.json", classes=["dog"])
    (tmp_path / "set.txt").write_text("nine\n")
    with pytest.raises(DataError, match=r"set\.txt names nine, but there is no .*nine\.xml"):
        import_voc(tmp_path / "xml", images, tmp_path / "voc.json", image_set=tmp_path / "set.txt")
    with pytest.raises(DataError, match=r"there are no \.xml files in"):
        import_voc(images, images, tmp_path / "voc.json")
    (tmp_path / "voc.json").write_text("{}")
    with pytest.raises(DataError, match=r"voc\.json is there already"):
        import_voc(tmp_path / "xml", images, tmp_path / "voc.json")
    assert (tmp_path / "voc.json").read_text() == "{}"


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    (tmp_path / "xml" / "a.xml").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cannot read .*a\.xml: Is a directory\. Check the path and its permissions"):
        import_voc(tmp_path / "xml", images, tmp_path / "voc.json", classes=["dog"])
    (tmp_path / "names.txt").write_text("dog")
    (images / "a.jpg").write_bytes((images / "a.jpg").read_bytes()[:300])
    with pytest.raises(DataError, match=r"a\.jpg is no image that can be read: the JPEG ends inside its header"):
        import_yolo(images, images, tmp_path / "yolo.json", names=tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.1", "line 1 has 4 numbers; a box is class"),
        ("0 0.5 0.5 0.1 0.1\n0 0.1 0.1 0.2 0.2 0.3 0.3", "line 2 has 7 numbers.*looks like a polygon"),
        ("2 0.5 0.5 0.1 0.1", "line 1 has class 2, but there are 2 names, 0 to 1"),
        ("0 40 20 10 10", "line 1 is '0 40 20 10 10'; centre and size are parts of the image"),
        ("0 nan 0.5 0.1 0.1", "centre and size are parts of the image"),
        ("dog 0.5 0.5 0.1 0.1", "a box is a class number and four numbers"),
    ],
)
def test_bad_yolo_lines_are_refused_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(text)
    (tmp_path / "names.txt").write_text("dog\ncat")
    with pytest.raises(DataError, match=rf"a\.txt, {message}" if message.startswith("line") else message):
        import_yolo(None, images, tmp_path / "yolo.json", names=tmp_path / "names.txt")
    assert not (tmp_path / "yolo.json").exists()


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("nc: 2", "has no list 'names'"),
        ("names: {1: dog, 2: cat}", "they count the classes from 0"),
        ("names: {0: dog, first: cat}", "they count the classes from 0"),
        (b"\xff\xfe", r"cannot read .*data\.yaml: it is no text"),
        ("names: [dog, dog]", "has class 'dog' more than once"),
        ("names: [", "is not YAML"),
    ],
)
def test_bad_yolo_names_are_refused(tmp_path: Path, yaml: str | bytes, message: str) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    (tmp_path / "data.yaml").write_bytes(yaml.encode() if isinstance(yaml, str) else yaml)
    with pytest.raises(DataError, match=message):
        import_yolo(None, images, tmp_path / "yolo.json", names=tmp_path / "data.yaml")
    (tmp_path / "data.yaml").write_text("names: [dog]")
    with pytest.raises(DataError, match=r"none of the 1 images in .* has a text file in"):
        import_yolo(None, images, tmp_path / "yolo.json", names=tmp_path / "data.yaml")
