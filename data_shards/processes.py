"""Work on several processes, in order, none of which outlives the one that started them."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

# A process takes seconds to start, longer where it imports torch; less work than this is not worth another one.
BYTES_WORTH_A_PROCESS = 40_000_000

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def run_in_processes(work: Callable[[_Job], _Result], jobs: Sequence[_Job], processes: int) -> Iterator[_Result]:
    """The result of each job, in their order; in this process where one is enough.

    Args:
        work: a function of a module, as processes find it by name.
        jobs: what each call is given; sent to the processes.
        processes: at most so many.
    """
    if processes == 1 or len(jobs) <= 1:
        yield from map(work, jobs)
        return
    # Forking a process that has threads (a test runner, Ray, torch) can deadlock the child.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context, initializer=_end_with_the_parent) as pool:
        yield from pool.map(work, jobs)


def _end_with_the_parent() -> None:
    """A pool's process waits for work for ever, even when the process that would give it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
