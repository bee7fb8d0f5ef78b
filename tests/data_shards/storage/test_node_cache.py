"""The node's cache between threads, processes and runs, against a real server."""

import contextlib
import hashlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.building.build import BuildReport, build_shards
from data_shards.errors import DataError
from data_shards.order.node_schedule import NodeSchedule
from data_shards.order.plan import Plan, World, make_plan
from data_shards.reading.prefetch import TransferLimit
from data_shards.reading.shards import Shards
from data_shards.storage.node_cache import NodeCache
from data_shards.storage.open import open_store
from pipelines.stand_ins.object_server import Fault, ObjectServer
from tests.data_shards.loaders import training_loader
from tests.data_shards.samples import document, write_coco

ROOT = Path(__file__).resolve().parents[3]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def put(cache: NodeCache, name: str, size: int = 100, *, waiting: bool = True) -> bool:
    """Have a file of zeros in the cache."""
    return cache.obtain(cache.shard_path(name), size, lambda _: None, waiting=waiting)


# ---- the files


def test_what_is_needed_last_goes_first(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 400)
    for name in "abcd":
        put(cache, name)
    cache.claim(["b"], [], order=["b", "d", "a", "c"])
    put(cache, "e")
    assert cache.present() == {"a", "b", "d", "e"}
    put(cache, "f", 200)
    # e is not in the order: nobody will ask for it.
    assert cache.present() == {"b", "d", "f"}
    cache.close()


def test_what_another_reader_uses_stays_and_what_it_fetched_ahead_goes_only_to_one_that_waits(tmp_path: Path) -> None:
    other = NodeCache(tmp_path)
    for name in "abc":
        put(other, name)
    other.claim(["a"], ["b"])
    cache = NodeCache(tmp_path, 300)
    assert put(cache, "d", waiting=False)
    assert cache.present() == {"a", "b", "d"}
    cache.claim(["d"])
    assert not put(cache, "e", waiting=False)
    assert cache.present() == {"a", "b", "d"}
    assert put(cache, "e", waiting=True)
    assert cache.present() == {"a", "d", "e"}
    # Everything is in use: a reader that waits goes over its budget rather than to take it away.
    cache.claim(["d", "e"])
    assert put(cache, "f", waiting=True)
    assert cache.present() == {"a", "d", "e", "f"}
    other.close()
    cache.claim(["f"])
    assert put(cache, "g", 150, waiting=False)
    assert cache.present() == {"f", "g"}
    cache.close()


