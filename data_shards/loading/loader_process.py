"""The process that makes the batches of one rank, started by `shared_memory.py`.

It never imports torch. Threads decode into slots of memory that the trainer maps too. A few bytes in a socket hand a
batch over, in order, and the same socket returns slots that are free again. This process ends at once when the trainer
closes its end or dies.
"""

import contextlib
import os
import pickle
import resource
import select
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from mmap import mmap
from queue import LifoQueue, SimpleQueue
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DataError
from data_shards.loading.batch_arrays import BatchShape
from data_shards.loading.training_batches import FillRow, Source, Work
from data_shards.reading.samples import Samples

_PAGE = 4096
_CLOSING_SECONDS = 2.0


@dataclass(frozen=True)
class Order:
    """The trainer's order, read from standard input."""

    source: Source[Any]
    threads: int
    slots: int
    trainer: int
    """The trainer's process id."""


@dataclass(frozen=True)
class Ready:
    """The memory has its size; batches follow."""

    slot_bytes: int


@dataclass(frozen=True)
class Made:
    """A batch is in a slot."""

    slot: int
    shape: BatchShape
    epoch: int
    step: int
    notes: tuple[str, ...]
    """Lines for the log."""


@dataclass(frozen=True)
class Failed:
    """A batch could not be made."""

    message: str
    is_data: bool
    """True if the data is at fault and the message says all; else the message is a traceback."""


@dataclass(frozen=True)
class Ended:
    """There are no more batches."""


Message = Ready | Made | Failed | Ended


class _Batch:
    """A batch in the making: each thread takes the next row until there is none."""

    def __init__(self, work: Work, slot: int, memory: NDArray[np.uint8]) -> None:
        self.work, self.slot = work, slot
        self._memory = memory
        self._lock = threading.Lock()
        self._rows = count()
        self._left = work.rows
        self._prepared: tuple[BatchShape, FillRow] | None = None
        self._errors: dict[int, Exception] = {}

    def help(self, stop: threading.Event) -> bool:
        """Fill rows. Return True if this thread finished the batch."""
        finished = False
        while not stop.is_set() and (row := next(self._rows)) < self.work.rows:
            try:
                self._fill_of()(row)
            except Exception as error:
                self._errors[row] = error
            with self._lock:
                self._left -= 1
                finished = self._left == 0
        return finished

    @property
    def finished(self) -> bool:
        """True if every row is filled or has failed."""
        return self._left == 0

    def message(self, samples: Samples) -> Message:
        """Return the message for the trainer: the batch, or the error of its first bad row."""
        if self._errors:
            return _failed(self._errors[min(self._errors)])
        assert self._prepared is not None
        notes = tuple(samples.take_notes())
        return Made(self.slot, self._prepared[0], self.work.epoch, self.work.step, notes)

    def _fill_of(self) -> FillRow:
        # The first thread that gets here prepares the batch; the others wait for it.
        with self._lock:
            if self._prepared is None:
                self._prepared = self.work.prepare(self._memory)
            return self._prepared[1]


class _Maker:
    """Works through a source: one thread starts the batches, the others fill rows."""

    def __init__(
        self,
        order: Order,
        samples: Samples,
        memory: NDArray[np.uint8],
        free: "LifoQueue[int]",
        trainer: socket.socket,
    ) -> None:
        self._order, self._samples, self._memory, self._trainer = order, samples, memory, trainer
        self._free = free
        self._tasks: SimpleQueue[_Batch | None] = SimpleQueue()
        self._in_order: deque[_Batch | Message] = deque()
        self._delivering = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._fill, daemon=True) for _ in range(order.threads)]

    def run(self) -> None:
        """Make every batch. Return when the last one is handed over or in the making."""
        for slot in range(self._order.slots):
            self._free.put(slot)
        for thread in self._threads:
            thread.start()
        last: Message = Ended()
        try:
            for work in self._order.source.batches(self._samples):
                slot = self._free.get()
                batch = _Batch(work, slot, self._memory[slot])
                self._in_order.append(batch)
                for _ in range(min(self._order.threads, work.rows)):
                    self._tasks.put(batch)
        except Exception as error:
            last = _failed(error)
        self._in_order.append(last)
        self._deliver()

    def close(self) -> None:
        """Stop: wait for the rows in the making, but not for long."""
        self._stop.set()
        self._samples.close()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_CLOSING_SECONDS / len(self._threads))

    def _fill(self) -> None:
        while not self._stop.is_set() and (batch := self._tasks.get()) is not None:
            if batch.help(self._stop):
                self._deliver()

    def _deliver(self) -> None:
        """Hand over finished batches, in order."""
        # Without the lock, two threads that finish batches at the same time could send them in the wrong order.
        with self._delivering:
            while self._in_order:
                first = self._in_order[0]
                if isinstance(first, _Batch):
                    if not first.finished:
                        return
                    first = first.message(self._samples)
                self._in_order.popleft()
                send(self._trainer, first)
                if isinstance(first, Made):
                    self._order.source.made(self._samples, first.step)


def main() -> None:
    """Make batches; the arguments are the descriptors of the shared memory and of the socket, both inherited."""
    memory_descriptor, trainer_descriptor = map(int, sys.argv[1:])
    # Signals may reach every process of a terminal or job. The trainer decides what they mean, and closes the socket.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _allow_files()
    trainer = socket.socket(fileno=trainer_descriptor)
    order: Order = pickle.load(sys.stdin.buffer)
    # Last in, first out: the slot freed last may still be in the processor's cache, and memory of slots that are never
    # needed is never touched.
    free: LifoQueue[int] = LifoQueue()
    at_end = ExitStack()
    threading.Thread(target=_listen, args=(trainer, order.trainer, free, at_end), daemon=True).start()
    # OpenCV's own threads would compete with ours for the same cores.
    cv2.setNumThreads(1)
    try:
        samples = order.source.open()
        size = max(1, order.source.slot_bytes(samples))
    except Exception as error:
        send(trainer, _failed(error))
    else:
        slot_bytes = -(-size // _PAGE) * _PAGE
        os.ftruncate(memory_descriptor, order.slots * slot_bytes)
        memory = np.frombuffer(mmap(memory_descriptor, order.slots * slot_bytes), dtype=np.uint8)
        maker = _Maker(order, samples, memory.reshape(order.slots, slot_bytes), free, trainer)
        at_end.callback(maker.close)
        send(trainer, Ready(slot_bytes))
        maker.run()
    # The trainer may still have to read from the socket, so it decides when this process ends (`_listen`).
    threading.Event().wait()


def _allow_files() -> None:
    """Raise the limit of open files as far as allowed: there may be thousands of shards and decoded images."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems allow less than they report
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def send(receiver: socket.socket, message: Message) -> None:
    """Send a message. `_listen` notices a receiver that is gone."""
    with contextlib.suppress(OSError):
        receiver.sendall(pickle.dumps(message))


def _listen(trainer: socket.socket, trainer_process: int, free: "LifoQueue[int]", at_end: ExitStack) -> None:
    """Take free slots back until the trainer closes or dies; then end this process, whatever it is doing."""
    poller = select.poll()
    poller.register(trainer, select.POLLIN)
    # A process that the trainer forked may hold its end of the socket open, so its life is watched as well.
    with contextlib.suppress(OSError, AttributeError):
        poller.register(os.pidfd_open(trainer_process), select.POLLIN)
    while os.getppid() == trainer_process:
        ready = [descriptor for descriptor, _ in poller.poll()]
        if trainer.fileno() not in ready:
            break
        try:
            slots = trainer.recv(4096)
        except OSError:
            break
        if not slots:
            break
        for slot in slots:
            free.put(slot)
    try:
        at_end.close()
    finally:
        os._exit(0)


def _failed(error: Exception) -> Failed:
    if isinstance(error, DataError):
        return Failed(str(error), is_data=True)
    return Failed("".join(traceback.format_exception(error)), is_data=False)
