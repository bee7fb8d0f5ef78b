"""Signals of the driver become a request that workers read; the second one, or the end of the grace, is force."""

import os
import signal
import threading
from pathlib import Path

import pytest

from cluster.errors import ClusterError, StoppedError
from cluster.settings import ClusterSettings
from cluster.stopping import Control, Stopping, ask_checkpoint, mark_stopped
from cluster.workers import dividing_worlds


def test_a_first_signal_asks_and_a_second_one_ends(tmp_path: Path) -> None:
    control, aborted = Control(tmp_path, interval_seconds=0), threading.Event()
    with Stopping(tmp_path, grace_seconds=600) as stopping:
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
        assert str(error) == "stopped with SIGTERM at step 1,234, its checkpoint is written"
        assert error.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_end_of_the_grace_is_force(tmp_path: Path) -> None:
    aborted = threading.Event()
    with Stopping(tmp_path, grace_seconds=0.01) as stopping:
        stopping.workers_run(aborted.set)
        os.kill(os.getpid(), signal.SIGINT)
        assert aborted.wait(60)


def test_a_signal_before_there_are_workers_ends_at_once_and_old_requests_are_forgotten(tmp_path: Path) -> None:
    ask_checkpoint(tmp_path)
    with Stopping(tmp_path, grace_seconds=600):
        assert Control(tmp_path).wishes() == []
        with pytest.raises(StoppedError, match="Ctrl-C"):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_checkpoint_is_asked_for_once(tmp_path: Path) -> None:
    control = Control(tmp_path, interval_seconds=0)
    ask_checkpoint(tmp_path)
    assert control.wishes() == ["save"]
    assert control.wishes() == []


def test_elastic_worlds_divide_the_batch() -> None:
    assert dividing_worlds(24, ClusterSettings(workers="2:8")) == (2, 3, 4, 6, 8)
    with pytest.raises(ClusterError, match="divides among no number of workers from 5 to 7"):
        dividing_worlds(24 + 1 - 2, ClusterSettings(workers="5:7"))


def test_workers_are_a_number_or_a_range() -> None:
    assert ClusterSettings(workers="4").workers == 4
    assert not ClusterSettings(workers=4).elastic
    elastic = ClusterSettings(workers="2:8")
    assert (elastic.min_workers, elastic.max_workers, elastic.elastic) == (2, 8, True)
    for wrong in ("two", "8:2", "0:3", "2:2", "1.5"):
        with pytest.raises(ClusterError, match=r"cluster\.workers is .*2:8"):
            ClusterSettings(workers=wrong)
    with pytest.raises(ClusterError, match=r"cluster\.workers is 0; it must be 1 or more"):
        ClusterSettings(workers=0)
