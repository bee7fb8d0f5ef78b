"""The start of a local Ray: time limits, a second try, the cause in one line. Ray itself is a fake here."""

import subprocess
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest

from cluster import ray_start
from cluster.errors import ClusterError, WorkersFailedError
from cluster.ray_start import (
    RayThread,
    describe_failure,
    last_log_line,
    ray_folder,
    start_ray,
    wait_for_controller,
)


def test_a_start_that_hangs_ends_at_its_limit() -> None:
    released = threading.Event()
    thread = RayThread(released.wait, lambda: None, local=False)
    with pytest.raises(TimeoutError, match="it did not answer within 0 s"):
        thread.start(seconds=0)
    thread.close(seconds=0)
    released.set()


def test_a_process_that_dies_while_ray_starts_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    started: list[subprocess.Popen[bytes]] = []

    def init() -> None:
        started.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        released.wait()  # for an answer of the raylet, which never comes

    def name(process: psutil.Process) -> str:
        if not started or process.pid != started[0].pid:
            return "python"
        # It has been seen, and dies before the next look.
        started[0].kill()
        return "raylet"

    monkeypatch.setattr(ray_start, "_name", name)
    thread = RayThread(init, lambda: None, local=True)
    try:
        with pytest.raises(TimeoutError, match="1 of its processes died while it started"):
            thread.start()
    finally:
        released.set()
    started[0].wait()
    assert started[0].stdin is not None
    started[0].stdin.close()
    thread.close()


def test_ray_is_shut_down_by_the_thread_that_started_it() -> None:
    threads: list[int] = []
    thread = RayThread(
        lambda: threads.append(threading.get_ident()), lambda: threads.append(threading.get_ident()), local=True
    )
    thread.start()
    thread.close()
    assert len(threads) == 2
    assert threads[0] == threads[1] != threading.get_ident()


def test_a_failed_start_is_tried_once_more(tmp_path: Path) -> None:
    tries: list[int] = []

    def init() -> None:
        tries.append(len(tries))
        if len(tries) == 1:
            raise RuntimeError("The current node timed out during startup.")

    start_ray(lambda: RayThread(init, lambda: None, local=True), tmp_path).close()
    assert tries == [0, 1]


def test_a_start_that_fails_twice_tells_the_cause_and_nothing_about_clusters(tmp_path: Path) -> None:
    logs = tmp_path / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.err").write_text("first\n[2026 E] Timed out waiting for file metrics_agent_port.\n")

    def init() -> None:
        raise RuntimeError("Traceback\nThe current node timed out during startup.")

    with pytest.raises(ClusterError) as error:
        start_ray(lambda: RayThread(init, lambda: None, local=True), tmp_path)
    text = str(error.value)
    assert text.startswith("Ray did not start on this machine: The current node timed out during startup. ")
    assert "The last line of its raylet.err is: [2026 E] Timed out waiting for file metrics_agent_port. " in text
    assert text.endswith(f"Ray's logs are in {logs}.")
    assert "token" not in text
    assert "head" not in text


@pytest.mark.parametrize(
    ("cause", "load", "advice"),
    [
        ("timed out", 60.0, "The machine is busy (load 60 on 2 cores): try again when it has less work"),
        ("No space left on device", 1.0, "Free some space in "),
        ("anything else", 1.0, "set RAY_TMPDIR to another short folder"),
    ],
)
def test_the_advice_fits_the_cause(cause: str, load: float, advice: str, tmp_path: Path) -> None:
    assert advice in describe_failure(cause, tmp_path, load, 2)


def test_errors_of_a_log_are_found_among_its_lines(tmp_path: Path) -> None:
    assert last_log_line(tmp_path) == ""
    (tmp_path / "raylet.out").write_text("[x I y] fine\n[x C y] Check failed: port.\n[x I y] ending\n")
    assert last_log_line(tmp_path) == "The last line of its raylet.out is: [x C y] Check failed: port"
    (tmp_path / "raylet.err").write_text("\n")
    assert last_log_line(tmp_path).startswith("The last line of its raylet.out")


