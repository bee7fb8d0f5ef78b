"""Workers as real processes under Ray Train: started, joined into one process group, restarted after a failure.

Unusual here: the run's own files, not Ray's, record how far training got. Ray passes no checkpoint to a restarted
group; the loop finds its own, so that `kill -9` of a worker, of the driver or of everything leads to the same state.
"""

import fcntl
import json
import logging
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch

from cluster.engine.engine import bootstrap
from cluster.errors import ClusterError, WorkersFailedError
from cluster.files import write_text
from cluster.heartbeat import Heartbeat
from cluster.local import connected
from cluster.network import choose_gloo_network
from cluster.placement import wants_gpu
from cluster.preemption import preemption_notice
from cluster.settings import ClusterSettings
from cluster.signals import checkpoint_request
from cluster.stopping import Control, Stopping

logger = logging.getLogger("aweigh")

# How often Ray looks whether an elastic group can grow. Every change of size restarts all workers.
_RESIZE_SECONDS = 20.0
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class WorkerContext:
    """One worker's place among the others, and its links to the driver."""

    rank: int
    world_size: int
    node: int
    nodes: int
    device: torch.device
    folder: Path
    """The run's folder, the same for every worker."""
    heartbeat: Heartbeat
    """The loop reports every phase to it."""
    control: Control
    """Requests of the driver."""
    patient: Any = None
    """Process group, over gloo, of waits that may take hours: NCCL's watchdog would end a process after minutes, and
    the heartbeat tells a hang from a rank that works. None takes the default group."""

    def wait_for_all(self) -> None:
        """Wait until every rank is here, however long one of them works. Collective."""
        torch.distributed.barrier(group=self.patient)

    def wishes(self) -> list[str]:
        """List the requests of this worker for the end of this step: "stop", "save", "preempted"."""
        # The driver's requests are in one file: rank 0 reads it for all.
        asked = self.control.wishes() if self.rank == 0 else []
        if checkpoint_request.take():
            asked = [*asked, "save"]
        return [*asked, *(["preempted"] if preemption_notice() else [])]


Loop = Callable[[WorkerContext, Any], None]


class LogStream(Protocol):
    """Something that log lines are written to."""

    def write(self, text: str, /) -> object:
        """Write some text."""

    def flush(self) -> object:
        """Show the text written so far."""