def test_claims_and_parts_of_the_dead_do_not_count(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\n"
        "from data_shards.storage.node_cache import NodeCache\n"
        "cache = NodeCache(sys.argv[1])\n"
        "cache.obtain(cache.shard_path('a'), 100, lambda _: None)\n"
        "cache.claim(['a'])\n"
        "cache.obtain(cache.shard_path('b'), 100, lambda _: (print('there', flush=True), time.sleep(60)))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.readline()
    cache = NodeCache(tmp_path, 300)
    assert not put(cache, "b", waiting=False)
    assert put(cache, "c", waiting=False)
    cache.claim(["c"])
    assert not put(cache, "d", waiting=False)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert names(tmp_path / "shards") == ["a.tar", "b.tar.part", "c.tar"]
    assert put(cache, "d", 200, waiting=False)
    assert names(tmp_path / "shards") == ["c.tar", "d.tar"]
    assert len(names(tmp_path / "readers")) == 1
    cache.close()


def test_a_fetch_that_fails_leaves_nothing_and_the_next_one_tries_again(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path)

    def fail(_: int) -> None:
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        cache.obtain(cache.shard_path("a"), 100, fail)
    assert names(tmp_path / "shards") == []
    assert put(cache, "a")


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        with pytest.raises(
            DataError,
            match=r"^cannot keep shards in .*/disk/shards: No space left on device\. Free some space there, set ",
        ) as raised:
            put(NodeCache(disk), "a", 1_000_000)
        assert "\n" not in str(raised.value)
        assert names(disk / "shards") == []
    finally:
        subprocess.run(["umount", disk], check=True)


# ---- with a server

READ_ALL = """
import sys
from data_shards.reading.split import open_split
shards = open_split(sys.argv[1], cache_folder=sys.argv[2]).shards()
print("ready", flush=True)
sys.stdin.readline()
for number, shard in enumerate(shards.manifest.shards):
    for row in range(shard.samples):
        shards.read_image(number, row)
print("done", flush=True)
"""


def start_reader(location: str, cache: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", READ_ALL, location, str(cache)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_of_a_node_fetch_each_file_once(
    built: BuildReport, served: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    object_server.latency = 0.05
    readers = [start_reader(served, tmp_path) for _ in range(2)]
    for reader in readers:
        assert reader.stdin is not None
        reader.stdin.write("go\n")
        reader.stdin.flush()
    for reader in readers:
        assert reader.communicate(timeout=120)[0] == "done\n"
    fetched = Counter(request.key.rpartition("/")[2] for request in object_server.gets())
    for shard in built.manifest.shards:
        # A first shard travels in ranges, but these are smaller than one.
        assert (fetched[shard.name], fetched[shard.index]) == (1, 1)
    assert names(tmp_path / "shards") == sorted(f"{shard.sha256}.tar" for shard in built.manifest.shards)


def test_a_kill_in_the_middle_of_a_fetch_leaves_what_the_next_reader_uses(
    built: BuildReport, served: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    last = built.manifest.shards[-1]
    # The last shard stays in the air for as long as the reader lives.
    object_server.order(f"bucket/train/{last.name}", Fault("silence", 1_000))
    reader = start_reader(served, tmp_path)
    assert reader.stdin is not None
    reader.stdin.write("go\n")
    reader.stdin.flush()
    while not object_server.gets(last.name):
        assert reader.poll() is None
        time.sleep(0.02)
    os.kill(reader.pid, signal.SIGKILL)
    reader.communicate()
    assert f"{last.sha256}.tar.part" in names(tmp_path / "shards")
    before = len(object_server.gets())
    shards = Shards(open_store(served), built.manifest, tmp_path)
    for number, shard in enumerate(built.manifest.shards):
        shards.read_image(number, shard.samples - 1)
    shards.close()
    assert [request.key for request in object_server.gets()[before:]] == [f"bucket/train/{last.name}"]
    assert names(tmp_path / "shards") == sorted(f"{shard.sha256}.tar" for shard in built.manifest.shards)


def test_a_file_that_arrives_just_before_its_part_is_opened_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = NodeCache(tmp_path)
    path = cache.shard_path("a")
    open_file = os.open

    def open_late(name: Path, flags: int, mode: int = 0o777) -> int:
        if str(name).endswith(".part"):
            path.write_bytes(b"another process has fetched it")
        return open_file(name, flags, mode)

    monkeypatch.setattr(os, "open", open_late)
    assert cache.obtain(path, 0, lambda _: pytest.fail("it is there already"))
    assert names(tmp_path / "shards") == ["a.tar"]


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    """Some 160 images in many small shards."""
    folder = tmp_path_factory.mktemp("many")
    annotations, images = write_coco(folder, document(160))
    report = build_shards(annotations, images, str(folder / "shards"), split="train", shard_bytes=20_000)
    assert len(report.manifest.shards) > 30
    return report


@pytest.fixture
def many_served(many: BuildReport, object_server: ObjectServer) -> str:
    for path in Path(many.location).iterdir():
        object_server.objects[f"bucket/many/{path.name}"] = path.read_bytes()
    return "s3://bucket/many"


@pytest.fixture
def plan(many: BuildReport) -> Plan:
    return make_plan(many.manifest, seed=3, global_batch_size=4, streams=2, window_shards=4)


def least_bytes(many: BuildReport, plan: Plan) -> int:
    sizes = np.array([shard.bytes for shard in many.manifest.shards])
    return NodeSchedule(plan, sizes, World(1, 0)).least_bytes


RANK = """
import hashlib, os, sys
from data_shards.loading.training_loader import TrainingLoader
from data_shards.order.plan import World, make_plan
from data_shards.reading.reading import Reading
from data_shards.reading.split import open_split
location, cache, budget, rank, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
split = open_split(location, cache_folder=cache, cache_bytes=budget)
plan = make_plan(split.manifest, seed=3, global_batch_size=4, streams=2, window_shards=4)
reading = Reading(split=split, threads=1)
with TrainingLoader(reading, plan, World(2, rank), input_size=(32, 32), stop_step=steps) as loader:
    # The ranks of a run go step by step together.
    for batch in loader:
        print(*batch.sample_ids.tolist(), hashlib.sha256(batch.images.numpy().tobytes()).hexdigest(), flush=True)
        sys.stdin.readline()
"""


def kept_bytes(folder: Path) -> int:
    """Bytes of the shards in a cache, read while others change it: at least what was there at one moment."""
    total = 0
    for entry in os.scandir(folder / "shards"):
        with contextlib.suppress(FileNotFoundError):
            total += entry.stat().st_size
    return total


def test_two_ranks_read_through_a_small_cache_what_they_read_from_a_folder(
    many: BuildReport, many_served: str, object_server: ObjectServer, plan: Plan, tmp_path: Path
) -> None:
    budget, steps = least_bytes(many, plan), 2 * plan.steps_per_epoch
    assert budget < 0.6 * many.manifest.num_bytes
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, many_served, str(tmp_path), str(budget), str(rank), str(steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    expected = [
        training_loader(many.location, plan, World(2, rank), input_size=(32, 32), stop_step=steps) for rank in range(2)
    ]
    smallest = min(shard.bytes for shard in many.manifest.shards)
    for _ in range(steps):
        for rank, process in enumerate(ranks):
            assert process.stdout is not None
            batch = next(expected[rank])
            digest = hashlib.sha256(batch.images.numpy().tobytes()).hexdigest()
            assert process.stdout.readline().split() == [*map(str, batch.sample_ids.tolist()), digest]
        # One that came or went while we looked may be counted beside the one whose place it took.
        assert kept_bytes(tmp_path) < budget + 2 * smallest
        for process in ranks:
            assert process.stdin is not None
            process.stdin.write("next\n")
            process.stdin.flush()
    for process in ranks:
        process.communicate(timeout=60)
        assert process.returncode == 0
    fetched = Counter(request.key for request in object_server.gets(".tar"))
    assert len(fetched) == len(many.manifest.shards)
    assert max(fetched.values()) <= 2
    assert kept_bytes(tmp_path) <= budget
    assert names(tmp_path / "readers") == []


def test_what_comes_next_is_fetched_before_it_is_asked_for(
    many: BuildReport, many_served: str, object_server: ObjectServer, plan: Plan, tmp_path: Path
) -> None:
    object_server.latency = 0.02
    with training_loader(many_served, plan, World(1, 0), input_size=(32, 32), cache_folder=tmp_path) as loader:
        images = [next(loader).images]
        sizes = np.array([shard.bytes for shard in many.manifest.shards])
        schedule = NodeSchedule(plan, sizes, World(1, 0))
        needs = schedule.needs(0)
        wanted = {many.manifest.shards[shard].sha256 for shard in needs.shards[: schedule.wanted(needs, 0)]}
        deadline = time.monotonic() + 60
        cache = NodeCache(tmp_path)
        while not wanted <= cache.present() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert wanted <= cache.present()
        assert len(wanted) > needs.in_use
        images += [next(loader).images for _ in range(plan.steps_per_epoch - 1)]
    assert 2 <= object_server.most_busy <= 12
    asked = [request.key for request in object_server.gets()]
    assert set(Counter(asked).values()) == {1}
    # What is ahead has its index before its shard: a batch that begins with it would wait for the index otherwise.
    ahead = [many.manifest.shards[shard] for shard in needs.shards[needs.in_use : schedule.wanted(needs, 0)]]
    places = [(asked.index(f"bucket/many/{one.index}"), asked.index(f"bucket/many/{one.name}")) for one in ahead]
    assert all(index < shard for index, shard in places)
    with training_loader(many.location, plan, World(1, 0), input_size=(32, 32)) as loader:
        for image in images:
            assert (next(loader).images == image).all()


@given(
    shared=st.floats(1e6, 1e10),
    each=st.floats(1e6, 1e9),
    all_seconds=st.lists(st.floats(0.02, 60), min_size=30, max_size=60),
)
def test_more_shards_travel_only_where_that_brings_more_bytes(
    shared: float, each: float, all_seconds: list[float]
) -> None:
    """A link that gives one connection at most `each` bytes a second, and all of them `shared`."""
    travelling = TransferLimit()
    for seconds in all_seconds:
        rate = min(each, shared / travelling.limit)
        travelling.arrived(round(rate * seconds), seconds, travelling.limit - 1)
        # One beyond what fills the link shows that there is no more to be had.
        assert travelling.limit <= max(2, math.ceil(shared / each)) + 1
    if shared >= 20 * each:
        assert travelling.limit >= 20


def test_a_loader_that_is_closed_early_leaves_no_part(
    many: BuildReport, many_served: str, object_server: ObjectServer, plan: Plan, tmp_path: Path
) -> None:
    loader = training_loader(many_served, plan, World(1, 0), input_size=(32, 32), cache_folder=tmp_path)
    next(loader)
    loader.close()
    loader.close()
    assert not [name for name in names(tmp_path / "shards") if name.endswith(".part")]
    assert names(tmp_path / "readers") == []
    assert not [thread for thread in threading.enumerate() if thread.name == "aweigh-fetch"]


def test_an_error_ahead_is_said_by_the_batch_that_needs_it(
    many: BuildReport, many_served: str, object_server: ObjectServer, plan: Plan, tmp_path: Path
) -> None:
    sizes = np.array([shard.bytes for shard in many.manifest.shards])
    needs = NodeSchedule(plan, sizes, World(1, 0)).needs(0)
    name = many.manifest.shards[needs.shards[needs.in_use]].name
    object_server.order(f"bucket/many/{name}", Fault("forbidden"), always=True)
    with training_loader(many_served, plan, World(1, 0), input_size=(32, 32), cache_folder=tmp_path) as loader:
        first_use = int(needs.next_steps[needs.in_use])
        for _ in range(first_use - 3):
            next(loader)
        with pytest.raises(DataError, match=rf"cannot read s3://bucket/many/{name} \(1 attempt\): .*AccessDenied"):
            list(loader)


def test_a_cache_that_is_too_small_is_refused(many: BuildReport, many_served: str, plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^a cache of 1e-05 GB is too small for s3://bucket/many: this node needs up to 0\.\d+ GB"
    ):
        training_loader(many_served, plan, World(1, 0), input_size=(32, 32), cache_folder=tmp_path, cache_bytes=10_000)
    # In a folder nothing is cached.
    training_loader(many.location, plan, World(1, 0), input_size=(32, 32), cache_bytes=10_000).close()
