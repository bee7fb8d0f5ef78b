"""DeepSpeed's engine behind one small class: it takes steps, and saves and loads the complete training state.

Unusual here: the optimizer is torch's, so that nothing is compiled at start; bf16 and fp16 are torch's autocast over
fp32 weights, because DeepSpeed's own bf16 keeps BatchNorm statistics with 8 bits of precision; and the saved state is
by parameter name, the same for every world size and ZeRO stage.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor, nn

from cluster.counting import counted
from cluster.deepspeed_keys import asks_for_reports
from cluster.engine.loss_scale import LossScale
from cluster.engine.optimizer_state import STATE_KEYS, OptimizerState
from cluster.engine.weight_average import WeightAverage
from cluster.errors import ClusterError
from cluster.settings import EngineSettings, Precision

ResolvedPrecision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class BatchSplit:
    """The division of the global batch: global size = microbatch size × accumulation steps × world size."""

    global_size: int
    microbatch_size: int
    accumulation_steps: int
    world_size: int

    def __str__(self) -> str:
        return (
            f"{self.global_size} = {self.microbatch_size} per worker × {counted(self.world_size, 'worker')} "
            f"× {self.accumulation_steps} accumulation"
        )


def split_batch(global_size: int, world_size: int, microbatch_limit: int) -> BatchSplit:
    """Derive microbatch size and accumulation steps for a world size.

    Args:
        global_size: samples of one optimizer step over all ranks.
        world_size: number of ranks.
        microbatch_limit: most samples that one rank passes through the network at once; 0 for no limit.

    Raises:
        ClusterError: the global batch does not divide among the ranks.
    """
    if global_size % world_size:
        lower, upper = global_size // world_size * world_size, -(-global_size // world_size) * world_size
        fitting = f"{lower} or {upper}" if lower else f"{upper}"
        raise ClusterError(
            f"batch.global_size {global_size} does not divide among {counted(world_size, 'worker')}; "
            f"set it to {fitting}, or change cluster.workers."
        )
    per_rank = global_size // world_size
    limit = microbatch_limit or per_rank
    accumulation = next(
        steps for steps in range(1, per_rank + 1) if per_rank % steps == 0 and per_rank // steps <= limit
    )
    return BatchSplit(global_size, per_rank // accumulation, accumulation, world_size)


def bootstrap(device: torch.device) -> None:
    """Prepare this process for DeepSpeed on a device; call it before DeepSpeed is used for anything else.

    Without a GPU, DeepSpeed would compile a shared-memory all-reduce on first use, which takes a minute in every fresh
    home directory; gloo does the same work.
    """
    # DeepSpeed would choose a GPU of the machine even if this worker computes on the CPU.
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ.setdefault("DS_IGNORE_CUDA_DETECTION", "1")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def resolve_precision(precision: Precision, device: torch.device) -> ResolvedPrecision:
    """Replace "auto" by bf16 if the device computes in it natively, else by fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        # Ampere (8.0) is the first with bf16 units.
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def deepspeed_config(settings: EngineSettings, split: BatchSplit, precision: ResolvedPrecision) -> dict[str, Any]:
    """Return DeepSpeed's JSON configuration; keys of `settings.deepspeed` override ours one by one."""
    config: dict[str, Any] = {
        "train_batch_size": split.global_size,
        "train_micro_batch_size_per_gpu": split.microbatch_size,
        "gradient_accumulation_steps": split.accumulation_steps,
        "gradient_clipping": settings.clip_norm,
        "zero_optimization": {"stage": settings.zero_stage},
        # SGD is not on DeepSpeed's list of tested optimizers, though it is elementwise like Adam.
        "zero_allow_untested_optimizer": True,
        # Never, in effect: our own log has a line for each step.
        "steps_per_print": 1_000_000_000,
        # Its timer waits for the GPU twice in every microbatch; our stopwatch does not.
        "timers": {"throughput": {"enabled": False}},
    }
    if precision == "bf16":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return _merged(config, settings.deepspeed)


