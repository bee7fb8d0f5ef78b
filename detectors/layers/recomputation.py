"""Activation checkpointing: activations of a block are recomputed in backward instead of being kept.

Batch norm would update its running statistics twice with the same batch, once for each computation. Here the second
one leaves them unchanged, so that losses, gradients and statistics are those of ordinary training, bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detectors.shapes import Float


class Recomputable(nn.Module, ABC):
    """A block without randomness that keeps its inner activations for backward, or computes them again."""

    activation_checkpointing = False
    """In training, keep only the block's input for backward."""

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Features as from `compute`."""
        if self.activation_checkpointing and self.training:
            return recomputed(self.compute, self, features)
        return self.compute(features)

    @abstractmethod
    def compute(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Compute the block."""


def set_activation_checkpointing(owner: nn.Module, active: bool) -> None:
    """Set `activation_checkpointing` in every block of `owner`."""
    for module in owner.modules():
        if isinstance(module, Recomputable):
            module.activation_checkpointing = active


def recomputed(
    block: Callable[[Tensor], Tensor], owner: nn.Module, features: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch out_channels out_height out_width"]:
    """Compute `block(features)` without keeping its inner activations for backward.

    Args:
        block: a computation without randomness.
        owner: holds every batch norm that `block` uses.
        features: input of `block`.

    Source:
        Chen et al., Training Deep Nets with Sublinear Memory Cost (arXiv:1604.06174).
    """
    if not torch.is_grad_enabled():
        return block(features)
    kept: Tensor = checkpoint(
        block,
        features,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _without_statistics(owner)),
    )
    return kept


@contextmanager
def _without_statistics(owner: nn.Module) -> Iterator[None]:
    norms = [module for module in owner.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        # Autograd must save the same tensors as the first time, so the statistics are updated, by 0.
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)
