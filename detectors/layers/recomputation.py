"""Activation checkpointing: activations of a block are computed again in backward instead of being kept.

Unusual here: batch norm would take the same batch into its running statistics twice, once for each computation. The
second one leaves them alone, so that losses, gradients and statistics are those of ordinary training, bit for bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: Callable[[Tensor], Tensor], owner: nn.Module, features: Tensor) -> Tensor:
    """Compute `block(features)` without keeping what lies inside of it for backward.

    Args:
        block: no randomness in it.
        owner: holds every batch norm that `block` runs through.
        features: `(batch, channels, height, width)`.

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
        # What is saved for backward has to be the same as the first time, so the statistics are there and move by 0.
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)
