"""The numbered parts of a job, run by Ray Data's actors on the cluster at hand, each part once.

Unusual here: whoever runs a part writes its result under a name of its own, whole or not at all, so that a part may
safely begin more than once. Ray Data restarts a lost actor, elsewhere if need be, and runs its parts again, without an
end; a ledger beside the driver counts how often each part began, so that one that kills its worker is reported by name.
"""

import logging
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch

from cluster.counting import counted
from cluster.errors import ClusterError, WorkersFailedError
from cluster.local import connected
from cluster.placement import alive_nodes
from cluster.settings import ClusterSettings

RunPart = Callable[[Any], Any]
"""Runs the work of one part; returns a small value for the driver."""
MakeWorker = Callable[[Any, torch.device], RunPart]
"""Runs once in each worker, with the shared value and the worker's device; an importable function."""

_MOST_BEGINNINGS = 3
"""Times that a part begins before it counts as one that kills its worker. Spot instances are lost now and then."""
_QUEUED = 2
"""Parts that a worker holds at a time: the second one starts without a round trip to the driver."""
# More cores than these are better spent on more workers.
_MOST_CPUS = {"cpu": 8, "cuda": 4}
CLUSTER = "the cluster"
_NOTE_SECONDS = 30.0
_MOST_NAMED = 5


class PartsFailedError(WorkersFailedError):
    """Some parts could not be finished; the results of the others are kept."""


@dataclass(frozen=True)
class Part:
    """One piece of a job."""

    number: int
    """Different for each part of the job."""
    name: str
    """Its name in messages, such as "images 1 to 500"."""
    work: Any
    """The input of the worker's function, pickled; names of images rather than their bytes."""


@dataclass(frozen=True)
class Node:
    """CPUs and GPUs of one machine of a cluster."""

    cpus: float
    gpus: float = 0.0


def run_parts(
    make_worker: MakeWorker,
    parts: Iterable[Part],
    *,
    workers: int,
    shared: Any = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    say: Callable[[str, str], object] = lambda topic, text: None,
) -> Generator[tuple[Part, Any], None, None]:
    """Run every part on one of `workers` actors; yield each when it ends, with the value that its worker returned.

    The workers end with the iterator: with its last part, when it is closed, or when a signal interrupts it.

    Args:
        make_worker: makes the function that runs parts, once in each actor.
        parts: the parts to run; leave out those that an earlier attempt finished.
        workers: number of actors.
        shared: passed to every `make_worker`; travels once, through Ray's object store.
        device: kind of device that a worker takes; auto is a GPU if the cluster has any.
        say: receives topic and text of lines for people, about the workers and what became of them.

    Raises:
        ClusterError: there is no cluster, or it has too few CPUs or GPUs for the workers.
        PartsFailedError: parts killed their worker again and again, or a process of Ray ended.
        Exception: the first exception that a part or `make_worker` raised, with the worker's traceback as a note.
    """
    open_parts = {part.number: part for part in parts}
    if not open_parts:
        return
    workers = min(workers, len(open_parts))
    here = local_share(workers, os.cpu_count() or 1)
    address = os.environ.get("RAY_ADDRESS")
    # A cluster that runs already is asked below, in words that fit; a Ray that starts here is made large enough.
    settings = ClusterSettings(workers=1) if address else ClusterSettings(workers=workers, cpus_per_worker=here)
    with _ending_with_ray() as lost, _connected_quietly(settings, lost) as ray:
        nodes = [_node(record) for record in alive_nodes(ray)]
        gpu = device == "cuda" or (device == "auto" and any(node.gpus >= 1 for node in nodes))
        cpus = check_placement(nodes, workers, gpu=gpu, where=CLUSTER if address else "this machine")
        if not address:
            cpus = here
        say("workers", f"{workers} on {CLUSTER if address else 'this machine'}, each with {_taken(cpus, gpu=gpu)}")
        failed: dict[int, str] = {}
        in_a_row = 0
        plan = _Plan(make_worker, shared, workers, cpus, gpu)
        for number, outcome in _outcomes(ray, plan, open_parts.values(), say):
            part = open_parts[number]
            if outcome.error is not None:
                raise outcome.error
            if outcome.begun > _MOST_BEGINNINGS:
                failed[number] = outcome.last_words
                in_a_row += 1
                say("warning", f"{part.name} given up: {outcome.last_words}")
                # One part may have an image that crashes a decoder; workers that die of every part die of themselves.
                if in_a_row >= max(_MOST_BEGINNINGS, workers):
                    break
                continue
            in_a_row = 0
            if outcome.begun > 1:
                say("workers", f"{part.name} done again, because the worker was lost")
            yield part, outcome.value
    if failed:
        raise PartsFailedError(_failure([open_parts[number].name for number in failed], next(iter(failed.values()))))


