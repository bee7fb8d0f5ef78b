"""`aweigh bench object-store`: an epoch from a slow S3 server, beside the same epoch from a folder.

Both decode with the same threads, so that a difference means that the loader waits for shards, or that fetching takes
CPU time from decoding. They take turns in one run, each in a process of its own with an empty cache.
"""

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.format.manifest import load_manifest
from data_shards.loading.training_loader import TrainingLoader
from data_shards.order.plan import World, make_plan
from data_shards.reading.reading import Reading
from data_shards.reading.split import open_split
from data_shards.storage.open import open_store
from pipelines import console
from pipelines.errors import ConfigError

REACH = 0.95
BATCH = 32
# Few streams and small windows, so that shards are needed one after the other, as in a much larger data set.
STREAMS, WINDOW_SHARDS = 2, 2


@dataclass(frozen=True)
class Epoch:
    """One epoch from the folder or from S3."""

    first_batch_seconds: float
    images_per_second: float
    """After the first batch."""
    cpu_milliseconds: float
    """CPU time per image over all processes, including the first batch, fetching and the start of the loader."""


@dataclass(frozen=True)
class ObjectStoreFigures:
    """The measured epochs and their conditions."""

    images: int
    shards: int
    megabytes: float
    latency_milliseconds: float
    megabytes_per_second: float
    threads: int
    folder: list[Epoch]
    object_store: list[Epoch]

    @property
    def ratio(self) -> float:
        """Rate from S3 divided by the rate from the folder: the median of the rounds' ratios."""
        pairs = zip(self.object_store, self.folder, strict=True)
        return statistics.median(store.images_per_second / folder.images_per_second for store, folder in pairs)

    def describe(self) -> str:
        """Return the table for people; rates are medians over the rounds."""
        lines = [
            f"an epoch of {counted(self.images, 'image')} in {counted(self.shards, 'shard')}, "
            f"{self.megabytes:,.0f} MB, {counted(self.threads, 'decoding thread')}, "
            f"{counted(len(self.folder), 'round')}",
            f"{'':<28}{'images/s':>10}{'CPU ms/image':>14}{'first batch':>13}",
        ]
        store = f"S3, {self.latency_milliseconds:g} ms, {self.megabytes_per_second:g} MB/s"
        for name, epochs in (("folder", self.folder), (store, self.object_store)):
            rate, cost, first = (
                statistics.median(getattr(epoch, field) for epoch in epochs)
                for field in ("images_per_second", "cpu_milliseconds", "first_batch_seconds")
            )
            lines.append(f"{name:<28}{rate:>10.1f}{cost:>14.2f}{first:>11.2f} s")
        verdict = "reached" if self.ratio >= REACH else "MISSED"
        lines.append(f"rate from S3 after the first batch: {self.ratio:.3f} × the folder's (≥ {REACH:g}: {verdict})")
        return "\n".join(lines)


