"""KITTI's result files of images whose camera is known."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.prediction.outputs.kitti import Kitti
from tests.pipelines.prediction.outputs.subjects import empty_record, one_record, subject, written

CAMERA = np.array([[72.0, 0, 60, 0], [0, 72, 18, 0], [0, 0, 1, 0]])
BODIES = np.array([[60.0, 18, 12, 1.5, 1.75, 4, 0.5], [24, 18, 12, 1.75, 0.5, 0.75, -3]])


def test_a_line_for_each_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        one_record(0, box3d=BODIES, camera=CAMERA),
        empty_record(1, box3d=np.zeros((0, 7)), camera=CAMERA),
        one_record(2, box3d=BODIES),
    ]
    assert written(Kitti(subject()), tmp_path, records) == ["kitti"]
    # Twelve metres ahead, on the axis: x = 0, and the underside is 0.75 below the middle.
    assert (tmp_path / "kitti/in/0.txt").read_text().splitlines()[0] == (
        "cat -1 -1 0.5000 10.0000 4.0000 30.0000 12.0000 1.5000 1.7500 4.0000 0.0000 0.7500 12.0000 0.5000 0.750000"
    )
    assert (tmp_path / "kitti/in/0.txt").read_text().splitlines()[1].startswith("traffic_light ")
    assert (tmp_path / "kitti/in/1.txt").read_text() == ""
    assert not (tmp_path / "kitti/in/2.txt").exists()
    assert "1 image without a camera" in capsys.readouterr().err


def test_images_without_any_camera_have_no_files(tmp_path: Path) -> None:
    assert written(Kitti(subject()), tmp_path, [one_record(box3d=BODIES)]) == []
