"""DeepSpeed's engine behind one small class: settings in, steps done, complete state out and in again.

Unusual here: the optimizer is torch's (nothing is compiled at start), bf16 is torch's autocast over fp32 weights
(DeepSpeed's own bf16 keeps BatchNorm statistics in 8 bits), and the state that leaves is by parameter name, the
same for every world size and ZeRO stage.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor, nn

from cluster.errors import ClusterError
from cluster.settings import EngineSettings, Precision

# Optimizer state that is as large as its parameter, by torch optimizer.
_STATE_KEYS = {
    torch.optim.Adam: ("exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.SGD: ("momentum_buffer",),
}


@dataclass(frozen=True)
class BatchSplit:
    """How the global batch falls on the ranks: global = microbatch × accumulation × world."""

    global_size: int
    microbatch_size: int
    accumulation_steps: int
    world_size: int

    def __str__(self) -> str:
        return (
            f"{self.global_size} = {self.microbatch_size} per worker × {self.world_size} workers "
            f"× {self.accumulation_steps} accumulation"
        )


def split_batch(global_size: int, world_size: int, microbatch_limit: int) -> BatchSplit:
    """Derive microbatch and accumulation for the world at hand.

    Args:
        global_size: samples of one optimizer step over all ranks.
        world_size: number of ranks.
        microbatch_limit: most samples that one rank takes through the network at once; 0 for no limit.

    Raises:
        ClusterError: the ranks cannot share the batch equally.
    """
    if global_size % world_size:
        lower, upper = global_size // world_size * world_size, -(-global_size // world_size) * world_size
        fitting = f"{lower} or {upper}" if lower else f"{upper}"
        raise ClusterError(
            f"batch.global_size {global_size} does not divide among {world_size} workers; "
            f"set it to {fitting}, or change cluster.workers."
        )
    per_rank = global_size // world_size
    limit = microbatch_limit or per_rank
    accumulation = next(
        steps for steps in range(1, per_rank + 1) if per_rank % steps == 0 and per_rank // steps <= limit
    )
    return BatchSplit(global_size, per_rank // accumulation, accumulation, world_size)


def bootstrap(device: torch.device) -> None:
    """Prepare this process for DeepSpeed on a device; call it before anything else of DeepSpeed is touched.

    Without a GPU, DeepSpeed would compile a shared-memory all-reduce on first use, a minute for every fresh home
    directory; gloo does the same work.
    """
    # DeepSpeed would take a GPU that the machine has, although this worker computes on the CPU.
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ.setdefault("DS_IGNORE_CUDA_DETECTION", "1")
    import logging

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """What "auto" means on this device: bf16 where its arithmetic is native, fp32 elsewhere."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def deepspeed_config(settings: EngineSettings, split: BatchSplit, precision: Literal["fp32", "bf16"]) -> dict[str, Any]:
    """DeepSpeed's JSON for these settings; `settings.deepspeed` is merged over it, key by key."""
    config: dict[str, Any] = {
        "train_batch_size": split.global_size,
        "train_micro_batch_size_per_gpu": split.microbatch_size,
        "gradient_accumulation_steps": split.accumulation_steps,
        "gradient_clipping": settings.clip_norm,
        "zero_optimization": {"stage": settings.zero_stage},
        # SGD is not on DeepSpeed's list of tested optimizers, though it is elementwise like Adam.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000_000,
    }
    if precision == "bf16":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return _merged(config, settings.deepspeed)


def check_deepspeed(settings: EngineSettings) -> None:
    """Let DeepSpeed itself judge the keys of `zero_optimization`, before a worker meets them.

    Raises:
        ClusterError: names the first key that it refuses.
    """
    zero = settings.deepspeed.get("zero_optimization", {})
    if not zero:
        return
    import pydantic

    bootstrap(torch.device("cpu"))
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**zero)
    except (pydantic.ValidationError, TypeError) as error:
        loc: tuple[int | str, ...] = ()
        message = str(error)
        if isinstance(error, pydantic.ValidationError):
            loc, message = error.errors()[0]["loc"], error.errors()[0]["msg"]
        name = ".".join(["engine.deepspeed.zero_optimization", *map(str, loc)])
        raise ClusterError(f"{name} is refused by DeepSpeed: {message.lower()}.") from error


