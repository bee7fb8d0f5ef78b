"""A connection to Ray: to the cluster at RAY_ADDRESS, or to one that is started on this machine for one command."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.authentication import WHERE, send_token
from cluster.counting import counted
from cluster.environment import carried
from cluster.errors import ClusterError
from cluster.placement import reserved, wants_gpu
from cluster.ray_start import RayThread, quiet, ray_folder, start_ray, without_current_folder
from cluster.settings import ClusterSettings
from cluster.signals import install_again

# Ray reads these when it is imported. A value that the user has set stays.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # How often Ray looks for notices of preemption: a spot instance has two minutes left.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A submitted job has a runtime environment already; Ray would refuse a second one instead of merging them.
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
    # Ray starts workers at niceness 15, but training is what the machine is for.
    "RAY_worker_niceness": "0",
    # Ceph and other S3 servers refuse the trailing checksums that newer clients send by default.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
# With them, a Ray on one machine listens on 127.0.0.1 only, as far as it can. Ray has no setting for that on Linux: the
# first switches clusters off, as on macOS and Windows, and with them every address but the loopback one.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "GLOO_SOCKET_IFNAME": "lo"}


@contextmanager
def connected(settings: ClusterSettings, lost: Callable[[str], object] = lambda name: None) -> Iterator[Any]:
    """Yield the `ray` module, connected; a Ray that was started here is stopped at the end.

    Args:
        settings: number and kind of workers.
        lost: receives the name of a process of a Ray that was started here, if it ends before the block does.

    Raises:
        ClusterError: the cluster cannot be reached, or has too few CPUs or GPUs for the workers.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    added = {} if address else {name: value for name, value in _LOOPBACK.items() if name not in os.environ}
    os.environ.update(added)
    taken_over = _worker_environment(settings)
    if address:
        send_token()
        _knock(address)
    else:
        # Workers inherit them: with a runtime environment, Ray would discard the workers that it starts in advance.
        os.environ.update(taken_over)
    quiet()
    import ray

    if ray.is_initialized():
        yield ray
        return
    thread = _connect(ray, address, taken_over) if address else _start(ray, settings, lost)
    try:
        install_again()
        _check_resources(ray, settings, address)
        yield ray
    finally:
        thread.close()
        # A later call may connect to a cluster, whose workers are not on this machine.
        for name in added:
            os.environ.pop(name, None)


def _start(ray: Any, settings: ClusterSettings, lost: Callable[[str], object]) -> RayThread:
    """Start Ray on this machine."""
    folder = ray_folder(os.environ)

    def init() -> None:
        ray.init(
            address="local",
            # Ray only counts cores; with more than the machine has, a small machine can still run two workers.
            num_cpus=max(os.cpu_count() or 1, _cores_needed(settings)),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            job_config=without_current_folder(ray),
            _temp_dir=str(folder),
        )

    return start_ray(lambda: RayThread(init, ray.shutdown, local=True, lost=lost), folder)


def _connect(ray: Any, address: str, variables: dict[str, str]) -> RayThread:
    """Connect to a cluster that was started elsewhere."""

    def init() -> None:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": variables},
            job_config=without_current_folder(ray),
        )

    thread = RayThread(init, ray.shutdown, local=False)
    try:
        thread.start()
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ClusterError(
            f"the Ray cluster at RAY_ADDRESS={address} did not answer: {lines[-1]}. Check that it is running and that "
            f"this machine has its token: {WHERE}."
        ) from error
    return thread


def _knock(address: str) -> None:
    """Fail at once if nobody listens at an address; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("/")[2].rpartition(":")
    if not (colon and port.isdecimal()):
        return  # "auto" and the like, which Ray resolves
    try:
        socket.create_connection((host, int(port)), timeout=20).close()
    except OSError as error:
        raise ClusterError(
            f"the Ray cluster at RAY_ADDRESS={address} did not answer: {error.strerror or error}. Start it, or unset "
            f"RAY_ADDRESS to train on this machine."
        ) from error


def _cores_needed(settings: ClusterSettings) -> int:
    # One more than the workers need, for Ray Train's controller.
    return int(settings.max_workers * settings.cpus_per_worker) + 1


def _worker_environment(settings: ClusterSettings) -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **carried(os.environ),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "OMP_NUM_THREADS": str(max(1, int(settings.cpus_per_worker))),
    }


def dashboard_url() -> str:
    """Return the dashboard's address of the connected cluster; empty if it has none."""
    from ray._private.worker import _global_node

    url = (_global_node.webui_url if _global_node else "") or ""
    return url if not url or "://" in url else f"http://{url}"


def logs_folder() -> Path:
    """Return the folder of the connected Ray's logs on this machine."""
    from ray._private.worker import _global_node

    return Path(_global_node.get_logs_dir_path()) if _global_node else Path("/tmp/ray/session_latest/logs")


def _check_resources(ray: Any, settings: ClusterSettings, address: str | None) -> None:
    resources = ray.cluster_resources()
    gpus, cpus = resources.get("GPU", 0), resources.get("CPU", 0)
    lacks_gpus = settings.device == "cuda" and gpus < settings.min_workers
    lacks_cpus = address is not None and cpus < settings.min_workers * settings.cpus_per_worker
    if address and settings.wait_minutes and (lacks_gpus or lacks_cpus):
        with reserved(ray, settings, 60 * settings.wait_minutes, gpu=wants_gpu(ray, settings)):
            return
    wait = " If an autoscaler starts nodes, give it time: --cluster.wait_minutes 20." if address else ""
    if lacks_gpus:
        where = "the cluster" if address else "this machine"
        fewer = f"cluster.workers to {gpus:g} or " if gpus >= 1 else ""
        raise ClusterError(
            f"{settings.workers_in_words} on cuda need {counted(settings.min_workers, 'GPU')}, but {where} has "
            f"{gpus:g}; set {fewer}cluster.device to cpu.{wait}"
        )
    if lacks_cpus:
        raise ClusterError(
            f"{settings.workers_in_words} with {settings.cpus_per_worker:g} CPUs each need more than the {cpus:g} CPUs "
            f"of the cluster; lower cluster.workers or cluster.cpus_per_worker.{wait}"
        )
