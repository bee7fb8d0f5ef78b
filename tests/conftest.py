"""S3 servers: moto over HTTP for every test that reads or writes a bucket, and Ceph's radosgw for the whole story."""

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
from jaxtyping import install_import_hook

from tests import ceph, shape_checks

# Before any module of these packages is imported; the processes that tests start run without checks, as users do.
install_import_hook(["detectors", "data_shards"], f"{shape_checks.__name__}.{shape_checks.check_shapes.__name__}")

# What a script starts in the background begins with Ctrl-C ignored, and so would every process that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of a moto server of our own; it enforces credentials only where a test asks for it."""
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
        # It says where it runs when it listens; what it says later is read so that it never has to wait.
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
    """An empty bucket on the server, with the environment set to reach it; gives `s3://bucket`."""
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
    """The address of a radosgw of our own; skips where Ceph is not installed."""
    if reason := ceph.why_not():
        pytest.skip(reason)
    # Unix sockets lie in it, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="rgw-") as folder:
        server = ceph.RadosGateway(Path(folder))
        try:
            yield server.endpoint
        finally:
            server.stop()


@pytest.fixture
def radosgw(radosgw_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket on radosgw, with the environment set to reach it; gives `s3://bucket`."""
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
    """From so many requests on, the server checks credentials."""
    request = urllib.request.Request(
        f"{endpoint}/moto-api/reset-auth",
        data=free_actions.encode(),
        headers={"Content-Type": "text/plain"},
        method="POST",
    )
    urllib.request.urlopen(request).close()
