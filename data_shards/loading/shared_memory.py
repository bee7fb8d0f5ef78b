"""The trainer's end of a loader process: batches come out of memory that both share, without a copy.

The memory and the socket have no names: nothing is left of them when the processes are gone, however they end. The
memory is cut into slots, used in turn; a slot is free again when nothing refers to the tensors of its batch any more.
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
from typing import IO, Any, Self

import numpy as np
import torch

from data_shards.errors import DataError, LoaderError
from data_shards.loading.batch import Batch
from data_shards.loading.batch_arrays import BatchArrays
from data_shards.loading.loader_process import Ended, Failed, Made, Message, Order, Ready
from data_shards.loading.training_batches import Source

logger = logging.getLogger("aweigh")

# One that the trainer uses, and one that it is given meanwhile.
_LENT = 2
_MOST_PREFETCH = 200
_CLOSING_SECONDS = 5.0
# Not -m, which would give its classes other names than the ones that the trainer knows.
_PROGRAM = "from data_shards.loading.loader_process import main; main()"


class RingLoader:
    """Batches in order, made ahead by a process of their own.

    A batch's tensors lie in the loader's memory; while they are kept, their slot is not used again. More than two
    batches at once are copies.

    Args:
        source: which batches.
        threads: how many of the process decode at the same time.
        prefetch: how many batches are worked on ahead of the one that is used.
    """

    def __init__(self, source: Source[Any], *, threads: int, prefetch: int) -> None:
        for name, value in [("threads", threads), ("prefetch", prefetch)]:
            if value < 1:
                raise DataError(f"{name} is {value}; set it to 1 or more.")
        if prefetch > _MOST_PREFETCH:
            raise DataError(f"prefetch is {prefetch}; set it to {_MOST_PREFETCH} or less.")
        self.wait_seconds = 0.0
        """How long the last batch was waited for."""
        self._process = _Process(Order(source, threads, prefetch + _LENT, os.getpid()))

    @property
    def process_id(self) -> int:
        """Of the loader process."""
        return self._process.process_id

    def __iter__(self) -> Self:
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
        """End the loader process and wait until it is gone. Closing twice is fine."""
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Process:
    """The process, and what is exchanged with it."""

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
        # Also when nobody closes: with the loader itself, and at the end of the interpreter.
        self._ended = weakref.finalize(self, _end, self._popen, self._socket, self._messages, self._memory)

    def next(self) -> Batch | None:
        """The next batch; None after the last, and after closing."""
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
            " The kernel does that when memory runs out; lower data.threads or data.prefetch." if status == -9 else ""
        )
        raise LoaderError(f"the loader process (pid {self.process_id}) {how}.{hint}") from None


class _Ring:
    """The shared memory, and which of its slots are lent."""

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
        # Every array of the slot, and so every tensor and its views, keeps `pages` alive.
        weakref.finalize(pages, lease.end).atexit = False
        self._lent.add(made.slot)
        batch = Batch.over(BatchArrays.over(pages, made.shape), made.epoch, made.step, lease)
        return batch.clone() if len(self._lent) > _LENT else batch

    def give_back(self, slot: int, event: "torch.cuda.Event | None" = None) -> None:
        """Called when the last tensor of a slot goes, in whatever thread that happens."""
        if event is not None and not event.query():  # type: ignore[no-untyped-call]
            self._on_device.append((slot, event))
            return
        self._lent.discard(slot)
        # Where the loader is closed, or its death is about to be noticed, there is nobody to tell.
        with contextlib.suppress(OSError):
            self._loader.send(bytes([slot]))

    def take_back(self) -> None:
        """Free the slots whose copies to the device were still under way."""
        waiting, self._on_device = self._on_device, []
        for slot, event in waiting:
            event.synchronize()
            self.give_back(slot)

    def pin(self) -> bool:
        """Register the memory with CUDA, once; False where CUDA does not take it."""
        if self._pinned is None:
            address = np.frombuffer(self.memory, np.uint8).ctypes.data
            runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            self._pinned = int(runtime.cudaHostRegister(address, len(self.memory), 0)) == 0
            if self._pinned:
                weakref.finalize(self.memory, runtime.cudaHostUnregister, address)
            else:
                logger.warning("CUDA does not pin the loader's memory: batches are copied once more on their way")
        return self._pinned


class _Lease:
    """One batch's claim on its slot."""

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
    """The process ends when its socket does; one that does not is killed."""
    messages.close()
    loader.close()
    memory.close()
    try:
        popen.wait(_CLOSING_SECONDS)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()


def _anonymous_file() -> IO[bytes]:
    """A file in memory without a name."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("aweigh-loader", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()


def _environment() -> dict[str, str]:
    """This process's own, with imports as it has them, and no threads that nobody needs."""
    ours = str(Path(__file__).resolve().parents[2])
    paths = [ours, *(path for path in sys.path if path and path != ours)]
    return {
        # glibc would give the memory of every image back to the kernel, and fetch it again for the next.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 29),
        "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
