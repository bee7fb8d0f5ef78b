"""Colours, captions, and the file of a picture."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.errors import ConfigError
from pipelines.pictures.drawing import check_picture_path, class_color, save_image, shortened


def test_eighty_classes_have_eighty_colours() -> None:
    assert len({class_color(label) for label in range(80)}) == 80


@pytest.mark.parametrize(
    ("name", "signature"), [("a.png", b"\x89PNG"), ("a.jpg", b"\xff\xd8\xff"), ("A.JPEG", b"\xff\xd8\xff")]
)
def test_the_suffix_decides_the_format(tmp_path: Path, name: str, signature: bytes) -> None:
    picture = np.full((30, 40, 3), (200, 100, 50), dtype=np.uint8)
    save_image(picture, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(signature)
    read = cv2.cvtColor(cv2.imread(str(tmp_path / name)), cv2.COLOR_BGR2RGB)
    assert np.abs(read.astype(int) - picture).max() <= 3  # JPEG rounds


@pytest.mark.parametrize("name", ["a.gif", "a", "a.pdf"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    for refuses in (check_picture_path, lambda path: save_image(np.zeros((1, 1, 3), dtype=np.uint8), path)):
        with pytest.raises(ConfigError, match=rf"{name} cannot be written as a picture; let its name end in \.png, "):
            refuses(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_long_caption_loses_its_middle() -> None:
    caption = "IMG_2274_jpeg_jpg.rf.2f319e949748145fb22dcb52bb325a0c.jpg   image 12   3 objects"
    assert shortened(caption, 2000) == caption
    short = shortened(caption, 250)
    start, end = short.split("…")
    assert caption.startswith(start)
    assert caption.endswith(end)
    assert end.endswith("3 objects")
    assert shortened(caption, 0) == ""
