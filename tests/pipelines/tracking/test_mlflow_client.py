"""The address, the names and the import of MLflow."""

import logging
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow.exceptions import RestException

from pipelines.errors import ConfigError
from pipelines.tracking import absolute_uri, class_metric_name, deliver_spool, end_run, metric_name, start_run
from pipelines.tracking.mlflow_client import cause
from pipelines.training.preflight import read_tracking
from tests.pipelines.tracking.runs import ROOT


def test_importing_it_does_not_import_mlflow() -> None:
    code = "import sys, pipelines.tracking, pipelines.evaluation.coco_metrics; print('mlflow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "False\n"


def test_addresses_mean_the_same_everywhere_or_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///deep/mlflow.db") == f"sqlite:///{tmp_path}/deep/mlflow.db"
    assert (tmp_path / "deep").is_dir()
    assert absolute_uri(f"sqlite:///{tmp_path}/a.db?timeout=3") == f"sqlite:///{tmp_path}/a.db?timeout=3"
    assert absolute_uri("https://host:5000") == "https://host:5000"
    assert absolute_uri("postgresql+psycopg2://host/db") == "postgresql+psycopg2://host/db"
    for bad in ("./mlruns", "file:///mlruns", "ftp://host", ""):
        with pytest.raises(
            ConfigError, match=r"is not an address at which MLflow stores runs. Write sqlite:////FOLDER"
        ):
            absolute_uri(bad)
    with pytest.raises(ConfigError, match="names no file"):
        absolute_uri("sqlite://")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/sub cannot be created \(Not a directory\)"):
        absolute_uri("sqlite:///file/sub/mlflow.db")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("val/AP/hot dog", "val/AP/hot dog"),
        ("val/AP/cat (big)", "val/AP/cat _big_"),
        ("val/AP/人", "val/AP/人"),
        ("val/AP/Box/Square", "val/AP/Box/Square"),  # points that are spooled already keep their name
        ("/a//b/./../c/", "a/b/c"),
        ("..", "_"),
        ("", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_metric_names_are_ones_that_mlflow_takes(text: str, name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert metric_name(text) == name
    _validate_metric_name(metric_name(text))


@pytest.mark.parametrize(
    ("class_name", "name"),
    [
        ("Box/Square", "val/AP/Box_Square"),
        ("/a//b/", "val/AP/_a__b_"),
        ("cat (big)", "val/AP/cat _big_"),
        ("hot dog", "val/AP/hot dog"),
        ("三角", "val/AP/三角"),
    ],
)
def test_every_class_is_in_one_section(class_name: str, name: str) -> None:
    assert class_metric_name("val/AP", class_name) == name


class RefusingProxy(BaseHTTPRequestHandler):
    """A proxy that lets nobody through, and says so in a page."""

    def do_GET(self) -> None:
        body = b"<html>not allowed</html>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def behind_a_proxy(monkeypatch: pytest.MonkeyPatch, variable: str, port: int) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv(variable, f"http://user:hush@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_that_leads_nowhere_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, closed_port: int, variable: str
) -> None:
    behind_a_proxy(monkeypatch, variable, closed_port)
    hint = (
        f"{variable} sends this request to the proxy http://127.0.0.1:{closed_port}; to reach tracking.test directly, "
        "add tracking.test to NO_PROXY"
    )
    uri = "http://tracking.test:5000"
    with caplog.at_level(logging.WARNING):
        start_run(uri, "cells", "first", params={}, tags={}, folder=tmp_path)
        end_run(uri, "", "FINISHED", tmp_path)
        assert not deliver_spool(tmp_path, timeout_seconds=0)
    assert [hint in line for line in caplog.messages] == [True, True, True]
    with pytest.raises(ConfigError, match=r"http://tracking\.test:5000 does not answer: ") as refused:
        read_tracking(uri)
    assert hint in str(refused.value)
    assert not any("hush" in line for line in [*caplog.messages, str(refused.value)])


def test_a_proxy_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), RefusingProxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        behind_a_proxy(monkeypatch, "HTTP_PROXY", server.server_port)
        with pytest.raises(ConfigError, match=r"does not answer: .*HTTP_PROXY sends this request to the proxy"):
            read_tracking("http://tracking.test:5000")
        server.shutdown()


def test_a_proxy_is_not_named_where_it_is_not_at_fault(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    behind_a_proxy(monkeypatch, "HTTP_PROXY", closed_port)
    assert "PROXY" not in cause(RestException({"error_code": "INVALID_PARAMETER_VALUE"}), "http://tracking.test")
    assert "PROXY" not in cause(RuntimeError("the run was never created there"), "http://tracking.test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(ConfigError, match="does not answer") as refused:
        read_tracking(f"http://127.0.0.1:{closed_port}")
    assert "PROXY" not in str(refused.value)
