"""A node that will be taken away announces it: the notice of EC2 is read."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster.announce_preemption import seconds_until_taken


@contextmanager
def metadata_service(action: dict[str, str] | None, status: int = 404) -> Iterator[str]:
    """Serve as much of EC2's metadata service as is used: a token by PUT, and the notice to whoever sends it."""

    class Service(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._answer(200 if self.path == "/latest/api/token" else 404, b"secret")

        def do_GET(self) -> None:
            if self.headers.get("X-aws-ec2-metadata-token") != "secret":
                self._answer(401, b"")
            elif self.path == "/latest/meta-data/spot/instance-action" and action:
                self._answer(200, json.dumps(action).encode())
            else:
                self._answer(status, b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_notice_of_ec2_says_when_the_instance_ends() -> None:
    with metadata_service(None) as service:
        assert seconds_until_taken(service) is None
    ends = datetime.now(UTC) + timedelta(hours=1)
    with metadata_service({"action": "terminate", "time": ends.strftime("%Y-%m-%dT%H:%M:%SZ")}) as service:
        seconds = seconds_until_taken(service)
    assert seconds is not None
    assert 3000 < seconds <= 3600
    with metadata_service({"action": "terminate", "time": "2017-09-18T08:22:00Z"}) as service:
        assert seconds_until_taken(service) == 0


def test_a_service_that_fails_is_not_taken_for_no_notice() -> None:
    with metadata_service(None, status=503) as service, pytest.raises(OSError, match="503"):
        seconds_until_taken(service)
