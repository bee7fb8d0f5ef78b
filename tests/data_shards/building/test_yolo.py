from pathlib import Path

import pytest

from data_shards.building.yolo import import_yolo
from data_shards.errors import DataError
from tests.data_shards.building.sources import boxes_of, write_images


def test_yolo_centres_and_sizes_are_fractions_of_the_image(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.1", "line 1 has 4 values, but a box is class"),
        ("0 0.5 0.5 0.1 0.1\n0 0.1 0.1 0.2 0.2 0.3 0.3", "line 2 has 7 values.*looks like a polygon"),
        ("2 0.5 0.5 0.1 0.1", "line 1 has class 2, but there are 2 names, numbered from 0"),
        ("0 40 20 10 10", "line 1 is '0 40 20 10 10', but centre and size are fractions of the image"),
        ("0 nan 0.5 0.1 0.1", "but centre and size are fractions of the image"),
        ("dog 0.5 0.5 0.1 0.1", "but a box is a class number and four numbers"),
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
        ("names: {1: dog, 2: cat}", "they must count the classes from 0"),
        ("names: {0: dog, first: cat}", "they must count the classes from 0"),
        (b"\xff\xfa", r"cannot read .*data\.yaml: it is not text"),
        (b"\xff\xfe", "has no list 'names'"),  # an empty file in UTF-16
        ("names: [dog, [cat]]", r"class 1 of 'names' is not a word\. Write the name of the class"),
        ("names: [dog, '']", r"class 1 of 'names' is not a word"),
        (3000 * "[" + 3000 * "]", "is nested too deeply"),
        ("names: [dog, dog]", "lists class 'dog' more than once"),
        ("names: [", "is not valid YAML"),
    ],
)
def test_bad_yolo_names_are_refused(tmp_path: Path, yaml: str | bytes, message: str) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    (tmp_path / "data.yaml").write_bytes(yaml.encode() if isinstance(yaml, str) else yaml)
    with pytest.raises(DataError, match=message):
        import_yolo(None, images, tmp_path / "yolo.json", names=tmp_path / "data.yaml")
    (tmp_path / "data.yaml").write_text("names: [dog]")
    with pytest.raises(DataError, match=r"none of the 1 image in .* has a text file in"):
        import_yolo(None, images, tmp_path / "yolo.json", names=tmp_path / "data.yaml")


def test_an_image_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    (tmp_path / "names.txt").write_text("dog")
    (images / "a.jpg").write_bytes((images / "a.jpg").read_bytes()[:300])
    with pytest.raises(DataError, match=r"cannot read the image .*a\.jpg: the JPEG ends inside its header\. Export it"):
        import_yolo(images, images, tmp_path / "yolo.json", names=tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            ["yes", "no", "on", "1", "null", "~", "2024-01-01", "1.0"],
            "names: [yes, no, on, 1, null, ~, 2024-01-01, 1.0]",
        ),
        (["off", "y"], "names: {0: off, 1: y}"),
        (["off", "y"], "names: {1: y, 0: off}"),
        (["cell", "dust"], "\ufeffnames: ['\\u200bcell', \"dust\\u00a0\"]".replace("'\\u200bcell'", '"\\u200bcell"')),
    ],
)
def test_names_of_a_yaml_file_are_words_as_they_are_written(tmp_path: Path, names: list[str], text: str) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    (tmp_path / "images" / "a.txt").write_text("0 0.5 0.5 0.25 0.5")
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "data.yaml").write_text(text, encoding)
        report = import_yolo(None, images, tmp_path / "o.json", names=tmp_path / "data.yaml", overwrite=True)
        assert report.class_names == tuple(names)


@pytest.mark.parametrize("number", ["1", "1.0", "1.000000000000000000e+00", "\ufeff1", "1e0"])
def test_a_class_number_may_be_written_as_a_decimal_and_behind_a_mark(tmp_path: Path, number: str) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    (tmp_path / "images" / "a.txt").write_text(f"{number} 0.5 0.5 0.25 0.5\r\n", "utf-8")
    (tmp_path / "names.txt").write_text("\ufeffcell\u200b\ndust\n", "utf-8")
    report = import_yolo(None, images, tmp_path / "o.json", names=tmp_path / "names.txt")
    assert report.class_names == ("cell", "dust")
    assert boxes_of(tmp_path / "o.json") == {"a.jpg": [("dust", 30, 10, 50, 30)]}


@pytest.mark.parametrize("number", ["0.5", "nan", "inf", "-1.0", "2.0", "1,0", "dust"])
def test_a_class_number_that_is_not_whole_or_not_known_is_refused(tmp_path: Path, number: str) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    (tmp_path / "images" / "a.txt").write_text(f"{number} 0.5 0.5 0.25 0.5")
    (tmp_path / "names.txt").write_text("cell\ndust\n")
    with pytest.raises(
        DataError, match=r"a\.txt, line 1 (is '.*', but a box is a class number|has class -?\d, but there)"
    ):
        import_yolo(None, images, tmp_path / "o.json", names=tmp_path / "names.txt")


def test_pictures_that_an_import_cannot_use_are_listed(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", ["a.jpg", "b.Jpg"])
    for name in ("c.webp", "sub/d.TIFF"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(b"")
    (images / "a.txt").write_text("0 0.5 0.5 0.25 0.5")
    (tmp_path / "names.txt").write_text("cell\n")
    report = import_yolo(None, images, tmp_path / "o.json", names=tmp_path / "names.txt")
    assert report.num_images == 2
    assert report.describe().splitlines()[1:] == ["skipped 2 images, neither JPEG nor PNG: c.webp, sub/d.TIFF"]
