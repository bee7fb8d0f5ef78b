"""Signals of the driver become a request that workers read; a second one, or the end of the grace, kills them."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from cluster.errors import StoppedError, WorkersFailedError
from cluster.heartbeat import Heartbeat
from cluster.stopping import Control, Stopping, ask_checkpoint, mark_stopped


def test_a_first_signal_asks_and_a_second_one_kills(tmp_path: Path) -> None:
    control, aborted = Control(tmp_path, interval_seconds=0), threading.Event()
    with Stopping(tmp_path, grace_seconds=600, again_seconds=0) as stopping:
        stopping.workers_run(aborted.set)
        assert control.wishes() == []
        assert stopping.error() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert control.wishes() == ["stop"]
        assert not aborted.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert aborted.is_set()
        error = stopping.error()
        assert error is not None
        assert "stopped with SIGTERM before a checkpoint was written" in str(error)
        mark_stopped(tmp_path, 1234)
        error = stopping.error()
        assert error is not None
        assert str(error) == "stopped with SIGTERM at step 1,234; its checkpoint is written"
        assert isinstance(error, StoppedError)
        assert error.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_end_of_the_grace_period_kills(tmp_path: Path) -> None:
    aborted = threading.Event()
    with Stopping(tmp_path, grace_seconds=0.01) as stopping:
        stopping.workers_run(aborted.set)
        os.kill(os.getpid(), signal.SIGINT)
        assert aborted.wait(60)


def test_a_signal_before_there_are_workers_ends_at_once_and_old_requests_are_forgotten(tmp_path: Path) -> None:
    ask_checkpoint(tmp_path)

    def interrupted() -> None:
        with Stopping(tmp_path, grace_seconds=600):
            assert Control(tmp_path).wishes() == []
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(StoppedError, match="Ctrl-C"):
        interrupted()


def test_a_checkpoint_is_asked_for_once(tmp_path: Path) -> None:
    control = Control(tmp_path, interval_seconds=0)
    ask_checkpoint(tmp_path)
    assert control.wishes() == ["save"]
    assert control.wishes() == []


def test_a_ray_that_is_lost_stops_the_workers_and_is_named(tmp_path: Path) -> None:
    def lost() -> None:
        with Stopping(tmp_path, grace_seconds=600) as stopping:
            stopping.workers_run(lambda: None)
            mark_stopped(tmp_path, 7)
            stopping.ray_lost("gcs_server")
            stopping.ray_lost("raylet")
            assert Control(tmp_path).stop_is_asked()
            # Ray does not answer; the main thread is woken after a while.
            threading.Event().wait(300)

    with pytest.raises(WorkersFailedError) as error:
        lost()
    assert str(error.value) == (
        "Ray's gcs_server on this machine ended by itself, killed or out of memory; stopped at step 7; its checkpoint "
        "is written. Run the same command again to resume."
    )
    assert not isinstance(error.value, StoppedError)


def test_a_driver_that_ray_does_not_answer_ends_after_the_checkpoint(tmp_path: Path) -> None:
    def stopped() -> None:
        with Stopping(tmp_path, grace_seconds=600) as stopping:
            stopping.workers_run(lambda: None)
            os.kill(os.getpid(), signal.SIGHUP)
            mark_stopped(tmp_path, 8)
            threading.Event().wait(300)

    with pytest.raises(StoppedError, match=r"^stopped with SIGHUP at step 8; its checkpoint is written$") as error:
        stopped()
    assert error.value.signal == signal.SIGHUP


def test_workers_that_are_gone_are_not_waited_for(tmp_path: Path) -> None:
    Heartbeat(tmp_path, 0, 1, hang_seconds=0).close()
    record = tmp_path / "heartbeats" / "rank-0.json"
    written = json.loads(record.read_text())
    record.write_text(json.dumps({**written, "written": written["written"] - 60}))
    with Stopping(tmp_path, grace_seconds=600) as stopping:
        stopping.workers_run(lambda: None)
        os.kill(os.getpid(), signal.SIGTERM)
        stopping.wait_for_workers()  # returns at once
