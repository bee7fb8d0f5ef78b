"""`aweigh batch`: the largest microbatch that fits a worker's device, by trying on a GPU, by estimate on the CPU."""

import gc
import json
from collections.abc import Callable

import psutil
import torch

from data_shards.counting import counted
from data_shards.format.manifest import Manifest
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.recipes.settings import Recipe
from pipelines.training.checks import check
from pipelines.training.memory_estimate import MemoryEstimate, estimate_memory
from pipelines.training.single_process import SingleProcess, blank_batch, largest_input, without_evaluation

MARGIN = 0.1
"""Part of the memory that stays free: for communication, the loader's batches and fragmentation."""

_MOST = 4096
"""Largest microbatch that is tried."""


def find_batch(recipe: Recipe, device: torch.device, memory_gb: float, as_json: bool) -> None:
    """Print the largest microbatch that fits, with the arithmetic, and the flags to paste.

    Args:
        recipe: what would be trained.
        device: of one worker.
        memory_gb: memory of a worker in GB; 0 takes what is free now, on the CPU divided among the workers.
        as_json: print the figures as one JSON object.

    Raises:
        ConfigError: not even one image fits.
    """
    recipe = without_evaluation(recipe)
    (split, *_), _ = check(recipe, fresh=False)
    height, width = largest_input(recipe)
    console.say("network", f"{recipe.detector.name}, inputs of up to {height} x {width} pixels")
    limit = memory_gb * 1e9 or _free_bytes(recipe, device)
    usable = (1 - MARGIN) * limit
    found: dict[str, float | int | str] = {"device": device.type, "limit_bytes": limit, "usable_bytes": usable}
    if device.type == "cuda":
        largest = largest_that_fits(lambda size: fits_on_gpu(recipe, split.manifest, device, size, usable))
        lines = [f"tried on {torch.cuda.get_device_name(device)} with {_mb(usable)}"]
    else:
        estimate = estimate_memory(recipe, split.manifest)
        largest = min(estimate.largest_microbatch(usable), _MOST)
        lines = _arithmetic(estimate, largest, limit, usable)
        found |= {"peak_bytes": estimate.peak(max(1, largest)), "per_image_bytes": estimate.per_image}
    if largest < 1:
        raise ConfigError(
            f"not even one image fits in {_mb(usable)}: lower data.input_size, freeze stages with detector.freeze, or "
            f"set detector.settings.activation_checkpointing where the detector has it."
        )
    flags = _flags(recipe, largest)
    if as_json:
        print(json.dumps({**found, "microbatch": largest, "flags": flags}))
        return
    for line in lines:
        print(line)
    print(f"largest microbatch: {counted(largest, 'image')} per worker")
    print(flags)


def largest_that_fits(fits: Callable[[int], bool], most: int = _MOST) -> int:
    """Return the largest size that fits, by doubling and then halving the interval; 0 if 1 does not fit.

    Args:
        fits: returns True for every size up to some size, and False for all above.
        most: largest size to try.
    """
    good, bad = 0, most + 1
    size = 1
    while good < most and size < bad:
        if fits(size):
            good, size = size, min(2 * size, most)
        else:
            bad = size
    while bad - good > 1:
        size = (good + bad) // 2
        good, bad = (size, bad) if fits(size) else (good, size)
    return good


def fits_on_gpu(recipe: Recipe, manifest: Manifest, device: torch.device, size: int, usable: float) -> bool:
    """Train two steps of a microbatch; returns False if the device has too little memory for them."""
    console.progress_line("trying", size, _MOST, "images")
    try:
        _train_within(recipe, manifest, device, size, usable)
    except torch.OutOfMemoryError:
        return False
    finally:
        # What the failed step still holds would make the next one fail, too.
        gc.collect()
        torch.cuda.empty_cache()
    return True


def _train_within(recipe: Recipe, manifest: Manifest, device: torch.device, size: int, usable: float) -> None:
    torch.cuda.set_per_process_memory_fraction(min(1.0, usable / torch.cuda.mem_get_info(device)[1]), device)
    training = SingleProcess(recipe, manifest, device, initial=False)
    trained = sum(one.numel() for one in training.detector.parameters() if one.requires_grad)
    # DeepSpeed's own copies; see `estimate_memory`.
    engine = torch.empty(trained if recipe.engine.zero_stage == 0 else 2 * trained, device=device)
    # The first step creates the optimizer's state, which the second one has beside everything else.
    for _ in range(2):
        training.step([blank_batch(recipe, manifest, size)], rate=0.0)
    del engine


def _free_bytes(recipe: Recipe, device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return psutil.virtual_memory().available / recipe.cluster.max_workers


def _arithmetic(estimate: MemoryEstimate, largest: int, limit: float, usable: float) -> list[str]:
    rows = [
        ("weights", estimate.weights, ""),
        ("optimizer state", estimate.optimizer_state, ""),
        ("DeepSpeed's copies", estimate.engine, ""),
        ("gradients and the like", estimate.constant, ""),
        ("forward and backward", estimate.per_image * largest, f"{_mb(estimate.per_image)} × {largest}"),
        ("together", estimate.peak(largest), f"of {_mb(usable)}: {_mb(limit)} for a worker, less {100 * MARGIN:g} %"),
    ]
    return [f"{name:<24}{_mb(size):>12}  {how}".rstrip() for name, size, how in rows]


def _flags(recipe: Recipe, largest: int) -> str:
    """Return the flags that use the microbatch: the global batch stays, and is accumulated if it has to be."""
    share = recipe.batch.global_size // recipe.cluster.max_workers
    if share <= largest:
        return f"--batch.microbatch_limit 0    (a worker's share of the batch, {counted(share, 'image')}, fits whole)"
    return f"--batch.microbatch_limit {largest}"


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"
