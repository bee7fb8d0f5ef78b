"""Run work in several processes that never outlive the process that started them; results come in order."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

# A process takes seconds to start, longer if it imports torch; less work than this does not pay for one.
BYTES_WORTH_A_PROCESS = 40_000_000

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def run_in_processes(work: Callable[[_Job], _Result], jobs: Sequence[_Job], processes: int) -> Iterator[_Result]:
    """Yield the result of each job, in the order of the jobs. A single job or process runs here.

    Args:
        work: a module-level function, because processes find it by name.
        jobs: the argument of each call; must be picklable.
        processes: most processes to start.
    """
    if processes == 1 or len(jobs) <= 1:
        yield from map(work, jobs)
        return
    # Forking a process that has threads (a test runner, Ray, torch) can deadlock the child.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context, initializer=_end_with_the_parent) as pool:
        yield from pool.map(work, jobs)


def _end_with_the_parent() -> None:
    """End this process with its parent. A pool's process would wait for work forever after its parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
