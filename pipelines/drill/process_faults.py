"""Processes that are killed, frozen or asked to stop."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from cluster.heartbeat import read_standing
from pipelines import console
from pipelines.drill.fault import fault
from pipelines.drill.runs import Course, DrillError, running


@fault("worker-kill", "kill -9 of a worker; Ray replaces it")
def worker_kill(course: Course, name: str) -> None:
    """Restart the group from the newest checkpoint, and print how long each part of the recovery took."""
    with running(course.start(name)) as attempt:
        attempt.wait_for_step(course.steps // 2 + 1)
        killed = time.time()
        attempt.kill_worker()
        attempt.finish_resumed()
    standing = read_standing(attempt.folder, 0)
    noticed = attempt.first_time(r" stops: ", killed)
    started = standing.started if standing else noticed
    resumed = attempt.first_time(r"^resumed ", killed)
    stepped = attempt.first_time(r"^step ", resumed)
    console.say(
        "recovery",
        f"{stepped - killed:.1f} s from the kill to the next step: detection {noticed - killed:.1f}, restart "
        f"{started - noticed:.1f}, load {resumed - started:.1f}, first batch and step {stepped - resumed:.1f}",
    )


@fault("worker-hang", "a worker freezes (SIGSTOP); it is named after 60 s and all workers restart")
def worker_hang(course: Course, name: str) -> None:
    """Name the frozen worker, which began the fewest phases; the others wait for it inside a collective."""
    with running(course.start(name, "--cluster.hang_seconds", "60")) as attempt:
        attempt.wait_for_step(course.steps // 2 + 1)
        attempt.workers()[-1].suspend()
        attempt.wait_for(r"^hung      worker 1 on ")
        attempt.finish_resumed()


@fault("driver-kill", "kill -9 of the command; the same command again")
def driver_kill(course: Course, name: str) -> None:
    """Lose Ray and all workers with their driver; no process may be left."""
    with running(course.start(name)) as attempt:
        attempt.wait_for_step(course.steps // 2 + 1)
        attempt.kill_driver()
    with running(course.start(name)) as attempt:
        attempt.finish_resumed()


@fault("sigterm-everyone", "SIGTERM of every process at once, as systemd and Slurm do; the same command again")
def sigterm_everyone(course: Course, name: str) -> None:
    """Write a checkpoint although Ray's own processes end, and end without waiting for them."""
    with running(course.start(name)) as attempt:
        attempt.wait_for_step(course.steps // 2 + 1)
        command = psutil.Process(attempt.process.pid)
        for process in [*command.children(recursive=True), command]:
            # Some end because of the signals to others.
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        attempt.finish(status=128 + signal.SIGTERM)
    _resume_without_loss(course, name)


@fault("sighup", "SIGHUP of the command, as a terminal that is closed; the same command again")
def sighup(course: Course, name: str) -> None:
    """Write a checkpoint before the end, so that no step is repeated."""
    with _hang_ups_not_ignored():
        started = course.start(name)
    with running(started) as attempt:
        attempt.wait_for_step(course.steps // 2 + 1)
        attempt.process.send_signal(signal.SIGHUP)
        attempt.finish(status=128 + signal.SIGHUP)
    _resume_without_loss(course, name)


@fault("sigterm", "SIGTERM of the command, as `ray job stop` and Kubernetes do; the same command again")
def sigterm(course: Course, name: str) -> None:
    """Write a checkpoint before the end, so that no step is repeated."""
    with running(course.start(name)) as attempt:
        attempt.wait_for_step(course.steps // 2 + 1)
        attempt.terminate()
        attempt.finish(status=128 + signal.SIGTERM)
    _resume_without_loss(course, name)


@fault("kill-while-tracking-database-is-made", "kill -9 of the command while MLflow's SQLite file is made; again")
def kill_while_tracking_database_is_made(course: Course, name: str) -> None:
    """Leave a half-made database, which must not be in the way of the next attempt."""
    # A database of its own: that of the other runs exists already.
    place = ("--tracking.uri", f"sqlite:///{course.folder / name}.db")
    with running(course.start(name, *place)) as attempt:
        while not any(course.folder.glob(f".{name}.db.*.part")):
            if attempt.process.poll() is not None:
                raise DrillError(f"no database was made; the last lines are: {' | '.join(attempt.lines[-3:])}")
            time.sleep(0.01)
        attempt.kill_driver()
    with running(course.start(name, *place)) as attempt:
        attempt.finish()


def _resume_without_loss(course: Course, name: str) -> None:
    with running(course.start(name)) as attempt:
        attempt.wait_for(r"^lost      nothing")
        attempt.finish()


@contextmanager
def _hang_ups_not_ignored() -> Iterator[None]:
    """Start the block's processes without nohup, even if the drill itself runs under it: they would inherit that."""
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
