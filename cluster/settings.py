"""Settings of this room, free of torch and Ray so that a recipe is read in an instant."""

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.engine.deepspeed_keys import check_keys
from cluster.errors import ClusterError

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """How many workers there are, and how often a failed one is replaced."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    workers: int | str = 2
    """Worker processes; with GPUs, one for each GPU. MIN:MAX follows the cluster as nodes come and go."""

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

    hang_seconds: float = 300.0
    """Without progress for so long, the rank that holds up the others is named and all are restarted; 0 never."""

    grace_seconds: float = 25.0
    """After Ctrl-C or SIGTERM, the time in which workers write a checkpoint before they are stopped."""

    @property
    def min_workers(self) -> int:
        """Fewest workers that training goes on with."""
        return int(str(self.workers).partition(":")[0])

    @property
    def max_workers(self) -> int:
        """Most workers that are asked for."""
        return int(str(self.workers).rpartition(":")[2])

    @property
    def elastic(self) -> bool:
        """Whether the number of workers follows the cluster."""
        return isinstance(self.workers, str)

    def __post_init__(self) -> None:
        text = str(self.workers)
        if not re.fullmatch(r"-?\d+|\d+:\d+", text):
            raise ClusterError(f"cluster.workers is {text!r}; write a number, or the fewest and the most as 2:8.")
        if ":" not in text:
            # A flag or YAML may bring the number as text.
            object.__setattr__(self, "workers", int(text))
        elif not 1 <= self.min_workers < self.max_workers:
            raise ClusterError(f"cluster.workers is {text}; write the fewest, 1 or more, then more than that, as 2:8.")
        for name, least in (("min_workers", 1), ("max_failures", 0), ("timeout_seconds", 1), ("hang_seconds", 0)):
            if not getattr(self, name) >= least:
                name, value = name.replace("min_", ""), getattr(self, name)
                raise ClusterError(f"cluster.{name} is {value}; it must be {least} or more.")
        if self.hang_seconds >= self.timeout_seconds:
            raise ClusterError(
                f"cluster.hang_seconds is {self.hang_seconds:g} and timeout_seconds {self.timeout_seconds}: the other "
                f"ranks would give up before the one that holds them up is named. Raise cluster.timeout_seconds."
            )
        if not self.grace_seconds > 0:
            raise ClusterError(f"cluster.grace_seconds is {self.grace_seconds:g}; it must be above 0.")
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
    """fp32; bf16 or fp16 (autocast over fp32 weights, fp16 with a dynamic loss scale); auto: bf16 where native."""

    clip_norm: float = 0.0
    """Largest gradient norm; 0 does not clip."""

    ema_decay: float = 0.0
    """Decay of an average of the weights, evaluated and saved instead of them; 0 keeps none. 0.9998 suits detectors."""

    not_finite: Literal["stop", "skip"] = "stop"
    """What NaN or infinity in the loss does: stop the run, or skip the step on all ranks and go on."""

    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Keys of DeepSpeed's JSON to set or override, such as zero_optimization.overlap_comm."""

    def __post_init__(self) -> None:
        if not self.clip_norm >= 0:
            raise ClusterError(f"engine.clip_norm is {self.clip_norm:g}; it must be 0 (off) or more.")
        if not 0 <= self.ema_decay < 1:
            raise ClusterError(f"engine.ema_decay is {self.ema_decay:g}; it must be 0 (none) or more and below 1.")
        check_keys(self.deepspeed, self.zero_stage)


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """When the complete state is written, and what stays."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    every_epochs: int = 1
    """Epochs between checkpoints; an evaluation and the last epoch end with one, too."""

    every_steps: int = 0
    """Steps between more checkpoints inside the epochs; 0 writes none."""

    every_minutes: float = 15.0
    """Longest time of training between checkpoints; 0 goes by steps and epochs alone."""

    keep: int = 2
    """How many of the newest stay; the one of the highest AP stays beside them."""

    location: str = ""
    """Where they go: empty is the run's folder; a folder, or s3://BUCKET/PREFIX for copies that outlive the machine."""

    def __post_init__(self) -> None:
        if self.every_epochs < 1:
            raise ClusterError(f"checkpoint.every_epochs is {self.every_epochs}; it must be 1 or more.")
        if self.every_steps < 0:
            raise ClusterError(f"checkpoint.every_steps is {self.every_steps}; it must be 0 (epochs only) or more.")
        if not self.every_minutes >= 0:
            raise ClusterError(f"checkpoint.every_minutes is {self.every_minutes:g}; it must be 0 (never) or more.")
        if self.keep < 1:
            raise ClusterError(f"checkpoint.keep is {self.keep}; at least 1 has to stay to resume from.")
