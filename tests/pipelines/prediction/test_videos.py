"""Videos: every frame once, upright and in order, whatever the file says of itself; cameras until they end."""

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipelines.errors import ConfigError
from pipelines.prediction import videos
from pipelines.prediction.videos import Camera, EndOfFramesError, VideoFile


def write_video(path: Path, frames: int = 6, codec: str = "MJPG", size: tuple[int, int] = (64, 32)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 12, size)
    assert writer.isOpened()
    for number in range(frames):
        frame = np.full((size[1], size[0], 3), 40 * number % 256, dtype=np.uint8)
        frame[:8, :8] = (0, 0, 255)  # red in the top left corner
        writer.write(frame)
    writer.release()
    return path


def gray(image: np.ndarray[Any, Any]) -> int:
    """The gray of a frame's bottom right corner, in steps of 40."""
    return round(float(image[-4:, -4:].mean()) / 40)


def test_frames_come_in_order_and_in_rgb(tmp_path: Path) -> None:
    video = VideoFile(write_video(tmp_path / "a.avi"))
    assert (video.num_frames, video.rate) == (6, 12)
    assert [gray(video.read(number)) for number in range(6)] == [0, 1, 2, 3, 4, 5]
    red, green, blue = video.read(2)[2, 2].tolist()
    assert red > 150 > 100 > max(green, blue)


def test_frames_can_be_skipped_and_read_again(tmp_path: Path) -> None:
    video = VideoFile(write_video(tmp_path / "a.mp4", codec="mp4v"))
    assert [gray(video.read(number)) for number in (4, 1, 1, 5, 0)] == [4, 1, 1, 5, 0]
    assert gray(pickle.loads(pickle.dumps(video)).read(3)) == 3
    video.close()
    assert gray(video.read(2)) == 2


def test_a_cut_file_has_the_frames_that_are_left(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", frames=30, size=(320, 240))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    stated = int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT))
    video = VideoFile(path)
    assert 5 < video.num_frames < 30
    assert stated != video.num_frames, "the header of this file should be wrong"
    video.read(video.num_frames - 1)
    with pytest.raises(ValueError, match="the frame does not decode"):
        video.read(video.num_frames)


def test_a_video_that_was_filmed_upright_is_turned(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", codec="mp4v")
    data = bytearray(path.read_bytes())
    # The matrix of the track header: 48 bytes behind its beginning, 16.16 fixed point; here a quarter to the right.
    matrix = data.index(b"tkhd") + 4 + 40
    assert data[matrix : matrix + 4] == b"\0\1\0\0"
    quarter = (0, 1 << 16, 0, -(1 << 16) & 0xFFFFFFFF, 0, 0, 0, 0, 1 << 30)
    data[matrix : matrix + 36] = b"".join(number.to_bytes(4) for number in quarter)
    path.write_bytes(data)
    frame = VideoFile(path).read(1)
    assert frame.shape == (64, 32, 3)
    assert frame[3, -4, 0] > 150, "the red corner is now at the top right"


def test_only_the_first_frames_are_counted(tmp_path: Path) -> None:
    assert VideoFile(write_video(tmp_path / "a.avi"), 4).num_frames == 4


def test_counting_reports_its_progress(tmp_path: Path) -> None:
    reported: list[int] = []
    VideoFile(write_video(tmp_path / "a.avi"), progress=reported.append)
    assert reported == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is not a video that OpenCV reads"), (b"hello", "is not a video that OpenCV reads")]
)
def test_a_file_that_is_no_video_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        VideoFile(path)


@pytest.mark.parametrize("stated", [0.0, float("nan"), 90_000.0, -1.0])
def test_a_rate_that_cannot_be_is_replaced(stated: float) -> None:
    assert videos._plausible_rate(stated) == 25


class FakeCapture:
    """A camera that delivers three frames."""

    def __init__(self, index: int) -> None:
        self.left = 3 if index == 0 else -1

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return self.left >= 0

    def get(self, what: int) -> float:
        return 30.0

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        return (True, np.full((4, 6), 7, dtype=np.uint8)) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.left = -1


def test_a_camera_delivers_frames_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos.cv2, "VideoCapture", FakeCapture)
    camera = Camera(0)
    frames = [camera.read() for _ in range(3)]
    assert frames[0].shape == (4, 6, 3)
    assert camera.rate == 30
    with pytest.raises(EndOfFramesError):
        camera.read()


def test_a_camera_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos.cv2, "VideoCapture", FakeCapture)
    with pytest.raises(ConfigError, match="camera 1 does not open; check that it is connected"):
        Camera(1).open()
