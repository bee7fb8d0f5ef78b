"""The settings of a run, group by group, and the recipe that holds them all: typed, checked, each with its meaning.

The settings of other rooms stand in their own `settings` modules; a recipe takes them in as they are.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from cluster.settings import CheckpointSettings, ClusterSettings, EngineSettings
from data_shards.settings import AugmentationSettings, BoxRules, ReadSettings
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from data_shards.reading.reading import Reading
    from data_shards.reading.split import DataSplit

IMAGENET = "imagenet"
"""In place of a file, the published ImageNet weights of a detector's backbone."""

_FORBID = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, kw_only=True)
class DetectorSettings:
    """Which network learns."""

    __pydantic_config__ = _FORBID

    name: str = "centernet_resnet18"
    """A name that `detectors.names()` knows."""

    settings: dict[str, Any] = field(default_factory=dict)
    """The detector's own settings, such as size_weight; its module lists them."""

    weights: str | None = None
    """Weights to start from: a file, an https:// address or an s3:// location; `imagenet` for the published ImageNet
    weights of the backbone; `none` for random ones."""

    weights_sha256: str = ""
    """The sha256 the weights must have, or its first digits; empty takes the one in a published file's name, such as
    resnet18-5c106cde.pth."""

    skip_mismatched: bool = False
    """Train layers anew whose shape in the weights is another (heads of other classes), instead of refusing."""

    def __post_init__(self) -> None:
        if self.weights in ("none", ""):
            object.__setattr__(self, "weights", None)
        digits = self.weights_sha256
        if digits and (not 8 <= len(digits) <= 64 or digits.strip("0123456789abcdef")):
            raise ConfigError(
                f"detector.weights_sha256 is {digits!r}; give the first 8 to 64 of the digits 0-9 and a-f that "
                f"`sha256sum` prints."
            )


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which samples, and how they are read."""

    __pydantic_config__ = _FORBID

    train: str = ""
    """Shards to train on: the folder or s3:// prefix that holds manifest.json."""

    validation: str = ""
    """Shards to evaluate on; empty trains without evaluation."""

    input_size: tuple[int, int] = (512, 512)
    """Height and width of the training input, in pixels."""

    max_objects: int = 128
    """Boxes of an image that are used, in file order."""

    crowd: Literal["keep", "drop"] = "keep"
    """Boxes around crowds: trained on like any other (the published CenterNet), or left out (the published FCOS)."""

    box_ends: Literal["edge", "last_pixel"] = "edge"
    """edge: x + width; last_pixel: x + width - 1, as the authors of FCOS read COCO (their weights expect it; results
    get the pixel back)."""

    threads: int = 2
    """Decoding threads of each worker."""

    prefetch: int = 3
    """Batches each worker keeps ready."""

    cache_folder: str = ""
    """Where each node keeps shards that come from S3; empty is AWEIGH_CACHE, or ~/.cache/aweigh."""

    cache_gb: float = 0.0
    """GB of shards that a node keeps there, the ones that are needed next; 0 for no limit."""

    decoded_cache_gb: float = 0.0
    """GB of decoded images that a node keeps there (COCO takes 98): from the second epoch on they cost a third of the
    CPU; 0 keeps none."""

    undecodable: Literal["refuse", "gray"] = "refuse"
    """An image that no decoder reads: refuse it and stop, or put plain gray without objects in its place and say so."""

    read_timeout_seconds: float = 30.0
    """Silence of S3 after which a request is given up and made again."""

    read_deadline_seconds: float = 300.0
    """Time for one file of S3 with all its retries; then the run stops."""

    @property
    def cache_bytes(self) -> int:
        """The cache's budget; 0 for no limit."""
        return round(self.cache_gb * 1e9)

    def split(self, location: str) -> "DataSplit":
        """Open shards with these settings and read their manifest; pass the split along rather than opening twice."""
        # A recipe is read in an instant, so numpy and OpenCV are imported only where data is opened.
        from data_shards.reading.split import open_split

        settings = ReadSettings(timeout_seconds=self.read_timeout_seconds, deadline_seconds=self.read_deadline_seconds)
        return open_split(location, settings, self.cache_folder or None, self.cache_bytes)

    def splits(self) -> "tuple[DataSplit, DataSplit | None]":
        """Open the shards to train on and those to evaluate on, if there are any."""
        train = self.split(self.train)
        if self.validation in ("", self.train):
            return train, train if self.validation else None
        return train, self.split(self.validation)

    def reading(self, split: "DataSplit") -> "Reading":
        """Return the reading of a split with these settings."""
        from data_shards.reading.reading import Reading

        return Reading(
            split=split,
            max_objects=self.max_objects,
            boxes=self.box_rules,
            undecodable=self.undecodable,
            decoded_cache_bytes=round(self.decoded_cache_gb * 1e9),
            threads=self.threads,
            prefetch=self.prefetch,
        )

    def __post_init__(self) -> None:
        if not 0 <= self.cache_gb < math.inf:
            raise ConfigError(f"data.cache_gb is {self.cache_gb:g}; it must be 0 (no limit) or more.")
        if not 0 <= self.decoded_cache_gb < math.inf:
            raise ConfigError(f"data.decoded_cache_gb is {self.decoded_cache_gb:g}; it must be 0 (none) or more.")
        for name in ("read_timeout_seconds", "read_deadline_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"data.{name} is {getattr(self, name):g}; it must be above 0.")
        for name in ("max_objects", "threads", "prefetch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name} is {getattr(self, name)}; it must be 1 or more.")
        if min(self.input_size) < 1:
            raise ConfigError(f"data.input_size is {self.input_size}; height and width must be 1 or more.")

    @property
    def box_rules(self) -> BoxRules:
        """What the loaders are told of boxes."""
        return BoxRules(crowd=self.crowd, box_ends=self.box_ends)


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How many samples make one optimizer step."""

    __pydantic_config__ = _FORBID

    global_size: int = 128
    """Samples of a step over all workers; what each worker takes is derived."""

    microbatch_limit: int = 0
    """Most samples a worker takes through the network at once; 0 for no limit. The rest is accumulated."""

    def __post_init__(self) -> None:
        if self.global_size < 1:
            raise ConfigError(f"batch.global_size is {self.global_size}; it must be 1 or more.")
        if self.microbatch_limit < 0:
            raise ConfigError(f"batch.microbatch_limit is {self.microbatch_limit}; it must be 0 (no limit) or more.")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """torch's optimizer and its numbers."""

    __pydantic_config__ = _FORBID

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """torch.optim.Adam, AdamW or SGD."""

    learning_rate: float = 5e-4
    """Before any drop, for the whole global batch."""

    weight_decay: float = 0.0
    """L2 penalty (adam, sgd) or decoupled decay (adamw)."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's two averages."""

    momentum: float = 0.9
    """Of sgd."""

    bias_learning_rate_factor: float = 1.0
    """What the rate of biases is multiplied by, those of normalisations included; FCOS trains with 2."""

    bias_weight_decay: float | None = None
    """Weight decay of biases; without it that of all else. FCOS trains with 0."""

    def __post_init__(self) -> None:
        # Written so that NaN fails, too.
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"optimizer.learning_rate is {self.learning_rate:g}; it must be above 0.")
        for name in ("weight_decay", "bias_weight_decay"):
            decay = getattr(self, name)
            if decay is not None and not 0 <= decay < math.inf:
                raise ConfigError(f"optimizer.{name} is {decay:g}; it must be 0 or more.")
        factor = self.bias_learning_rate_factor
        if not 0 < factor < math.inf:
            raise ConfigError(f"optimizer.bias_learning_rate_factor is {factor:g}; it must be above 0.")
        for name, values in (("betas", self.betas), ("momentum", (self.momentum,))):
            if not all(0 <= value < 1 for value in values):
                raise ConfigError(
                    f"optimizer.{name} is {', '.join(map(str, values))}; it must be 0 or more and below 1."
                )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the learning rate falls and when training ends: by epochs, or by steps where a publication counts those."""

    __pydantic_config__ = _FORBID

    epochs: int = 140
    """Passes over the training set; 0 where steps says when training ends."""

    drops_at: tuple[int, ...] = (90, 120)
    """Epochs after which the learning rate is lower by drop_factor (Objects as Points, section 5)."""

    steps: int = 0
    """Optimizer steps of the whole training, in place of epochs; 0 where epochs says when training ends."""

    drops_at_steps: tuple[int, ...] = ()
    """Steps after which the learning rate is lower by drop_factor, in place of drops_at."""

    drop_factor: float = 0.1
    """What each drop multiplies the rate by."""

    warmup_steps: int = 0
    """Steps of a lower rate in the beginning; the published CenterNet has none."""

    warmup: Literal["linear", "constant"] = "linear"
    """linear: the rate rises from warmup_factor to 1; constant: it is warmup_factor until it jumps to 1."""

    warmup_factor: float = 0.0
    """What the rate of the first step is multiplied by; 0 (linear only) starts at 1 / warmup_steps."""

    def __post_init__(self) -> None:
        self._check_end()
        unit, field_name = ("step", "drops_at_steps") if self.steps else ("epoch", "drops_at")
        end, drops = self.steps or self.epochs, getattr(self, field_name)
        if unreached := [place for place in drops if place >= end]:
            raise ConfigError(
                f"schedule.{field_name} contains {', '.join(map(str, unreached))}, but training ends after {unit} "
                f"{end}. Remove them or raise schedule.{unit}s."
            )
        if list(drops) != sorted(set(drops)) or any(place < 1 for place in drops):
            raise ConfigError(f"schedule.{field_name} is {list(drops)}; it must rise, from 1 on.")
        if not 0 < self.drop_factor <= 1:
            raise ConfigError(f"schedule.drop_factor is {self.drop_factor:g}; it must be above 0 and at most 1.")
        if self.warmup_steps < 0:
            raise ConfigError(f"schedule.warmup_steps is {self.warmup_steps}; it must be 0 or more.")
        if not 0 <= self.warmup_factor <= 1 or (self.warmup == "constant" and self.warmup_factor == 0):
            least = "above 0" if self.warmup == "constant" else "0 or more"
            raise ConfigError(f"schedule.warmup_factor is {self.warmup_factor:g}; it must be {least} and at most 1.")

    def last_step(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole training."""
        return self.steps or self.epochs * steps_per_epoch

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """What the learning rate is multiplied by in the step after `step` steps."""
        drops = self.drops_at_steps or [epoch * steps_per_epoch for epoch in self.drops_at]
        return self._warmup(step) * self.drop_factor ** sum(step >= drop for drop in drops)

    def describe(self, steps_per_epoch: int) -> str:
        """The arithmetic of it, for a person."""
        end = self.last_step(steps_per_epoch)
        unit, drops = ("steps", self.drops_at_steps) if self.steps else ("epochs", self.drops_at)
        if self.steps:
            text = f"{end:,} steps = {end / steps_per_epoch:.4g} epochs of {steps_per_epoch:,}"
        else:
            text = f"{steps_per_epoch:,} steps × {self.epochs:,} epochs = {end:,} steps"
        if drops:
            text += f", ÷{1 / self.drop_factor:g} after {unit} {', '.join(f'{drop:,}' for drop in drops)}"
        if self.warmup_steps:
            text += f", {self.warmup} warm-up over {self.warmup_steps:,} steps from {self._warmup(0):.3g}"
        return text

    def _warmup(self, step: int) -> float:
        if step >= self.warmup_steps:
            return 1.0
        if self.warmup == "constant":
            return self.warmup_factor
        if self.warmup_factor == 0:
            return (step + 1) / self.warmup_steps
        return self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps

    def _check_end(self) -> None:
        """Refuse what counts in both units, or in neither."""
        for name in ("epochs", "steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"schedule.{name} is {getattr(self, name)}; it must be 0 or more.")
        if not self.epochs and not self.steps:
            raise ConfigError("schedule.epochs and schedule.steps are both 0; one of them has to end training.")
        if self.steps and (self.epochs or self.drops_at):
            raise ConfigError(
                f"schedule.steps is {self.steps} beside epochs {self.epochs} and drops_at {list(self.drops_at)}; one "
                f"unit at a time: set schedule.steps 0 and drops_at_steps [], or epochs 0 and drops_at []."
            )
        if self.epochs and self.drops_at_steps:
            raise ConfigError(
                f"schedule.drops_at_steps is {list(self.drops_at_steps)}, but training ends after epoch {self.epochs}; "
                f"set schedule.drops_at instead, or count all of it in steps."
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How AP is measured on the validation shards."""

    __pydantic_config__ = _FORBID

    every_epochs: int = 5
    """Epochs between evaluations; the last epoch always ends with one."""

    geometry: Literal["fixed", "width", "keep", "shorter_side"] = "fixed"
    """fixed: letterboxed to data.input_size; width: the same by width alone (KITTI); keep: at its own resolution,
    padded (the published --keep_res); shorter_side: resized to it, padded on the right and below (FCOS)."""

    shorter_side: int = 800
    """Of geometry shorter_side, in pixels."""

    longer_side_limit: int = 1333
    """Of geometry shorter_side: where the longer side would exceed it, both become smaller."""

    scaled_longer_side_limit: int = 2000
    """The same at the other scales of multiscale."""

    tta: Literal["none", "flip", "multiscale"] = "none"
    """Test-time augmentation: none; flip, the mirror image too; multiscale, with flip at every scale."""

    scales: tuple[float, ...] = ()
    """Factors on the image size for multiscale; empty takes those that the detector was published with."""

    soft_nms: bool = False
    """Soft-NMS for a single scale too (CenterNet's --nms); several scales always end with the detector's own."""

    input_size: tuple[int, int] | None = None
    """Height and width for the fixed geometry, in pixels; without it data.input_size."""

    batch_size: int = 8
    """Images that go through the network together, where they have one size."""

    limit: int = 100
    """Detections kept for each image."""

    published_rounding: bool = False
    """Round boxes and scores to two decimals before COCOeval, as the published evaluation does."""

    pictures: int = 12
    """Validation images drawn with truth beside prediction."""

    def __post_init__(self) -> None:
        for name in ("every_epochs", "batch_size", "limit"):
            if getattr(self, name) < 1:
                raise ConfigError(f"evaluation.{name} is {getattr(self, name)}; it must be 1 or more.")
        if not 1 <= self.shorter_side <= self.longer_side_limit:
            raise ConfigError(
                f"evaluation.shorter_side is {self.shorter_side} and longer_side_limit {self.longer_side_limit}; both "
                "must be 1 or more, the limit no smaller than the side."
            )
        if bad := [scale for scale in self.scales if not 0.1 <= scale <= 10]:
            raise ConfigError(f"evaluation.scales contains {bad[0]:g}; every scale must lie from 0.1 to 10.")
        if len(set(self.scales)) != len(self.scales):
            raise ConfigError(f"evaluation.scales is {list(self.scales)}; a scale stands there twice.")
        if self.scaled_longer_side_limit < 1:
            raise ConfigError(
                f"evaluation.scaled_longer_side_limit is {self.scaled_longer_side_limit}; it must be 1 or more."
            )
        if self.input_size is not None and min(self.input_size) < 1:
            raise ConfigError(f"evaluation.input_size is {list(self.input_size)}; height and width must be 1 or more.")
        if self.pictures < 0:
            raise ConfigError(f"evaluation.pictures is {self.pictures}; it must be 0 (none) or more.")


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """What MLflow is told, and where it is."""

    __pydantic_config__ = _FORBID

    uri: str = ""
    """MLflow server or database; empty is SQLite beside the runs, or MLFLOW_TRACKING_URI."""

    experiment: str = "aweigh"
    """Experiment that the run is listed under."""

    every_steps: int = 10
    """Steps between logged losses, rates and times."""

    ledger: bool = False
    """Keep the id of every sample in the run's folder, in the order of training; `aweigh drill` compares them."""

    system_seconds: float = 10.0
    """Seconds between samples of CPU, memory, disk, network and GPU; 0 takes none."""

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ConfigError(f"tracking.every_steps is {self.every_steps}; it must be 1 or more.")
        if not 0 <= self.system_seconds < math.inf:
            raise ConfigError(f"tracking.system_seconds is {self.system_seconds:g}; it must be 0 (none) or more.")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What this training is called and where its files lie."""

    __pydantic_config__ = _FORBID

    name: str = ""
    """The same name resumes; empty derives one from the recipe, so the same command resumes too."""

    folder: str = "runs"
    """Folder of all runs, seen by every node."""

    def __post_init__(self) -> None:
        if "://" in self.folder:
            raise ConfigError(
                f"run.folder is {self.folder}; it must be a folder that every node mounts, for locks and logs lie in "
                f"it. Checkpoints go to a bucket, too, with checkpoint.location."
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a run computes, and where it happens."""

    __pydantic_config__ = _FORBID

    recipe: str
    """Name of the recipe this began as."""

    purpose: str = ""
    """What it is for, in a line."""

    seed: int = 0
    """Decides initial weights, sample order and augmentation."""

    detector: DetectorSettings = field(default_factory=DetectorSettings)
    data: DataSettings = field(default_factory=DataSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: Schedule = field(default_factory=Schedule)
    engine: EngineSettings = field(default_factory=EngineSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    run: RunSettings = field(default_factory=RunSettings)
