"""`aweigh bench scaling`: the load of each detector on links, cores, storage and rank 0 at 8 to 1,024 GPUs.

A simulation, not a measurement: parameter and buffer bytes are counted from the networks; everything else follows from
nominal link speeds and two figures that are measured elsewhere (decoding on a core, bytes of a COCO image).

Unusual here: by default DeepSpeed communicates after backward, not during it: at stage 0 always, at 1 and 2 because a
network of fewer than 5e8 parameters fills one bucket of gradients, which is reduced at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

import detectors

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
PER_NODE = 8
# Nominal bytes a second of a whole node in one direction, all of which a ring of nodes can use.
LINKS = {
    "25 Gb/s Ethernet": 25e9 / 8,
    "100 Gb/s (g5.48xlarge)": 100e9 / 8,
    "400 Gb/s EFA (p4d)": 400e9 / 8,
    "3,200 Gb/s EFA (p5)": 3200e9 / 8,
}
_NVLINK = 300e9
_HOP_SECONDS = 20e-6
# Passes of fp32 gradients and of weights around the ring in a step, by ZeRO stage. Stages 1 and 2 reduce gradients to
# every rank (use_multi_rank_bucket_allreduce) and gather the weights that each has updated; 3 gathers them twice.
_PASSES = {0: (2, 0), 1: (2, 1), 2: (2, 1), 3: (1, 2)}
# One core decodes and resamples 241 COCO images a second; COCO train2017 is 19.3 GB in 118,287 images.
_IMAGES_PER_CORE = 241.0
_IMAGE_BYTES = 19.3e9 / 118_287


@dataclass(frozen=True)
class Network:
    """The sizes of one detector that scaling depends on."""

    name: str
    parameter_bytes: int
    """Bytes of fp32 weights, or of their gradients."""
    buffer_bytes: int
    """Bytes of buffers, of which each rank has its own."""


def network(name: str) -> Network:
    """Count a detector's parameters and buffers without allocating its weights."""
    with torch.device("meta"):
        detector = detectors.build(name)
    return Network(
        name,
        sum(value.numel() * 4 for value in detector.parameters()),
        sum(value.numel() * value.element_size() for value in detector.buffers()),
    )


def pass_seconds(num_bytes: float, gpus: int, link: float) -> float:
    """Compute the time of one pass: around the ring in each node over NVLink, then around the nodes over the link.

    An all-reduce takes two passes, an all-gather one.

    Args:
        num_bytes: bytes of all gradients or weights.
        gpus: number of GPUs, 8 per node.
        link: bytes a second between nodes.
    """
    inside = min(gpus, PER_NODE)
    seconds = (inside - 1) / inside * num_bytes / _NVLINK
    nodes = gpus // PER_NODE
    if nodes > 1:
        seconds += (nodes - 1) / nodes * num_bytes / link + (nodes - 1) * _HOP_SECONDS
    return seconds


def communication(one_pass: float, zero_stage: int, step_seconds: float, *, overlap: bool) -> tuple[float, float]:
    """Compute a step's seconds of communication, and the share of the step that is left for computing.

    Args:
        one_pass: seconds of one pass, from `pass_seconds`.
        zero_stage: 0 to 3.
        step_seconds: seconds of computing.
        overlap: gradients are sent during backward, which is two thirds of computing.
    """
    gradients, weights = (one_pass * passes for passes in _PASSES[zero_stage])
    exposed = weights + max(0.0, gradients - (2 / 3 * step_seconds if overlap else 0.0))
    return gradients + weights, step_seconds / (step_seconds + exposed)


def checkpoint_bytes(one: Network, gpus: int) -> tuple[int, int]:
    """Return the bytes of weights with Adam's two averages, and those of all ranks' own buffers."""
    return 3 * one.parameter_bytes + one.buffer_bytes, one.buffer_bytes * gpus


def print_scaling(images_per_second: float, batch_per_gpu: int, zero_stage: int = 1, *, overlap: bool = False) -> None:
    """Print the tables of docs/scaling.md."""
    step = batch_per_gpu / images_per_second
    print(
        f"assumed: {images_per_second:g} images/s and {batch_per_gpu} images a step on each GPU, {1000 * step:.0f} ms"
    )
    when = "gradients during backward" if overlap else "after backward"
    print(
        f"communication of a step at ZeRO {zero_stage}, {when}, in ms, and the share of the step left for computing:\n"
    )
    networks = [network(name) for name in detectors.names()]
    for label, link in LINKS.items():
        print(f"{label:<34}" + "".join(f"{gpus:>13,}" for gpus in GPUS))
        for one in networks:
            cells = []
            for gpus in GPUS:
                one_pass = pass_seconds(one.parameter_bytes, gpus, link)
                seconds, share = communication(one_pass, zero_stage, step, overlap=overlap)
                cells.append(f"{1000 * seconds:7.1f} {100 * share:4.0f}%")
            print(f"  {one.name:<32}" + "".join(f"{cell:>13}" for cell in cells))
        print()
    print(f"{'the same for all detectors':<34}" + "".join(f"{gpus:>13,}" for gpus in GPUS))
    rows: dict[str, Callable[[int], str]] = {
        "images/s": lambda gpus: f"{gpus * images_per_second:,.0f}",
        "cores for decoding": lambda gpus: f"{gpus * images_per_second / _IMAGES_PER_CORE:,.0f}",
        "MB/s from S3, first epoch": lambda gpus: f"{gpus * images_per_second * _IMAGE_BYTES / 1e6:,.0f}",
        "steps of a COCO epoch": lambda gpus: f"{118_287 // (gpus * batch_per_gpu):,}",
    }
    for label, cell in rows.items():
        print(f"  {label:<32}" + "".join(f"{cell(gpus):>13}" for gpus in GPUS))
    print(f"\n{'checkpoint, MB: state + buffers':<34}" + "".join(f"{gpus:>13,}" for gpus in GPUS))
    for one in networks:
        cells = [f"{state / 1e6:,.0f} + {own / 1e6:,.0f}" for state, own in (checkpoint_bytes(one, n) for n in GPUS)]
        print(f"  {one.name:<32}" + "".join(f"{cell:>13}" for cell in cells))
