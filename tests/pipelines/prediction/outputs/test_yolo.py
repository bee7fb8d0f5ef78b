"""YOLO text that our own import reads back."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_shards.building.yolo import import_yolo
from pipelines.prediction.outputs.yolo import Yolo
from tests.pipelines.prediction.outputs.subjects import PERSON, empty_record, one_record, subject, written


def test_lines_are_fractions_of_the_image_and_end_at_its_sides(tmp_path: Path) -> None:
    # x: (10 + 30) / 2 / 40 = 0.5; y: (4 + 12) / 2 / 20 = 0.4. The second box is cut to 0, 10, 8, 20.
    assert written(Yolo(subject()), tmp_path, [one_record(), empty_record(1)]) == ["yolo/labels", "yolo/data.yaml"]
    assert (tmp_path / "yolo/labels/in/0.txt").read_text().splitlines() == [
        "0 0.500000 0.400000 0.500000 0.400000",
        "1 0.100000 0.750000 0.200000 0.500000",
    ]
    assert (tmp_path / "yolo/labels/in/1.txt").read_text() == ""


def test_the_import_reads_it_back(tmp_path: Path) -> None:
    written(Yolo(subject()), tmp_path, [one_record(), empty_record(1)])
    for number in range(2):
        path = tmp_path / "yolo" / "images" / "in" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((20, 40, 3), dtype=np.uint8))
    report = import_yolo(
        None, tmp_path / "yolo" / "images", tmp_path / "coco.json", names=tmp_path / "yolo" / "data.yaml"
    )
    assert report.class_names == ("cat", "traffic light")
    content = json.loads((tmp_path / "coco.json").read_text())
    assert [one["bbox"] for one in content["annotations"]] == [
        pytest.approx([10, 4, 20, 8]),
        pytest.approx([0, 10, 8, 10]),
    ]


def test_a_box_outside_the_image_has_no_line(tmp_path: Path) -> None:
    written(Yolo(subject()), tmp_path, [one_record(boxes=np.array([[50.0, 4, 60, 12], [0, 0, 4, 4]]))])
    assert (tmp_path / "yolo/labels/in/0.txt").read_text() == "1 0.050000 0.100000 0.100000 0.200000\n"


def test_joints_follow_the_box(tmp_path: Path) -> None:
    joints = np.array([[[20.0, 10, 0.9], [10, 5, 0.01], [-4, 6, 0.5]]])
    person = one_record(
        boxes=np.array([[0.0, 0, 40, 20]]), scores=np.array([0.5]), labels=np.array([0]), keypoints=joints
    )
    written(Yolo(subject(PERSON)), tmp_path, [person])
    # Seen; inferred, so hidden; outside the image, so not labelled.
    assert (tmp_path / "yolo/labels/in/0.txt").read_text() == (
        "0 0.500000 0.500000 1.000000 1.000000 0.500000 0.500000 2 0.250000 0.250000 1 0.000000 0.000000 0\n"
    )
    assert "kpt_shape: [3, 3]" in (tmp_path / "yolo/data.yaml").read_text()
