"""Pre-labels: files that annotation tools import, the least certain images first."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from data_shards.building.build import build_shards
from pipelines.prediction.outputs.prelabels import PreLabels
from tests.data_shards.samples import jpeg, photo
from tests.pipelines.prediction.outputs.subjects import PERSON, empty_record, one_record, subject, table, written


def test_the_least_certain_image_comes_first_in_every_file(tmp_path: Path) -> None:
    records = [one_record(0, doubt=0.5), empty_record(1), one_record(2, doubt=1.5, name='a "b" & c.png')]
    files = written(PreLabels(subject()), tmp_path, records)
    assert files == [
        f"prelabels/{name}" for name in ("instances_default.json", "cvat.xml", "cvat_labels.json", "order.csv")
    ]
    content = json.loads((tmp_path / files[0]).read_text())
    assert [one["id"] for one in content["images"]] == [3, 1, 2]
    assert [one["image_id"] for one in content["annotations"]] == [3, 3, 1, 1]
    assert content["annotations"][1] == {
        "id": 2,
        "image_id": 3,
        "category_id": 18,
        "bbox": [0, 10, 8, 10],
        "area": 80,
        "iscrowd": 0,
        "segmentation": [],
        "score": 0.5,
    }
    tree = ElementTree.parse(tmp_path / files[1]).getroot()
    assert tree.findtext("version") == "1.1"
    images = tree.findall("image")
    assert [one.attrib["name"] for one in images] == ['a "b" & c.png', "in/0.png", "in/1.png"]
    assert images[0].attrib == {"id": "2", "name": 'a "b" & c.png', "width": "40", "height": "20"}
    box = images[0].findall("box")[1]
    assert box.attrib["label"] == "traffic light"
    assert [box.attrib[side] for side in ("xtl", "ytl", "xbr", "ybr")] == ["0.00", "10.00", "8.00", "20.00"]
    attribute = box.find("attribute")
    assert attribute is not None
    assert (attribute.attrib["name"], attribute.text) == ("score", "0.5000")
    assert [one["name"] for one in json.loads((tmp_path / files[2]).read_text())] == ["cat", "traffic light"]
    assert [(row["image"], row["doubt"], row["objects"]) for row in table(tmp_path / files[3])] == [
        ('a "b" & c.png', "1.5000", "2"),
        ("in/0.png", "0.5000", "2"),
        ("in/1.png", "0.0000", "0"),
    ]


def test_shards_can_be_built_from_the_coco_file(tmp_path: Path) -> None:
    written(PreLabels(subject()), tmp_path, [one_record(0), empty_record(1)])
    for number in range(2):
        path = tmp_path / "images" / "in" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photo(number, 20, 40)))
    report = build_shards(
        tmp_path / "prelabels" / "instances_default.json", tmp_path / "images", str(tmp_path / "shards"), split="new"
    )
    assert (report.manifest.num_samples, report.manifest.source.boxes) == (2, 2)


def test_poses_are_skeletons(tmp_path: Path) -> None:
    joints = np.array([[[20.0, 10, 0.9], [10, 5, 0.01], [-4, 6, 0.5]]])
    person = one_record(
        boxes=np.array([[0.0, 0, 40, 20]]), scores=np.array([0.5]), labels=np.array([0]), keypoints=joints
    )
    files = written(PreLabels(subject(PERSON)), tmp_path, [person])
    assert files[0] == "prelabels/person_keypoints_default.json"
    (annotation,) = json.loads((tmp_path / files[0]).read_text())["annotations"]
    assert annotation["keypoints"] == [20, 10, 2, 10, 5, 1, 0, 0, 0]
    assert annotation["num_keypoints"] == 2
    skeleton = ElementTree.parse(tmp_path / files[1]).getroot().find("image/skeleton")
    assert skeleton is not None
    points = [(one.attrib["label"], one.attrib["points"], one.attrib["outside"]) for one in skeleton.findall("points")]
    assert points == [("nose", "20.00,10.00", "0"), ("left", "10.00,5.00", "0"), ("right", "0.00,0.00", "1")]
    (label,) = json.loads((tmp_path / files[2]).read_text())
    assert (label["type"], [one["name"] for one in label["sublabels"]]) == ("skeleton", ["nose", "left", "right"])
    drawing = ElementTree.fromstring(f"<svg>{label['svg']}</svg>")
    assert [one.attrib["data-label-name"] for one in drawing.findall("circle")] == ["nose", "left", "right"]
    assert [(one.attrib["data-node-from"], one.attrib["data-node-to"]) for one in drawing.findall("line")] == [
        ("1", "2"),
        ("1", "3"),
    ]
