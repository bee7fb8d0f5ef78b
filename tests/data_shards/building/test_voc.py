import json
import os
from pathlib import Path

import pytest

from data_shards.building.build import build_shards
from data_shards.building.source_files import class_list
from data_shards.building.voc import import_voc
from data_shards.errors import DataError
from tests.data_shards.building.sources import boxes_of, write_images, write_voc


def test_voc_corners_are_edges_and_nothing_is_shifted(tmp_path: Path) -> None:
    images = write_images(tmp_path / "JPEGImages", ["b.jpg", "a.jpg", "c.png"])
    write_voc(tmp_path / "Annotations", "b.jpg", [("dog", 10.0, 5.0, 30.0, 25.0), ("cat & co", 0.0, 0.0, 80.0, 40.0)])
    write_voc(tmp_path / "Annotations", "a.jpg", [], size="<size><width>0</width><height>0</height></size>")
    write_voc(tmp_path / "Annotations", "c.png", [("dog", 1.5, 2.0, 3.0, 4.25)])
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
    write_voc(tmp_path / "xml", "a.jpg", [("dog", 1.0, 1.0, 80.0, 40.0)])  # every pixel of 80 x 40
    import_voc(tmp_path / "xml", images, tmp_path / "voc.json", one_based=True)
    assert boxes_of(tmp_path / "voc.json") == {"a.jpg": [("dog", 0, 0, 80, 40)]}


def test_voc_image_sets_classes_and_difficult_objects(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", ["a.jpg", "b.jpg"])
    write_voc(tmp_path / "xml", "a.jpg", [("dog", 1.0, 1.0, 8.0, 9.0)], extra="<difficult>1</difficult>")
    write_voc(tmp_path / "xml", "b.jpg", [("cat", 1.0, 1.0, 8.0, 9.0)])
    (tmp_path / "train.txt").write_text("a -1\n")
    (tmp_path / "names.txt").write_text("dog\ncat\n\n")
    names = class_list([str(tmp_path / "names.txt")])
    assert names == class_list(["dog", "cat"])
    kept = import_voc(tmp_path / "xml", images, tmp_path / "1.json", classes=names, image_set=tmp_path / "train.txt")
    (annotation,) = json.loads(kept.annotations.read_text())["annotations"]
    assert (annotation["category_id"], annotation["difficult"]) == (1, 1)
    dropped = import_voc(tmp_path / "xml", images, tmp_path / "2.json", classes=names, difficult="drop")
    assert boxes_of(dropped.annotations) == {"a.jpg": [], "b.jpg": [("cat", 1, 1, 8, 9)]}
    assert "1 difficult object left out" in dropped.describe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"a\.xml is not valid XML"),
        ("<html/>", r"a\.xml is not a VOC annotation: it begins with <html>"),
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
    write_voc(tmp_path / "xml", "b.jpg", [("dog", 1.0, 1.0, 8.0, 9.0)])
    with pytest.raises(DataError, match=r"b\.xml names image b\.jpg, which is not in .*images"):
        import_voc(tmp_path / "xml", images, tmp_path / "voc.json")
    write_voc(tmp_path / "xml", "a.jpg", [])
    write_voc(tmp_path / "xml", "b.jpg", [])
    (tmp_path / "xml" / "b.xml").write_text("<annotation><filename>a.jpg</filename></annotation>")
    with pytest.raises(DataError, match=r"a\.xml and .*b\.xml both annotate"):
        import_voc(tmp_path / "xml", images, tmp_path / "voc.json", classes=["dog"])
    (tmp_path / "set.txt").write_text("nine\n")
    with pytest.raises(DataError, match=r"set\.txt names nine, but there is no .*nine\.xml"):
        import_voc(tmp_path / "xml", images, tmp_path / "voc.json", image_set=tmp_path / "set.txt")
    with pytest.raises(DataError, match=r"there are no \.xml files in"):
        import_voc(images, images, tmp_path / "voc.json")
    (tmp_path / "voc.json").write_text("{}")
    with pytest.raises(DataError, match=r"voc\.json already exists"):
        import_voc(tmp_path / "xml", images, tmp_path / "voc.json")
    assert (tmp_path / "voc.json").read_text() == "{}"


