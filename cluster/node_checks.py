"""Checks that the preflight runs on the nodes; each is independent, and returns what it found or raises."""

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path

from cluster.counting import counted
from cluster.network import choose_gloo_network

_PACKAGES = ("torch", "ray", "deepspeed", "numpy")
_CODE = ("cluster", "data_shards", "detectors", "pipelines")
_JOIN_SECONDS = 60
_DEVICE_SECONDS = 120
# NVIDIA's oldest driver on Linux for each major version of CUDA (its compatibility guide, "minor version").
_DRIVERS = {"11": "450", "12": "525", "13": "580"}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that must match on all nodes, and a digest of our own code."""

    def version(package: str) -> str:
        try:
            # After the plus is the build for a device, which may differ; `device` checks it.
            return metadata.version(package).partition("+")[0]
        except metadata.PackageNotFoundError:
            return "none"

    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}, "aweigh": code_digest()}


def code_digest(root: Path | None = None) -> str:
    """Digest every Python file of the four packages, in the order of their names."""
    root = root or Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in _CODE:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Device:
    """The GPU of a rank, as torch and the driver see it."""

    name: str
    driver: str
    cuda: str
    """CUDA version that torch was built for; empty for a CPU build."""
    gpus_of_node: int
    problem: str
    """The reason why torch cannot use it; empty if it can."""
    remedy: str = ""
    """The step that solves the problem."""


def device() -> Device:
    """Run a small computation on this process's first GPU; a failure is returned as `problem`."""
    import torch

    driver, gpus = _driver()
    cuda = torch.version.cuda or ""
    name, problem, remedy = "", "", ""
    if not cuda:
        problem = f"torch {torch.__version__} is built for CPU"
        remedy = f"install torch {torch.__version__.partition('+')[0]} with CUDA, as from requirements.txt"
    elif not torch.cuda.is_available():
        problem = f"torch for CUDA {cuda} finds no GPU (driver {driver or 'none'}, {counted(gpus, 'GPU')})"
        remedy = f"{_driver_for(cuda)}, or a build of torch for this driver; in a container, pass the GPUs on"
    else:
        try:
            name = torch.cuda.get_device_name(0)
            torch.ones(8, device="cuda").sum().item()
        except RuntimeError as error:
            problem = str(error).splitlines()[0]
            remedy = f"{_driver_for(cuda)}; `nvidia-smi` shows the state of the GPU and what else runs on it"
    return Device(name, driver, cuda, gpus, problem, remedy)


def _driver_for(cuda: str) -> str:
    least = _DRIVERS.get(cuda.partition(".")[0])
    return f"install a driver for CUDA {cuda}" + (f", {least} or later" if least else "")


def device_in_another_process() -> Device:
    """Ask `device` in a process of its own: CUDA stays in a process that has used it, and takes its memory."""
    program = "import json; from dataclasses import asdict; from cluster.node_checks import device; "
    command = [sys.executable, "-c", f"{program}print(json.dumps(asdict(device())))"]
    root = str(Path(__file__).resolve().parent.parent)
    try:
        ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_DEVICE_SECONDS)
        return Device(**json.loads(ended.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        problem = f"a small computation on it did not end within {_DEVICE_SECONDS} s"
    except (OSError, ValueError, TypeError, IndexError):
        lines = ended.stderr.strip().splitlines()
        problem = lines[-1] if lines else f"a small computation on it ended with status {ended.returncode}"
    return Device("", *_driver()[:1], "", _driver()[1], problem, "`nvidia-smi` shows the state of the GPU")


def visible_gpus() -> int:
    """Count the GPUs of this machine that a process may use, as Ray counts them: whether torch can or not."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _driver()[1]
    return 0 if visible in ("", "NoDevFiles") else min(len(visible.split(",")), _driver()[1])


def _driver() -> tuple[str, int]:
    """Return the NVIDIA driver's version and its number of GPUs, whether torch can use them or not."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion()), pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return "", 0


def free_address() -> str:
    """Find an address of this node at which a process group can meet."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"


def all_reduce(rank: int, address: str, ranks: int, backend: str) -> float:
    """Reduce a vector over all ranks, check the sum, and return the bus bandwidth in bytes a second.

    Bus bandwidth is the load of one link, which does not depend on n: 2 (n − 1) / n times the vector's bytes, divided
    by the time.
    """
    import ray
    import torch
    from torch import distributed

    if backend == "gloo":
        choose_gloo_network(ray.util.get_node_ip_address())
    place = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
    distributed.init_process_group(
        backend, init_method=address, rank=rank, world_size=ranks, timeout=timedelta(seconds=_JOIN_SECONDS)
    )
    try:
        # 256 MiB over NCCL, so that bandwidth and not latency decides; 16 MiB over gloo, which is slower.
        elements, repeats = (1 << 26, 10) if backend == "nccl" else (1 << 22, 3)
        vector = torch.full((elements,), float(rank + 1), device=place)
        distributed.all_reduce(vector)
        expected = ranks * (ranks + 1) / 2
        if not bool((vector == expected).all()):
            raise RuntimeError(f"rank {rank} got a wrong sum: {vector[0].item():g} instead of {expected:g}")
        seconds = []
        for _ in range(repeats):
            vector.fill_(1.0)
            distributed.barrier()
            began = time.perf_counter()
            distributed.all_reduce(vector)
            if place.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return 2 * (ranks - 1) / ranks * vector.numel() * vector.element_size() / min(seconds)
    finally:
        distributed.destroy_process_group()


def free_bytes(folder: str) -> int:
    """Return the free bytes of a folder's file system."""
    return shutil.disk_usage(folder).free


def writable_free_bytes(folder: str) -> int:
    """Return the free bytes of a folder, which is created if missing; raises OSError if it cannot be written."""
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".preflight-{os.getpid()}"
    probe.write_bytes(b"x")
    probe.unlink()
    return shutil.disk_usage(path).free


def leave(folder: Path, name: str = "") -> str:
    """Write a file for other nodes to find; returns its name."""
    name = name or f"node-{socket.gethostname()}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        file.write(name)
        file.flush()
        os.fsync(file.fileno())
    return name


def wait_for_names(folder: Path, names: Iterable[str], seconds: float) -> set[str]:
    """Return those of the names that appear in a folder in time; network file systems may show a new file late."""
    wanted = set(names)
    deadline = time.monotonic() + seconds
    while True:
        found = wanted & set(os.listdir(folder))
        if found == wanted or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def clear(folder: Path) -> None:
    """Remove the folder of such files."""
    shutil.rmtree(folder, ignore_errors=True)
