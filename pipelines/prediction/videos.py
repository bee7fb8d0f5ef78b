"""Frames of video files and cameras, read by OpenCV.

Unusual here: frames are counted by reading the file once. The number in a file's header is missing for some formats and
too high for files that were cut, and a seek lands beside the frame that was asked for.
"""

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_shards.reading.scratch import Image
from pipelines.errors import ConfigError

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"),
    *(".wmv", ".flv", ".3gp", ".ogv", ".mjpeg", ".mjpg", ".gif"),
)
"""Endings of files that are read as videos, in lower case."""

_USUAL_RATE = 25.0
_HIGHEST_RATE = 240.0


class EndOfFramesError(Exception):
    """A camera or a video has no further frame."""


def frame_name(stem: str, number: int) -> str:
    """Return the name of a frame, numbered from 0 as CVAT numbers the frames of a video."""
    return f"{stem}/frame_{number:06d}.jpg"


class VideoFile:
    """A video file, whose frames are numbered from 0. Frames are upright, as the file's rotation says.

    Reading frames in their order is fast; going back opens the file again. Safe to use from several threads, and can be
    pickled.

    Args:
        path: the file.
        most: frames after this many are left out; None reads all.
        progress: called with the number of frames counted so far.

    Raises:
        ConfigError: the file cannot be opened, or OpenCV reads no frame of it.
    """

    def __init__(
        self, path: Path, most: int | None = None, progress: Callable[[int], None] = lambda done: None
    ) -> None:
        self.path = path
        self._capture: cv2.VideoCapture | None = None
        self._next = 0
        self._lock = threading.Lock()
        capture = self._opened()
        self.rate = _plausible_rate(capture.get(cv2.CAP_PROP_FPS))
        self.num_frames = 0
        while (most is None or self.num_frames < most) and capture.grab():
            self.num_frames += 1
            progress(self.num_frames)
        capture.release()
        if not self.num_frames and most != 0:
            raise ConfigError(f"{path} has no frame that OpenCV reads; convert it, or check that it was copied whole.")

    def read(self, number: int) -> Image:
        """Return a frame, RGB.

        Raises:
            ValueError: the frame does not decode.
        """
        with self._lock:
            if self._capture is None or number < self._next:
                self._capture, self._next = self._opened(), 0
            while self._next < number:
                self._next += 1
                if not self._capture.grab():
                    raise ValueError("the video ends before this frame")
            self._next += 1
            found, frame = self._capture.read()
        if not found or frame is None:
            raise ValueError("the frame does not decode")
        return _rgb(frame)

    def close(self) -> None:
        """Close the file; reading opens it again."""
        with self._lock:
            if self._capture is not None:
                self._capture.release()
            self._capture = None

    def _opened(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(os.fspath(self.path))
        if not capture.isOpened():
            raise ConfigError(f"{self.path} is not a video that OpenCV reads; convert it, or check the file.")
        return capture

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_capture": None, "_next": 0, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "_lock": threading.Lock()})


class Camera:
    """A camera of this machine, whose frames are numbered from 0 as they come. Opened by the first read.

    Args:
        index: number of the camera, from 0, as the system counts them.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.rate = _USUAL_RATE
        self._capture: cv2.VideoCapture | None = None

    def open(self) -> None:
        """Open the camera.

        Raises:
            ConfigError: there is no such camera, or another program uses it.
        """
        if self._capture is None:
            capture = cv2.VideoCapture(self.index)
            if not capture.isOpened():
                raise ConfigError(
                    f"camera {self.index} does not open; check that it is connected, that no other program uses it, "
                    f"and its number (0 is the first)."
                )
            self.rate = _plausible_rate(capture.get(cv2.CAP_PROP_FPS))
            self._capture = capture

    def read(self) -> Image:
        """Return the next frame, RGB.

        Raises:
            EndOfFramesError: the camera delivers no more.
        """
        self.open()
        assert self._capture is not None
        found, frame = self._capture.read()
        if not found or frame is None:
            raise EndOfFramesError
        return _rgb(frame)

    def close(self) -> None:
        """Release the camera."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None


def _rgb(frame: Any) -> Image:
    if frame.ndim == 2 or frame.shape[2] == 1:
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB))
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


def _plausible_rate(rate: float) -> float:
    """Return a rate that a video can be written with: some files and cameras state 0, NaN or a clock's 90,000."""
    return rate if math.isfinite(rate) and 1 <= rate <= _HIGHEST_RATE else _USUAL_RATE
