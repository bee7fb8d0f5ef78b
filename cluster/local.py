"""Ray: the cluster at RAY_ADDRESS, or one started on this machine for the length of a command."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.authentication import WHERE, send_token
from cluster.errors import ClusterError
from cluster.placement import reserved, wants_gpu
from cluster.settings import ClusterSettings

# Set before Ray is imported anywhere; a value of the user's stays.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # How often Ray asks whether a node is to be taken away: a spot instance has two minutes.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A submitted job has variables of its own; ours are added to them instead of being refused.
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
    # Ray starts workers at niceness 15; training is what the machine is there for.
    "RAY_worker_niceness": "0",
    # Ceph and other S3 servers refuse the trailing checksums that newer clients send by default.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
# What a worker needs to know of the driver's environment, where the cluster was not started from it.
_CARRIED_PREFIXES = ("AWS_", "MLFLOW_", "AWEIGH_", "NCCL_", "GLOO_", "OMP_")


@contextmanager
def connected(settings: ClusterSettings) -> Iterator[Any]:
    """Yield the `ray` module, connected; what was started here is stopped at the end.

    Raises:
        ClusterError: the cluster cannot be reached, or has too few CPUs or GPUs for the workers.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    carried = _worker_environment(settings)
    if address:
        send_token()
    if not address:
        # Handed down by inheritance: with a runtime environment, Ray would discard the workers it starts ahead.
        os.environ.update(carried)
    if address:
        _knock(address)
    import ray

    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(
            address=address or "local",
            # Logical cores: a small machine may still run two workers, each a process of its own.
            num_cpus=None if address else max(os.cpu_count() or 1, _cores_needed(settings)),
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": carried} if address else None,
        )
    except Exception as error:
        where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "a local Ray"
        raise ClusterError(
            f"{where} did not answer: {str(error).strip().splitlines()[-1]}. Check that it runs, and that this machine "
            f"has its token: {WHERE}."
        ) from error
    try:
        _check_resources(ray, settings, address)
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Fail at once where nobody listens; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("/")[2].rpartition(":")
    if not (colon and port.isdecimal()):
        return  # "auto" and the like: Ray finds its own way
    try:
        socket.create_connection((host, int(port)), timeout=20).close()
    except OSError as error:
        raise ClusterError(
            f"the Ray cluster at RAY_ADDRESS={address} did not answer: {error.strerror or error}. Start it, or unset "
            f"RAY_ADDRESS to train on this machine."
        ) from error


def _cores_needed(settings: ClusterSettings) -> int:
    # One beside the workers for Ray Train's controller.
    return int(settings.max_workers * settings.cpus_per_worker) + 1


def _worker_environment(settings: ClusterSettings) -> dict[str, str]:
    carried = {name: value for name, value in os.environ.items() if name.startswith(_CARRIED_PREFIXES)}
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **carried,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "OMP_NUM_THREADS": str(max(1, int(settings.cpus_per_worker))),
    }


def dashboard_url() -> str:
    """Address of the dashboard of the cluster that this process is connected to; empty where it has none."""
    from ray._private.worker import _global_node

    url = (_global_node.webui_url if _global_node else "") or ""
    return url if not url or "://" in url else f"http://{url}"


def _check_resources(ray: Any, settings: ClusterSettings, address: str | None) -> None:
    resources = ray.cluster_resources()
    gpus, cpus = resources.get("GPU", 0), resources.get("CPU", 0)
    lacks_gpus = settings.device == "cuda" and gpus < settings.min_workers
    lacks_cpus = address is not None and cpus < settings.min_workers * settings.cpus_per_worker
    if address and settings.wait_minutes and (lacks_gpus or lacks_cpus):
        with reserved(ray, settings, 60 * settings.wait_minutes, gpu=wants_gpu(ray, settings)):
            return
    wait = " Where an autoscaler starts nodes, give it time: --cluster.wait_minutes 20." if address else ""
    if lacks_gpus:
        where = "the cluster" if address else "this machine"
        fewer = f"cluster.workers to {gpus:g} or " if gpus >= 1 else ""
        raise ClusterError(
            f"cluster.workers {settings.workers} on cuda need {settings.min_workers} GPUs, {where} has {gpus:g}; "
            f"set {fewer}cluster.device to cpu.{wait}"
        )
    if lacks_cpus:
        raise ClusterError(
            f"cluster.workers {settings.workers} × cluster.cpus_per_worker {settings.cpus_per_worker:g} need more "
            f"than the cluster's {cpus:g} CPUs; lower one of them.{wait}"
        )
