import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from data_shards.building.build import build_shards
from data_shards.checking.examine import examine
from data_shards.checking.findings import KINDS, Finding
from data_shards.errors import DataError
from tests.data_shards.samples import document, jpeg, photo, spoil, write_coco


def named(item: Finding) -> tuple[str, ...]:
    """The samples of a finding as its report names them."""
    return tuple(sample.seen_from(item.split) for sample in item.samples)


def turned(image: np.ndarray) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = io.BytesIO()
    Image.fromarray(np.rot90(image)).save(stored, "JPEG", quality=95, exif=exif.tobytes())
    return stored.getvalue()


def cmyk(image: np.ndarray) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(stored, "JPEG", quality=95)
    return stored.getvalue()


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits `train` and `val` with one of each illness in known samples."""
    folder = tmp_path_factory.mktemp("ill")
    content = document(12)
    content["categories"] = [*content["categories"], {"id": 50, "name": "yeti"}]
    sizes: dict[int, Any] = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    annotations, images = write_coco(folder / "train", content)
    (images / "100.jpg").write_bytes(turned(photo(100, *sizes[100])))
    (images / "107.jpg").write_bytes(jpeg(photo(107, *sizes[107])[..., 0]))
    (images / "114.jpg").write_bytes(cmyk(photo(114, *sizes[114])))
    (images / "142.jpg").write_bytes((images / "121.jpg").read_bytes())  # both 64 x 48
    content["annotations"][0]["bbox"] = [-30, 5, 35, 10]  # of image 107, partly outside
    content["annotations"].append({**content["annotations"][1], "id": 5000, "bbox": [3, 3, 0, 9]})  # dropped, of 114
    annotations.write_text(json.dumps(content))
    build_shards(annotations, images, str(folder), split="train", shard_bytes=20_000)

    other = document(3)
    annotations, images = write_coco(folder / "val", other)
    for image in other["images"]:
        (images / image["file_name"]).write_bytes(jpeg(photo(500 + image["id"], image["height"], image["width"])))
    (images / "100.jpg").write_bytes((folder / "train" / "images" / "163.jpg").read_bytes())  # 64 x 48, too
    recompressed = cv2.imread(str(folder / "train" / "images" / "170.jpg"), cv2.IMREAD_COLOR_RGB)
    (images / "107.jpg").write_bytes(jpeg(recompressed, 60))  # 48 x 64
    build_shards(annotations, images, str(folder), split="val")
    return folder


def test_every_illness_is_found_in_its_sample(ill: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = examine(
        str(ill / "train"), against=str(ill / "val"), progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (15, 15)
    by_kind: dict[str, list[tuple[str, ...]]] = {}
    for item in found.findings:
        by_kind.setdefault(item.kind, []).append(named(item))
        assert item.split == "train" or item.kind in ("no_objects", "crowd", "class_ids", "same_cell", "classes_differ")
    key = "{0}.jpg (000000000{0})".format
    assert by_kind["exif"] == [(key(100),)]
    assert by_kind["gray"] == [(key(107),)]
    assert by_kind["cmyk"] == [(key(114),)]
    assert by_kind["partly_outside"] == [(key(107),)]
    assert [set(keys) for keys in by_kind["same_bytes"]] == [{key(121), key(142)}]
    assert by_kind["same_bytes_across_splits"] == [(key(163), f"val/{key(100)}")]
    assert by_kind["same_picture_across_splits"] == [(key(170), f"val/{key(107)}")]
    assert "same_picture" not in by_kind
    assert by_kind["dropped"] == [(key(114),)]
    assert by_kind["class_without_objects"] == by_kind["classes_differ"] == [()]
    assert set(by_kind) <= set(KINDS)
    wrong = [item.kind for item in found.findings if KINDS[item.kind].level == "wrong"]
    assert sorted(wrong) == ["classes_differ", "same_bytes", "same_bytes_across_splits", "same_picture_across_splits"]

    numbers = found.numbers[str(ill / "train")]
    assert (numbers.images, numbers.objects, numbers.crowds) == (12, 15, 3)  # i % 4 boxes, every third a crowd
    assert numbers.objects_per_image == {"0": 3, "1": 3, "2 to 3": 6}
    assert numbers.image_sizes == {"64 x 48": 4, "48 x 64": 4, "40 x 40": 4}
    assert numbers.objects_of_class["yeti"] == 0
    # Boxes are 13 to 23 wide and 9.5 high, √area 11.1 to 14.8; the one of 107 is 35 x 10, 18.7.
    assert numbers.object_sizes == {"0 to 4": 0, "4 to 8": 0, "8 to 16": 14, "16 to 32": 1}
    assert numbers.coco_sizes == {"small": 15, "medium": 0, "large": 0}


def test_an_image_that_does_not_decode_is_found_and_the_others_are_examined(copied: Path) -> None:
    manifest, image_id = spoil(copied, 1, 2)
    found = examine(str(copied))
    assert [named(item) for item in found.findings if item.kind == "undecodable"] == [
        (f"{image_id}.jpg ({image_id:012d})",)
    ]
    assert found.numbers[str(copied)].images == manifest.num_samples
    assert "WRONG         1  images that do not decode" in found.describe()


def test_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    # Some exports list the data set itself as a class without objects, under the name of a real one.
    content = document(6)
    content["categories"] = [{"id": 0, "name": "dog"}, *content["categories"]]
    annotations, images = write_coco(tmp_path, content)
    build_shards(annotations, images, str(tmp_path), split="train")
    found = examine(str(tmp_path / "train"))
    texts = {item.kind: item.text for item in found.findings}
    assert texts["class_names"] == "'dog' is the name of classes 0, 18"
    assert texts["class_without_objects"] == "class 0 'dog'"
    objects = found.numbers[str(tmp_path / "train")].objects_of_class
    dogs = sum(item["category_id"] == 18 and not item["iscrowd"] for item in content["annotations"])
    assert (objects["dog (id 0)"], objects["dog (id 18)"]) == (0, dogs)
    assert dogs > 0


def test_the_report_names_samples_and_fixes_and_json_holds_everything(ill: Path) -> None:
    found = examine(str(ill / "train"), against=str(ill / "val"))
    text = found.describe(examples=1)
    assert "train  163.jpg (000000000163), val/100.jpg (000000000100): the same bytes" in text
    assert "→ remove them from one split: an AP on training images says nothing" in text
    assert "val: it lacks 50 'yeti'" in text or "it lacks 50 'yeti'" in text
    assert text.index("\nWRONG ") < text.index("\nCHECK ") < text.index("\nNOTE ")
    document = json.loads(json.dumps(found.as_json()))
    assert len(document["findings"]) == len(found.findings)
    assert all(item["fix"] for item in document["findings"])
    (shared,) = (item for item in document["findings"] if item["kind"] == "same_bytes_across_splits")
    assert shared["samples"] == [
        {"split": "train", "key": "000000000163", "file_name": "163.jpg"},
        {"split": "val", "key": "000000000100", "file_name": "100.jpg"},
    ]
    assert document["numbers"][str(ill / "val")]["images"] == 3


def test_impossible_examinations_are_refused(ill: Path) -> None:
    with pytest.raises(DataError, match="stride is 0; set it to 1 or more"):
        examine(str(ill / "train"), stride=0)
    with pytest.raises(DataError, match="give another split"):
        examine(str(ill / "train"), against=f"{ill / 'train'}/")
    with pytest.raises(DataError, match="there are no shards at"):
        examine(str(ill / "nothing"))


def test_joints_that_cannot_be_right_are_found(tmp_path: Path) -> None:
    content = document(6, sizes=((48, 64),))
    content["categories"] = [item | {"keypoints": ["nose", "tail"]} for item in content["categories"]]
    for item in content["annotations"]:
        x, y, width, height = item["bbox"]
        item["keypoints"] = [x + 1, y + 1, 2, x + width - 1, y + height - 1, 1]
    first, second, third, *_ = content["annotations"]
    first["keypoints"] = [70, 10, 2, 0, 0, 0]  # the image is 64 wide
    second["keypoints"] = [3, 5, 2, 50, 5, 1]  # the box ends at 16.5
    third["keypoints"] = [0, 0, 0, 0, 0, 0]
    annotations, images = write_coco(tmp_path, content)
    report = build_shards(annotations, images, str(tmp_path / "out"), split="train")
    found = examine(report.location)
    by_kind = {item.kind: item for item in found.findings}
    assert named(by_kind["joints_outside"]) == ("107.jpg (000000000107)",)
    assert (
        by_kind["joints_outside"].text
        == "joint 1 at (70, 10) of box (2.5, 4.25, 15.5, 13.75) is outside the image of 64 x 48 pixels"
    )
    assert named(by_kind["joints_off_box"]) == ("114.jpg (000000000114)",)
    assert "joint 2 at (50, 5)" in by_kind["joints_off_box"].text
    assert sum(item.kind.startswith("joints") for item in found.findings) == 2
    numbers = found.numbers[report.location]
    # 7 objects, one of them a crowd; of the others one has no joint, and one has lost its second.
    assert (numbers.objects, numbers.joints, numbers.objects_without_joints) == (6, 9, 1)
    assert "joints        9 labelled; 1 object without any" in found.describe()


def test_ignored_boxes_are_not_objects(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(8))
    report = build_shards(annotations, images, str(tmp_path / "out"), split="train", ignore={"bottle": "dog"})
    numbers = examine(report.location).numbers[report.location]
    assert set(numbers.objects_of_class) == {"dog", "person"}
    content = document(8)
    assert numbers.objects == sum(item["category_id"] != 44 and not item["iscrowd"] for item in content["annotations"])


def test_what_a_viewer_does_not_show_is_found(tmp_path: Path) -> None:
    content = document(6, sizes=((48, 64),))
    annotations, images = write_coco(tmp_path, content)
    pictures = {number: photo(number) for number in (100, 107, 114, 121, 128, 135)}
    clear = np.dstack([pictures[100], np.full((48, 64), 255, np.uint8)])
    clear[:12, :, 3] = 0
    brightest = int(pictures[121].max())
    opaque = np.dstack([pictures[107], np.full((48, 64), 255, np.uint8)])
    stored = {
        100: clear,
        107: opaque,
        114: np.full((48, 64), 3, np.uint16),
        121: pictures[121].astype(np.uint16) * 257,
    }
    for number, image in stored.items():
        (images / f"{number}.jpg").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    Image.fromarray(np.rot90(pictures[128])).save(images / "128.jpg", "PNG", exif=_orientation(6))
    report = build_shards(annotations, images, str(tmp_path), split="train")
    found = examine(report.location).findings
    told = {
        item.samples[0].file_name: (item.kind, item.text)
        for item in found
        if item.kind in ("transparent", "dark_16_bit", "sixteen_bit", "exif")
    }
    assert told == {
        "100.jpg": ("transparent", "25% of its pixels are transparent"),  # 12 of 48 rows
        "114.jpg": ("dark_16_bit", "16-bit values up to 3 of 65,535, which training sees as 0 to 0 of 255"),
        "121.jpg": (
            "sixteen_bit",
            f"16-bit values up to {257 * brightest:,} of 65,535, which training sees as 0 to {brightest} of 255",
        ),
        "128.jpg": ("exif", "orientation 6, turned by 90° on reading"),
    }


def _orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()
