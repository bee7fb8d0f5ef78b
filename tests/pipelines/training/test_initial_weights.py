"""Weights from a file, the web and S3: fetched once, checked by sha256, and one line where that fails."""

import base64
import hashlib
import os
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import detectors
from data_shards.storage.open import open_store
from data_shards.storage.store import FileVersion, Store
from detectors import Detector
from pipelines.errors import ConfigError
from pipelines.recipes.settings import DetectorSettings
from pipelines.training import initial_weights as fetching
from pipelines.training.initial_weights import fetch_weights

CONTENT = bytes(range(256)) * 9000  # 2.2 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `CONTENT`, badly at first where it is told to, and counts what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.authorized: list[str] = []
        self.short_answers = 0
        self.failures = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if "Authorization" in self.headers and "missing" not in self.path:
            self.server.authorized.append(self.headers["Authorization"])
        if "missing" in self.path:
            self.send_error(404)
        elif self.server.failures > 0:
            self.server.failures -= 1
            self.send_error(503)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            short = self.server.short_answers > 0
            self.server.short_answers -= 1
            self.wfile.write(CONTENT[: len(CONTENT) // 2] if short else CONTENT)

    def log_message(self, *_: object) -> None:
        """Nothing to stderr."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetching.time, "sleep", lambda seconds: None)
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield serving
        finally:
            serving.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def detector() -> Detector:
    with torch.device("meta"):
        return detectors.build("centernet_resnet18")


def settings(weights: str, sha256: str = "") -> DetectorSettings:
    return DetectorSettings(name="centernet_resnet18", weights=weights, weights_sha256=sha256)


def test_a_file_is_taken_where_it_lies_and_checked_by_its_name(detector: Detector, tmp_path: Path) -> None:
    plain, right, wrong = (
        tmp_path / name for name in ("own.pth", f"resnet18-{SHA256[:8]}.pth", "resnet18-5c106cde.pth")
    )
    for path in (plain, right, wrong):
        path.write_bytes(CONTENT)
    assert fetch_weights(settings(str(plain)), detector) == plain
    assert fetch_weights(settings(str(plain), SHA256), detector) == plain
    assert fetch_weights(settings(str(right)), detector) == right
    with pytest.raises(ConfigError, match=rf"{wrong} has sha256 {SHA256[:12]}…, not 5c106cde"):
        fetch_weights(settings(str(wrong)), detector)
    # What is said explicitly stands above the name.
    assert fetch_weights(settings(str(wrong), SHA256[:10]), detector) == wrong


@pytest.mark.parametrize("name", ["run-20261125.pth", "model-12.pth", "weights.pth", "last-deadbee.pth"])
def test_a_day_or_a_number_in_a_name_is_no_hash(name: str, detector: Detector, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(CONTENT)
    assert fetch_weights(settings(str(tmp_path / name)), detector) == tmp_path / name


def test_the_web_is_asked_once_by_all_processes_of_a_node(
    server: Server, detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = f"{server.address}/models/resnet18-{SHA256[:8]}.pth"
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: fetch_weights(settings(location), detector, str(tmp_path)), range(4)))
    assert len(paths) == 1
    path = paths.pop()
    assert path.read_bytes() == CONTENT
    assert path.name == f"resnet18-{SHA256[:8]}.pth"
    assert server.asked == [f"/models/resnet18-{SHA256[:8]}.pth"]
    assert f"weights   fetching {location}" in capsys.readouterr().err


def test_a_file_of_the_same_name_from_elsewhere_is_another_file(
    server: Server, detector: Detector, tmp_path: Path
) -> None:
    first, second = (
        fetch_weights(settings(f"{server.address}/{folder}/last.pth"), detector, str(tmp_path)) for folder in "ab"
    )
    assert first != second
    assert server.asked == ["/a/last.pth", "/b/last.pth"]


def test_a_harmed_copy_in_the_cache_is_fetched_again(server: Server, detector: Detector, tmp_path: Path) -> None:
    wanted = settings(f"{server.address}/w.pth", SHA256)
    path = fetch_weights(wanted, detector, str(tmp_path))
    path.write_bytes(CONTENT[:-1] + b"x")
    assert fetch_weights(wanted, detector, str(tmp_path)).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_short_and_failed_answers_are_asked_for_again(server: Server, detector: Detector, tmp_path: Path) -> None:
    server.failures, server.short_answers = 1, 1
    path = fetch_weights(settings(f"{server.address}/w.pth", SHA256), detector, str(tmp_path))
    assert path.read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_what_cannot_be_fetched_is_one_line_and_leaves_nothing(
    server: Server, detector: Detector, tmp_path: Path
) -> None:
    server.failures = 0
    for location, sha256, message in (
        (f"{server.address}/missing.pth", "", "missing.pth cannot be fetched: HTTP 404 Not Found"),
        (f"{server.address}/x-0123456789ab.pth", "", rf"has sha256 {SHA256[:12]}…, not 0123456789ab"),
        ("s3://bucket", "", "s3://bucket names no file; give s3://BUCKET/KEY"),
        ("s3://bucket/weights/", "", "s3://bucket/weights/ names no file; give s3://BUCKET/KEY"),
        ("ftp://somewhere/w.pth", "", r"weights cannot be fetched from ftp://somewhere/w.pth: give a file"),
    ):
        with pytest.raises(ConfigError, match=message) as refusal:
            fetch_weights(settings(location, sha256), detector, str(tmp_path))
        assert "\n" not in str(refusal.value)
    server.failures = 99
    with pytest.raises(ConfigError, match="cannot be fetched after 4 attempts: HTTP 503"):
        fetch_weights(settings(f"{server.address}/w.pth"), detector, str(tmp_path))
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert left == []


def test_imagenet_is_the_publications_file(
    server: Server, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWEIGH_WEIGHTS_URL", f"{server.address}/copies/")
    # The served bytes are others than ImageNet's, and the name says so.
    with pytest.raises(ConfigError) as refusal:
        fetch_weights(settings("imagenet"), detector, str(tmp_path))
    assert server.asked == ["/copies/resnet18-5c106cde.pth"]
    assert "not 5c106cde" in str(refusal.value)
    assert "Give a copy as --detector.weights FILE, or train from random weights with --detector.weights none." in str(
        refusal.value
    )
    found = fetch_weights(settings("imagenet", SHA256[:8]), detector, str(tmp_path))
    assert found.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "variant", "address"),
    [
        ("centernet_resdcn18", {}, "https://download.pytorch.org/models/resnet18-5c106cde.pth"),
        ("centernet_resdcn101", {}, "https://download.pytorch.org/models/resnet101-5d3b4d8f.pth"),
        ("centernet_dla34_3d", {}, "http://dl.yf.io/dla/models/imagenet/dla34-ba72cf86.pth"),
        ("fcos_resnet50", {}, "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-50.pkl"),
        ("fcos_resnet101", {"variant": "torchvision"}, "https://download.pytorch.org/models/resnet101-63fe2227.pth"),
        ("foveabox_resnet101", {}, "https://download.pytorch.org/models/resnet101-5d3b4d8f.pth"),
    ],
)
def test_every_network_names_the_imagenet_file_it_started_from(
    name: str, variant: dict[str, str], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWEIGH_WEIGHTS_URL", raising=False)
    with torch.device("meta"):
        assert fetching.imagenet_location(detectors.build(name, **variant)) == address


def test_the_hourglass_has_no_imagenet_weights() -> None:
    with torch.device("meta"):
        hourglass = detectors.build("centernet_hourglass104", width=8)
    with pytest.raises(ConfigError, match="there are no published ImageNet weights for centernet_hourglass104"):
        fetch_weights(replace(settings("imagenet"), name="centernet_hourglass104"), hourglass)


def test_weights_lie_in_s3(s3: str, detector: Detector, tmp_path: Path) -> None:
    open_store(f"{s3}/models").write_bytes("w.pth", CONTENT)
    path = fetch_weights(settings(f"{s3}/models/w.pth", SHA256), detector, str(tmp_path))
    assert path.read_bytes() == CONTENT
    with pytest.raises(ConfigError, match=r"bucket 'shards-test' has no object 'models/other.pth'"):
        fetch_weights(settings(f"{s3}/models/other.pth"), detector, str(tmp_path))


@pytest.fixture
def in_bucket(s3: str) -> tuple[str, Store]:
    store = open_store(f"{s3}/cached")
    store.write_bytes("w.pth", CONTENT)
    return f"{s3}/cached/w.pth", store


def test_a_damaged_copy_of_an_object_is_fetched_again(
    in_bucket: tuple[str, Store], detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location, _ = in_bucket
    path = fetch_weights(settings(location), detector, str(tmp_path))
    path.write_bytes(CONTENT[:-1] + b"x")
    assert fetch_weights(settings(location), detector, str(tmp_path)).read_bytes() == CONTENT
    assert f"{path} is damaged and is fetched again" in capsys.readouterr().err


def test_an_object_that_was_replaced_is_fetched_again(
    in_bucket: tuple[str, Store], detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location, store = in_bucket
    fetch_weights(settings(location), detector, str(tmp_path))
    fetch_weights(settings(location), detector, str(tmp_path))
    assert capsys.readouterr().err.count("fetching") == 1
    store.write_bytes("w.pth", CONTENT[::-1])
    assert fetch_weights(settings(location), detector, str(tmp_path)).read_bytes() == CONTENT[::-1]
    assert f"{location} was replaced since it was fetched" in capsys.readouterr().err


def test_without_the_bucket_the_copy_is_used_with_a_notice(
    in_bucket: tuple[str, Store], detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location, store = in_bucket
    path = fetch_weights(settings(location), detector, str(tmp_path))
    store.delete("w.pth")
    assert fetch_weights(settings(location), detector, str(tmp_path)) == path
    assert "using the copy in" in capsys.readouterr().err
    # A damaged copy is not used.
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ConfigError, match="has no object"):
        fetch_weights(settings(location), detector, str(tmp_path))


def test_a_copy_of_the_previous_version_of_the_program_is_compared_with_the_object(
    in_bucket: tuple[str, Store], detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location, _ = in_bucket
    path = fetch_weights(settings(location), detector, str(tmp_path))
    for content, fetched in ((CONTENT, 0), (CONTENT[:-1] + b"x", 1)):
        path.with_name("w.pth.json").unlink()
        path.write_bytes(content)
        capsys.readouterr()
        assert fetch_weights(settings(location), detector, str(tmp_path)).read_bytes() == CONTENT
        assert capsys.readouterr().err.count("fetching") == fetched


@pytest.mark.parametrize("times", [1, 99])
def test_an_object_that_arrives_damaged_is_fetched_again_and_never_used(
    times: int, in_bucket: tuple[str, Store], detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, store = in_bucket
    fetch, damaged = type(store).fetch, []

    def damaging(self: Store, name: str, file: int, **options: Any) -> int:
        size = fetch(self, name, file, **options)
        if len(damaged) < times:
            damaged.append(os.pwrite(file, b"?", 1000))
        return size

    monkeypatch.setattr(type(store), "fetch", damaging)
    if times == 1:
        assert fetch_weights(settings(location), detector, str(tmp_path)).read_bytes() == CONTENT
        return
    with pytest.raises(ConfigError, match=r"w.pth arrived damaged in 3 downloads: its md5 is \w{12}…, the store's"):
        fetch_weights(settings(location), detector, str(tmp_path))
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize(
    ("checksums", "message"),
    [
        ({"sha256": SHA256}, ""),
        ({"sha1": hashlib.sha1(CONTENT).hexdigest(), "md5": hashlib.md5(CONTENT).hexdigest()}, ""),
        ({"crc32": f"{zlib.crc32(CONTENT):08x}"}, ""),
        ({}, ""),
        ({"sha256": "0" * 64}, "its sha256 is"),
        ({"crc32": "00000000"}, "its crc32 is"),
    ],
)
def test_every_checksum_of_a_store_is_compared(checksums: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(CONTENT)
    assert fetching._mismatch(tmp_path / "w", FileVersion(len(CONTENT), "", checksums)).startswith(message)
    assert "bytes instead of" in fetching._mismatch(tmp_path / "w", FileVersion(len(CONTENT) + 1, "", checksums))


def test_the_sha256_of_what_is_used_is_logged(
    server: Server, detector: Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "own.pth").write_bytes(CONTENT)
    with caplog.at_level("INFO", logger="aweigh"):
        fetch_weights(settings(str(tmp_path / "own.pth")), detector)
        fetch_weights(settings(f"{server.address}/w.pth?X-Amz-Signature=abc"), detector, str(tmp_path))
    assert caplog.messages == [
        f"initial weights: {tmp_path}/own.pth, sha256 {SHA256}",
        f"initial weights: {server.address}/w.pth, sha256 {SHA256}",
    ]


def test_user_and_password_are_used_and_not_shown(
    server: Server, detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = server.address.replace("://", "://me:p%40ss@")
    fetch_weights(settings(f"{address}/w.pth?token=xyz"), detector, str(tmp_path))
    assert server.authorized == ["Basic " + base64.b64encode(b"me:p@ss").decode()]
    assert f"fetching {server.address}/w.pth\n" in capsys.readouterr().err
    with pytest.raises(ConfigError) as refusal:
        fetch_weights(settings(f"{address}/missing.pth?token=xyz"), detector, str(tmp_path))
    assert str(refusal.value).startswith(f"{server.address}/missing.pth cannot be fetched: HTTP 404")
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*.json"))
    assert not any(secret in written for secret in (b"p%40ss", b"p@ss", b"xyz"))


@pytest.mark.parametrize("digits", ["5c106cd", "5C106CDE", "sha256:0", "0" * 65])
def test_what_is_no_sha256_is_refused(digits: str) -> None:
    with pytest.raises(ConfigError, match="give the first 8 to 64 of the digits"):
        settings("w.pth", digits)


def test_none_is_a_word_for_random_weights() -> None:
    assert settings("none").weights is None
    assert settings("").weights is None