def local_share(workers: int, cores: int) -> int:
    """Return the cores for each of the workers on one machine, which they may have to share."""
    return max(1, min(_MOST_CPUS["cpu"], cores // workers))


def check_placement(nodes: Sequence[Node], workers: int, *, gpu: bool, where: str) -> int:
    """Return the CPUs that each worker takes.

    Args:
        nodes: machines of the cluster.
        workers: number of workers.
        gpu: each takes a GPU.
        where: `CLUSTER`, or other words for a Ray that was started here.

    Raises:
        ClusterError: the workers do not fit.
    """
    most = _MOST_CPUS["cuda" if gpu else "cpu"]
    if found := next((cpus for cpus in range(most, 0, -1) if places(nodes, cpus, gpu=gpu) >= workers), 0):
        return found
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    nodes_shown = f"{counted(len(nodes), 'node')} with " if len(nodes) > 1 else ""
    most_workers = places(nodes, 1, gpu=gpu)
    ways = [
        f"set --workers {most_workers}" if most_workers else "",
        "start more nodes" if where == CLUSTER else "",
        "compute on CPUs with --cluster.device cpu" if gpu and places(nodes, 1, gpu=False) >= workers else "",
    ]
    *first, last = [way for way in ways if way] or ["use a larger machine"]
    each = " each" if workers > 1 else ""
    raise ClusterError(
        f"{counted(workers, 'worker')} {'need' if workers > 1 else 'needs'} {_taken(1, gpu=gpu)}{each}, "
        f"but {where} has {nodes_shown}{counted(int(cpus), 'CPU')} and {counted(int(gpus), 'GPU')}: "
        f"{', '.join(first)}{', or ' if first else ''}{last}."
    )


def places(nodes: Sequence[Node], cpus: int, *, gpu: bool) -> int:
    """Count the workers that fit on the nodes with these CPUs each, and a GPU if asked."""
    return sum(int(min(node.cpus // cpus, node.gpus if gpu else node.cpus)) for node in nodes)


@dataclass(frozen=True)
class _Plan:
    """The workers of a job."""

    make_worker: MakeWorker
    shared: Any
    workers: int
    cpus: int
    """CPUs of each worker."""
    gpu: bool
    """Each worker takes a GPU."""


@dataclass(frozen=True)
class _Outcome:
    """The end of a part."""

    begun: int
    """Times that it began; more than the limit if it was given up."""
    value: Any = None
    error: Exception | None = None
    last_words: str = ""
    """Of the last worker that began it before; empty unless it was given up."""


class _Ledger:
    """Counts how often each part began; an actor on the driver's machine, so that it lives as long as the job."""

    def __init__(self) -> None:
        self._begun = Counter[int]()
        self._last_words: dict[int, str] = {}
        self._workers = 0

    def begin(self, number: int, where: str) -> tuple[int, str]:
        """Note that a worker begins a part; returns how many did, and what is known of the last one before it."""
        self._begun[number] += 1
        before = self._last_words.get(number, "")
        self._last_words[number] = f"its worker on {where} was killed"
        return self._begun[number], before

    def note(self, number: int, words: str) -> None:
        """Keep the cause that a worker names before it ends itself."""
        self._last_words[number] = words

    def join(self) -> None:
        """Count a worker that has started."""
        self._workers += 1

    def workers(self) -> int:
        """Return how many workers have started."""
        return self._workers


class _Worker:
    """The actor's side: makes the function that runs parts when the first one arrives, and keeps it."""

    def __init__(self, make_worker: MakeWorker, shared: Any, ledger: Any, cpus: int, gpu: bool) -> None:
        import ray

        self._ray = ray
        self._make_worker, self._shared, self._ledger, self._cpus, self._gpu = make_worker, shared, ledger, cpus, gpu
        self._run: RunPart | None = None
        ray.get(ledger.join.remote())

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        number = int(batch["number"][0])
        begun, before = self._ray.get(self._ledger.begin.remote(number, f"{socket.gethostname()}, pid {os.getpid()}"))
        if begun > _MOST_BEGINNINGS:
            outcome = _Outcome(begun, last_words=before)
        else:
            try:
                # Not in the constructor: Ray Data gives up a job whose actors die there, without naming a part.
                self._run = self._run or self._made()
                outcome = _Outcome(begun, self._run(pickle.loads(batch["work"][0])))
            except torch.AcceleratorError as error:
                # Every later call of CUDA in this process would fail too: let another process try.
                words = f"{str(error).strip().splitlines()[0]} (on {socket.gethostname()})"
                self._ray.get(self._ledger.note.remote(number, words))
                os._exit(1)
            except Exception as error:
                outcome = _Outcome(begun, error=_portable(error))
        return {"number": [number], "outcome": [pickle.dumps(outcome)]}

    def _made(self) -> RunPart:
        if not self._gpu:
            torch.set_num_threads(self._cpus)
        shared = self._ray.get(self._shared)
        return self._make_worker(shared, torch.device("cuda" if self._gpu else "cpu"))


def _outcomes(
    ray: Any, plan: _Plan, parts: Iterable[Part], say: Callable[[str, str], object]
) -> Iterator[tuple[int, _Outcome]]:
    """Yield number and outcome of each part as Ray Data finishes it."""
    from ray import data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    beside_driver = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    ledger = ray.remote(_Ledger).options(num_cpus=0, scheduling_strategy=beside_driver).remote()
    rows = [{"number": part.number, "work": pickle.dumps(part.work)} for part in parts]
    _set_up(data.DataContext.get_current())
    results = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        batch_size=None,  # a block, which is one part
        compute=data.ActorPoolStrategy(size=plan.workers, max_tasks_in_flight_per_actor=_QUEUED),
        num_cpus=plan.cpus,
        num_gpus=1 if plan.gpu else 0,
        fn_constructor_args=(plan.make_worker, ray.put(plan.shared), ledger, plan.cpus, plan.gpu),
    )
    with _waiting_noted(ray, ledger, plan.workers, say):
        for batch in results.iter_batches(batch_size=None, prefetch_batches=0):
            for number, outcome in zip(batch["number"], batch["outcome"], strict=True):
                yield int(number), pickle.loads(outcome)


def _set_up(context: Any) -> None:
    """Set up Ray Data for long parts and actors that may be lost, without lines and bars of its own."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A part may take longer than the half-hour that Ray Data allows, and a busy cluster may let a job wait.
    context.execution_no_progress_timeout_s = -1
    context.max_consecutive_actor_init_deaths = _MOST_BEGINNINGS
    for handler in logging.getLogger("ray.data").handlers:
        # The other handler writes to a file among Ray's logs.
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


@contextmanager
def _connected_quietly(settings: ClusterSettings, lost: Callable[[str], object]) -> Iterator[Any]:
    """Connect to Ray without what its core prints about lost workers and actors that may restart; we say it shorter.

    Unless the user has set the level of its log, only what ends a process is logged while the block runs.
    """
    name = "RAY_BACKEND_LOG_LEVEL"
    is_ours = name not in os.environ
    os.environ.setdefault(name, "fatal")
    try:
        with ExitStack() as stack:
            with _muted():  # the core prints that it has read the variable
                ray = stack.enter_context(connected(settings, lost))
            # Messages of other processes about lost workers, which go to stdout whatever `log_to_driver` is. It stays
            # so, for Ray prints some of them when this process ends.
            ray._private.worker._worker_logs_enabled = False
            yield ray
    finally:
        if is_ours:
            del os.environ[name]


@contextmanager
def _muted() -> Iterator[None]:
    """Discard what this process writes to stderr while the block runs, from C++ too."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _waiting_noted(ray: Any, ledger: Any, workers: int, say: Callable[[str, str], object]) -> Iterator[None]:
    """Say what the job waits for as long as no worker has started: other jobs may hold the cluster's CPUs and GPUs."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_NOTE_SECONDS):
            with suppress(Exception):  # Ray may be shutting down
                if ray.get(ledger.workers.remote(), timeout=_NOTE_SECONDS):
                    return
                free, total = ray.available_resources(), ray.cluster_resources()
                shown = [
                    f"{free.get(name, 0):g} of {total[name]:g} {name}s" for name in ("CPU", "GPU") if name in total
                ]
                # Workers that load hold their share already, so this need not mean that they wait for others.
                say("workers", f"none of {workers} is ready yet; {' and '.join(shown)} are free")

    thread = threading.Thread(target=watch, name="aweigh-waiting-workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def _ending_with_ray() -> Iterator[Callable[[str], object]]:
    """Yield the function that learns of the end of a local Ray's process; it interrupts the block.

    Without it, the driver would wait for Ray, which ends the driver a minute later with a line of its own.

    Raises:
        PartsFailedError: a process of Ray ended.
    """
    names: list[str] = []

    def lost(name: str) -> None:
        names.append(name)
        # Ray's blocking calls return for a signal only.
        os.kill(os.getpid(), signal.SIGINT)

    try:
        yield lost
    except KeyboardInterrupt:
        if not names:
            raise
        raise PartsFailedError(
            f"Ray's {names[0]} on this machine ended by itself, killed or out of memory. Run the same command again: "
            f"finished parts are kept."
        ) from None


def _node(record: dict[str, Any]) -> Node:
    resources = record["Resources"]
    return Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def _taken(cpus: int, *, gpu: bool) -> str:
    return f"{'1 GPU and ' if gpu else ''}{counted(cpus, 'CPU')}"


def _portable(error: Exception) -> Exception:
    """Return an exception that the driver can raise, with the worker's traceback as a note."""
    text = "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # it holds a lock or a handle, or has a constructor of its own
        copy = WorkersFailedError(f"a worker failed: {(str(error).strip().splitlines() or [type(error).__name__])[-1]}")
    copy.add_note(f"In the worker on {socket.gethostname()}:\n{text}")
    return copy


def _failure(names: Sequence[str], last_words: str) -> str:
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return (
        f"{counted(len(names), 'part')} could not be finished, each after {_MOST_BEGINNINGS} attempts: "
        f"{', '.join(names[:_MOST_NAMED])}{more}. The last cause: {last_words}. The other finished parts are kept; run "
        f"the same command again when the cause is removed."
    )
