"""What the preflight runs on the nodes; each of them stands alone and says what it found, or raises."""

import hashlib
import os
import platform
import shutil
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "ray", "deepspeed", "numpy")
_ROOMS = ("cluster", "data_shards", "detectors", "pipelines")
_JOIN_SECONDS = 60


def versions() -> dict[str, str]:
    """Python, the packages that have to agree, and a digest of our own code, as this process has them."""

    def version(package: str) -> str:
        try:
            # The build after the plus is the device's affair; the device's own check looks at it.
            return metadata.version(package).partition("+")[0]
        except metadata.PackageNotFoundError:
            return "none"

    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}, "aweigh": code_digest()}


def code_digest(root: Path | None = None) -> str:
    """A digest of every Python file of the rooms, in the order of their names."""
    root = root or Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for room in _ROOMS:
        for path in sorted((root / room).rglob("*.py")):
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


def device() -> Device:
    """Try this process's first GPU; what does not work is the `problem`."""
    import torch

    driver, gpus = _driver()
    cuda = torch.version.cuda or ""
    name, problem = "", ""
    if not cuda:
        problem = f"torch {torch.__version__} is built for CPU"
    elif not torch.cuda.is_available():
        problem = f"torch for CUDA {cuda} finds no GPU (driver {driver or 'none'}, {gpus} GPUs)"
    else:
        try:
            name = torch.cuda.get_device_name(0)
            torch.ones(8, device="cuda").sum().item()
        except RuntimeError as error:
            problem = str(error).splitlines()[0]
    return Device(name, driver, cuda, gpus, problem)


def _driver() -> tuple[str, int]:
    """The NVIDIA driver's version and how many GPUs it has, whether torch can use them or not."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion()), pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return "", 0


def free_address() -> str:
    """An address of this node that a process group can meet at."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"


def all_reduce(rank: int, address: str, ranks: int, backend: str) -> float:
    """Reduce a vector over all ranks, check the sum, and give the bus bandwidth in bytes a second.

    Bus bandwidth is what a link carries: 2 (n − 1) / n times the vector's bytes over the time, whatever n is.
    """
    import torch
    from torch import distributed

    place = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
    distributed.init_process_group(
        backend, init_method=address, rank=rank, world_size=ranks, timeout=timedelta(seconds=_JOIN_SECONDS)
    )
    try:
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
    """Free bytes of the file system of a folder."""
    return shutil.disk_usage(folder).free


def writable_free_bytes(folder: str) -> int:
    """Free bytes for a folder that is made where it is missing; raises OSError where it cannot be written."""
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".preflight-{os.getpid()}"
    probe.write_bytes(b"x")
    probe.unlink()
    return shutil.disk_usage(path).free


def leave(folder: Path, name: str = "") -> str:
    """Write a file for others to find; gives its name."""
    name = name or f"node-{socket.gethostname()}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        file.write(name)
        file.flush()
        os.fsync(file.fileno())
    return name


def wait_for_names(folder: Path, names: Iterable[str], seconds: float) -> set[str]:
    """The names of these that are found; network file systems may show a new file late."""
    wanted = set(names)
    deadline = time.monotonic() + seconds
    while True:
        found = wanted & set(os.listdir(folder))
        if found == wanted or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def clear(folder: Path) -> None:
    """Remove what was left."""
    shutil.rmtree(folder, ignore_errors=True)
