"""Videos with what was found in them, one for each video or camera among the sources.

A video is written when all of its frames are done: its frames are read again and drawn from their records, so that a
job that is resumed makes the same video as one that was never stopped. Frames of a camera, which cannot be read again,
are kept as JPEGs until then.
"""

import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data_shards.reading.scratch import Image
from data_shards.storage.store import Store
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.prediction.outputs.output import Output
from pipelines.prediction.outputs.pictures import as_jpeg, drawn
from pipelines.prediction.records import ImageRecord, Records
from pipelines.prediction.sources import CameraFrames, Origin, UnreadableError, VideoFrames, decoded

_CODEC = "mp4v"
"""MPEG-4 part 2: OpenCV's packages have no encoder of H.264, whose license they could not pass on."""
_FRAMES_QUALITY = 95


class Video(Output):
    """`video/NAME.mp4` of every video and camera."""

    needs_pixels = True

    def write_image(self, store: Store, record: ImageRecord, image: Image | None) -> None:
        """Keep a frame of a camera."""
        assert image is not None
        if isinstance(self.subject.sources[record.number].origin, CameraFrames):
            store.write_bytes(_kept(record), as_jpeg(image, _FRAMES_QUALITY))

    def finish(self, store: Store, records: Records) -> list[str]:
        """Write the videos."""
        written = []
        for first, end, origin in self.subject.sources.places():
            if isinstance(origin, VideoFrames | CameraFrames) and records.count(first, end):
                name = f"video/{origin.label}.mp4"
                self._write(store, name, origin, records, first, end)
                written.append(name)
        return written

    def _write(
        self, store: Store, name: str, origin: VideoFrames | CameraFrames, records: Records, first: int, end: int
    ) -> None:
        rate = origin.video.rate if isinstance(origin, VideoFrames) else origin.camera.rate
        total = records.count(first, end)
        writer, size = None, (0, 0)
        with tempfile.TemporaryDirectory(prefix="aweigh-") as folder:
            path = Path(folder) / "video.mp4"
            for done, one in enumerate(records.between(first, end), start=1):
                if writer is None:
                    size = (one.width, one.height)
                    writer = _writer(path, rate, size)
                frame = self._frame(store, origin, first, one)
                if frame is not None:
                    writer.write(cv2.cvtColor(_fitted(frame, size), cv2.COLOR_RGB2BGR))
                console.progress_line("video", done, total, f"frames of {name}")
            if writer is not None:
                writer.release()
            store.upload(path, name)
        if isinstance(origin, CameraFrames):
            for one in records.between(first, end):
                store.delete(_kept(one))

    def _frame(self, store: Store, origin: Origin, first: int, record: ImageRecord) -> NDArray[np.uint8] | None:
        """Return a frame with its objects; None if the file has changed since and has no such frame any more."""
        try:
            if isinstance(origin, CameraFrames):
                return drawn(record, decoded(store.read_bytes(_kept(record))), self.subject)
            return drawn(record, origin.read(record.number - first).image, self.subject)
        except UnreadableError:
            return None


def _writer(path: Path, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*_CODEC), rate, size)
    if not writer.isOpened():
        raise ConfigError(
            f"OpenCV cannot write a video of {size[0]} x {size[1]} pixels; choose another output than video."
        )
    return writer


def _kept(record: ImageRecord) -> str:
    return f"frames/{record.stem}.jpg"


def _fitted(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a frame at the size of the video: some files change theirs on the way."""
    if (frame.shape[1], frame.shape[0]) == size:
        return frame
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
