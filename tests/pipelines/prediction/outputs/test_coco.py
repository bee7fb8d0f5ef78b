"""COCO results that pycocotools takes, with the images that they are of."""

import json
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO

from pipelines.prediction.outputs.coco import Coco
from tests.pipelines.prediction.outputs.subjects import PERSON, empty_record, one_record, subject, written


def test_pycocotools_loads_results_and_images(tmp_path: Path) -> None:
    files = written(Coco(subject()), tmp_path / "out", [one_record(0), empty_record(1), one_record(2)])
    assert files == ["coco/results.json", "coco/images.json"]
    results = json.loads((tmp_path / "out" / files[0]).read_text())
    assert results[:2] == [
        {"image_id": 1, "category_id": 1, "bbox": [10, 4, 20, 8], "score": 0.75},
        {"image_id": 1, "category_id": 18, "bbox": [-8, 10, 16, 15], "score": 0.5},
    ]
    assert len(results) == 4
    truth = COCO(str(tmp_path / "out" / files[1]))
    assert truth.imgs[2] == {"id": 2, "file_name": "in/1.png", "width": 40, "height": 20}
    assert truth.cats == {1: {"id": 1, "name": "cat"}, 18: {"id": 18, "name": "traffic light"}}
    found = truth.loadRes(str(tmp_path / "out" / files[0]))
    assert sorted(found.getImgIds()) == [1, 2, 3]


def test_joints_are_marked_visible_as_in_evaluations(tmp_path: Path) -> None:
    joints = np.array([[[1.5, 2, 0.9], [3, 4, 0.01], [5, 6, 0.5]]])
    person = one_record(
        boxes=np.array([[0.0, 0, 9, 9]]), scores=np.array([0.5]), labels=np.array([0]), keypoints=joints
    )
    written(Coco(subject(PERSON)), tmp_path / "out", [person])
    (result,) = json.loads((tmp_path / "out" / "coco" / "results.json").read_text())
    assert result["keypoints"] == [1.5, 2, 1, 3, 4, 1, 5, 6, 1]
    (category,) = json.loads((tmp_path / "out" / "coco" / "images.json").read_text())["categories"]
    assert category["skeleton"] == [[1, 2], [1, 3]]


def test_no_result_at_all_is_an_empty_list(tmp_path: Path) -> None:
    written(Coco(subject()), tmp_path / "out", [empty_record()])
    assert json.loads((tmp_path / "out" / "coco" / "results.json").read_text()) == []
