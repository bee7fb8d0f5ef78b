"""Shape checks for every test, and S3 servers: moto for tests that use a bucket, Ceph's radosgw for whole runs."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from tests import ceph, shape_checks

# Before any module of these packages is imported; the processes that tests start run without checks, as users do.
install_import_hook(["detectors", "data_shards"], f"{shape_checks.__name__}.{shape_checks.check_shapes.__name__}")

# A script's background jobs ignore Ctrl-C, and what nohup starts ignores SIGHUP; every process that the tests start
# would do so too. This holds for pytest-xdist's workers as well, which import this file.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# Tests share the cores, so that how long one example takes says nothing about it.
settings.register_profile("shared cores", settings.default, deadline=None)
settings.load_profile("shared cores")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of a moto server, one for each worker of pytest-xdist: tests empty it and make it check credentials."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    try:
        # moto logs its address once it listens. Its log is read to the end, or a full pipe would block it.
        assert any("Running on" in line for line in server.stderr), "moto server ended"
        reader = threading.Thread(target=server.stderr.read)
        reader.start()
        yield f"http://127.0.0.1:{port}"
    finally:
        os.kill(server.pid, signal.SIGTERM)
        server.wait(timeout=20)
    reader.join()
    server.stderr.close()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Location of an empty bucket on the moto server, `s3://bucket`, with the environment set to reach it."""
    import boto3

    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    urllib.request.urlopen(urllib.request.Request(f"{s3_endpoint}/moto-api/reset", method="POST")).close()
    boto3.session.Session().client("s3").create_bucket(Bucket="shards-test")
    yield "s3://shards-test"
    reset_auth(s3_endpoint, "inf")


@pytest.fixture(scope="session")
def radosgw_endpoint() -> Iterator[str]:
    """Address of a radosgw that runs for this session; tests are skipped where Ceph is not installed."""
    if reason := ceph.why_not():
        pytest.skip(reason)
    # It holds Unix sockets, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="rgw-") as folder:
        server = ceph.RadosGateway(Path(folder))
        try:
            yield server.endpoint
        finally:
            server.stop()


@pytest.fixture
def radosgw(radosgw_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Location of a new bucket on radosgw, `s3://bucket`, with the environment set to reach it."""
    import boto3

    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", radosgw_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ceph.ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ceph.SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    boto3.session.Session().client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


def reset_auth(endpoint: str, free_actions: str) -> None:
    """Make the moto server check credentials after this many requests."""
    request = urllib.request.Request(
        f"{endpoint}/moto-api/reset-auth",
        data=free_actions.encode(),
        headers={"Content-Type": "text/plain"},
        method="POST",
    )
    urllib.request.urlopen(request).close()