def test_voc_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    (tmp_path / "xml" / "a.xml").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cannot read .*a\.xml: Is a directory\. Check the path and its permissions"):
        import_voc(tmp_path / "xml", images, tmp_path / "voc.json", classes=["dog"])


@pytest.mark.parametrize(
    ("encoding", "declared", "name"),
    [
        ("gbk", "GBK", "细胞"),
        ("gbk", "gb2312", "細胞"),  # beyond the declared subset, as tools write it
        ("shift_jis", "shift_jis", "細胞"),
        ("cp949", "euc-kr", "세포"),
        ("big5", "Big5", "細胞"),
        ("latin-1", "ISO-8859-1", "Zähler"),
        ("utf-8-sig", "utf-8", "细胞"),
        ("utf-16", "utf-16", "细胞"),
        ("utf-8", "", "细胞"),
        ("utf-8", "", "\u200b细胞\u00a0"),
    ],
)
def test_xml_is_read_in_the_encoding_that_it_declares(tmp_path: Path, encoding: str, declared: str, name: str) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    write_voc(tmp_path / "xml", "a.jpg", [(name, 8.0, 8.0, 32.0, 24.0)])
    text = (tmp_path / "xml" / "a.xml").read_text()
    declaration = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
    (tmp_path / "xml" / "a.xml").write_bytes((declaration + text).encode(encoding))
    report = import_voc(tmp_path / "xml", images, tmp_path / "voc.json")
    assert report.class_names == (name.strip("\u200b\u00a0"),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            '<?xml version="1.0" encoding="utf-8"?><annotation>细胞</annotation>'.encode("gbk"),
            "a.xml declares the encoding utf",
        ),
        (
            b'<?xml version="1.0" encoding="klingon"?><annotation/>',
            "a.xml declares the encoding klingon, but is not text",
        ),
        ("<annotation>细胞</annotation>".encode("gbk"), "a.xml is not valid XML"),
        (
            b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "&a;">]><annotation>&a;</annotation>',
            "a.xml is not valid XML",
        ),
    ],
)
def test_xml_in_no_known_encoding_is_refused_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "a.xml").write_bytes(data)
    with pytest.raises(DataError, match=message) as refused:
        import_voc(tmp_path / "xml", images, tmp_path / "voc.json")
    assert "\n" not in str(refused.value)


def test_nested_xml_is_read_as_far_as_it_matters(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    (tmp_path / "xml").mkdir()
    deep = 50_000
    (tmp_path / "xml" / "a.xml").write_text(f"<annotation>{deep * '<a>'}{deep * '</a>'}</annotation>")
    assert import_voc(tmp_path / "xml", images, tmp_path / "voc.json", classes=["dog"]).num_boxes == 0


def test_a_voc_file_finds_its_image_under_another_spelling_but_not_outside(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", ["sub/A 1.jpg", "other.jpg", "left.JPEG", "page.gif"])
    write_voc(tmp_path / "xml", "x.jpg", [("dog", 1.0, 1.0, 8.0, 9.0)])
    voc = (tmp_path / "xml" / "x.xml").read_text()
    (tmp_path / "xml" / "x.xml").write_text(voc.replace("x.jpg", "C:\\data\\sub\\a 1.JPG"))
    (tmp_path / "set.txt").write_text("\ufeffx\n", "utf-8")
    report = import_voc(tmp_path / "xml", images, tmp_path / "1.json", image_set=tmp_path / "set.txt")
    assert boxes_of(report.annotations) == {"sub/A 1.jpg": [("dog", 1, 1, 8, 9)]}
    report = import_voc(tmp_path / "xml", images, tmp_path / "2.json")
    assert report.describe().splitlines()[1:] == [
        "skipped 1 image, neither JPEG nor PNG: page.gif",
        "skipped 2 images, no annotation names them: left.JPEG, other.jpg",
    ]
    write_images(tmp_path, ["secret.jpg"])
    (tmp_path / "xml" / "x.xml").write_text(voc.replace("x.jpg", "../secret.jpg"))
    with pytest.raises(DataError, match=r"x\.xml names image \.\./secret\.jpg, which is not in .*images\. Add it"):
        import_voc(tmp_path / "xml", images, tmp_path / "3.json")
