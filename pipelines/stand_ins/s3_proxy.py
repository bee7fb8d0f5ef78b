"""An S3 server (moto) behind a proxy that answers 503, drops connections, holds requests, or answers wrongly."""

import http.client
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Literal

from cluster.fake_cluster import free_port
from pipelines.stand_ins.object_server import QuietServer

Answer = Literal["pass", "503", "reset", "hold", "corrupt", "empty"]
Rule = Callable[[str, str, int], Answer]
"""Chooses the answer to a request from its method, its path and its number, counted from 1."""


@dataclass
class FaultyStore:
    """The store that a training reaches through the proxy."""

    endpoint: str
    environment: Mapping[str, str]
    rule: Rule = lambda method, path, number: "pass"
    refused: int = 0
    """Requests that were answered 503 or dropped, or wrongly."""
    held: threading.Event = field(default_factory=threading.Event)
    """Set when a request is being held."""
    requests: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def faulty_store(bucket: str) -> Iterator[FaultyStore]:
    """Yield an empty bucket behind a proxy whose rule can be changed at any time."""
    with _moto() as port:
        server = QuietServer(("127.0.0.1", 0), _Proxy)
        server.daemon_threads = True
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "drill",
            "AWS_SECRET_ACCESS_KEY": "drill",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        store = FaultyStore(endpoint, environment)
        server.store, server.backend = store, port  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("PUT", f"/{bucket}", headers={"Authorization": _AUTHORIZATION})
        connection.getresponse().read()
        try:
            yield store
        finally:
            server.shutdown()
            server.server_close()


_AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=drill/20260101/us-east-1/s3/aws4_request"


@contextmanager
def _moto() -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env={**os.environ, "AWS_ACCESS_KEY_ID": "drill", "AWS_SECRET_ACCESS_KEY": "drill"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        if not any("Running on" in line for line in process.stderr):
            raise OSError("the S3 server did not start")
        # Keep reading: a full pipe would block the server.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield port
    finally:
        process.kill()
        process.wait()


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        store: FaultyStore = self.server.store  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with store.lock:
            store.requests += 1
            answer = store.rule(self.command, self.path, store.requests)
            store.refused += answer in ("503", "reset", "corrupt", "empty")
        if answer == "503":
            self._reply(503, {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>")
        elif answer == "reset":
            # A linger of 0 makes closing send a reset, where the client would otherwise see a clean end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif answer == "hold":
            # Until the drill kills the client.
            store.held.set()
            threading.Event().wait(3600)
        elif answer == "empty":
            listing = b"<ListBucketResult><Name>drill</Name><IsTruncated>false</IsTruncated></ListBucketResult>"
            self._reply(200, {"Content-Type": "application/xml"}, listing)
        else:
            self._forward(body, corrupt=answer == "corrupt")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # noqa: N815

    def _forward(self, body: bytes, *, corrupt: bool = False) -> None:
        backend = http.client.HTTPConnection("127.0.0.1", self.server.backend)  # type: ignore[attr-defined]
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "expect")}
        backend.request(self.command, self.path, body, headers)
        response = backend.getresponse()
        content = response.read()
        if corrupt and content:
            # The length stays, so that only a checksum notices.
            content = content[:-1] + bytes([content[-1] ^ 1])
        kept = {
            name: value
            for name, value in response.getheaders()
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server")
        }
        length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self._reply(response.status, {**kept, "Content-Length": length or "0"}, content)
        backend.close()

    def _reply(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing: the output of a drill is about the training."""
