"""The machine that a fine-tuning runs on, and the cost of the network there."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import torch.utils._pytree

from detectors import Detector

# Fractions of the memory that a training may plan with. The rest is for decoded images, the system and fragmentation.
_OF_GPU_MEMORY = 0.8
_OF_FREE_MEMORY = 0.5
# Gradients of activations live beside those that were saved for them, two or three layers at a time.
_ACTIVATION_MARGIN = 1.5
# Weight, gradient and Adam's two averages, each in float32.
_BYTES_PER_PARAMETER = 16
_MEASURED_IMAGES = 2
_MEASURED_SIDE = 256


@dataclass(frozen=True)
class Machine:
    """Devices and memory for the workers."""

    device: str
    """`cuda` or `cpu`."""
    workers: int
    """Devices of this kind: all GPUs, or 1 for the CPU, whose cores one worker uses together."""
    cores: int
    memory_bytes: int
    """Memory that a worker may use."""

    def describe(self) -> str:
        """Name the devices and the memory in a few words."""
        memory = f"{self.memory_bytes / 1e9:.1f} GB to plan with"
        if self.device == "cpu":
            return f"CPU, {self.cores} core{'' if self.cores == 1 else 's'}, {memory}"
        return f"{self.workers} × {torch.cuda.get_device_name(0)}, {memory} on each"


@dataclass(frozen=True)
class Cost:
    """Memory and time that one image takes in training, measured with a small input on the CPU."""

    parameter_bytes: int
    """Weights, gradients and the optimizer's state."""
    bytes_per_pixel: float
    """Activations that are kept for the backward pass, for each pixel of the input."""
    seconds_per_pixel: float
    """Forward and backward pass on the CPU, for each pixel of the input."""


def this_machine(device: str) -> Machine:
    """Look at this machine's devices.

    Args:
        device: `cluster.device`.
    """
    cores = len(os.sched_getaffinity(0))
    if device != "cpu" and torch.cuda.is_available():
        memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
        return Machine("cuda", torch.cuda.device_count(), cores, round(memory * _OF_GPU_MEMORY))
    free = min(psutil.virtual_memory().available, _container_limit())
    return Machine("cpu", 1, cores, round(free * _OF_FREE_MEMORY))


def _container_limit() -> int:
    """Return the memory limit of the container, which the free memory of the machine does not show."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no container, or "max"
        return 1 << 62


def training_cost(detector: Detector) -> Cost:
    """Run a forward and a backward pass of a few small images, and count what it keeps."""
    height, width = detector.sizes.nearest(_MEASURED_SIDE, _MEASURED_SIDE)
    images = torch.zeros(_MEASURED_IMAGES, 3, height, width)
    own = {parameter.untyped_storage().data_ptr() for parameter in detector.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    state = {name: value.clone() for name, value in detector.state_dict().items()}
    detector.train()
    # CPU time, because other processes may use the machine now.
    began = time.process_time()
    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = torch.utils._pytree.tree_leaves(detector(images))
        maps = [item for item in outputs if isinstance(item, torch.Tensor) and item.requires_grad]
        sum(item.float().mean() for item in maps).backward()  # type: ignore[union-attr]
    seconds = (time.process_time() - began) / torch.get_num_threads()
    detector.zero_grad(set_to_none=True)
    # The pass moved the running statistics of batch norm.
    detector.load_state_dict(state)
    pixels = _MEASURED_IMAGES * height * width
    learning = sum(parameter.numel() for parameter in detector.parameters())
    return Cost(
        parameter_bytes=learning * _BYTES_PER_PARAMETER,
        bytes_per_pixel=_ACTIVATION_MARGIN * sum(kept.values()) / pixels,
        seconds_per_pixel=seconds / pixels,
    )


def images_that_fit(machine: Machine, cost: Cost, input_size: tuple[int, int]) -> int:
    """Return the number of images that a worker can put through the network at once; at least 1."""
    free = machine.memory_bytes - cost.parameter_bytes
    return max(1, int(free / (cost.bytes_per_pixel * input_size[0] * input_size[1])))
