"""Parts of a job of predictions on the workers of a Ray cluster, for jobs too large for one process.

Workers receive the detector through Ray, so that nodes need no run folder; they read the images and write the results
themselves, so that neither passes through this process.
"""

import os
import pickle
import socket
import time
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from cluster.parts import Part, RunPart, run_parts
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.prediction.job import Job, PartWorker
from pipelines.prediction.records import part_name
from pipelines.prediction.sources import StoredImages, VideoFrames
from pipelines.trained.trained import Trained

# A network file system may show a new file of another machine some seconds later.
_SEEN_SECONDS = 30.0


class ClusterWorkers:
    """Does parts of a job on the cluster at hand; takes the place of a `PartWorker`.

    Args:
        job: the job.
        trained: its detector, opened on the CPU.
        workers: number of workers.

    Raises:
        ConfigError: a camera is among the sources.
    """

    def __init__(self, job: Job, trained: Trained, workers: int) -> None:
        if job.subject.sources.has_camera:
            raise ConfigError("the frames of a camera cannot be shared among workers; leave out --workers.")
        if "://" not in job.output:
            job = replace(job, output=os.path.abspath(job.output))
        self._job, self._trained, self._workers = job, trained, workers

    def run(self, parts: Iterable[int]) -> Generator[tuple[int, int], None, None]:
        """Do parts in any order; yields each with its number of images when its records are written.

        Raises:
            ClusterError: the cluster has no place for the workers, or parts could not be finished.
            ConfigError: a worker does not see the folders of the job.
        """
        shared = _Shared(self._job, pickle.dumps(self._trained), os.getcwd())
        # As `default_device` decides in one process.
        device: Literal["cpu", "auto"] = "cpu" if self._trained.recipe.cluster.device == "cpu" else "auto"
        numbered = [Part(number, self._name(number), number) for number in parts]
        done = run_parts(_make_worker, numbered, workers=self._workers, shared=shared, device=device, say=console.say)
        with closing(done):
            for part, num_images in done:
                self._check_seen(part.number)
                yield part.number, num_images

    def _name(self, number: int) -> str:
        first = number * self._job.part_size
        last = min(first + self._job.part_size, len(self._job.subject.sources))
        return f"images {first + 1:,} to {last:,}"

    def _check_seen(self, number: int) -> None:
        """Refuse an output that is another folder on the node of a worker."""
        store, name = self._job.parts_store(), part_name(number)
        path = store.local_path(name)
        deadline = time.monotonic() + _SEEN_SECONDS
        while path is not None and not path.exists():
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"a worker wrote {path}, but it is not on this machine: {self._job.output} is not the same folder "
                    f"on every node. Give --output on a file system that all nodes mount, or s3://BUCKET/PREFIX."
                )
            time.sleep(0.5)


@dataclass(frozen=True)
class _Shared:
    """Everything that a worker needs besides the numbers of its parts."""

    job: Job
    trained: bytes
    """A pickled `Trained`; in bytes, so that it is not unpickled where it is only passed on."""
    folder: str
    """The driver's current folder, which relative paths start from."""


def _make_worker(shared: _Shared, device: torch.device) -> RunPart:
    if os.path.isdir(shared.folder):
        os.chdir(shared.folder)
    _check_folders(shared.job)
    trained: Trained = pickle.loads(shared.trained)
    worker = PartWorker(shared.job, replace(trained, detector=trained.detector.to(device), device=device))

    def run(number: int) -> int:
        return sum(num_images for _, num_images in worker.run([number]))

    return run


def _check_folders(job: Job) -> None:
    """Refuse sources that this node does not see, or every image would be listed as unreadable.

    Raises:
        ConfigError: names the folder or the video.
    """
    for origin in job.subject.sources.origins:
        path = None
        if isinstance(origin, StoredImages):
            path = origin.store.local_path("")
        elif isinstance(origin, VideoFrames):
            path = Path(origin.video.path)
        if path is not None and not path.exists():
            raise ConfigError(
                f"{path} does not exist on {socket.gethostname()}, where a worker runs. Give sources on a file system "
                f"that all nodes mount, or s3://BUCKET/PREFIX."
            )
