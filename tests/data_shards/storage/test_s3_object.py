"""What the network does to a read, done by a real server: it ends with the right bytes, or with one line."""

import os
import threading
from pathlib import Path

import pytest

from data_shards.building.build import BuildReport
from data_shards.errors import DataError, UnavailableError
from data_shards.reading.shards import Shards
from data_shards.settings import ReadSettings
from data_shards.storage.open import open_store
from data_shards.storage.store import Stopped, Store
from pipelines.stand_ins.object_server import Fault, ObjectServer

KEY = "bucket/set/object.bin"
OLD, NEW = os.urandom(1_000_000), os.urandom(900_001)
RANGE_BYTES = 100_000


@pytest.fixture(params=["read_bytes", "fetch", "ranges"])
def way(request: pytest.FixtureRequest, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ways to read an object: into memory, into a file, and in parts at the same time."""
    monkeypatch.setattr("data_shards.storage.s3_object.LEAST_RANGE_BYTES", RANGE_BYTES)
    object_server.objects[KEY] = OLD
    return str(request.param)


def store(**reading: float) -> Store:
    return open_store("s3://bucket/set", ReadSettings(**{"timeout_seconds": 20, "deadline_seconds": 120} | reading))


def read(way: str, path: Path, **reading: float) -> bytes:
    if way == "read_bytes":
        return store(**reading).read_bytes("object.bin")
    with open(path / "file", "w+b") as file:
        size = store(**reading).fetch("object.bin", file.fileno(), ranges=4 if way == "ranges" else 1)
        return file.read()[:size]


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([Fault("slow_down")] * 4, id="503 four times"),
        pytest.param([Fault("reset", 70_000)], id="reset mid-body"),
        pytest.param([Fault("reset", 0), Fault("reset", 1), Fault("reset", 80_000)], id="three resets"),
        pytest.param([Fault("short", 60_000), Fault("short", 0)], id="body shorter than promised"),
        pytest.param([Fault("silence", 50_000)], id="silence"),
        pytest.param([Fault("slow_down"), Fault("short", 5), Fault("silence", 3), Fault("reset", 9)], id="all"),
    ],
)
def test_a_fault_that_passes_is_not_noticed(
    way: str, object_server: ObjectServer, tmp_path: Path, faults: list[Fault]
) -> None:
    object_server.order(KEY, *faults)
    silent = any(fault.kind == "silence" for fault in faults)
    assert read(way, tmp_path, timeout_seconds=0.5 if silent else 20) == OLD
    assert len(object_server.gets()) >= len(faults) + 1


def test_a_broken_body_goes_on_where_it_broke(object_server: ObjectServer, tmp_path: Path) -> None:
    object_server.objects[KEY] = OLD
    object_server.order(KEY, Fault("short", 70_000))
    assert read("fetch", tmp_path) == OLD
    # And asks for the version that it began with.
    found = object_server.find(KEY)
    assert found is not None
    assert [(request.range, request.if_match) for request in object_server.gets()] == [
        ("", ""),
        ("bytes=70000-", found[2]),
    ]


def test_parts_travel_at_the_same_time_and_are_of_some_size(object_server: ObjectServer, tmp_path: Path) -> None:
    object_server.objects[KEY] = content = os.urandom(40_000_000)
    object_server.latency = 0.1
    assert read("ranges", tmp_path) == content
    ranges = sorted(tuple(map(int, request.range[6:].split("-"))) for request in object_server.gets())
    assert [first for first, _ in ranges] == [0, *(last + 1 for _, last in ranges[:-1])]
    # Four of 10 MB, the first of which is asked for twice: it tells the size.
    assert len(ranges) == 5
    assert object_server.most_busy >= 3


def test_an_object_replaced_mid_read_is_read_anew(way: str, object_server: ObjectServer, tmp_path: Path) -> None:
    object_server.order(KEY, Fault("replace", 70_000, NEW))
    assert read(way, tmp_path) == NEW
    assert 412 in {request.status for request in object_server.gets()}


def test_a_stream_that_cannot_begin_anew_refuses_a_replaced_object(object_server: ObjectServer) -> None:
    object_server.objects[KEY] = OLD
    object_server.order(KEY, Fault("replace", 70_000, NEW))
    seen = bytearray()

    class Sink:
        def write(self, data: bytes, /) -> None:
            seen.extend(data)

    with pytest.raises(DataError, match=r"cannot read s3://bucket/set/object\.bin \(2 attempts in \d+ s\): the object"):
        store().stream("object.bin", Sink())
    assert bytes(seen) == OLD[: len(seen)]


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Fault("slow_down"), r"SlowDown, Please reduce your request rate\.$"),
        (Fault("reset", 1), r"the connection broke before the end\. Check the network\."),
        (Fault("reset", 0), r"(the connection broke|http://127\.0\.0\.1:\d+ does not answer \(ConnectionClosed)"),
        (Fault("short", 0), r"the connection broke before the end\. Check the network\."),
        (Fault("silence", 0), r"http://127\.0\.0\.1:\d+ does not answer \(ReadTimeoutError\)\. Check AWS_ENDPOINT_URL"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_a_fault_that_stays_ends_in_one_line_at_the_deadline(
    way: str, object_server: ObjectServer, tmp_path: Path, fault: Fault, cause: str
) -> None:
    object_server.order(KEY, fault, always=True)
    with pytest.raises(
        UnavailableError, match=rf"^cannot read s3://bucket/set/object\.bin \(\d+ attempts in \d+ s\): {cause}"
    ) as raised:
        read(way, tmp_path, timeout_seconds=0.2 if fault.kind == "silence" else 20, deadline_seconds=1.0)
    assert "\n" not in str(raised.value)
    assert len(object_server.gets()) > 1


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Fault("forbidden"), r"bucket 'bucket' refuses these credentials \(AccessDenied\)\. Check the access key"),
        (Fault("missing"), r"bucket 'bucket' has no object 'set/object\.bin'\. Check the location\."),
    ],
    ids=["403", "404"],
)
def test_what_no_retry_mends_is_said_at_once(
    way: str, object_server: ObjectServer, tmp_path: Path, fault: Fault, cause: str
) -> None:
    object_server.order(KEY, fault, always=True)
    with pytest.raises(DataError, match=rf"^cannot read s3://bucket/set/object\.bin \(1 attempt\): {cause}"):
        read(way, tmp_path)
    assert len(object_server.gets()) == 1


def test_a_fetch_stops_when_it_is_told_to(object_server: ObjectServer, tmp_path: Path) -> None:
    object_server.objects[KEY] = OLD
    object_server.order(KEY, Fault("slow_down"), always=True)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with open(tmp_path / "file", "w+b") as file, pytest.raises(Stopped):
        store(deadline_seconds=60).fetch("object.bin", file.fileno(), stop=stop)


def test_a_full_disk_is_not_taken_for_a_fault_of_the_network(object_server: ObjectServer) -> None:
    object_server.objects[KEY] = OLD
    with open("/dev/full", "r+b", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        store().fetch("object.bin", full.fileno())
    assert len(object_server.gets()) == 1


@pytest.mark.parametrize("place", [0, 9_000])
def test_flipped_bytes_are_fetched_again(
    built: BuildReport, served: str, object_server: ObjectServer, tmp_path: Path, place: int
) -> None:
    shard = built.manifest.shards[0]
    object_server.order(f"bucket/train/{shard.name}", Fault("flip", place))
    object_server.order(f"bucket/train/{shard.index}", Fault("flip", 100))
    shards = Shards(open_store(served), built.manifest, tmp_path / "cache")
    assert shards.read_image(0, 0) == Shards(open_store(built.location), built.manifest).read_image(0, 0)
    assert len(object_server.gets(shard.name)) == len(object_server.gets(shard.index)) == 2
    shards.close()


@pytest.mark.parametrize("file", ["name", "index"])
def test_bytes_that_stay_flipped_end_in_one_line(
    built: BuildReport, served: str, object_server: ObjectServer, tmp_path: Path, file: str
) -> None:
    name = getattr(built.manifest.shards[0], file)
    object_server.order(f"bucket/train/{name}", Fault("flip", 200), always=True)
    shards = Shards(open_store(served), built.manifest, tmp_path / "cache")
    with pytest.raises(
        DataError, match=rf"s3://bucket/train/{name} does not match the manifest: sha256 .* fetched 3 times\.$"
    ):
        shards.read_image(0, 0)
    shards.close()
    kept = [path.suffix for path in (tmp_path / "cache").rglob("*")]
    assert ".tar" not in kept
    assert ".part" not in kept


def test_a_shard_replaced_by_another_is_refused(
    built: BuildReport, served: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    first, _, second = built.manifest.shards
    assert first.bytes != second.bytes
    other = object_server.objects[f"bucket/train/{second.name}"]
    object_server.order(f"bucket/train/{first.name}", Fault("replace", 3_000, other))
    shards = Shards(open_store(served), built.manifest, tmp_path / "cache")
    with pytest.raises(
        DataError,
        match=rf"shard s3://bucket/train/{first.name} has {second.bytes:,} bytes, "
        rf"but the manifest says {first.bytes:,}\.",
    ):
        shards.read_image(0, 0)
    # Another object of the same length is told by its sha256.
    object_server.objects[f"bucket/train/{first.name}"] = os.urandom(first.bytes)
    with pytest.raises(DataError, match=rf"s3://bucket/train/{first.name} does not match the manifest: sha256"):
        shards.read_image(0, 0)
    shards.close()
