"""An S3-like server to measure and test against: real ranges and ETags, with latency, bandwidth and faults on request.

It answers GET, HEAD and `If-Match` on loopback and checks no signatures. Tests run it in their own process, where they
can order faults and read the log. A benchmark runs `python -m pipelines.stand_ins.object_server FOLDER`, so that the
server does not compete with the measured reader for the interpreter lock.
"""

import argparse
import contextlib
import hashlib
import re
import select
import socket
import struct
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, Self

_BLOCK = 64 * 1024

_MESSAGES = {"SlowDown": "Please reduce your request rate."}

FaultKind = Literal["slow_down", "reset", "short", "flip", "silence", "forbidden", "missing", "replace"]


@dataclass(frozen=True)
class Fault:
    """A fault in the answer to one GET."""

    kind: FaultKind
    """slow_down: 503. reset, short, silence: the body ends early with a reset, a clean end, or without any end.
    flip: one byte is changed. forbidden, missing: 403, 404. replace: a reset, and from then on another object."""

    after: int = 0
    """Bytes of the body that arrive before the fault; for flip, the index of the byte."""

    replacement: bytes = b""
    """The object's bytes from then on, for replace."""


@dataclass(frozen=True)
class Request:
    """One request that was answered."""

    method: str
    key: str
    """`bucket/key`"""
    range: str
    if_match: str
    status: int


