"""Ray connected and shut down by a thread of its own, within time limits, with the real cause if it does not start.

Unusual here: Ray's processes end with the thread that started them (PR_SET_PDEATHSIG), so this thread lives as long as
they do. The main thread only waits for it, and stays free for signals while Ray starts.
"""

import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from cluster.errors import ClusterError, WorkersFailedError

_START_SECONDS = 300.0
# The start of one process, on a machine that is busy with others.
_CONTROLLER_SECONDS = 180.0
_SHUTDOWN_SECONDS = 5.0
_LOOK_SECONDS = 0.5
# Room for what Ray appends to its folder: "/session_2026-11-29_00-38-33_123456_1234567/sockets/plasma_store.1".
_LONGEST_FOLDER = 107 - 68
_BUSY = 4.0
"""Load on a core above which a machine counts as busy."""


class RayThread:
    """Ray's connection, or a Ray that it starts on this machine.

    Args:
        init: calls `ray.init`.
        shutdown: calls `ray.shutdown`.
        local: Ray is started here.
        lost: receives the name of a process of a local Ray that has ended although nobody asked it to.
    """

    def __init__(
        self,
        init: Callable[[], object],
        shutdown: Callable[[], object],
        *,
        local: bool,
        lost: Callable[[str], object] = lambda name: None,
    ) -> None:
        self._init, self._shutdown, self._local, self._lost = init, shutdown, local, lost
        self._began = threading.Event()
        self._end = threading.Event()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._others = _descendants()
        self._thread = threading.Thread(target=self._live, name="aweigh-ray", daemon=True)

    def start(self, seconds: float = _START_SECONDS) -> None:
        """Wait until Ray is connected.

        Raises:
            TimeoutError: it is not after these seconds, or one of its processes has died and it would wait for ever.
            Exception: whatever Ray raises.
        """
        self._thread.start()
        deadline = time.monotonic() + seconds
        seen: set[psutil.Process] = set()
        while not self._began.wait(_LOOK_SECONDS):
            seen |= set(self._vital())
            if dead := [one for one in seen if not _runs(one)]:
                # Ray raises by itself in most cases, with a better message.
                if self._began.wait(2 * _LOOK_SECONDS):
                    break
                raise TimeoutError(f"{len(dead)} of its processes died while it started")
            if time.monotonic() > deadline:
                raise TimeoutError(f"it did not answer within {seconds:.0f} s")
        if self._error is not None:
            raise self._error

    def close(self, seconds: float = _SHUTDOWN_SECONDS) -> None:
        """Shut Ray down; what does not end within these seconds is killed, since its cluster may be gone already."""
        self._end.set()
        in_order = self._ended.wait(seconds)
        if not self._local:
            return
        started = self._started()
        if in_order:
            _, started = psutil.wait_procs(started, timeout=1.0)
        for one in started:
            with suppress(psutil.Error):
                one.kill()

    @property
    def has_ended(self) -> bool:
        """True if no call of Ray is running any more in this thread."""
        return self._ended.is_set()

    def _live(self) -> None:
        try:
            self._init()
        except BaseException as error:
            self._error = error
            with suppress(Exception):
                self._shutdown()
            self._began.set()
            self._ended.set()
            return
        vital = self._vital()
        self._began.set()
        self._watch(vital)
        with suppress(Exception):
            self._shutdown()
        self._ended.set()

    def _watch(self, vital: dict[psutil.Process, str]) -> None:
        """Wait until `close` is called, and report the first process that ends before."""
        while not self._end.wait(2 * _LOOK_SECONDS):
            if dead := [name for one, name in vital.items() if not _runs(one)]:
                self._lost(dead[0])
                break
        self._end.wait()

    def _vital(self) -> dict[psutil.Process, str]:
        """Return the running processes that a local Ray cannot do without, with their names."""
        # Children only: a raylet forks, and for a moment its own children have its name.
        named = {one: _name(one) for one in _descendants(recursive=False) if self._local and _runs(one)}
        return {one: name for one, name in named.items() if name in ("raylet", "gcs_server")}

    def _started(self) -> list[psutil.Process]:
        return [one for one in _descendants() if one not in self._others] if self._local else []


def start_ray(make: Callable[[], RayThread], folder: Path, tries: int = 2) -> RayThread:
    """Start a local Ray, once more if that fails.

    Args:
        make: makes a thread that has not started.
        folder: Ray's folder, for its logs.
        tries: number of attempts.

    Raises:
        ClusterError: says why it did not start, and where its logs are.
    """
    said = ""
    for _ in range(tries):
        thread = make()
        try:
            thread.start()
        except Exception as error:
            lines = str(error).strip().splitlines()
            said = (lines[-1] if lines else type(error).__name__).rstrip(".")
            thread.close()
            if not thread.has_ended:
                break  # a second try would meet the first one in the same process
        except BaseException:
            thread.close(seconds=0)
            raise
        else:
            return thread
        # The exception's frames hold clients of the first Ray, which would end this process a minute after it.
        del thread
        gc.collect()
    raise ClusterError(describe_failure(said, folder, os.getloadavg()[0], os.cpu_count() or 1))


