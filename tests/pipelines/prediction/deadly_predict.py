"""`aweigh predict` whose worker is killed once, as a program: `… deadly_predict MARKER IMAGE ARGUMENT…`.

The worker that has written the output files of image number IMAGE, but not the records of its part, kills itself, if
MARKER does not exist.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster.parts import RunPart
from pipelines.cli import main
from pipelines.prediction import workers
from pipelines.prediction.job import PartWorker
from pipelines.prediction.records import ImageRecord

_make_worker, _write = workers._make_worker, PartWorker._write


def make_deadly_worker(marker: Path, image: int, shared: Any, device: torch.device) -> RunPart:
    def write(self: PartWorker, store: Any, record: ImageRecord, pixels: Any) -> None:
        _write(self, store, record, pixels)
        if record.number == image and not marker.exists():
            marker.write_text(f"{os.getpid()}")
            os.kill(os.getpid(), signal.SIGKILL)

    PartWorker._write = write  # type: ignore[method-assign]
    return _make_worker(shared, device)


if __name__ == "__main__":
    # Workers import this module by its name.
    from tests.pipelines.prediction.deadly_predict import make_deadly_worker

    marker, image, *words = sys.argv[1:]
    workers._make_worker = partial(make_deadly_worker, Path(marker), int(image))
    main(words)