class ObjectServer:
    """A server on 127.0.0.1 that runs while a `with` block does.

    Args:
        folder: folder whose files are the objects, as `FOLDER/bucket/key`; None for none.
        latency: seconds before each answer.
        bandwidth: bytes a second over all connections; 0 for no limit.
        port: its port; 0 for a free one.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        latency: float = 0.0,
        bandwidth: float = 0.0,
        port: int = 0,
    ) -> None:
        self.folder = folder
        self.latency = latency
        self.objects: dict[str, bytes] = {}
        """Objects in memory by `bucket/key`; they take precedence over the folder's."""
        self.requests: list[Request] = []
        self.busy = self.most_busy = 0
        """Number of GETs that are being answered now, and the largest so far."""
        self.stopping = threading.Event()
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._always: dict[str, Fault] = {}
        self._lock = threading.Lock()
        self._wire = _Wire(bandwidth)
        self._server = QuietServer(("127.0.0.1", port), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint(self) -> str:
        """Address for AWS_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def order(self, key: str, *faults: Fault, always: bool = False) -> None:
        """Order faults for the next GETs of an object, one each; or, with `always`, one for all from now on."""
        with self._lock:
            if always:
                self._always[key] = faults[0]
            else:
                self._faults[key].extend(faults)

    def gets(self, part: str = "") -> list[Request]:
        """List the GETs so far whose key contains a text."""
        return [request for request in list(self.requests) if request.method == "GET" and part in request.key]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def serve(self) -> None:
        """Answer until the process ends."""
        self._server.serve_forever()

    def find(self, key: str) -> tuple[bytes | Path, int, str] | None:
        """Find an object; returns its content or its file, its size and its ETag."""
        if (data := self.objects.get(key)) is not None:
            return data, len(data), f'"{hashlib.md5(data).hexdigest()}"'
        path = self.folder / key if self.folder is not None else None
        if path is None or not path.is_file():
            return None
        status = path.stat()
        return path, status.st_size, f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"'

    def has_bucket(self, name: str) -> bool:
        """Return True if there is an object or a folder of this bucket."""
        return any(key.startswith(f"{name}/") for key in self.objects) or (
            self.folder is not None and (self.folder / name).is_dir()
        )

    def next_fault(self, key: str) -> Fault | None:
        """Return the fault that was ordered for this GET."""
        with self._lock:
            return self._faults[key].popleft() if self._faults[key] else self._always.get(key)

    def note(self, request: Request) -> None:
        """Write a request to the log."""
        with self._lock:
            self.requests.append(request)

    @contextlib.contextmanager
    def counted(self):  # type: ignore[no-untyped-def]
        """Count a GET while it is being answered."""
        with self._lock:
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
        try:
            yield
        finally:
            with self._lock:
                self.busy -= 1

    def pace(self, count: int) -> None:
        """Wait until the bandwidth allows `count` more bytes."""
        self._wire.pass_through(count)


class _Wire:
    """A bandwidth that all connections share."""

    def __init__(self, bandwidth: float) -> None:
        self._bandwidth = bandwidth
        self._free_at = 0.0
        self._lock = threading.Lock()

    def pass_through(self, count: int) -> None:
        if not self._bandwidth:
            return
        # Each block books the next free time on the wire, and waits outside the lock until then.
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + count / self._bandwidth
            wait = self._free_at - time.monotonic()
        if wait > 0:
            time.sleep(wait)


class QuietServer(ThreadingHTTPServer):
    """A server of threads that takes a client that hangs up for granted."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: a client that hangs up is not an error."""


def _handler(server: ObjectServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Otherwise a small answer waits for the client's delayed acknowledgement, which is not the latency asked for.
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            with server.counted():
                self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            time.sleep(server.latency)
            key = self.path.partition("?")[0].strip("/")
            fault = server.next_fault(key) if body else None
            if "/" not in key:
                return self._refuse(*((200, "") if server.has_bucket(key) else (404, "NoSuchBucket")), key)
            if fault is not None and fault.kind in ("slow_down", "forbidden", "missing"):
                codes = {
                    "slow_down": (503, "SlowDown"),
                    "forbidden": (403, "AccessDenied"),
                    "missing": (404, "NoSuchKey"),
                }
                return self._refuse(*codes[fault.kind], key)
            found = server.find(key)
            if found is None:
                return self._refuse(404, "NoSuchKey", key)
            data, size, etag = found
            if self.headers.get("If-Match", etag) != etag:
                return self._refuse(412, "PreconditionFailed", key)
            first, last = 0, size - 1
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(match[1]), min(int(match[2] or last), last)
                if first > last:
                    return self._refuse(416, "InvalidRange", key)
            self._note(206 if match else 200, key)
            self.send_response(206 if match else 200)
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(last + 1 - first))
            if match:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            if body:
                self._send(key, data, first, last + 1, fault)
            return None

        def _send(self, key: str, data: bytes | Path, first: int, end: int, fault: Fault | None) -> None:
            at = first
            stop = min(end, first + fault.after) if fault is not None and fault.kind != "flip" else end
            with contextlib.ExitStack() as stack:
                file = stack.enter_context(open(data, "rb")) if isinstance(data, Path) else None
                while at < stop:
                    count = min(_BLOCK, stop - at)
                    if file is None:
                        assert isinstance(data, bytes)
                        block = data[at : at + count]
                    else:
                        file.seek(at)
                        block = file.read(count)
                    if fault is not None and fault.kind == "flip" and at <= first + fault.after < at + count:
                        wrong = bytearray(block)
                        wrong[first + fault.after - at] ^= 1
                        block = bytes(wrong)
                    server.pace(count)
                    self.wfile.write(block)
                    at += count
            if fault is not None and fault.kind != "flip":
                self._break_off(key, fault)

        def _break_off(self, key: str, fault: Fault) -> None:
            self.close_connection = True
            self.wfile.flush()
            if fault.kind == "replace":
                server.objects[key] = fault.replacement
            if fault.kind == "silence":
                # The connection stays open until the client hangs up.
                while not server.stopping.is_set() and not select.select([self.connection], [], [], 0.05)[0]:
                    pass
            if fault.kind in ("reset", "replace"):
                # Closing with a linger of 0 sends a reset, which discards what the client has not read: give it time.
                time.sleep(0.02)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        def _refuse(self, status: int, code: str, key: str) -> None:
            self._note(status, key)
            message = _MESSAGES.get(code, code)
            text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode() if code else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Content-Type", "application/xml")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def _note(self, status: int, key: str) -> None:
            headers = self.headers
            server.note(Request(self.command, key, headers.get("Range", ""), headers.get("If-Match", ""), status))

    return Handler


def main() -> None:
    """Print the address, and serve a folder until the process ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="FOLDER/bucket/key are the objects")
    parser.add_argument("--latency", type=float, default=0.0, help="milliseconds before each answer")
    parser.add_argument("--bandwidth", type=float, default=0.0, help="MB/s over all connections; 0 for no limit")
    parser.add_argument("--port", type=int, default=0)
    known = parser.parse_args()
    server = ObjectServer(known.folder, latency=known.latency / 1e3, bandwidth=known.bandwidth * 1e6, port=known.port)
    print(server.endpoint, flush=True)
    server.serve()


if __name__ == "__main__":
    main()