def check_deepspeed(settings: EngineSettings) -> None:
    """Let DeepSpeed itself check the keys of `zero_optimization`, before a worker is started.

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
        DeepSpeedZeroConfig(stage=settings.zero_stage, **zero)
    except (pydantic.ValidationError, TypeError, ValueError) as error:
        loc: tuple[int | str, ...] = ()
        message = str(error)
        if isinstance(error, pydantic.ValidationError):
            loc, message = error.errors()[0]["loc"], error.errors()[0]["msg"]
        name = ".".join(["engine.deepspeed.zero_optimization", *map(str, loc)])
        raise ClusterError(f"{name} is refused by DeepSpeed: {message.lower()}. Correct or remove it.") from error


@dataclass
class TrainingState:
    """Everything that a step changes, on the CPU, by name, in the same form for every world size and ZeRO stage.

    `weights` contains parameters and buffers (floating buffers averaged over ranks), fp32; `optimizer` contains
    "parameter|state" tensors of the parameter's shape, and step counts; `per_rank` contains the tensors that differ
    between ranks ("rank|name"), which are loaded only if the world has the same size.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    per_rank: dict[str, Tensor]
    ema: dict[str, Tensor] = field(default_factory=dict)
    """The average of the weights with its buffers, named as in `weights`; empty if none is kept."""


