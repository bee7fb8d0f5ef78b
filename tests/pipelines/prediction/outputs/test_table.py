"""The table of all detections."""

from pathlib import Path

import numpy as np

from pipelines.prediction.outputs.table import Table
from tests.pipelines.prediction.outputs.subjects import PERSON, empty_record, one_record, subject, table, written


def test_a_row_for_each_object(tmp_path: Path) -> None:
    assert written(Table(subject()), tmp_path, [empty_record(), one_record(1, name='a, "b".png')]) == ["detections.csv"]
    rows = table(tmp_path / "detections.csv")
    assert len(rows) == 2
    assert rows[1] == {
        "image": 'a, "b".png',
        "width": "40",
        "height": "20",
        "class": "traffic light",
        "score": "0.500000",
        "x1": "-8.000",
        "y1": "10.000",
        "x2": "8.000",
        "y2": "25.000",
    }


def test_joints_and_objects_in_3d_have_columns_of_their_own(tmp_path: Path) -> None:
    person = {"boxes": np.array([[0.0, 0, 9, 9]]), "scores": np.array([0.5]), "labels": np.array([0])}
    joints = np.array([[[1.5, 2, 0.9], [3, 4, 0.01], [5, 6, 0.5]]])
    written(Table(subject(PERSON)), tmp_path / "pose", [one_record(**person, keypoints=joints)])
    (row,) = table(tmp_path / "pose" / "detections.csv")
    assert [row[f"left_{what}"] for what in ("x", "y", "score")] == ["3.000", "4.000", "0.010000"]
    body = np.array([[60.0, 18, 12, 1.5, 1.75, 4, 0.5]])
    camera = np.array([[72.0, 0, 60, 0], [0, 72, 18, 0], [0, 0, 1, 0]])
    records = [one_record(**person, box3d=body, camera=camera), one_record(1, **person, box3d=body)]
    written(Table(subject()), tmp_path / "3d", records)
    known, unknown = table(tmp_path / "3d" / "detections.csv")
    assert (known["depth"], known["object_length"], known["location_z"]) == ("12.0000", "4.0000", "12.0000")
    assert (unknown["depth"], unknown["location_z"], unknown["rotation_y"]) == ("12.0000", "", "")


def test_a_table_without_rows_has_a_header(tmp_path: Path) -> None:
    written(Table(subject()), tmp_path, [])
    assert (tmp_path / "detections.csv").read_text().startswith("image,width,height,class,score,x1")
