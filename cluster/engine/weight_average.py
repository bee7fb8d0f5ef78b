"""An exponential moving average of the weights, at every ZeRO stage."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn


class WeightAverage:
    """The average of a model's parameters and floating buffers over the steps so far.

    The decay starts low, (1 + n) / (10 + n) after n steps, so that the initial weights are soon forgotten. At ZeRO 3
    each rank averages only its own shares.

    Args:
        model: the network, after `deepspeed.initialize`.
        decay: weight of the average against the newest weights.

    Source:
        The decay's schedule is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._model = model
        self._values = {name: value.clone() for name, value in self._current().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step to the average."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = self._current()
        floating = [name for name, value in self._values.items() if value.is_floating_point()]
        # One kernel for all tensors: hundreds of small ones would cost more than the arithmetic.
        torch._foreach_lerp_([self._values[name] for name in floating], [current[name] for name in floating], weight)
        # Integer buffers, such as BatchNorm's counter of batches, have no average.
        for name in self._values.keys() - floating:
            self._values[name].copy_(current[name])

    def parameters(self) -> dict[str, Tensor]:
        """Return the averaged parameters by name, complete. Collective at ZeRO 3."""
        return {
            name: whole_parameter(parameter, self._values[name]) for name, parameter in self._model.named_parameters()
        }

    def buffers(self) -> dict[str, Tensor]:
        """Return this rank's averaged buffers by name."""
        return {name: self._values[name] for name, _ in self._model.named_buffers()}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Load saved averages: complete parameters and this rank's buffers."""
        self.updates = updates
        for name, parameter in self._model.named_parameters():
            self._values[name].copy_(_share(parameter, values[name].to(self._values[name].device)))
        for name, _ in self._model.named_buffers():
            self._values[name].copy_(values[name])

    def _current(self) -> dict[str, Tensor]:
        shares = {
            name: (parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter).detach()
            for name, parameter in self._model.named_parameters()
        }
        return {**shares, **{name: buffer.detach() for name, buffer in self._model.named_buffers()}}


def whole_parameter(parameter: Any, share: Tensor) -> Tensor:
    """Return a parameter from the ranks' shares of it. Collective at ZeRO 3; at other stages the share is the whole."""
    if not hasattr(parameter, "ds_tensor"):
        return share
    shares = [torch.empty_like(share) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(shares, share.contiguous())
    return torch.cat(shares)[: parameter.ds_numel].view(parameter.ds_shape)


def _share(parameter: Any, whole: Tensor) -> Tensor:
    if not hasattr(parameter, "ds_tensor"):
        return whole
    # All shares have the same size, so the last one is padded.
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
    padded = torch.zeros(size * torch.distributed.get_world_size(), dtype=whole.dtype, device=whole.device)
    padded[: whole.numel()] = whole.flatten()
    return padded[size * rank : size * (rank + 1)]
