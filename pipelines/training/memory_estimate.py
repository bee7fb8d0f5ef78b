"""The memory of a training step on the CPU, estimated from two small steps.

Every operation of a step is watched, and the bytes of the tensors that are alive are added up: weights, gradients, the
optimizer's state, what autograd keeps, and what an operation needs for a moment. All but the first three grow with the
microbatch, by the same amount for each image, so that two sizes tell all others.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from data_shards.format.manifest import Manifest
from pipelines.recipes.settings import Recipe
from pipelines.training.single_process import SingleProcess, blank_batch

# Two images: batch norm cannot normalise the single cell that a small input may leave of one.
_SIZES = (2, 4)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of a worker's training step."""

    weights: int
    """Parameters and buffers."""
    optimizer_state: int
    engine: int
    """DeepSpeed's own copies of what is trained."""
    constant: float
    """Everything else in a forward and backward pass that does not depend on the microbatch, such as gradients."""
    per_image: float
    """Forward and backward, for each image of the microbatch."""
    update: int
    """Gradients, and what the optimizer needs for a moment while it steps."""

    @property
    def fixed(self) -> float:
        """Bytes at any microbatch."""
        return self.weights + self.optimizer_state + self.engine + self.constant

    def peak(self, microbatch: int) -> float:
        """Return the largest number of bytes in use at a time."""
        kept = self.weights + self.optimizer_state + self.engine
        return kept + max(self.constant + self.per_image * microbatch, self.update)

    def largest_microbatch(self, limit: float) -> int:
        """Return the largest microbatch whose peak is at most `limit` bytes; 0 if none is."""
        if self.peak(1) > limit:
            return 0
        return int((limit - self.fixed) // self.per_image)


def estimate_memory(recipe: Recipe, manifest: Manifest) -> MemoryEstimate:
    """Estimate the memory of a recipe's training step on the CPU, for one worker.

    Raises:
        DetectorError: the detector cannot be built.
    """
    cpu = torch.device("cpu")
    training = SingleProcess(recipe, manifest, cpu, initial=False)
    # The first step creates the optimizer's state.
    training.step([blank_batch(recipe, manifest, _SIZES[0])], rate=0.0)
    weights = _bytes(training.detector.state_dict().values())
    trained = _bytes(one for one in training.detector.parameters() if one.requires_grad)
    state = _bytes(
        value for one in training.optimizer.state.values() for value in one.values() if isinstance(value, Tensor)
    )
    passes, update = [], 0
    for size in _SIZES:
        batch = blank_batch(recipe, manifest, size)
        training.optimizer.zero_grad(set_to_none=True)
        with LiveBytes() as live:
            live.add(vars(batch).values())
            training.compute_gradients([batch])
            passes.append(live.peak)
            live.peak = live.current
            training.update(rate=0.0)
        update = max(update, live.peak)
    per_image = (passes[1] - passes[0]) / (_SIZES[1] - _SIZES[0])
    return MemoryEstimate(
        weights=weights,
        optimizer_state=state,
        # At stage 0 one bucket of gradients for communication; from stage 1 on also the partition that is updated.
        engine=trained if recipe.engine.zero_stage == 0 else 2 * trained,
        constant=passes[0] - per_image * _SIZES[0],
        per_image=per_image,
        update=update,
    )


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of tensors that operations create while it is active, for as long as these are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = 0
        """Bytes alive now."""
        self.peak = 0
        """Most bytes alive at a time."""
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it returns."""
        result = func(*args, **(kwargs or {}))
        # Inputs were counted when they were created, or existed before; a result that is a view shares its storage.
        inputs = {one.untyped_storage()._cdata for one in _tensors((args, kwargs))}
        self.add(one for one in _tensors(result) if one.untyped_storage()._cdata not in inputs)
        return result

    def add(self, values: Iterable[Any]) -> None:
        """Count tensors from now on, each storage once."""
        for value in values:
            if not isinstance(value, Tensor):
                continue
            storage = value.untyped_storage()
            if storage in self._known:
                continue
            self._known.add(storage)
            size = storage.nbytes()
            self.current += size
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self.current -= size


def _tensors(values: Any) -> list[Tensor]:
    return [one for one in torch.utils._pytree.tree_leaves(values) if isinstance(one, Tensor)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)
