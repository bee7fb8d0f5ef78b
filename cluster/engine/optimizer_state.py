"""The optimizer's complete state by parameter name, read at any ZeRO stage and loaded at any other."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

# Names of the state tensors that have the parameter's shape, by torch optimizer.
STATE_KEYS = {
    torch.optim.Adam: ("exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.SGD: ("momentum_buffer",),
}


class OptimizerState:
    """Reads and loads the state of the optimizer inside DeepSpeed.

    Args:
        model: the network, after `deepspeed.initialize`.
        optimizer: the optimizer that `deepspeed.initialize` returned: torch's at stage 0, DeepSpeed's wrapper around it
            at the others.
        optimizer_class: torch.optim.Adam, AdamW or SGD.
        zero_stage: 0 to 3.
        device: the device on which this rank computes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        optimizer_class: type[torch.optim.Optimizer],
        zero_stage: int,
        device: torch.device,
    ) -> None:
        self.model = model
        self.zero_stage = zero_stage
        self.device = device
        self._optimizer = optimizer
        self._keys = STATE_KEYS[optimizer_class]

    def _shares(self) -> list[Tensor]:
        """List the tensors for which torch's optimizer keeps state: parameters, or this rank's flat partitions."""
        if self.zero_stage == 0:
            return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        if self.zero_stage < 3:
            return list(self._optimizer.single_partition_of_fp32_groups)
        return list(self._optimizer.fp32_partitioned_groups_flat)

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer if self.zero_stage == 0 else self._optimizer.optimizer

    def _link(self) -> None:
        """Link parameters to their part of the flat optimizer state (ZeRO 1 and 2).

        DeepSpeed does this once, after the first parameter group's first step: too early for the other groups, and
        never for a state that is loaded before any step.
        """
        if self.zero_stage not in (1, 2):
            return
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        zero = self._optimizer
        for parameters, share in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, share, zero.optimizer.state)
        zero._hp_optimizer_states_linked = True

    def full(self) -> dict[str, Tensor]:
        """Return every "parameter|state" tensor on the CPU, and the "step" count. Collective."""
        self._link()
        state = self._torch_optimizer().state
        started = [state[share] for share in self._shares() if state.get(share)]
        if not started:
            return {}
        # One count is enough: every step updates all parameters that have a gradient.
        step = started[0].get("step")
        full = {} if step is None else {"step": torch.as_tensor(step, dtype=torch.float32).cpu().clone()}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            for key in self._keys:
                value = self._full_value(parameter, key)
                if value is not None:
                    full[f"{name}|{key}"] = value.cpu().clone()
        return full

    def _full_value(self, parameter: nn.Parameter, key: str) -> Tensor | None:
        if self.zero_stage == 0:
            # A parameter without a gradient (DLA-34 has eight) has no state.
            return self._torch_optimizer().state.get(parameter, {}).get(key)
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, key).detach().reshape(parameter_shape(parameter))

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Load a state that `full` returned, at any stage and world size."""
        if not saved:
            return
        state = self._torch_optimizer().state
        keys = self._keys
        # Torch makes an optimizer's state in its first step; here it has to exist before.
        for share in self._shares():
            state[share] = {key: torch.zeros_like(share) for key in keys}
            if "step" in saved:
                state[share]["step"] = saved["step"].clone()
        self._link()
        for name, parameter in self.model.named_parameters():
            for key in keys:
                value = saved.get(f"{name}|{key}")
                if value is None:
                    # It had no gradient when the state was saved, so torch kept no state for it either.
                    if self.zero_stage == 0 and parameter in state:
                        del state[parameter]
                    break
                self._set_value(parameter, key, value.to(self.device))

    def _set_value(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        if self.zero_stage == 0:
            self._torch_optimizer().state[parameter][key].copy_(value)
            return
        if self.zero_stage == 3:
            from deepspeed.utils import safe_set_local_optimizer_state

            # All shares have the same size, so the last one is padded; DeepSpeed's own setter forgets the padding.
            world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
            share = -(-value.numel() // world_size)
            padded = torch.zeros(share * world_size, dtype=value.dtype, device=value.device)
            padded[: value.numel()] = value.flatten()
            own = padded[share * rank : share * (rank + 1)]
            safe_set_local_optimizer_state(parameter, own, key)
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, value, key)


def parameter_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the full shape of a parameter, even if ZeRO 3 has partitioned it."""
    return getattr(parameter, "ds_shape", parameter.shape)
