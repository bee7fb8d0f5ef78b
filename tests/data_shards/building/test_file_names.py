import json
import os
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.building.build import build_shards
from data_shards.building.file_names import ImageFiles, leaves_folder, resolve_file_names
from data_shards.errors import DataError
from tests.data_shards.samples import document, write_coco


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in ("", *names):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True) if not name else path.write_bytes(b"")
    return tmp_path / "images"


def resolved(folder: Path, *names: str) -> list[str]:
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    resolve_file_names(folder / "instances.json", images, folder)
    return [str(image["file_name"]) for image in images]


@pytest.mark.parametrize(
    ("there", "written"),
    [
        ("sub/a.jpg", "sub\\a.jpg"),
        ("sub/a.jpg", ".\\sub\\a.jpg"),
        ("sub/a.jpg", "C:\\data\\images\\sub\\a.jpg"),
        ("a.jpg", "images/a.jpg"),
        ("a.jpg", "/somewhere/else/a.jpg"),
        ("sub/a.jpg", "/somewhere/else/sub/a.jpg"),
        ("a.jpg", "file:///home/me/a.jpg"),
        ("a.jpg", "https://example.org/images/a.jpg?size=full#top"),
        ("a b.jpg", "s3://bucket/images/a%20b.jpg"),
        ("a#1.jpg", "s3://bucket/images/a#1.jpg"),
        ("Capture écran.jpg", "Capture%20%C3%A9cran.jpg"),
        ("100%.jpg", "images/100%.jpg"),
        ("a.JPG", "a.jpg"),
        ("Straße.jpg", "STRASSE.JPG"),
        (unicodedata.normalize("NFD", "é.jpg"), "é.jpg"),
        ("é.jpg", unicodedata.normalize("NFD", "É.jpg")),
        ("a.jpg", "../images/a.jpg"),
        ("a.jpg", "sub/../../a.jpg"),
    ],
)
def test_a_file_is_found_under_another_spelling(tmp_path: Path, there: str, written: str) -> None:
    assert resolved(folder_of(tmp_path, there, "other.jpg"), written) == [there]


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg", "sub/../a.jpg", "sub//b.jpg", "A%20b.jpg"])
def test_a_name_that_leads_to_its_file_stays_as_it_is(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, "a.jpg", "sub/b.jpg", "A%20b.jpg", "A b.jpg")
    images: list[dict[str, Any]] = [{"id": 1, "file_name": name}]
    assert resolve_file_names(tmp_path / "x.json", images, folder) == ""
    assert images[0]["file_name"] == name


@pytest.mark.parametrize(
    ("there", "written", "message"),
    [
        # Two files that it can mean.
        (
            ["a.JPG", "A.jpg"],
            ["a.jpg"],
            r"1 of the 1 images .*; the first is image 0, file a\.jpg; did you mean '[aA]\.",
        ),
        # A file that another image has.
        (["a.jpg"], ["a.jpg", "cam1/a.jpg"], r"the first is image 1, file cam1/a\.jpg; did you mean 'a\.jpg'\? Check"),
        (
            ["a.jpg"],
            ["cam1/a.jpg", "cam2/a.jpg"],
            r"2 of the 2 images .* the first is image 0, file cam1/a\.jpg; did you",
        ),
        # A file of this name in another folder may be another picture.
        (["cam2/a.jpg"], ["cam1/a.jpg"], r"file cam1/a\.jpg; did you mean 'cam2/a\.jpg'\? Check the folder"),
        (["photo_1.jpeg"], ["photo_1.jpg"], r"file photo_1\.jpg; did you mean 'photo_1\.jpeg'\?"),
        (["a.jpg"], ["zebra.png"], r"the first is image 0, file zebra\.png\. Check the folder, or fetch them again\."),
        (["a.jpg"], [".."], r"file \.\.\. Check the folder"),
        (["a.jpg"], ["\0"], r"file .*\. Check the folder"),
        (["a.jpg"], ["\ud800.jpg"], r"Check the folder"),
    ],
)
def test_a_name_that_is_not_clear_is_refused(
    tmp_path: Path, there: list[str], written: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        resolved(folder_of(tmp_path, *there), *written)


@pytest.mark.parametrize("name", ["../secret.jpg", "{}/secret.jpg", "sub/../../secret.jpg"])
def test_a_file_outside_the_folder_is_never_used(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, "sub/a.jpg")
    (tmp_path / "secret.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"image 0 has file_name .*secret\.jpg', which leads out of the folder"):
        resolved(folder, name.format(tmp_path))


def test_folders_that_link_to_one_another_are_listed_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "sub/a.jpg")
    (folder / "sub" / "up").symlink_to(folder)
    assert resolved(folder, "SUB/A.JPG") == ["sub/a.jpg"]


@given(st.text(min_size=1).filter(lambda name: "\0" not in name))
def test_no_name_is_resolved_to_a_path_that_leaves_the_folder(tmp_path_factory: Any, name: str) -> None:
    folder = folder_of(tmp_path_factory.getbasetemp() / "names", "a.jpg", "sub/a.jpg")
    found = ImageFiles(folder).meant_by(name)
    assert found in (None, "a.jpg", "sub/a.jpg")
    assert found is None or not leaves_folder(found)


def test_resolved_names_are_built_and_counted_once(tmp_path: Path) -> None:
    content = document(6)
    annotations, images = write_coco(tmp_path, content)
    (images / "sub dir").mkdir()
    os.rename(images / "100.jpg", images / "sub dir" / "100.jpg")
    content["images"][0]["file_name"] = quote("sub dir/100.jpg")
    content["images"][1]["file_name"] = "D:\\images\\107.JPG"
    annotations.write_text(json.dumps(content))
    report = build_shards(annotations, images, str(tmp_path / "out"), split="train")
    line = "2 file names resolved to files that are spelled otherwise, such as 'sub%20dir/100.jpg' to 'sub dir/100.jpg'"
    assert line in report.describe().splitlines()
