"""Signals that ask a process to stop: Ctrl-C, SIGTERM and SIGHUP.

Unusual here: handlers raise KeyboardInterrupt, whatever the signal. Ray's blocking calls pass on this exception only;
any other one that a handler raises inside them is lost.
"""

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}


class Interruption:
    """The last signal that was received; None before the first."""

    number: int | None = None


@contextmanager
def interrupting() -> Iterator[Interruption]:
    """Raise KeyboardInterrupt in the block for each of the signals.

    Without a handler, the kernel ignores SIGTERM and SIGHUP for process 1 of a container.
    """
    interruption = Interruption()

    def received(number: int, frame: FrameType | None) -> None:
        interruption.number = number
        raise KeyboardInterrupt

    before = {number: signal.signal(number, received) for number in handled()}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def handled() -> tuple[signal.Signals, ...]:
    """Return the signals to handle here: SIGHUP stays ignored under nohup."""
    # Python allows handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        return ()
    # Not so for SIGINT, which shells ignore in background jobs without a word.
    return tuple(one for one in NAMES if one != signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN)


def install_again() -> None:
    """Install Python's handlers again, after a library has replaced them in C."""
    for number in handled():
        if callable(handler := signal.getsignal(number)):
            signal.signal(number, handler)


class CheckpointRequest:
    """The request for a checkpoint that a signal makes of a worker, which survives the signal.

    systemd, Slurm and container runtimes may signal every process of a job at once. The driver decides about the end.
    """

    def __init__(self) -> None:
        self._asked = False

    def install(self) -> None:
        """Handle the signals in this process; a second one after the request was taken is handled likewise."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._received)

    def take(self) -> bool:
        """Return True once for each request."""
        asked, self._asked = self._asked, False
        return asked

    def _received(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


checkpoint_request = CheckpointRequest()
"""Of this worker process."""


def take_signals_as_requests() -> None:
    """Make this worker survive SIGTERM and SIGHUP, and ask for a checkpoint instead; runs in its main thread."""
    checkpoint_request.install()


def ignore_signals() -> None:
    """Ignore SIGTERM and SIGHUP in this process, from any of its threads."""
    # In C, since Python allows handlers in the main thread only, which may never run Python code here.
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    for number in (signal.SIGTERM, signal.SIGHUP):
        libc.signal(int(number), int(signal.SIG_IGN))