def bench_object_store(
    location: str,
    *,
    rounds: int = 3,
    threads: int = 1,
    latency_milliseconds: float = 100.0,
    megabytes_per_second: float = 80.0,
) -> ObjectStoreFigures:
    """Measure both in turns.

    Args:
        location: shards in a folder, from which they are also served.
        rounds: turns of each.
        threads: number of decoding threads.
        latency_milliseconds: delay before the server's answer to each request.
        megabytes_per_second: bandwidth of all connections of the server together.

    Raises:
        ConfigError: the shards are not in a folder, there are too few, or there are no rounds.
        DataError: there are no shards.
    """
    if rounds < 1 or threads < 1:
        raise ConfigError(f"--rounds is {rounds}, --threads is {threads}; both must be 1 or more.")
    if not (latency_milliseconds >= 0 and megabytes_per_second > 0):
        raise ConfigError(
            f"--latency is {latency_milliseconds:g}, --bandwidth is {megabytes_per_second:g}; give 0 ms or more and "
            "more than 0 MB/s."
        )
    folder = open_store(location).local_path("")
    if folder is None:
        raise ConfigError(f"{location} is not a folder; give the folder of a split's shards, which is then served.")
    manifest = load_manifest(location)
    if manifest.num_samples < 4 * BATCH:
        raise ConfigError(
            f"{location} has {counted(manifest.num_samples, 'image')}; the benchmark needs {4 * BATCH} or more."
        )
    found: dict[str, list[Epoch]] = {"folder": [], "object_store": []}
    with (
        tempfile.TemporaryDirectory(prefix="aweigh-bench-") as temporary,
        _served(Path(temporary), folder.resolve(), latency_milliseconds, megabytes_per_second) as endpoint,
    ):
        for turn in range(2 * rounds):
            # Each of the two goes first in every other round.
            source = ("folder", "object_store")[(turn + turn // 2) % 2]
            cache = str(Path(temporary) / f"cache-{turn}")
            place = location if source == "folder" else "s3://bucket/split"
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[source].append(pool.apply(_epoch, (place, endpoint, cache, threads)))
            console.progress_line("bench", turn + 1, 2 * rounds, "epochs")
    return ObjectStoreFigures(
        images=manifest.num_samples,
        shards=len(manifest.shards),
        megabytes=manifest.num_bytes / 1e6,
        latency_milliseconds=latency_milliseconds,
        megabytes_per_second=megabytes_per_second,
        threads=threads,
        folder=found["folder"],
        object_store=found["object_store"],
    )


def print_object_store(
    location: str,
    *,
    rounds: int,
    threads: int,
    latency_milliseconds: float,
    megabytes_per_second: float,
    as_json: bool,
) -> None:
    """Measure and print."""
    found = bench_object_store(
        location,
        rounds=rounds,
        threads=threads,
        latency_milliseconds=latency_milliseconds,
        megabytes_per_second=megabytes_per_second,
    )
    print(json.dumps(asdict(found) | {"ratio": found.ratio}) if as_json else found.describe())


def _epoch(location: str, endpoint: str, cache: str, threads: int) -> Epoch:
    """Read one epoch, in a process of its own."""
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
        os.environ.pop(name, None)
    split = open_split(location, cache_folder=cache)
    plan = make_plan(split.manifest, seed=0, global_batch_size=BATCH, streams=STREAMS, window_shards=WINDOW_SHARDS)
    began, cpu = time.perf_counter(), _cpu_seconds()
    with TrainingLoader(
        Reading(split=split, threads=threads),
        plan,
        World(1, 0),
        input_size=(512, 512),
        stop_step=plan.steps_per_epoch,
    ) as loader:
        next(loader)
        first = time.perf_counter()
        batches = sum(1 for _ in loader)
    ended = time.perf_counter()
    return Epoch(
        first_batch_seconds=first - began,
        images_per_second=batches * BATCH / (ended - first),
        cpu_milliseconds=1000 * (_cpu_seconds() - cpu) / ((batches + 1) * BATCH),
    )


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of the loaders that have ended."""
    return sum(os.times()[:4])


@contextmanager
def _served(temporary: Path, folder: Path, latency: float, bandwidth: float) -> Iterator[str]:
    """Serve a folder of shards as `s3://bucket/split` from another process; yields the server's address."""
    (temporary / "served" / "bucket").mkdir(parents=True)
    (temporary / "served" / "bucket" / "split").symlink_to(folder)
    command = [sys.executable, "-m", "pipelines.stand_ins.object_server", str(temporary / "served")]
    server = subprocess.Popen(
        [*command, "--latency", str(latency), "--bandwidth", str(bandwidth)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        endpoint = server.stdout.readline().strip()
        if not endpoint:
            raise DataError("the benchmark's server did not start; its error is printed above.")
        yield endpoint
    finally:
        server.terminate()
        server.communicate()
