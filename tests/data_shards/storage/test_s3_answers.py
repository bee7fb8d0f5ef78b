"""Answers and configurations of servers that only resemble S3: right, or one line that names the cause."""

import contextlib
import gzip
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import DataError, LargerError
from data_shards.storage.open import open_store
from data_shards.storage.store import Store

BODY = bytes(range(256)) * 80_000  # longer than two ranges


class _Server(ThreadingHTTPServer):
    """A bucket `data` with the object `set/object.bin`, and one habit."""

    daemon_threads = True

    def __init__(self, habit: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.habit = habit
        self.keys: list[str] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: a client that hangs up is not an error."""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""

    def answer(self, status: int, body: bytes, **headers: str | None) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            if headers.get("Transfer_Encoding"):
                cuts = range(0, len(body), 65_536)
                body = b"".join(b"%x\r\n%s\r\n" % (len(body[at : at + 65_536]), body[at : at + 65_536]) for at in cuts)
                body += b"0\r\n\r\n" if self.server.habit != "endless" else b""
            with contextlib.suppress(OSError):
                self.wfile.write(body)
                while self.server.habit == "endless" and headers.get("Transfer_Encoding"):
                    self.wfile.write(b"10000\r\n" + bytes(65_536) + b"\r\n")

    def refuse(self, status: int, code: str, text: str = "") -> None:
        self.answer(status, f"<Error><Code>{code}</Code><Message>{text}</Message></Error>".encode())

    def do_GET(self) -> None:
        habit = self.server.habit
        signed = self.headers.get("Authorization", "")
        self.server.keys.append(signed.partition("Credential=")[2].partition("/")[0])
        in_host = self.headers["Host"].startswith("data.")
        if habit == "virtual" and not in_host:
            return self.refuse(403, "SecondLevelDomainForbidden", "Please use virtual hosted style to access.")
        if habit == "unsigned" and signed:
            return self.refuse(403, "InvalidAccessKeyId", "The key does not exist.")
        if habit == "payer" and self.headers.get("x-amz-request-payer") != "requester":
            return self.refuse(403, "AccessDenied", "Access Denied")
        if habit == "expired" and "Credential=old" in signed:
            return self.refuse(400, "ExpiredToken", "The token has expired.")
        if habit == "login":
            return self.answer(200, b"<html>Please log in</html>", Content_Type="text/html")
        if habit == "redirect":
            return self.answer(307, b"", Location="http://user:pw@elsewhere.test/x?token=1")
        if habit == "no-head" and self.command == "HEAD":
            return self.answer(403, b"")
        path = self.path.partition("?")[0]
        key = path.lstrip("/") if in_host else path.lstrip("/").partition("/")[2]
        if not key:
            return self._list(habit)
        if key != "set/object.bin":
            return self.refuse(404, "NoSuchKey")
        body, status, extra = BODY, 200, dict[str, str | None]()
        if (span := self.headers.get("Range")) and habit not in ("no-ranges", "no-ranges-breaking"):
            first, _, last = span.removeprefix("bytes=").partition("-")
            end = min(int(last) if last else len(BODY) - 1, len(BODY) - 1)
            body, status = BODY[int(first) : end + 1], 206
            extra = {"Content_Range": f"bytes {first}-{end}/{'*' if habit == 'unknown-total' else len(BODY)}"}
        etag: str | None = f'"{hashlib.md5(BODY).hexdigest()}"'
        if habit in ("no-etag", "chunked-no-etag", "endless"):
            etag = None
        if habit.startswith("chunked") or habit == "endless":
            extra |= {"Content_Length": None, "Transfer_Encoding": "chunked"}
        if habit == "gzip":
            body = gzip.compress(body)
            extra |= {"Content_Length": str(len(body)), "Content_Encoding": "gzip"}
        if habit == "two-lengths":
            extra |= {"Content_Length": "7, 7"}
        if habit == "aws-chunked":
            extra |= {"Content_Encoding": "aws-chunked"}
        if habit.endswith("breaking") and len(self.server.keys) == 1:
            extra |= {"Content_Length": str(len(body))}
            body, self.close_connection = body[:1_000_000], True
        return self.answer(status, body, ETag=etag, **extra)

    do_HEAD = do_GET  # noqa: N815

    def _list(self, habit: str) -> None:
        key = "<Contents><Key>set/object.bin</Key><Size>1</Size></Contents>"
        cut = "true" if habit == "cut-listing" else "false"
        text = f"<ListBucketResult><Name>data</Name><IsTruncated>{cut}</IsTruncated>{key}</ListBucketResult>"
        self.answer(200, f"<?xml version='1.0'?>{text}".encode())


@pytest.fixture
def habit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[_Server]:
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setattr("data_shards.storage.s3_object._FIRST_DELAY_SECONDS", 0.01)
    server = _Server(request.param)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    yield server
    server.shutdown()
    server.server_close()


def habits(*names: str) -> Any:
    return pytest.mark.parametrize("habit", names, indirect=True)


def fetched(store: Store, tmp_path: Path, ranges: int) -> bytes:
    with open(tmp_path / "file", "w+b") as file:
        assert store.fetch("object.bin", file.fileno(), ranges=ranges) == len(BODY)
    return (tmp_path / "file").read_bytes()


@habits(
    *("plain", "no-etag", "chunked", "chunked-no-etag", "no-ranges", "no-ranges-breaking", "breaking", "unknown-total"),
    *("aws-chunked", "no-head"),
)
def test_unusual_answers_are_read_right(habit: _Server, tmp_path: Path) -> None:
    store = open_store("s3://data/set")
    for ranges in (1, 4):
        habit.keys.clear()
        assert fetched(store, tmp_path, ranges) == BODY
    habit.keys.clear()
    with open(tmp_path / "streamed", "wb") as file:
        store.stream("object.bin", file)
    assert (tmp_path / "streamed").read_bytes() == BODY
    assert store.exists("object.bin")


@pytest.mark.parametrize(
    ("habit", "message"),
    [
        (
            "gzip",
            r"object\.bin \(1 attempt\): the answer is compressed \(Content-Encoding: gzip",
        ),
        ("two-lengths", r"object\.bin \(1 attempt\): the answer has a header that cannot be read \(invalid literal"),
        ("login", r"cannot read s3://data/set/object\.bin \(1 attempt\): the answer is a web page, not the object"),
        ("redirect", r"redirects (every request|to http://elsewhere\.test/x .*)\. Set AWS_REGION"),
        (
            "virtual",
            r"SecondLevelDomainForbidden, .* Set addressing_style = virtual in the s3 section of ~",
        ),
        ("payer", r"refuses these credentials \(AccessDenied\)\..* whose requester pays AWEIGH_S3_REQUESTER_PAYS=1"),
        (
            "unsigned",
            r"refuses these credentials \(InvalidAccessKeyId\)\..* For a public bucket set AWEIGH_S3_U",
        ),
    ],
    indirect=["habit"],
)
def test_answers_that_cannot_be_used_are_one_line(habit: _Server, message: str, tmp_path: Path) -> None:
    store = open_store("s3://data/set")
    for ranges in (1, 4):
        with pytest.raises(DataError, match=message) as caught:
            fetched(store, tmp_path, ranges)
        assert "\n" not in str(caught.value)
        assert "pw" not in str(caught.value)
    if habit.habit == "virtual":
        with pytest.raises(DataError, match="SecondLevelDomainForbidden"):
            store.exists("object.bin")


@habits("plain", "no-ranges", "unknown-total", "chunked-no-etag", "endless")
def test_an_object_that_is_larger_than_it_may_be_is_not_read_to_its_end(habit: _Server, tmp_path: Path) -> None:
    store = open_store("s3://data/set")
    most = len(BODY) - 1
    line = (
        r"cannot read s3://data/set/object\.bin \(\d attempts?\): it has more than 20,479,999 bytes\. Copy it again\."
    )
    with open(tmp_path / "file", "w+b") as file:
        for ranges in (1, 4):
            with pytest.raises(LargerError, match=line):
                store.fetch("object.bin", file.fileno(), ranges=ranges, most_bytes=most)
        with pytest.raises(LargerError, match=line):
            store.stream("object.bin", file, most_bytes=most)
        assert file.tell() <= most
    with pytest.raises(LargerError, match=line):
        store.read_bytes("object.bin", most_bytes=most)
    assert (tmp_path / "file").stat().st_size <= most


@habits("plain", "chunked-no-etag")
def test_an_object_may_have_its_largest_size(habit: _Server) -> None:
    assert open_store("s3://data/set").read_bytes("object.bin", most_bytes=len(BODY)) == BODY


@habits("login")
def test_a_login_page_in_place_of_a_listing_is_named(habit: _Server) -> None:
    for ask in (open_store("s3://data/set").list_names, open_store("s3://data/set").check_readable):
        with pytest.raises(DataError, match=r"does not answer as S3 does: a login page"):
            ask()


@habits("cut-listing")
def test_a_listing_cut_short_is_refused(habit: _Server) -> None:
    with pytest.raises(DataError, match="the listing is cut short without a way to ask for the rest"):
        open_store("s3://data/set").list_names()


@habits("virtual")
def test_the_users_addressing_style_wins(habit: _Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: real("127.0.0.1" if str(host).endswith("store.test") else host, *rest, **more),
    )
    port = habit.server_address[1]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    (tmp_path / "config").write_text(
        f"[default]\nservices = own\ns3 =\n    addressing_style = virtual\n"
        f"[services own]\ns3 =\n    endpoint_url = http://store.test:{port}\n"
    )
    assert fetched(open_store("s3://data/set"), tmp_path, 4) == BODY


@habits("unsigned")
def test_public_buckets_are_read_unsigned_without_keys_or_when_told_to(
    habit: _Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = open_store("s3://data/set")
    monkeypatch.setenv("AWEIGH_S3_UNSIGNED", "1")
    assert fetched(store, tmp_path, 1) == BODY
    assert store.list_names() == ["object.bin"]
    monkeypatch.delenv("AWEIGH_S3_UNSIGNED")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert fetched(store, tmp_path, 1) == BODY
    with pytest.raises(DataError, match="there are no AWS credentials"):
        store.write_bytes("x", b"")


@habits("payer")
def test_the_requester_pays_when_told_to(habit: _Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWEIGH_S3_REQUESTER_PAYS", "1")
    store = open_store("s3://data/set")
    assert fetched(store, tmp_path, 4) == BODY
    assert store.exists("object.bin")
    assert store.list_names() == ["object.bin"]
    monkeypatch.delenv("AWEIGH_S3_REQUESTER_PAYS")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(DataError, match=r"refuses unsigned requests \(AccessDenied\)\. Set AWS_ACCESS_KEY_ID"):
        fetched(store, tmp_path, 1)


@habits("expired")
def test_renewed_credentials_are_picked_up_and_expired_ones_named(
    habit: _Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    keys = "[default]\naws_access_key_id = {}\naws_secret_access_key = x\naws_session_token = y\n"
    (tmp_path / "credentials").write_text(keys.format("old"))
    store = open_store("s3://data/set")
    for ask in (lambda: store.read_bytes("object.bin"), lambda: store.list_names(), lambda: store.exists("object.bin")):
        with pytest.raises(DataError, match=r"the AWS credentials have expired \(ExpiredToken\)\. Renew them"):
            ask()
    (tmp_path / "credentials").write_text(keys.format("new"))
    assert store.read_bytes("object.bin") == BODY
    assert store.exists("object.bin")
    # Of a process: the same answer until it is asked again.
    (tmp_path / "credentials").unlink()
    script = tmp_path / "keys.sh"
    script.write_text(
        f"cat {tmp_path}/key;"
        f' echo \'{{"Version": 1, "AccessKeyId": "new", "SecretAccessKey": "x"}}\' > {tmp_path}/key\n'
    )
    (tmp_path / "key").write_text('{"Version": 1, "AccessKeyId": "old", "SecretAccessKey": "x"}')
    (tmp_path / "config").write_text(f"[default]\ncredential_process = sh {script}\n")
    assert store.read_bytes("object.bin") == BODY


@habits("plain")
def test_an_sso_session_that_is_over_names_its_login(
    habit: _Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config").write_text(
        "[profile work]\nsso_start_url = https://x.test\nsso_region = us-east-1\nsso_account_id = 123456789012\n"
        "sso_role_name = r\n"
    )
    with pytest.raises(DataError, match=r"SSO session has expired .* Run `aws sso login --profile work`"):
        open_store("s3://data/set").read_bytes("object.bin")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(DataError, match=r"profile \(nobody\) could not be found\. Check AWS_PROFILE"):
        open_store("s3://data/set").read_bytes("object.bin")


@habits("plain")
def test_a_proxy_that_leads_nowhere_is_named(habit: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://user:pw@127.0.0.1:9")
    monkeypatch.setattr("data_shards.storage.s3._ATTEMPTS", 1)
    with pytest.raises(DataError, match=r"HTTP_PROXY sends this request to the proxy http://127\.0\.0\.1:9;") as caught:
        open_store("s3://data/set").check_readable()
    assert "add 127.0.0.1 to NO_PROXY" in str(caught.value)
    assert "pw" not in str(caught.value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert open_store("s3://data/set").list_names() == ["object.bin"]