def describe_failure(said: str, folder: Path, load: float, cores: int) -> str:
    """Say in one line why a local Ray did not start, and what to do.

    Args:
        said: Ray's own words about the last try.
        folder: Ray's folder.
        load: load average of the machine.
        cores: its number of cores.
    """
    logs = folder / "session_latest" / "logs"
    from_log = last_log_line(logs)
    details = f" {from_log}." if from_log else ""
    if load > _BUSY * cores:
        advice = f"The machine is busy (load {load:.0f} on {cores} cores): try again when it has less work"
    elif "No space left" in f"{said}{from_log}":
        advice = f"Free some space in {folder}, or set RAY_TMPDIR to a short folder on another disk"
    else:
        advice = "Correct the cause, or set RAY_TMPDIR to another short folder if it is about files"
    return f"Ray did not start on this machine: {said}.{details} {advice}. Ray's logs are in {logs}."


def last_log_line(logs: Path) -> str:
    """Return the last line of the newest log in which a process of Ray reports an error; empty if there is none."""
    for name in ("raylet.err", "gcs_server.err", "raylet.out", "gcs_server.out"):
        with suppress(OSError):
            lines = (logs / name).read_text(errors="replace").strip().splitlines()
            # The .out files are long, and only their errors and fatal errors tell anything.
            told = [line for line in lines if name.endswith(".err") or " E " in line or " C " in line]
            if told:
                return f"The last line of its {name} is: {told[-1].strip().rstrip('.')[:300]}"
    return ""


def wait_for_controller(ray: Any, controller: Any, logs: Path, seconds: float = _CONTROLLER_SECONDS) -> None:
    """Wait until Ray Train's controller has started; Ray itself would wait for ever.

    Args:
        ray: the module.
        controller: the actor; if it failed to start, its next call says why.
        logs: folder of Ray's logs on this machine, where the controller runs.
        seconds: time limit.

    Raises:
        WorkersFailedError: it does not answer.
    """
    answered, _ = ray.wait([controller.__ray_ready__.remote()], timeout=seconds)
    if answered:
        return
    said = _last_words(logs, "TrainController")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > _BUSY * cores:
        advice = f"The machine is busy (load {load:.0f} on {cores} cores): try again when it has less work"
    else:
        advice = "Run the same command again; if it stays silent, look there for a file that its process waits for"
    raise WorkersFailedError(
        f"Ray Train's controller did not answer within {seconds:.0f} s, so no worker was started.{said} {advice}. Its "
        f"log is among worker-*.err in {logs}."
    )


def _last_words(logs: Path, actor: str) -> str:
    """Quote the last line that an actor printed to stderr; empty if it printed none."""
    with suppress(OSError):
        for path in logs.glob("worker-*.err"):
            lines = path.read_text(errors="replace").strip().splitlines()
            # Ray begins the file with lines such as ":job_id:01000000".
            told = [line.strip() for line in lines if line.strip() and not line.startswith(":")]
            if f":actor_name:{actor}" in lines and told:
                return f" The last line that it printed is: {told[-1].rstrip('.')[:300]}."
    return ""


def ray_folder(environment: Mapping[str, str]) -> Path:
    """Choose a folder for Ray's sockets and logs: the usual one, or a short one if the path of a socket would not fit.

    Args:
        environment: RAY_TMPDIR and TMPDIR as for Ray.

    Raises:
        ClusterError: the folder that RAY_TMPDIR names is too long, or no folder can be written.
    """
    named = environment.get("RAY_TMPDIR", "")
    if len(os.fsencode(f"{named}/ray")) > _LONGEST_FOLDER:
        raise ClusterError(
            f"RAY_TMPDIR={named} is too long for the sockets of Ray, whose paths may have 107 bytes: set it to a "
            f"folder whose path has at most {_LONGEST_FOLDER - 4} bytes."
        )
    places = [named] if named else [environment.get("TMPDIR", ""), "/tmp", "/var/tmp", "/dev/shm"]
    for place in filter(None, places):
        # Another user's folder of this name may be closed to us.
        for folder in (Path(place) / "ray", Path(place) / f"ray-{os.getuid()}"):
            if len(os.fsencode(folder)) <= _LONGEST_FOLDER and _writable(folder):
                return folder
    tried = ", ".join(filter(None, places))
    raise ClusterError(
        f"Ray needs a folder for its sockets and logs, but {tried} cannot be written or is too long. Set RAY_TMPDIR to "
        f"a folder whose path has at most {_LONGEST_FOLDER - 4} bytes."
    )


def _writable(folder: Path) -> bool:
    existing = folder if folder.exists() else folder.parent
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _descendants(*, recursive: bool = True) -> list[psutil.Process]:
    try:
        return psutil.Process().children(recursive=recursive)
    except psutil.Error:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def quiet() -> None:
    """Silence Ray's own log lines in this process, which are about its internals."""
    logging.getLogger("ray").setLevel(logging.ERROR)


def without_current_folder(ray: Any) -> Any:
    """Return a job configuration with which workers do not import from the current folder.

    By default Ray puts the folder of the script and the current folder in front of the workers' import path, where a
    user's `detectors.py` or `queue.py` would take the place of ours or of the standard library's.
    """
    configuration = ray.job_config.JobConfig()
    # Ray asks this, and only this, before it adds the two folders (ray/_private/worker.py, connect).
    configuration._runtime_env_has_working_dir = lambda: True
    return configuration