def test_a_long_folder_for_temporary_files_is_replaced_by_a_short_one(tmp_path: Path) -> None:
    long = tmp_path / ("a" * 60)
    long.mkdir()
    assert ray_folder({"TMPDIR": str(long)}) in (Path("/tmp/ray"), Path("/var/tmp/ray"), Path("/dev/shm/ray"))
    assert ray_folder({"TMPDIR": "/var/tmp"}) == Path("/var/tmp/ray")
    assert ray_folder({"RAY_TMPDIR": "/dev/shm", "TMPDIR": "/tmp"}) == Path("/dev/shm/ray")
    with pytest.raises(ClusterError, match=r"^RAY_TMPDIR=.* is too long for the sockets of Ray"):
        ray_folder({"RAY_TMPDIR": str(long)})


def test_another_users_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_start, "_writable", lambda folder: not str(folder).endswith("/ray"))
    assert ray_folder({"RAY_TMPDIR": "/t"}).name.startswith("ray-")
    monkeypatch.setattr(ray_start, "_writable", lambda folder: False)
    with pytest.raises(ClusterError, match=r"cannot be written or is too long\. Set RAY_TMPDIR"):
        ray_folder({"TMPDIR": "/t"})


def test_a_process_of_ray_that_ends_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    told: SimpleQueue[str] = SimpleQueue()

    def init() -> None:
        started.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))

    monkeypatch.setattr(ray_start, "_name", lambda process: "raylet" if process.pid == started[0].pid else "python")
    thread = RayThread(init, lambda: None, local=True, lost=told.put)
    thread.start()
    started[0].kill()
    assert told.get(timeout=300) == "raylet"
    thread.close()
    assert told.empty()
    started[0].wait()
    assert started[0].stdin is not None
    started[0].stdin.close()


class _Ray:
    """Ray's `wait`, with an actor that answers within `after` seconds."""

    def __init__(self, after: float) -> None:
        self.after = after
        self.__ray_ready__ = self

    def remote(self) -> str:
        return "reference"

    def wait(self, references: list[str], timeout: float) -> tuple[list[str], list[str]]:
        return (references, []) if self.after <= timeout else ([], references)


def test_a_controller_that_never_answers_ends_in_one_line_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.5, 0.5, 0.5))
    silent, prompt = _Ray(after=1000), _Ray(after=3)
    wait_for_controller(prompt, prompt, tmp_path, seconds=30)
    with pytest.raises(WorkersFailedError) as without_words:
        wait_for_controller(silent, silent, tmp_path, seconds=30)
    (tmp_path / "worker-1-01000000-17.err").write_text(":job_id:01\n:actor_name:RayTrainWorker\nsomething else\n")
    (tmp_path / "worker-2-01000000-18.err").write_text(
        ":job_id:01\n:actor_name:TrainController\nusage: queue.py [-h] FILE\nqueue.py: error: FILE is missing.\n\n"
    )
    with pytest.raises(WorkersFailedError) as with_words:
        wait_for_controller(silent, silent, tmp_path, seconds=30)
    silence = "Ray Train's controller did not answer within 30 s, so no worker was started."
    advice = (
        "Run the same command again; if it stays silent, look there for a file that its process waits for. Its log is "
        f"among worker-*.err in {tmp_path}."
    )
    assert str(without_words.value) == f"{silence} {advice}"
    words = "The last line that it printed is: queue.py: error: FILE is missing."
    assert str(with_words.value) == f"{silence} {words} {advice}"


def test_a_controller_of_a_busy_machine_needs_less_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (50.0, 50.0, 50.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    silent = _Ray(after=1000)
    with pytest.raises(WorkersFailedError, match=r"The machine is busy \(load 50 on 2 cores\): try again when it has"):
        wait_for_controller(silent, silent, tmp_path)
