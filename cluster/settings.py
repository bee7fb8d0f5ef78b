"""Settings of the workers, the engine and checkpoints; without torch and Ray, so that a recipe loads at once."""

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.counting import counted
from cluster.deepspeed_keys import check_keys
from cluster.errors import ClusterError

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Number and kind of workers, and what happens when one fails."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    workers: int | str = 2
    """Worker processes, one per GPU if GPUs are used. With MIN:MAX the number follows the nodes of the cluster."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the workers; auto uses GPUs if the cluster has one for each worker."""

    cpus_per_worker: float = 1.0
    """CPU cores that Ray reserves for each worker; also the number of compute threads when training on CPU."""

    max_failures: int = 8
    """Number of times that lost workers are replaced before the run fails."""

    timeout_seconds: int = 600
    """Seconds that a rank waits for the others before communication fails."""

    wait_minutes: float = 0.0
    """Minutes to wait for nodes that an autoscaler has to start; 0 refuses at once if there are too few."""

    preflight: bool = True
    """Check the GPUs before a training starts and, if it runs on several nodes, all that `aweigh preflight` checks."""

    hang_seconds: float = 300.0
    """Seconds without progress after which the rank that blocks the others is named and all restart; 0 for never."""

    grace_seconds: float = 25.0
    """Seconds that workers have to write a checkpoint after Ctrl-C or SIGTERM, before they are stopped."""

    @property
    def min_workers(self) -> int:
        """Fewest workers that training continues with."""
        return int(str(self.workers).partition(":")[0])

    @property
    def max_workers(self) -> int:
        """Most workers that training uses."""
        return int(str(self.workers).rpartition(":")[2])

    @property
    def elastic(self) -> bool:
        """True if the number of workers follows the cluster."""
        return isinstance(self.workers, str)

    @property
    def workers_in_words(self) -> str:
        """The number of workers for a message: `1 worker`, `2 to 8 workers`."""
        if self.elastic:
            return f"{self.min_workers} to {self.max_workers} workers"
        return counted(self.min_workers, "worker")

    def __post_init__(self) -> None:
        text = str(self.workers)
        if not re.fullmatch(r"-?\d+|\d+:\d+", text):
            raise ClusterError(f"cluster.workers is {text!r}; write a number, or the fewest and the most, such as 2:8.")
        if ":" not in text:
            # A flag or a YAML file may contain the number as text.
            object.__setattr__(self, "workers", int(text))
        elif not 1 <= self.min_workers < self.max_workers:
            raise ClusterError(
                f"cluster.workers is {text}; write the fewest (1 or more), a colon and a larger number, such as 2:8."
            )
        for name, least in (("min_workers", 1), ("max_failures", 0), ("timeout_seconds", 1), ("hang_seconds", 0)):
            if not getattr(self, name) >= least:
                name, value = name.replace("min_", ""), getattr(self, name)
                raise ClusterError(f"cluster.{name} is {value}; it must be {least} or more.")
        if self.hang_seconds >= self.timeout_seconds:
            raise ClusterError(
                f"cluster.hang_seconds is {self.hang_seconds:g}, but cluster.timeout_seconds is "
                f"{self.timeout_seconds}: the other ranks would time out before the one that blocks them is named. "
                f"Raise cluster.timeout_seconds."
            )
        if not self.grace_seconds > 0:
            raise ClusterError(f"cluster.grace_seconds is {self.grace_seconds:g}; it must be above 0.")
        if not 0 <= self.wait_minutes < math.inf:
            raise ClusterError(f"cluster.wait_minutes is {self.wait_minutes:g}; it must be 0 (do not wait) or more.")
        if not self.cpus_per_worker > 0:
            raise ClusterError(f"cluster.cpus_per_worker is {self.cpus_per_worker:g}; it must be above 0.")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Settings of a training step in DeepSpeed."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    zero_stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage; the ranks divide among them at 0 nothing, 1 optimizer state, 2 also gradients, 3 also weights."""

    precision: Precision = "auto"
    """fp32; bf16 or fp16 (autocast over fp32 weights); auto takes bf16 if the device computes in it natively."""

    clip_norm: float = 0.0
    """Largest gradient norm; larger gradients are scaled down to it. 0 does not clip."""

    ema_decay: float = 0.0
    """Decay of a moving average of the weights, which is then evaluated; 0 keeps none. 0.9998 suits detectors."""

    not_finite: Literal["stop", "skip"] = "stop"
    """Reaction to NaN or infinity in the loss: stop the run, or skip the step on all ranks."""

    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Keys of DeepSpeed's JSON configuration to set, such as zero_optimization.overlap_comm."""

    def __post_init__(self) -> None:
        if not self.clip_norm >= 0:
            raise ClusterError(f"engine.clip_norm is {self.clip_norm:g}; it must be 0 (off) or more.")
        if not 0 <= self.ema_decay < 1:
            raise ClusterError(f"engine.ema_decay is {self.ema_decay:g}; it must be 0 (none) or more and below 1.")
        check_keys(self.deepspeed, self.zero_stage)


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """When the complete training state is saved, and which checkpoints are kept."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    every_epochs: int = 1
    """Epochs between checkpoints; every evaluation and the last epoch also save one."""

    every_steps: int = 0
    """Steps between additional checkpoints inside an epoch; 0 saves none."""

    every_minutes: float = 15.0
    """Longest training time between checkpoints; 0 for no limit."""

    keep: int = 2
    """Number of newest checkpoints to keep; the one with the highest AP is kept as well."""

    location: str = ""
    """Location of the checkpoints: a folder or, for copies in a bucket, s3://BUCKET/PREFIX. Empty: the run's folder."""

    def __post_init__(self) -> None:
        if self.every_epochs < 1:
            raise ClusterError(f"checkpoint.every_epochs is {self.every_epochs}; it must be 1 or more.")
        if self.every_steps < 0:
            raise ClusterError(f"checkpoint.every_steps is {self.every_steps}; it must be 0 (none) or more.")
        if not self.every_minutes >= 0:
            raise ClusterError(f"checkpoint.every_minutes is {self.every_minutes:g}; it must be 0 (no limit) or more.")
        if self.keep < 1:
            raise ClusterError(f"checkpoint.keep is {self.keep}; at least 1 has to stay to resume from.")
