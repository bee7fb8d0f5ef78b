"""The trainer's end of a loader process: batches in memory that both share, without a copy.

The memory and the socket have no names, so nothing is left of them when the processes end, however they end. The memory
is divided into slots. A slot is free again when nothing refers to the tensors of its batch any more.
"""

import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from mmap import mmap
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.errors import DataError, LoaderError
from data_shards.loading.batch import Batch
from data_shards.loading.batch_arrays import BatchArrays
from data_shards.loading.loader_process import Ended, Failed, Made, Message, Order, Ready
from data_shards.loading.training_batches import Source

logger = logging.getLogger("aweigh")

# Slots with the trainer: the batch that it uses, and the next one that it fetches meanwhile.
_LENT = 2
# A slot's number travels as one byte.
_MOST_PREFETCH = 200
_CLOSING_SECONDS = 5.0
# Not -m: its classes would be named __main__.*, and the pickled messages would not match the trainer's.
_PROGRAM = "from data_shards.loading.loader_process import main; main()"

# Not `Self`, which runtime checkers of annotations do not know.
_Loader = TypeVar("_Loader", bound="RingLoader")


class RingLoader:
    """Batches in order, made ahead by a process of their own.

    A batch's tensors are in the loader's memory, and its slot is not used again while they are kept. If more than two
    batches are kept, the further ones are copies.

    Args:
        source: the batches to make.
        threads: decoding threads of the process.
        prefetch: batches to prepare ahead of the one in use.
    """

    def __init__(self, source: Source[Any], *, threads: int, prefetch: int) -> None:
        for name, value in [("threads", threads), ("prefetch", prefetch)]:
            if value < 1:
                raise DataError(f"{name} is {value}; set it to 1 or more.")
        if prefetch > _MOST_PREFETCH:
            raise DataError(f"prefetch is {prefetch}; set it to {_MOST_PREFETCH} or less.")
        self.wait_seconds = 0.0
        """Time that the caller waited for the last batch."""
        self._process = _Process(Order(source, threads, prefetch + _LENT, os.getpid()))

    @property
    def process_id(self) -> int:
        """Id of the loader process."""
        return self._process.process_id

    def __iter__(self: _Loader) -> _Loader:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            batch = self._process.next()
        except BaseException:
            self.close()
            raise
        if batch is None:
            self.close()
            raise StopIteration
        self.wait_seconds = time.perf_counter() - started
        return batch

    def close(self) -> None:
        """End the loader process and wait for its end. Closing twice is fine."""
        self._process.close()

    def __enter__(self: _Loader) -> _Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Process:
    """The process, and the messages to and from it."""

    def __init__(self, order: Order) -> None:
        self._slots = order.slots
        self._ring: _Ring | None = None
        self._memory = _anonymous_file()
        self._socket, theirs = socket.socketpair()
        with theirs, _anonymous_file() as stdin:
            pickle.dump(order, stdin)
            stdin.seek(0)
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(self._memory.fileno()), str(theirs.fileno())],
                stdin=stdin,
                pass_fds=(self._memory.fileno(), theirs.fileno()),
                env=_environment(),
                start_new_session=True,
            )
        self.process_id = self._popen.pid
        self._messages = self._socket.makefile("rb")
        # Also without a call to close: when the loader is collected, and at the end of the interpreter.
        self._ended = weakref.finalize(self, _end, self._popen, self._socket, self._messages, self._memory)

    def next(self) -> Batch | None:
        """Return the next batch; None after the last one, and after closing."""
        if not self._ended.alive:
            return None
        if self._ring is not None:
            self._ring.take_back()
        message = self._receive()
        if isinstance(message, Ready):
            self._ring = _Ring(self._memory, self._slots, message.slot_bytes, self._socket)
            message = self._receive()
        if isinstance(message, Failed):
            raise (
                DataError(message.message)
                if message.is_data
                else LoaderError(f"the loader process (pid {self.process_id}) failed:\n{message.message}")
            )
        if isinstance(message, Ended):
            return None
        assert isinstance(message, Made)
        assert self._ring is not None
        for note in message.notes:
            logger.warning("%s", note)
        return self._ring.batch(message)

    def close(self) -> None:
        self._ended()

    def _receive(self) -> Message:
        try:
            return pickle.load(self._messages)
        except (EOFError, OSError, pickle.UnpicklingError):
            status = self._popen.wait()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        hint = (
            " The kernel does this when memory runs out; lower data.threads or data.prefetch." if status == -9 else ""
        )
        raise LoaderError(f"the loader process (pid {self.process_id}) {how}.{hint}") from None


