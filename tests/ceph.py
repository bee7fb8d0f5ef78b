"""A real S3 server for tests: Ceph's monitor, an object store in memory, and radosgw, all in one folder.

Unlike moto it checks signatures and serves byte ranges as S3 does. Everything runs on loopback and ends with `stop`.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
ACCESS_KEY, SECRET_KEY = "aweigh-test", "aweigh-secret"
_START_SECONDS = 120
_PR_SET_PDEATHSIG = 1

_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{monitor_port}
mon initial members = a
ms bind msgr1 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {folder}/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
pid file = {folder}/run/$name.pid
log file = {folder}/log/$name.log

[mon]
mon data = {folder}/mon

[osd]
osd objectstore = memstore
memstore device bytes = 1073741824
osd data = {folder}/osd

[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{gateway_port}
rgw thread pool size = 16
rgw enable ops log = false
rgw enable usage log = false
"""


def why_not() -> str:
    """Explain why the server cannot run on this machine; empty if it can."""
    if not sys.platform.startswith("linux"):
        return "radosgw runs on Linux only"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no radosgw here: {', '.join(missing)} missing; install ceph-mon ceph-osd radosgw ceph-common"
    if os.geteuid() != 0:
        return "radosgw needs root here"
    return ""


class RadosGateway:
    """The three daemons, started on construction.

    Args:
        folder: an empty folder with a short path, because it holds Unix sockets.

    Raises:
        RuntimeError: a daemon did not start; the message holds what it wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        monitor_port, gateway_port = _free_ports(2)
        self.endpoint = f"http://127.0.0.1:{gateway_port}"
        for name in ("run", "log", "mon", "osd"):
            (folder / name).mkdir()
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        self._configuration = folder / "ceph.conf"
        self._configuration.write_text(
            _CONFIGURATION.format(fsid=fsid, folder=folder, monitor_port=monitor_port, gateway_port=gateway_port)
        )
        try:
            self._start(fsid, osd, monitor_port)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the daemons, the gateway first, and wait until they are gone."""
        for daemon in reversed(self._daemons):
            with contextlib.suppress(ProcessLookupError):
                daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=5)
            except subprocess.TimeoutExpired:
                # Its data is thrown away, so that killing it loses nothing.
                daemon.kill()
                daemon.wait()

    def _start(self, fsid: str, osd: str, monitor_port: int) -> None:
        keyring, monmap = self.folder / "keyring", self.folder / "monmap"
        everything = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
        self._run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        for name in ("client.admin", "osd.0", "client.rgw.a"):
            self._run("ceph-authtool", keyring, "--gen-key", "-n", name, *everything)
        address = f"[v2:127.0.0.1:{monitor_port}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
        self._run("ceph-mon", *self._conf, "--mkfs", "-i", "a", "--keyring", keyring, "--monmap", monmap)
        self._daemon("ceph-mon", "-i", "a")
        self._run("ceph", *self._conf, "osd", "new", osd)
        self._run("ceph", *self._conf, "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=localhost")
        self._run("ceph-osd", *self._conf, "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._daemon("ceph-osd", "-i", "0")
        self._daemon("radosgw", "-n", "client.rgw.a")
        self._wait_until_listening()
        user = ["user", "create", "--uid=test", "--display-name=test"]
        keys = [f"--access-key={ACCESS_KEY}", f"--secret={SECRET_KEY}"]
        self._run("radosgw-admin", *self._conf, "-n", "client.rgw.a", *user, *keys)

    @property
    def _conf(self) -> tuple[str, str]:
        return "-c", str(self._configuration)

    def _run(self, *command: object) -> None:
        words = list(map(str, command))
        done = subprocess.run(words, capture_output=True, text=True, timeout=_START_SECONDS)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} failed ({done.returncode}): {done.stderr[-2000:]}")

    def _daemon(self, program: str, *arguments: str) -> None:
        # In the foreground: it stays a child of this process and cannot outlive it unnoticed.
        with open(self.folder / "log" / f"{program}.out", "wb") as output:
            command = [program, *self._conf, *arguments, "-f"]
            self._daemons.append(
                subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, preexec_fn=_end_with_parent)
            )

    def _wait_until_listening(self) -> None:
        port = int(self.endpoint.rpartition(":")[2])
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            for daemon in self._daemons:
                if daemon.poll() is not None:
                    text = "".join(path.read_text()[-1500:] for path in (self.folder / "log").iterdir())
                    raise RuntimeError(f"{daemon.args} ended ({daemon.returncode}): {text}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.1)
        raise RuntimeError(f"radosgw does not listen after {_START_SECONDS} s; see {self.folder}/log")


def _end_with_parent() -> None:
    """Have the kernel kill this process when the tests end, even if they are killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
