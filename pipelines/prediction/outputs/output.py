"""The contract of all outputs; see `Output`."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data_shards.format.manifest import CocoClass
from data_shards.reading.scratch import Image
from data_shards.storage.store import Store
from pipelines.prediction.records import ImageRecord, Records
from pipelines.prediction.sources import Sources


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The subject of all outputs: classes, images and detector. It can be pickled."""

    classes: tuple[CocoClass, ...]
    """In the order of the labels."""
    sources: Sources
    origin: str
    """The trained detector, for people."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return tuple(one.name for one in self.classes)

    def coco_categories(self) -> list[dict[str, object]]:
        """Return COCO's categories."""
        joints = {
            one.id: {"keypoints": list(one.keypoints), "skeleton": [list(pair) for pair in one.skeleton]}
            for one in self.classes
            if one.keypoints
        }
        return [{"id": one.id, "name": one.name, **joints.get(one.id, {})} for one in self.classes]


class Output(ABC):
    """One format. `write_image` is called once for each image, by any process; `finish` when all images are done.

    Files are written through a store, whole or not at all, so that a job that is killed leaves no part of a file, and
    writing a file again replaces it.
    """

    needs_pixels = False
    """True if `write_image` draws on the image."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def write_image(self, store: Store, record: ImageRecord, image: Image | None) -> None:
        """Write the files of one image that was read. Safe to call from several threads.

        Args:
            store: location of the job's output.
            record: its result.
            image: its pixels, RGB, if the output needs them.
        """
        return

    @abstractmethod
    def finish(self, store: Store, records: Records) -> list[str]:
        """Write the files of all images together. Returns the paths to show, relative to the job's output."""


@contextmanager
def large_file(store: Store, name: str) -> Iterator[IO[str]]:
    """Yield a text file to write, which is put into the store if the block succeeds."""
    with tempfile.TemporaryDirectory(prefix="aweigh-") as folder:
        path = Path(folder) / "file"
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
        store.upload(path, name)


def write_list(file: IO[str], items: Iterator[str] | Sequence[str]) -> None:
    """Write JSON texts as a list, one a line, without holding them in memory."""
    file.write("[")
    for number, item in enumerate(items):
        file.write(f"{',' if number else ''}\n{item}")
    file.write("\n]")
