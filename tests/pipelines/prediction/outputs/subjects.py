"""Records and sources without images behind them, for the tests of outputs."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.format.manifest import CocoClass
from data_shards.storage.folder import FolderStore
from pipelines.prediction.outputs.output import Output, Subject
from pipelines.prediction.records import ImageRecord, Records, part_name
from pipelines.prediction.sources import Sources

CLASSES = (CocoClass(1, "cat"), CocoClass(18, "traffic light"))
PERSON = (CocoClass(1, "person", ("nose", "left", "right"), ((1, 2), (1, 3))),)


def subject(classes: tuple[CocoClass, ...] = CLASSES, sources: Sources | None = None) -> Subject:
    return Subject(classes=classes, sources=sources or Sources([]), origin="runs/cells")


def one_record(number: int = 0, **changes: Any) -> ImageRecord:
    """An image of 40 x 20 pixels with a cat, and a traffic light that leaves it."""
    values: dict[str, Any] = {
        "number": number,
        "name": f"in/{number}.png",
        "stem": f"in/{number}",
        "image_id": number + 1,
        "width": 40,
        "height": 20,
        "boxes": np.array([[10.0, 4, 30, 12], [-8, 10, 8, 25]]),
        "scores": np.array([0.75, 0.5]),
        "labels": np.array([0, 1]),
    }
    return ImageRecord(**{**values, **changes})


def empty_record(number: int = 0, **changes: Any) -> ImageRecord:
    return one_record(number, boxes=np.zeros((0, 4)), scores=np.zeros(0), labels=np.zeros(0, dtype=np.int64), **changes)


def written(output: Output, folder: Path, records: Sequence[ImageRecord]) -> list[str]:
    """Write all files of an output; returns what `finish` does."""
    store = FolderStore(folder)
    parts = FolderStore(folder.with_name(f"{folder.name}-parts"))
    parts.write_bytes(part_name(0), "".join(one.line() for one in records).encode())
    for one in records:
        if not one.problem:
            output.write_image(store, one, np.zeros((one.height, one.width, 3), dtype=np.uint8))
    with Records(parts, [0]) as every:
        return output.finish(store, every)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
