"""Projection matrices from KITTI's calibration files."""

from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.prediction.cameras import Cameras

KITTI = "P1: 0 0 0 0 0 0 0 0 0 0 0 0\nP2: 7.2e+02 0 609 44 0 721 172 0.2 0 0 1 0.003\nR0_rect: 1 0 0 0 1 0 0 0 1\n"
MATRIX = [[720.0, 0, 609, 44], [0, 721, 172, 0.2], [0, 0, 1, 0.003]]


def test_one_file_is_for_all_images(tmp_path: Path) -> None:
    (tmp_path / "calib.txt").write_text(KITTI)
    assert Cameras(tmp_path / "calib.txt").of("any/name.png") == MATRIX


def test_a_folder_has_a_file_for_each_image(tmp_path: Path) -> None:
    (tmp_path / "000012.txt").write_text(KITTI)
    assert Cameras(tmp_path).of("image_2/000012.png") == MATRIX
    assert Cameras(tmp_path).of("image_2/000013.png") is None


@pytest.mark.parametrize("text", ["", "P2: 1 2 3", "P2: a b c d e f g h i j k l"])
def test_a_file_without_a_matrix_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "calib.txt").write_text(text)
    with pytest.raises(ConfigError, match=r"calib\.txt"):
        Cameras(tmp_path / "calib.txt")


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        Cameras(tmp_path / "calib")