@dataclass
class TrainingState:
    """Everything a step changes, on the CPU, by name, whatever the world size and ZeRO stage.

    `weights` holds parameters and buffers (floating buffers averaged over ranks), fp32; `optimizer` holds
    "parameter|state" tensors of the parameter's shape and "step" counts; `per_rank` holds what differs between ranks
    ("rank|name"), used again only when the world has the same size.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    per_rank: dict[str, Tensor]


class Engine:
    """One rank's part of the training step: forward, backward, optimizer step, and the complete state.

    Args:
        model: the network with its initial or loaded weights, on the CPU or on `device`.
        optimizer_class: torch.optim.Adam, AdamW or SGD.
        parameter_groups: as torch optimizers take them, each with its own "lr".
        settings: how DeepSpeed runs the step.
        split: batch arithmetic; its world size is that of the process group.
        device: where this rank computes.
        state: continue from this state.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer_class: type[torch.optim.Optimizer],
        parameter_groups: list[dict[str, Any]],
        settings: EngineSettings,
        split: BatchSplit,
        device: torch.device,
        state: TrainingState | None = None,
    ) -> None:
        import deepspeed

        if optimizer_class not in _STATE_KEYS:
            raise ClusterError(f"optimizer {optimizer_class.__name__} is not known; use Adam, AdamW or SGD.")
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        self.device = device
        self.split = split
        self.precision = resolve_precision(settings.precision, device)
        self.zero_stage = settings.zero_stage
        model = model.to(device)
        if state is not None:
            # Loaded before DeepSpeed flattens and shares out the parameters, so every stage starts from them.
            model.load_state_dict(state.weights)
        self._optimizer_class = optimizer_class
        optimizer = optimizer_class(parameter_groups)  # type: ignore[call-arg]
        self.config = deepspeed_config(settings, split, self.precision)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=self.config, dist_init_required=False
        )
        if state is not None:
            self._load_optimizer(state.optimizer)
            self._load_per_rank(state.per_rank)

    @property
    def model(self) -> nn.Module:
        """The network itself; under ZeRO 3 its parameters are empty outside a forward pass."""
        return self._engine.module

    def forward(self, images: Tensor) -> Any:
        """Run the network in training mode, under autocast where the precision says so."""
        self._engine.train()
        return self._engine(images)

    def backward(self, loss: Tensor) -> None:
        """Gradients of one microbatch; DeepSpeed divides by the accumulation steps and averages over ranks."""
        self._engine.backward(loss)

    def step(self) -> None:
        """End a microbatch; the optimizer steps at the end of the accumulation."""
        self._engine.step()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the rate of every parameter group, times the group's own "lr_factor"."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_factor", 1.0)

    @property
    def gradient_norm(self) -> float | None:
        """Norm of the last step's gradient over all ranks, where DeepSpeed computes it (ZeRO 1 to 3)."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def averaged_buffers(self) -> dict[str, Tensor]:
        """Buffers by name, floating ones averaged over ranks: DeepSpeed never exchanges BatchNorm statistics."""
        averaged = {}
        for name, buffer in self.model.named_buffers():
            value = buffer.detach().clone()
            if value.is_floating_point() and self.world_size > 1:
                torch.distributed.all_reduce(value)
                value /= self.world_size
            averaged[name] = value
        return averaged

    def evaluation_weights(self) -> dict[str, Tensor]:
        """Complete fp32 state dict on this rank's device, with averaged buffers; every rank calls it."""
        return {**self._full_parameters(), **self.averaged_buffers()}

    def state(self) -> TrainingState | None:
        """The complete state; every rank calls it, rank 0 is given it and the others None.

        Nothing that training uses is changed, so a run that saves often equals one that never does.
        """
        weights = {name: value.cpu().clone() for name, value in self.evaluation_weights().items()}
        optimizer = self._full_optimizer()
        own = {name: buffer.detach().cpu().clone() for name, buffer in self.model.named_buffers()}
        own["random_state"] = torch.get_rng_state()
        per_rank: list[dict[str, Tensor] | None] | None = [None] * self.world_size if self.rank == 0 else None
        torch.distributed.gather_object(own, per_rank)
        if per_rank is None:
            return None
        flat = {
            f"{rank}|{name}": value for rank, values in enumerate(per_rank) for name, value in (values or {}).items()
        }
        return TrainingState(weights, optimizer, flat)

    def _full_parameters(self) -> dict[str, Tensor]:
        if self.zero_stage < 3:
            return {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        from deepspeed.utils import safe_get_full_fp32_param

        return {name: safe_get_full_fp32_param(parameter).detach() for name, parameter in self.model.named_parameters()}

    def _shares(self) -> list[Tensor]:
        """The tensors that torch's optimizer keeps state for: parameters, or this rank's flat partitions."""
        if self.zero_stage == 0:
            return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        if self.zero_stage < 3:
            return list(self._optimizer.single_partition_of_fp32_groups)
        return list(self._optimizer.fp32_partitioned_groups_flat)

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer if self.zero_stage == 0 else self._optimizer.optimizer

    def _link_optimizer_state(self) -> None:
        """Tie parameters to their part of the flat optimizer state (ZeRO 1 and 2).

        DeepSpeed does it once, after the first parameter group's first step: too early for the other groups, and
        never for a state that is loaded before any step.
        """
        if self.zero_stage not in (1, 2):
            return
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        zero = self._optimizer
        for parameters, share in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, share, zero.optimizer.state)
        zero._hp_optimizer_states_linked = True

    def _full_optimizer(self) -> dict[str, Tensor]:
        self._link_optimizer_state()
        state = self._torch_optimizer().state
        started = [state[share] for share in self._shares() if state.get(share)]
        if not started:
            return {}
        # One count serves all parameters: every step updates every one that has a gradient.
        step = started[0].get("step")
        full = {} if step is None else {"step": torch.as_tensor(step, dtype=torch.float32).cpu().clone()}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            for key in _STATE_KEYS[self._optimizer_class]:
                value = self._full_optimizer_value(parameter, key)
                if value is not None:
                    full[f"{name}|{key}"] = value.cpu().clone()
        return full

    def _full_optimizer_value(self, parameter: nn.Parameter, key: str) -> Tensor | None:
        if self.zero_stage == 0:
            # A parameter that has no gradient (DLA-34 has eight) has no state.
            return self._torch_optimizer().state.get(parameter, {}).get(key)
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, key).detach().reshape(parameter_shape(parameter))

    def _load_optimizer(self, saved: Mapping[str, Tensor]) -> None:
        if not saved:
            return
        state = self._torch_optimizer().state
        keys = _STATE_KEYS[self._optimizer_class]
        for share in self._shares():
            state[share] = {key: torch.zeros_like(share) for key in keys}
            if "step" in saved:
                state[share]["step"] = saved["step"].clone()
        self._link_optimizer_state()
        for name, parameter in self.model.named_parameters():
            for key in keys:
                value = saved.get(f"{name}|{key}")
                if value is None:
                    if self.zero_stage == 0 and parameter in state:
                        del state[parameter]
                    break
                self._set_optimizer_value(parameter, key, value.to(self.device))

    def _set_optimizer_value(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        if self.zero_stage == 0:
            self._torch_optimizer().state[parameter][key].copy_(value)
            return
        if self.zero_stage == 3:
            from deepspeed.utils import safe_set_local_optimizer_state

            # Shares are equal, the last one padded; DeepSpeed's own setter forgets the padding.
            share = -(-value.numel() // self.world_size)
            padded = torch.zeros(share * self.world_size, dtype=value.dtype, device=value.device)
            padded[: value.numel()] = value.flatten()
            own = padded[share * self.rank : share * (self.rank + 1)]
            safe_set_local_optimizer_state(parameter, own, key)
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, value, key)

    def _load_per_rank(self, per_rank: Mapping[str, Tensor]) -> None:
        own = {key.split("|", 1)[1]: value for key, value in per_rank.items() if key.startswith(f"{self.rank}|")}
        saved_world = 1 + max((int(key.split("|", 1)[0]) for key in per_rank), default=-1)
        if saved_world != self.world_size:
            return  # another world: the averaged buffers of the weights stay
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(own[name])
        torch.set_rng_state(own["random_state"])


def parameter_shape(parameter: nn.Parameter) -> torch.Size:
    """The full shape, also of a parameter that ZeRO 3 has taken apart."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged
