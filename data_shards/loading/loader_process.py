"""The process that makes the batches of one rank, started by `ring`.

It never imports torch. Threads decode into slots of memory that the trainer maps, too; a batch is handed over, in
order, by a few bytes in a socket, and the same socket brings back slots that are free again. When the trainer closes
its end, or is gone, this process ends at once.
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
    """What the trainer wants, as it comes in through standard input."""

    source: Source[Any]
    threads: int
    slots: int
    trainer: int
    """The trainer's process id."""


@dataclass(frozen=True)
class Ready:
    """The memory is laid out."""

    slot_bytes: int


@dataclass(frozen=True)
class Made:
    """A batch lies in a slot."""

    slot: int
    shape: BatchShape
    epoch: int
    step: int
    notes: tuple[str, ...]
    """Lines for the log."""


@dataclass(frozen=True)
class Failed:
    """This batch cannot be made."""

    message: str
    is_data: bool
    """Whether the data is to blame, so that the message says all; else it is a traceback."""


@dataclass(frozen=True)
class Ended:
    """There are no more batches."""


Message = Ready | Made | Failed | Ended


class _Batch:
    """A batch that threads are at: each takes the next row until there is none."""

    def __init__(self, work: Work, slot: int, memory: NDArray[np.uint8]) -> None:
        self.work, self.slot = work, slot
        self._memory = memory
        self._lock = threading.Lock()
        self._rows = count()
        self._left = work.rows
        self._prepared: tuple[BatchShape, FillRow] | None = None
        self._errors: dict[int, Exception] = {}

    def help(self, stop: threading.Event) -> bool:
        """Fill rows; whether the batch is finished now."""
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
        """Whether every row is filled, or cannot be."""
        return self._left == 0

    def message(self, samples: Samples) -> Message:
        """What the trainer is told: the batch, or the error of its first bad row."""
        if self._errors:
            return _failed(self._errors[min(self._errors)])
        assert self._prepared is not None
        notes = tuple(samples.take_notes())
        return Made(self.slot, self._prepared[0], self.work.epoch, self.work.step, notes)

    def _fill_of(self) -> FillRow:
        with self._lock:
            if self._prepared is None:
                self._prepared = self.work.prepare(self._memory)
            return self._prepared[1]


class _Maker:
    """Works through a source: one thread decides what is next, the others fill rows."""

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
        """Make every batch; comes back when the last one was handed over."""
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
        """Leave the rest undone: wait for the rows that threads are at, but not for long."""
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
        """Hand over what is finished and next in order."""
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
    # Ctrl-C goes to every process of a terminal; the trainer decides what it means for its loader.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _allow_files()
    trainer = socket.socket(fileno=trainer_descriptor)
    order: Order = pickle.load(sys.stdin.buffer)
    # The slot that was free last may still be in the processor's cache, and ones that nobody needs are never touched.
    free: LifoQueue[int] = LifoQueue()
    at_end = ExitStack()
    threading.Thread(target=_listen, args=(trainer, order.trainer, free, at_end), daemon=True).start()
    # OpenCV's own threads would fight with ours for the same cores.
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
    # Whatever the trainer still waits for is in the socket; it says when this process may go.
    threading.Event().wait()


def _allow_files() -> None:
    """Have as many files open as the system lets us: shards and their decoded images may be thousands."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def send(receiver: socket.socket, message: Message) -> None:
    """Send a message; a receiver that is gone is noticed elsewhere."""
    with contextlib.suppress(OSError):
        receiver.sendall(pickle.dumps(message))


def _listen(trainer: socket.socket, trainer_process: int, free: "LifoQueue[int]", at_end: ExitStack) -> None:
    """Take free slots back until the trainer closes or dies, and end this process then, whatever it is doing."""
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