def run_workers(
    loop: Loop,
    config: Any,
    *,
    run_name: str,
    folder: Path,
    settings: ClusterSettings,
    batch_size: int = 0,
    out: LogStream | None = None,
) -> None:
    """Run `loop(context, config)` on every worker until it returns, replacing lost workers.

    The log of rank 0 is followed on stderr; every rank's log is kept in `folder/logs`.

    Args:
        loop: an importable function; it resumes by itself from what it finds in `folder`.
        config: passed to the loop unchanged (pickled).
        run_name: name of the Ray Train run.
        folder: the run's folder, the same on every node.
        settings: number and kind of workers.
        batch_size: global batch size, which an elastic number of workers has to divide.
        out: receives the log of rank 0 instead of stderr.

    Raises:
        WorkersFailedError: training cannot continue; the message names the rank and the cause.
        StoppedError: Ctrl-C, SIGTERM or SIGHUP; workers had time to write a checkpoint.
    """
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    failure = folder / "failure.json"
    failure.unlink(missing_ok=True)
    with (
        Stopping(folder, settings.grace_seconds) as stopping,
        connected(settings, stopping.ray_lost) as ray,
        _followed(logs / "rank-0.log", out or sys.stderr),
    ):
        # Not at the top: Ray reads its environment when it is imported, and `connected` sets it.
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig

        from cluster.trainer import SurviveSignals, Trainer

        use_gpu = wants_gpu(ray, settings)
        trainer = Trainer(
            _worker,
            stopping=stopping,
            worlds=dividing_worlds(batch_size, settings) if settings.elastic else (),
            folder=folder,
            train_loop_config={"loop": loop, "config": config, "folder": str(folder), "settings": settings},
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=settings.timeout_seconds),
            scaling_config=ScalingConfig(
                num_workers=(settings.min_workers, settings.max_workers) if settings.elastic else settings.max_workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": settings.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
                elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
            ),
            run_config=RunConfig(
                # A new name for each driver, so that Ray does not resume from its own snapshot: the run's files decide.
                name=f"{_ascii(run_name)}-{time.time_ns():x}",
                storage_path=str(folder / "ray"),
                failure_config=FailureConfig(max_failures=settings.max_failures),
                callbacks=[SurviveSignals()],
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            if stopping.asked:
                stopping.wait_for_workers()
            if stopped := stopping.error():
                raise stopped from None
            if isinstance(error, WorkersFailedError):
                raise  # our own: the controller never answered
            if not _message(failure):
                raise WorkersFailedError(_cause(error, logs)) from error
    if stopping.finished_in_order() and (stopped := stopping.error()):
        raise stopped
    if message := _message(failure):
        raise WorkersFailedError(message)
    if failure.exists():
        raise WorkersFailedError(f"a worker failed, and its message in {failure} is damaged. The logs are in {logs}.")


def _message(failure: Path) -> str:
    """Read the message that a worker left; empty if there is none, or the disk was full when it was written."""
    try:
        return str(json.loads(failure.read_text())["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _leave_message(failure: Path, rank: int, message: str) -> None:
    """Tell the driver, and the next start of the workers, that another attempt would fail in the same way."""
    try:
        write_text(failure, json.dumps({"rank": rank, "message": message}))
    except OSError:
        # A full disk may still take an empty file, which ends the restarts; the driver has the message from Ray.
        with suppress(OSError):
            failure.touch()


def _ascii(name: str) -> str:
    """Return a name that Ray takes: letters, digits and a few signs of ASCII."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60].strip("-.") or "run"


def dividing_worlds(batch_size: int, settings: ClusterSettings) -> tuple[int, ...]:
    """List the numbers of workers that `cluster.workers` allows and that divide the global batch.

    Raises:
        ClusterError: there is none.
    """
    allowed = range(settings.min_workers, settings.max_workers + 1)
    worlds = tuple(world for world in allowed if batch_size % world == 0)
    if not worlds:
        raise ClusterError(
            f"batch.global_size is {batch_size}, which no number of workers from {settings.min_workers} to "
            f"{settings.max_workers} divides. Widen cluster.workers, or set batch.global_size to a multiple of one of "
            f"these numbers."
        )
    return worlds


class UnrecoverableError(Exception):
    """Raised by a loop when another attempt would fail in the same way; the run ends without a retry."""


def _worker(arguments: dict[str, Any]) -> None:
    """Run the loop in one worker process of Ray."""
    import ray.train

    folder = Path(arguments["folder"])
    train_context = ray.train.get_context()
    rank = train_context.get_world_rank()
    failure = folder / "failure.json"
    with _logging_to(folder / "logs" / f"rank-{rank}.log"):
        if failure.exists():
            return  # Ray restarted the group after an error that would only happen again
        try:
            context = _joined(train_context, folder, arguments["settings"])
            try:
                with _sole_writer(folder, rank):
                    arguments["loop"](context, arguments["config"])
            finally:
                context.heartbeat.close()
        except Exception as error:
            with suppress(OSError), (folder / "logs" / f"rank-{rank}-errors.log").open("a") as errors:
                errors.write(traceback.format_exc())
            if isinstance(error, UnrecoverableError):
                # The driver raises this message; Ray itself would pass on a traceback only.
                _leave_message(failure, rank, str(error))
            else:
                last = str(error).strip().splitlines() or [type(error).__name__]
                logger.error("worker %d stops: %s", rank, last[-1])
            raise


def _joined(train_context: Any, folder: Path, settings: ClusterSettings) -> WorkerContext:
    import ray.train.torch

    device = ray.train.torch.get_device()
    if device.type == "cuda":
        # DeepSpeed takes its GPU from here. Ray sorts a node's GPUs as text and its ranks as numbers, which differ from
        # the eleventh GPU on.
        os.environ["LOCAL_RANK"] = str(device.index or 0)
    # Training on GPUs has groups of gloo, too, beside those of NCCL.
    choose_gloo_network(ray.util.get_node_ip_address())
    # First, because DeepSpeed chooses its accelerator when it is imported.
    bootstrap(device)
    import deepspeed

    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, int(settings.cpus_per_worker)))
    # Ray has set the ranks already; DeepSpeed need not look for MPI.
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False
    )
    world_size = train_context.get_world_size()
    nodes: list[int] = [0] * world_size
    torch.distributed.all_gather_object(nodes, train_context.get_node_rank())
    return WorkerContext(
        rank=train_context.get_world_rank(),
        world_size=world_size,
        node=train_context.get_node_rank(),
        nodes=max(nodes) + 1,
        device=device,
        folder=folder,
        heartbeat=Heartbeat(
            folder,
            train_context.get_world_rank(),
            world_size,
            settings.hang_seconds,
            mark=_mark_on_gpu if device.type == "cuda" else None,
        ),
        control=Control(folder),
        patient=torch.distributed.new_group(backend="gloo", timeout=_PATIENCE),
    )


def _mark_on_gpu() -> Callable[[], bool]:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event.query


@contextmanager
def _sole_writer(folder: Path, rank: int) -> Iterator[None]:
    """Hold the run's lock on rank 0, so that a dying worker of an earlier attempt never writes at the same time."""
    if rank != 0:
        yield
        return
    with (folder / "writer.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def exclusive_run(folder: Path) -> Iterator[None]:
    """Lock a run for this driver; the kernel releases the lock of a killed process.

    Raises:
        ClusterError: another driver is training this run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "driver.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ClusterError(
                f"run {folder.name} is already being trained ({lock.read().strip() or 'by another process'}); "
                f"wait for it, stop it, or choose another --run.name."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Write this process's log to a file: all records of aweigh and DeepSpeed, and other libraries' warnings."""
    handler = logging.FileHandler(path)
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name in (logger.name, "DeepSpeed"))
    root = logging.getLogger()
    root.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


@contextmanager
def _followed(path: Path, out: LogStream | None) -> Iterator[None]:
    """Copy new text at the end of a file to a stream, or to stderr, while the block runs."""
    out = out or sys.stderr
    # From its present end: earlier attempts have shown the rest.
    position = path.stat().st_size if path.exists() else 0
    done = threading.Event()

    def copy_new() -> None:
        nonlocal position
        if path.exists():
            with path.open(errors="replace") as file:
                file.seek(position)
                text = file.read()
                position = file.tell()
            if text:
                # A terminal that is gone must not end training: the log has the lines as well.
                with suppress(OSError, ValueError):
                    out.write(text)
                    out.flush()

    def follow() -> None:
        while not done.wait(0.25):
            copy_new()
        copy_new()

    thread = threading.Thread(target=follow, name="follow-log")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _cause(error: Exception, logs: Path) -> str:
    """Say in one line why the worker group failed."""
    failures = getattr(error, "worker_failures", None) or {}
    if failures:
        rank, first = next(iter(sorted(failures.items())))
        text = str(first).strip().splitlines()
        return f"worker {rank} failed: {text[-1] if text else type(first).__name__}. The logs are in {logs}."
    text = str(error).strip().splitlines()
    return f"the workers could not be kept running: {text[-1] if text else error!r}. The logs are in {logs}."