class _Ring:
    """The shared memory, and the slots of it that the trainer has."""

    def __init__(self, file: IO[bytes], slots: int, slot_bytes: int, loader: socket.socket) -> None:
        self.memory = mmap(file.fileno(), slots * slot_bytes)
        self._slot_bytes = slot_bytes
        self._loader = loader
        self._lent: set[int] = set()
        self._on_device: list[tuple[int, torch.cuda.Event]] = []
        self._pinned: bool | None = None

    def batch(self, made: Made) -> Batch:
        pages = np.frombuffer(self.memory, np.uint8, self._slot_bytes, made.slot * self._slot_bytes)
        lease = _Lease(self, made.slot)
        # Every array of the slot, and so every tensor and its views, keeps `pages` alive: when it is collected, the
        # slot is free.
        weakref.finalize(pages, lease.end).atexit = False
        self._lent.add(made.slot)
        batch = Batch.over(BatchArrays.over(pages, made.shape), made.epoch, made.step, lease)
        return batch.clone() if len(self._lent) > _LENT else batch

    def give_back(self, slot: int, event: "torch.cuda.Event | None" = None) -> None:
        """Free a slot. Called when its last tensor is collected, in whatever thread that happens."""
        if event is not None and not event.query():  # type: ignore[no-untyped-call]
            self._on_device.append((slot, event))
            return
        self._lent.discard(slot)
        # The loader may be closed or dead already.
        with contextlib.suppress(OSError):
            self._loader.send(bytes([slot]))

    def take_back(self) -> None:
        """Free the slots whose copies to the device were not finished when their tensors were collected."""
        waiting, self._on_device = self._on_device, []
        for slot, event in waiting:
            event.synchronize()
            self.give_back(slot)

    def pin(self) -> bool:
        """Register the memory with CUDA, once. Return False if CUDA refuses it."""
        if self._pinned is None:
            pages = np.frombuffer(self.memory, np.uint8)
            runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            self._pinned = int(runtime.cudaHostRegister(pages.ctypes.data, len(self.memory), 0)) == 0
            if self._pinned:
                # The finalizer holds the pages: a mapping whose own finalizer runs is unmapped by then.
                weakref.finalize(self, _unpin, runtime, pages).atexit = False
            else:
                _take_error()
                logger.warning(
                    "CUDA cannot pin the loader's memory, so each batch is copied once more on its way to the GPU"
                )
        return self._pinned


def _unpin(runtime: Any, pages: NDArray[np.uint8]) -> None:
    """Let CUDA forget the pages, while they are still mapped."""
    if int(runtime.cudaHostUnregister(pages.ctypes.data)) != 0:
        _take_error()


def _take_error() -> None:
    """Take the error that a failed call of the CUDA runtime leaves behind, which the next kernel would raise."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")


class _Lease:
    """The loan of one slot to one batch."""

    def __init__(self, ring: _Ring, slot: int) -> None:
        self._ring, self._slot = ring, slot
        self._event: torch.cuda.Event | None = None

    def pin(self) -> bool:
        return self._ring.pin()

    def in_use_until(self, event: "torch.cuda.Event") -> None:
        self._event = event

    def end(self) -> None:
        self._ring.give_back(self._slot, self._event)


def _end(popen: "subprocess.Popen[bytes]", loader: socket.socket, messages: IO[bytes], memory: IO[bytes]) -> None:
    """Close the socket, which ends the process; kill a process that does not end."""
    messages.close()
    loader.close()
    memory.close()
    try:
        popen.wait(_CLOSING_SECONDS)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()


def _anonymous_file() -> IO[bytes]:
    """Return a file in memory without a name."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("aweigh-loader", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()


def _environment() -> dict[str, str]:
    """Return the environment of this process, with its import path and without threads of numerical libraries."""
    # The loader process must import this very code, whatever is installed.
    ours = str(Path(__file__).resolve().parents[2])
    paths = [ours, *(path for path in sys.path if path and path != ours)]
    return {
        # glibc would return the memory of every image to the kernel, and request it again for the next one.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 29),
        "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
