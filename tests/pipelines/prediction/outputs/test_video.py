"""Videos with what was found in them."""

from pathlib import Path

import cv2
import numpy as np

from data_shards.reading.split import open_split
from pipelines.prediction.outputs.video import Video
from pipelines.prediction.sources import find_sources
from tests.pipelines.prediction.outputs.subjects import empty_record, one_record, subject, written
from tests.pipelines.prediction.test_videos import gray, write_video


def test_each_video_has_its_own_frames_and_one_that_was_not_read_is_left_out(tmp_path: Path) -> None:
    first = write_video(tmp_path / "a.avi", 3)
    second = write_video(tmp_path / "b.avi", 5)
    sources = find_sources([str(first), str(second)], open_split=open_split)
    box = {"boxes": np.array([[20.0, 4, 50, 28]]), "scores": np.array([0.5]), "labels": np.array([0])}
    of_frames = [
        one_record(source.number, **box, stem=source.stem, name=source.name, width=64, height=32)
        if source.number % 2
        else empty_record(source.number, stem=source.stem, name=source.name, width=64, height=32)
        for source in sources
        if source.number != 4
    ]
    assert written(Video(subject(sources=sources)), tmp_path / "out", of_frames) == ["video/a.mp4", "video/b.mp4"]
    frames = {name: _frames(tmp_path / "out" / "video" / f"{name}.mp4") for name in "ab"}
    assert [[gray(one) for one in frames[name]] for name in "ab"] == [[0, 1, 2], [0, 2, 3, 4]]
    # The box is on every second image of both videos together.
    boxes = [[bool(np.ptp(one[16, 18:24].astype(int)) > 60) for one in frames[name]] for name in "ab"]
    assert boxes == [[False, True, False], [True, True, False, True]]


def _frames(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (found := capture.read())[0]:
        frames.append(found[1])
    return frames
