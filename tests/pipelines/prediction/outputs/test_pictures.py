"""Pictures of images with what was found in them."""

from pathlib import Path

import cv2
import numpy as np

from pipelines.prediction.outputs.pictures import Pictures, as_jpeg, drawn, visibility
from tests.pipelines.prediction.outputs.subjects import PERSON, empty_record, one_record, subject, written

BODY = np.array([[60.0, 18, 12, 1.5, 1.75, 4, 0.5]])
CAMERA = np.array([[72.0, 0, 60, 0], [0, 72, 18, 0], [0, 0, 1, 0]])
ONE = {"boxes": np.array([[40.0, 8, 80, 30]]), "scores": np.array([0.5]), "labels": np.array([0])}


def test_every_image_has_a_picture_of_its_size(tmp_path: Path) -> None:
    assert written(Pictures(subject()), tmp_path, [one_record(), empty_record(1)]) == ["pictures"]
    assert cv2.imread(str(tmp_path / "pictures/in/0.jpg")).shape == (20, 40, 3)
    assert cv2.imread(str(tmp_path / "pictures/in/1.jpg")).shape == (20, 40, 3)


def test_an_object_in_3d_is_drawn_as_a_body_if_the_camera_is_known() -> None:
    image = np.full((36, 124, 3), 90, dtype=np.uint8)
    flat = drawn(one_record(**ONE, box3d=BODY), image, subject())
    body = drawn(one_record(**ONE, box3d=BODY, camera=CAMERA), image, subject())
    assert (flat != image).any()
    assert (body != flat).any()


def test_joints_are_drawn() -> None:
    image = np.full((60, 124, 3), 90, dtype=np.uint8)
    joints = np.array([[[50.0, 25, 0.9], [70, 25, 0.0], [60, 28, 0.5]]])
    assert (drawn(one_record(**ONE, keypoints=joints), image, subject(PERSON))[25, 70] == 255).all()


def test_a_joint_with_a_low_score_is_hidden() -> None:
    assert visibility(np.array([[1.0, 2, 0.1], [1, 2, 0.09], [1, 2, 0]])).tolist() == [2, 1, 1]


def test_a_jpeg_keeps_its_colours() -> None:
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    image[..., 0] = 200
    decoded = cv2.imdecode(np.frombuffer(as_jpeg(image), dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.abs(decoded.astype(int) - image).max() < 12
