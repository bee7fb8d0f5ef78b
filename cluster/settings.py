"""Settings of this room, free of torch and Ray so that a recipe is read in an instant."""

import difflib
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.errors import ClusterError

Precision = Literal["auto", "fp32", "bf16"]

# Top-level keys of DeepSpeed 0.19 that have an effect here; it ignores any other without a word.
_DEEPSPEED_KEYS = frozenset(
    {
        *("comms_logger", "communication_data_type", "data_types", "disable_allgather", "dump_state"),
        *("flops_profiler", "gradient_accumulation_steps", "gradient_clipping", "gradient_predivide_factor"),
        *("prescale_gradients", "steps_per_print", "torch_autocast", "train_batch_size"),
        *("train_micro_batch_size_per_gpu", "wall_clock_breakdown", "zero_allow_untested_optimizer"),
        *("zero_force_ds_cpu_optimizer", "zero_optimization"),
    }
)
# Keys that the recipe states elsewhere; two sources for one number would drift apart.
_DERIVED_KEYS = {
    "train_batch_size": "batch.global_size",
    "train_micro_batch_size_per_gpu": "batch.microbatch_limit",
    "gradient_accumulation_steps": "batch.microbatch_limit",
    "gradient_clipping": "engine.clip_norm",
    "torch_autocast": "engine.precision",
}


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """How many workers there are, and how often a failed one is replaced."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    workers: int = 2
    """Worker processes; with GPUs, one for each GPU."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where workers compute; auto takes GPUs where the cluster has one for each worker."""

    cpus_per_worker: float = 1.0
    """CPU cores that Ray sets aside for each worker; also its number of compute threads on CPU."""

    max_failures: int = 8
    """How often a lost worker is replaced before the run is given up."""

    timeout_seconds: int = 600
    """How long a rank waits for the others before it is counted as lost."""

    wait_minutes: float = 0.0
    """How long to wait for nodes that an autoscaler has to start; 0 refuses at once where there are too few."""

    preflight: bool = True
    """Check the nodes before workers on several of them start, as `aweigh preflight` does."""

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("max_failures", 0), ("timeout_seconds", 1)):
            if getattr(self, name) < least:
                raise ClusterError(f"cluster.{name} is {getattr(self, name)}; it must be {least} or more.")
        if not 0 <= self.wait_minutes < math.inf:
            raise ClusterError(f"cluster.wait_minutes is {self.wait_minutes:g}; it must be 0 (do not wait) or more.")
        if not self.cpus_per_worker > 0:
            raise ClusterError(f"cluster.cpus_per_worker is {self.cpus_per_worker:g}; it must be above 0.")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How DeepSpeed runs a step."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    zero_stage: Literal[0, 1, 2, 3] = 1
    """What the ranks share out: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too."""

    precision: Precision = "auto"
    """fp32, bf16 (autocast over fp32 weights), or auto: bf16 where the device computes it natively."""

    clip_norm: float = 0.0
    """Largest gradient norm; 0 does not clip."""

    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Keys of DeepSpeed's JSON to set or override, such as zero_optimization.overlap_comm."""

    def __post_init__(self) -> None:
        if not self.clip_norm >= 0:
            raise ClusterError(f"engine.clip_norm is {self.clip_norm:g}; it must be 0 (off) or more.")
        if "stage" in self.deepspeed.get("zero_optimization", {}):
            raise ClusterError("engine.deepspeed.zero_optimization.stage is derived by aweigh; set engine.zero_stage.")
        for key in self.deepspeed:
            if key in _DERIVED_KEYS:
                raise ClusterError(f"engine.deepspeed.{key} is derived by aweigh; set {_DERIVED_KEYS[key]} instead.")
            if key not in _DEEPSPEED_KEYS:
                close = difflib.get_close_matches(key, _DEEPSPEED_KEYS, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else "."
                raise ClusterError(f"engine.deepspeed.{key} has no effect in DeepSpeed 0.19{hint}")


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """When the complete state is written, and what stays."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    every_epochs: int = 1
    """Epochs between checkpoints; an evaluation and the last epoch end with one, too."""

    every_steps: int = 0
    """Steps between more checkpoints inside the epochs; 0 writes none."""

    keep: int = 2
    """How many of the newest stay; the one of the highest AP stays beside them."""

    def __post_init__(self) -> None:
        if self.every_epochs < 1:
            raise ClusterError(f"checkpoint.every_epochs is {self.every_epochs}; it must be 1 or more.")
        if self.every_steps < 0:
            raise ClusterError(f"checkpoint.every_steps is {self.every_steps}; it must be 0 (epochs only) or more.")
        if self.keep < 1:
            raise ClusterError(f"checkpoint.keep is {self.keep}; at least 1 has to stay to resume from.")
