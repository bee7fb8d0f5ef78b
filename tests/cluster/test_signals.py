"""Signals of a command and of a worker, in real processes."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from cluster.signals import CheckpointRequest, Interruption, handled, interrupting

_WAIT = "print('ready', flush=True); import time; time.sleep(600)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_interrupts_as_ctrl_c_does_and_is_remembered(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def interrupted() -> None:
        with interrupting() as interruption:
            seen.append(interruption)
            os.kill(os.getpid(), number)

    seen: list[Interruption] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen[0].number == number
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert signal.SIGHUP not in handled()
        with interrupting() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
        assert interruption.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_install_nothing() -> None:
    found: list[tuple[signal.Signals, ...]] = []
    thread = threading.Thread(target=lambda: found.append(handled()))
    thread.start()
    thread.join()
    assert found == [()]


def test_a_worker_survives_every_signal_and_asks_for_a_checkpoint_once() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    request = CheckpointRequest()
    try:
        request.install()
        assert not request.take()
        for number in before:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            assert request.take()
            assert not request.take()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_process_ignores_signals_from_any_of_its_threads() -> None:
    program = (
        "import threading; from cluster.signals import ignore_signals; "
        f"thread = threading.Thread(target=ignore_signals); thread.start(); thread.join(); {_WAIT}"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        process.send_signal(signal.SIGHUP)
        process.kill()
        # Signals that are not ignored would have ended it first: they were sent before.
        assert process.wait() == -signal.SIGKILL
