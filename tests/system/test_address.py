"""Training on a Ray cluster that somebody else started, protected by its token as Ray 2.60 protects every one."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.commands import train

pytestmark = pytest.mark.slow


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head node of our own, in a process group of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Ray's sockets lie below this folder; their paths have to stay short.
    folder = tmp_path_factory.mktemp("r")
    scripts = Path(sys.executable).parent
    process = subprocess.Popen(
        [
            *(scripts / "ray", "start", "--head", "--block", "--port", str(port), "--num-cpus", "3"),
            *("--include-dashboard=false", "--disable-usage-stats", "--temp-dir", str(folder)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "token"},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ray runtime started" in line:
                break
        else:
            raise AssertionError("ray start ended")
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_run_joins_the_cluster_at_ray_address(shards: Path, tmp_path: Path, head: str) -> None:
    command = train(shards, tmp_path, "joined", RAY_ADDRESS=head)
    assert f"2 workers on Ray, {head}" in command.wait_for("cluster   ")
    assert "AP50" in command.finish()
    assert (tmp_path / "joined" / "result.json").exists()


def test_a_cluster_that_is_not_there_is_one_line(shards: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = train(shards, tmp_path, "nowhere", RAY_ADDRESS=address)
    command.finish(status=2)
    assert f"aweigh: the Ray cluster at RAY_ADDRESS={address} did not answer" in command.lines[-1]