class Engine:
    """One rank's part of a training step: forward, backward, optimizer step, and the complete state.

    Args:
        model: the network with its initial or loaded weights, on the CPU or on `device`.
        optimizer_class: torch.optim.Adam, AdamW or SGD.
        parameter_groups: as torch optimizers take them, each with its own "lr".
        settings: settings of DeepSpeed.
        split: division of the batch; its world size is that of the process group.
        device: the device on which this rank computes.
        state: state to continue from.
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

        if optimizer_class not in STATE_KEYS:
            raise ClusterError(f"optimizer {optimizer_class.__name__} is not supported; use Adam, AdamW or SGD.")
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        self.device = device
        self.split = split
        self.precision = resolve_precision(settings.precision, device)
        self.zero_stage = settings.zero_stage
        model = model.to(device)
        if state is not None:
            # Before DeepSpeed flattens and partitions the parameters, so that every stage starts from them.
            model.load_state_dict(state.weights)
        if self.precision == "fp16":
            _autocast_fp16(model, device)
        optimizer = optimizer_class(parameter_groups)  # type: ignore[call-arg]
        self.config = deepspeed_config(settings, split, self.precision)
        if self.zero_stage > 0:
            # By default DeepSpeed allocates a bucket of 5e8 gradients, 2 GB of GPU memory; one of the network's size
            # gives the same result.
            elements = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            self.config["zero_optimization"].setdefault("reduce_bucket_size", max(1, elements))
        if asks_for_reports(settings.deepspeed):
            _let_deepspeed_log()
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=self.config, dist_init_required=False
        )
        self._optimizer_state = OptimizerState(self.model, self._optimizer, optimizer_class, self.zero_stage, device)
        self.loss_scale = LossScale() if self.precision == "fp16" else None
        self.average: WeightAverage | None = None
        self.skipped = False
        """True if the last step was skipped, on all ranks, because a gradient was not finite."""
        self._skips = self.precision == "fp16" or settings.not_finite == "skip"
        if self._skips and self.zero_stage in (1, 2):
            # DeepSpeed turns this check on only for its own fp16 and bf16.
            self._optimizer.check_grad_overflow = True
        if state is not None:
            self._optimizer_state.load(state.optimizer)
            self._load_per_rank(state.per_rank)
        if settings.ema_decay:
            self.average = WeightAverage(self.model, settings.ema_decay)
        if state is not None:
            self._load_extras(state)
        self._apply_loss_scale()
        self._good_buffers = [buffer.detach().clone() for buffer in self.model.buffers()] if self._skips else []

    @property
    def model(self) -> nn.Module:
        """The network; at ZeRO 3 its parameters are empty outside a forward pass."""
        return self._engine.module

    def forward(self, images: Tensor) -> Any:
        """Run the network in training mode, under autocast if the precision is bf16 or fp16."""
        self._engine.train()
        return self._engine(images)

    def backward(self, loss: Tensor) -> None:
        """Compute gradients of one microbatch; DeepSpeed divides by the accumulation steps and averages over ranks."""
        if self.loss_scale and self.zero_stage == 0:
            loss = loss * self.loss_scale.value  # at the other stages DeepSpeed applies the scale itself
        self._engine.backward(loss)

    def step(self) -> None:
        """End a microbatch; the optimizer steps at the end of the accumulation.

        In fp16, and if `not_finite` is "skip", NaN or infinity in a gradient skips the step on all ranks: weights,
        optimizer state and buffers stay unchanged, and `skipped` is True.
        """
        # Asked before the step, which moves DeepSpeed on to the next microbatch.
        ends_step = self._engine.is_gradient_accumulation_boundary()
        overflowed = ends_step and self._skips and self.zero_stage == 0 and not self._unscale_plain_gradients()
        self._engine.step()
        if not ends_step:
            return
        self.skipped = overflowed or bool(getattr(self._optimizer, "overflow", False))
        if self._skips:
            self._keep_or_restore_buffers()
        if self.loss_scale:
            self.loss_scale.update(self.skipped)
            self._apply_loss_scale()
        if self.average and not self.skipped:
            self.average.update()

    def _unscale_plain_gradients(self) -> bool:
        """Divide the gradients of stage 0 by the loss scale; if one is not finite, drop all and return False."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if not gradients:
            return True
        if self.loss_scale:
            torch._foreach_mul_(gradients, 1 / self.loss_scale.value)
        # The gradients are averaged over ranks already, so that every rank decides the same.
        if torch.stack(torch._foreach_norm(gradients)).isfinite().all():
            return True
        for parameter in self.model.parameters():
            parameter.grad = None
        return False

    @torch.no_grad()
    def _keep_or_restore_buffers(self) -> None:
        # The forward pass has already put the skipped batch into BatchNorm's running statistics.
        buffers = list(self.model.buffers())
        if not buffers:
            return
        if self.skipped:
            torch._foreach_copy_(buffers, self._good_buffers)
        else:
            torch._foreach_copy_(self._good_buffers, buffers)

    def _apply_loss_scale(self) -> None:
        if self.loss_scale and self.zero_stage > 0:
            self._optimizer.override_loss_scale(self.loss_scale.value)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the rate of every parameter group, times the group's own "lr_factor"."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_factor", 1.0)

    @property
    def gradient_norm(self) -> float | None:
        """Norm of the last step's gradient over all ranks; None at ZeRO 0, where DeepSpeed does not compute it."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def averaged_buffers(self) -> dict[str, Tensor]:
        """Average floating buffers over ranks, for DeepSpeed never exchanges BatchNorm statistics. Collective.

        Returns:
            All buffers by name.
        """
        return self._over_ranks(dict(self.model.named_buffers()))

    def _over_ranks(self, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        averaged = {}
        for name, buffer in buffers.items():
            value = buffer.detach().clone()
            if value.is_floating_point() and self.world_size > 1:
                # A sum and a division, because gloo has no average.
                torch.distributed.all_reduce(value)
                value /= self.world_size
            averaged[name] = value
        return averaged

    def evaluation_weights(self) -> dict[str, Tensor]:
        """Return the complete fp32 state dict on this rank's device, with averaged buffers. Collective.

        It is the average of the weights if one is kept, else the weights.
        """
        return self._averaged_weights() if self.average else self._weights()

    def _weights(self) -> dict[str, Tensor]:
        return {**self._full_parameters(), **self.averaged_buffers()}

    def _averaged_weights(self) -> dict[str, Tensor]:
        assert self.average is not None
        return {**self.average.parameters(), **self._over_ranks(self.average.buffers())}

    def state(self) -> TrainingState | None:
        """Copy the complete state. Collective. Returns the state on rank 0 and None elsewhere.

        Nothing that training uses is changed, so a run that saves often equals one that never does.
        """
        weights = {name: value.cpu().clone() for name, value in self._weights().items()}
        optimizer = self._optimizer_state.full()
        own = {name: buffer.detach().cpu().clone() for name, buffer in self.model.named_buffers()}
        average: dict[str, Tensor] = {}
        if self.average:
            average = {name: value.cpu().clone() for name, value in self._averaged_weights().items()}
            own |= {f"ema/{name}": buffer.cpu().clone() for name, buffer in self.average.buffers().items()}
            optimizer["ema|updates"] = torch.tensor(self.average.updates)
        if self.loss_scale:
            optimizer["loss_scale|value"] = torch.tensor(self.loss_scale.value, dtype=torch.float64)
            optimizer["loss_scale|good_steps"] = torch.tensor(self.loss_scale.good_steps)
        own["random_state"] = torch.get_rng_state()
        per_rank: list[dict[str, Tensor] | None] | None = [None] * self.world_size if self.rank == 0 else None
        torch.distributed.gather_object(own, per_rank)
        if per_rank is None:
            return None
        flat = {
            f"{rank}|{name}": value for rank, values in enumerate(per_rank) for name, value in (values or {}).items()
        }
        return TrainingState(weights, optimizer, flat, average)

    def _full_parameters(self) -> dict[str, Tensor]:
        if self.zero_stage < 3:
            return {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        from deepspeed.utils import safe_get_full_fp32_param

        return {name: safe_get_full_fp32_param(parameter).detach() for name, parameter in self.model.named_parameters()}

    def _load_extras(self, state: TrainingState) -> None:
        """Load the average of the weights and the loss scale, if both this training and the saved one have them."""
        if self.average and state.ema:
            own = self._own(state.per_rank)
            buffers = {name: own[f"ema/{name}"] for name, _ in self.model.named_buffers()} if own else {}
            self.average.load({**state.ema, **buffers}, int(state.optimizer["ema|updates"]))
        if self.loss_scale and "loss_scale|value" in state.optimizer:
            self.loss_scale.value = float(state.optimizer["loss_scale|value"])
            self.loss_scale.good_steps = int(state.optimizer["loss_scale|good_steps"])

    def _own(self, per_rank: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Choose this rank's tensors of those that differ between ranks; none if the saved world had another size."""
        saved_world = 1 + max((int(key.split("|", 1)[0]) for key in per_rank), default=-1)
        if saved_world != self.world_size:
            return {}
        return {key.split("|", 1)[1]: value for key, value in per_rank.items() if key.startswith(f"{self.rank}|")}

    def _load_per_rank(self, per_rank: Mapping[str, Tensor]) -> None:
        own = self._own(per_rank)
        if not own:
            return  # another world size: keep the averaged buffers that came with the weights
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(own[name])
        torch.set_rng_state(own["random_state"])


def _let_deepspeed_log() -> None:
    """Send DeepSpeed's reports to the rank's log; its own handler writes to a stdout that Ray hides."""
    from deepspeed.utils import logger

    logger.setLevel(logging.INFO)
    logger.handlers.clear()
    logger.propagate = True


def _autocast_fp16(model: nn.Module, device: torch.device) -> None:
    """Run the network's forward under fp16 autocast, hidden from DeepSpeed, which would scale gradients itself."""
    plain = model.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        with torch.autocast(device.type, dtype=torch.float16):
            return plain(*arguments, **named)

    model.forward = forward


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged
