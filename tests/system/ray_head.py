"""A Ray cluster on this machine, started by `ray start` and ended by its process ids alone.

Never by `ray stop`, which would end every other Ray on the machine.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.fake_cluster import free_port

SCRIPTS = Path(sys.executable).parent
TOKEN = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Head:
    """A running head node."""

    address: str
    """For RAY_ADDRESS."""
    dashboard: str
    """For --address; answers only if the head has a dashboard."""
    environment: dict[str, str]
    """Variables that a client needs."""


@contextmanager
def ray_head(
    folder: Path,
    *flags: str,
    cpus: int,
    dashboard: bool = True,
    prepare: Callable[[str], None] = lambda address: None,
    **environment: str,
) -> Iterator[Head]:
    """Start a head that requires a token.

    Args:
        folder: a folder with a short path, because it holds Ray's Unix sockets.
        flags: further flags of `ray start`.
        cpus: CPUs of the head itself.
        dashboard: whether to start the dashboard, and with it the job server.
        prepare: called with the address before the head starts.
        environment: further variables of the head's processes.
    """
    port, web = free_port(), free_port()
    prepare(f"127.0.0.1:{port}")
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    started = [
        *("--head", "--port", str(port), "--num-cpus", str(cpus), "--temp-dir", str(folder)),
        *("--ray-client-server-port", str(free_port())),
        *(("--dashboard-host", "127.0.0.1", "--dashboard-port", str(web)) if dashboard else ()),
        *(() if dashboard else ("--include-dashboard=false",)),
        *flags,
    ]
    with _ray_start(started, {**known, **environment}):
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{web}", known)


@contextmanager
def ray_node(head: Head, *, cpus: int, private: Path | None = None) -> Iterator[None]:
    """Join a second node. At `private` it sees an empty folder of its own, as another machine would."""
    with _ray_start(["--address", head.address, "--num-cpus", str(cpus)], head.environment, private):
        yield


def private_folders_work() -> bool:
    """Check that a process may mount a file system that only it sees."""
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@contextmanager
def _ray_start(flags: list[str], environment: dict[str, str], private: Path | None = None) -> Iterator[None]:
    command = [str(SCRIPTS / "ray"), "start", "--block", "--disable-usage-stats", *flags]
    command += ["--dashboard-agent-listen-port", str(free_port())]
    if private is not None:
        script = f"mount -t tmpfs none {shlex.quote(str(private))} && exec {shlex.join(command)}"
        command = ["unshare", "--mount", "sh", "-c", script]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", **environment},
    )
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                break
        else:
            raise AssertionError("ray start ended:\n" + "".join(said))
        yield
    finally:
        started = [process, *psutil.Process(process.pid).children(recursive=True)]
        for one in started:
            one.kill() if isinstance(one, subprocess.Popen) or one.is_running() else None
        process.communicate()
        psutil.wait_procs(started[1:], timeout=30)
