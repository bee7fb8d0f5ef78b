"""Run a function in real processes joined by gloo: a worker group without Ray."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing


def run_processes(function: Callable[..., None], world_size: int, *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in `world_size` processes; an exception in one is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            _join, args=(world_size, str(Path(folder) / "rendezvous"), function, arguments), nprocs=world_size
        )


def _join(
    rank: int, world_size: int, rendezvous: str, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    import os

    from cluster.engine.engine import bootstrap

    torch.set_num_threads(1)
    bootstrap(torch.device("cpu"))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    function(rank, *arguments)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
