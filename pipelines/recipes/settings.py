"""The settings of a run, group by group, and the recipe that holds them all: typed, checked, each with its meaning.

The string below a field is its help in `aweigh train --fields`. The settings of the other packages are in their own
`settings` modules, and are part of a recipe as they are.
"""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from cluster.settings import CheckpointSettings, ClusterSettings, EngineSettings
from data_shards.counting import counted
from data_shards.settings import AugmentationSettings, BoxRules, Corners, ReadSettings, Resizing
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from data_shards.reading.reading import Reading
    from data_shards.reading.split import DataSplit

IMAGENET = "imagenet"
"""The word for the published ImageNet weights of a detector's backbone, in place of a file."""

_FORBID = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, kw_only=True)
class DetectorSettings:
    """The network to train."""

    __pydantic_config__ = _FORBID

    name: str = "centernet_resnet18"
    """Name of the detector, such as centernet_dla34 or fcos_resnet50."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the detector itself, such as size_weight; its module lists them."""

    weights: str | None = None
    """Weights to start from: a file, an https:// address or an s3:// location; `imagenet` for the published ImageNet
    weights of the backbone; `none` for random weights."""

    weights_sha256: str = ""
    """The sha256 that the weights must have, or its first digits; empty takes the digits in a published file's name,
    such as resnet18-5c106cde.pth."""

    skip_mismatched: bool = False
    """Reinitialise layers whose shape differs from the file's (heads for other classes), instead of refusing it."""

    match_classes: bool = False
    """Weights with another class list: copy what the heads learnt of classes with the same name, whatever their case
    and spaces, and reinitialise the rest. The file names its classes, or has the 80 of COCO in their order."""

    freeze: tuple[str, ...] = ()
    """Stages of the backbone and the neck that are not trained, such as stem layer1: no gradient, no optimizer state,
    and their batch norms keep their statistics. A wrong name prints the detector's stages."""

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
    """The samples, and how they are read."""

    __pydantic_config__ = _FORBID

    train: str = ""
    """Shards to train on: a folder or s3:// prefix with manifest.json."""

    validation: str = ""
    """Shards to evaluate on; empty trains without evaluation."""

    input_size: tuple[int, int] = (512, 512)
    """Height and width of the training input, in pixels."""

    max_objects: int = 128
    """Largest number of boxes used of an image; the first ones in the file are taken."""

    crowd: Literal["keep", "drop"] = "keep"
    """Boxes around crowds: keep trains on them like on any other (the published CenterNet); drop leaves them out (the
    published FCOS)."""

    box_ends: Literal["edge", "last_pixel"] = "edge"
    """End of a box. edge: x + width; last_pixel: x + width - 1, as FCOS's authors read COCO (their weights expect it,
    and results get the pixel back)."""

    resizing: Resizing = "plain"
    """Sizes and pixels of images in the geometry shorter_side, as a library makes them: authors (FCOS's), torchvision,
    detectron2 (AdelaiDet, too) or mmdetection. plain: sizes as authors, shrunk without averaging."""

    group_by_aspect_ratio: bool = False
    """Fill each step with portraits only (height ≥ width) or with other images only, wherever possible: images are
    padded to the largest of their batch, and this saves most of the padding (FCOS). For augmentation.geometry
    shorter_side only."""

    threads: int = 2
    """Decoding threads per worker."""

    prefetch: int = 3
    """Batches that each worker prepares ahead."""

    cache_folder: str = ""
    """Folder in which each node keeps shards from S3; empty takes AWEIGH_CACHE, or ~/.cache/aweigh."""

    cache_gb: float = 0.0
    """GB of shards that a node keeps in cache_folder, those needed next; 0 for no limit."""

    decoded_cache_gb: float = 0.0
    """GB of decoded images that a node keeps in cache_folder (COCO takes 98). From the second epoch on, they take a
    third of the CPU time; 0 keeps none."""

    undecodable: Literal["refuse", "gray"] = "refuse"
    """Images that do not decode: refuse stops the run; gray trains on a gray image without objects and logs it."""

    read_timeout_seconds: float = 30.0
    """Seconds without an answer from S3 after which a request is repeated."""

    read_deadline_seconds: float = 300.0
    """Seconds for one file from S3, with all retries, after which the run stops."""

    @property
    def cache_bytes(self) -> int:
        """Size limit of the cache; 0 for no limit."""
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

    def reading(self, split: "DataSplit", corners: Corners) -> "Reading":
        """Return the reading of a split with these settings, for a detector whose boxes have such corners."""
        from data_shards.reading.reading import Reading

        return Reading(
            split=split,
            max_objects=self.max_objects,
            boxes=replace(self.box_rules, corners=corners),
            resizing=self.resizing,
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
        """The rules for boxes that the loaders follow."""
        return BoxRules(crowd=self.crowd, box_ends=self.box_ends)


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """The number of samples in an optimizer step."""

    __pydantic_config__ = _FORBID

    global_size: int = 128
    """Samples in a step on all workers together; the share of each worker is derived."""

    microbatch_limit: int = 0
    """Largest number of samples that a worker puts through the network at once; the rest of its share is accumulated.
    0 for no limit."""

    def __post_init__(self) -> None:
        if self.global_size < 1:
            raise ConfigError(f"batch.global_size is {self.global_size}; it must be 1 or more.")
        if self.microbatch_limit < 0:
            raise ConfigError(f"batch.microbatch_limit is {self.microbatch_limit}; it must be 0 (no limit) or more.")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer, one of torch's, and its numbers."""

    __pydantic_config__ = _FORBID

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """torch.optim.Adam, AdamW or SGD."""

    learning_rate: float = 5e-4
    """Learning rate before any drop, for the whole global batch."""

    weight_decay: float = 0.0
    """Weight decay: an L2 penalty (adam, sgd) or decoupled (adamw)."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two averages; adam and adamw only."""

    momentum: float = 0.9
    """Momentum; sgd only."""

    bias_learning_rate_factor: float = 1.0
    """Factor on the learning rate of biases, those of normalisations included; FCOS trains with 2."""

    bias_weight_decay: float | None = None
    """Weight decay of biases; none takes weight_decay. FCOS trains with 0."""

    layer_decay: float = 1.0
    """Factor on the learning rate for each stage further from the heads: the last stage of the neck or backbone learns
    with it, the one before with its square, and so on. 1 trains all alike; 0.7 to 0.9 suits fine-tuning."""

    stage_learning_rate_factors: dict[str, float] = field(default_factory=dict)
    """Factors on the learning rate of single stages, in place of those of layer_decay, such as {layer4: 0.5}."""

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
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optimizer.layer_decay is {self.layer_decay:g}; it must be above 0 and at most 1.")
        for stage, value in self.stage_learning_rate_factors.items():
            if not 0 < value < math.inf:
                raise ConfigError(
                    f"optimizer.stage_learning_rate_factors.{stage} is {value:g}; it must be above 0. To leave the "
                    f"stage untrained, name it in detector.freeze."
                )
        for name, values in (("betas", self.betas), ("momentum", (self.momentum,))):
            if not all(0 <= value < 1 for value in values):
                raise ConfigError(
                    f"optimizer.{name} is {', '.join(map(str, values))}; it must be 0 or more and below 1."
                )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the learning rate drops and when training ends, in epochs, or in steps if the publication counts steps."""

    __pydantic_config__ = _FORBID

    epochs: int = 140
    """Passes over the training set; 0 if steps decides when training ends."""

    drops_at: tuple[int, ...] = (90, 120)
    """Epochs after which the learning rate is multiplied by drop_factor (Objects as Points, section 5)."""

    steps: int = 0
    """Optimizer steps of the whole training, in place of epochs; 0 if epochs decides when training ends."""

    drops_at_steps: tuple[int, ...] = ()
    """Steps after which the learning rate is multiplied by drop_factor, in place of drops_at."""

    drop_factor: float = 0.1
    """Factor on the learning rate at each drop."""

    patience: int = 0
    """Evaluations in a row without a better AP after which training ends early; the best checkpoint is kept. 0 trains
    the whole schedule."""

    min_improvement: float = 0.0
    """AP by which an evaluation must exceed the best one before to count as better; patience only."""

    warmup_steps: int = 0
    """Steps with a lower learning rate at the start; the published CenterNet has none."""

    warmup: Literal["linear", "constant"] = "linear"
    """linear: the factor on the rate rises from warmup_factor to 1; constant: it is warmup_factor, then jumps to 1."""

    warmup_factor: float = 0.0
    """Factor on the learning rate in the first step; 0 (linear only) starts at 1 / warmup_steps."""

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
            raise ConfigError(f"schedule.{field_name} is {list(drops)}; give rising numbers, each 1 or more.")
        if not 0 < self.drop_factor <= 1:
            raise ConfigError(f"schedule.drop_factor is {self.drop_factor:g}; it must be above 0 and at most 1.")
        if self.patience < 0:
            raise ConfigError(f"schedule.patience is {self.patience}; it must be 0 (train to the end) or more.")
        if not 0 <= self.min_improvement < 1:
            raise ConfigError(
                f"schedule.min_improvement is {self.min_improvement:g}; it must be 0 or more and below 1, since an AP "
                f"is at most 1."
            )
        if self.warmup_steps < 0:
            raise ConfigError(f"schedule.warmup_steps is {self.warmup_steps}; it must be 0 or more.")
        if not 0 <= self.warmup_factor <= 1 or (self.warmup == "constant" and self.warmup_factor == 0):
            least = "above 0" if self.warmup == "constant" else "0 or more"
            raise ConfigError(f"schedule.warmup_factor is {self.warmup_factor:g}; it must be {least} and at most 1.")

    def last_step(self, steps_per_epoch: int) -> int:
        """Return the number of optimizer steps of the whole training."""
        return self.steps or self.epochs * steps_per_epoch

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """Return the factor on the learning rate in the step after `step` steps."""
        drops = self.drops_at_steps or [epoch * steps_per_epoch for epoch in self.drops_at]
        return self._warmup(step) * self.drop_factor ** sum(step >= drop for drop in drops)

    def describe(self, steps_per_epoch: int) -> str:
        """Write the schedule with its arithmetic, for people."""
        end = self.last_step(steps_per_epoch)
        unit, drops = ("step", self.drops_at_steps) if self.steps else ("epoch", self.drops_at)
        if self.steps:
            text = f"{counted(end, 'step')} = {end / steps_per_epoch:.4g} epochs of {steps_per_epoch:,}"
        else:
            text = f"{counted(steps_per_epoch, 'step')} × {counted(self.epochs, 'epoch')} = {counted(end, 'step')}"
        if drops:
            units = unit if len(drops) == 1 else f"{unit}s"
            text += f", ÷{1 / self.drop_factor:g} after {units} {', '.join(f'{drop:,}' for drop in drops)}"
        if self.warmup_steps:
            text += f", {self.warmup} warm-up over {counted(self.warmup_steps, 'step')} from {self._warmup(0):.3g}"
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
        """Refuse a schedule that counts in both units or in neither."""
        for name in ("epochs", "steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"schedule.{name} is {getattr(self, name)}; it must be 0 or more.")
        if not self.epochs and not self.steps:
            raise ConfigError("schedule.epochs and schedule.steps are both 0; set one of them, so that training ends.")
        if self.steps and (self.epochs or self.drops_at):
            raise ConfigError(
                f"schedule.steps is {self.steps} beside epochs {self.epochs} and drops_at {list(self.drops_at)}; use "
                f"one unit only: set schedule.steps 0 and drops_at_steps [], or epochs 0 and drops_at []."
            )
        if self.epochs and self.drops_at_steps:
            raise ConfigError(
                f"schedule.drops_at_steps is {list(self.drops_at_steps)}, but training ends after epoch {self.epochs}; "
                f"set schedule.drops_at instead, or count the whole schedule in steps."
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The measurement of AP on the validation shards."""

    __pydantic_config__ = _FORBID

    every_epochs: int = 5
    """Epochs between evaluations; there is always one after the last epoch."""

    geometry: Literal["fixed", "width", "keep", "shorter_side"] = "fixed"
    """Input made of an image. fixed: letterboxed to data.input_size; width: the same, by width alone (KITTI); keep: its
    own resolution, padded (the published --keep_res); shorter_side: resized to that, padded right and below (FCOS)."""

    shorter_side: int = 800
    """Length of the shorter side in pixels; geometry shorter_side only."""

    longer_side_limit: int = 1333
    """Largest longer side in pixels; an image that would exceed it is shrunk further. Geometry shorter_side only."""

    scaled_longer_side_limit: int = 2000
    """The same limit at the other scales of multiscale."""

    tta: Literal["none", "flip", "multiscale"] = "none"
    """Test-time augmentation: none; flip adds the mirror image; multiscale adds scales, each with its mirror image."""

    scales: tuple[float, ...] = ()
    """Factors on the image size for multiscale; empty takes the published ones of the detector."""

    soft_nms: bool = False
    """Soft-NMS for a single scale too (CenterNet's --nms); several scales are always merged as published."""

    input_size: tuple[int, int] | None = None
    """Height and width for the fixed geometry, in pixels; none takes data.input_size."""

    batch_size: int = 8
    """Largest number of images that go through the network together; images of different sizes never do."""

    limit: int = 100
    """Detections kept per image."""

    published_rounding: bool = False
    """Round boxes and scores to two decimals before COCOeval, as the published evaluation does."""

    published_heights: bool = False
    """Measure the boxes of detectors in 3D as the published evaluation does, a pixel or two higher on KITTI."""

    kitti_score_threshold: float = 0.2
    """Score above which a detection gets into KITTI's result files (aweigh evaluate --kitti)."""

    pictures: int = 12
    """Validation images drawn in every evaluation, truth beside prediction, and a third as many of its worst; 0 draws
    none."""

    def __post_init__(self) -> None:
        for name in ("every_epochs", "batch_size", "limit"):
            if getattr(self, name) < 1:
                raise ConfigError(f"evaluation.{name} is {getattr(self, name)}; it must be 1 or more.")
        if not 1 <= self.shorter_side <= self.longer_side_limit:
            raise ConfigError(
                f"evaluation.shorter_side is {self.shorter_side} and longer_side_limit {self.longer_side_limit}; both "
                "must be 1 or more, and the limit at least as large as the side."
            )
        if bad := [scale for scale in self.scales if not 0.1 <= scale <= 10]:
            raise ConfigError(f"evaluation.scales contains {bad[0]:g}; every scale must be from 0.1 to 10.")
        if len(set(self.scales)) != len(self.scales):
            twice = next(scale for scale in self.scales if self.scales.count(scale) > 1)
            raise ConfigError(f"evaluation.scales lists {twice:g} twice; remove one.")
        if self.scaled_longer_side_limit < 1:
            raise ConfigError(
                f"evaluation.scaled_longer_side_limit is {self.scaled_longer_side_limit}; it must be 1 or more."
            )
        if self.input_size is not None and min(self.input_size) < 1:
            raise ConfigError(f"evaluation.input_size is {list(self.input_size)}; height and width must be 1 or more.")
        if not 0 <= self.kitti_score_threshold < 1:
            raise ConfigError(
                f"evaluation.kitti_score_threshold is {self.kitti_score_threshold:g}; it must be 0 or more and below 1."
            )
        if self.pictures < 0:
            raise ConfigError(f"evaluation.pictures is {self.pictures}; it must be 0 (none) or more.")


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """The MLflow server, and what is logged there."""

    __pydantic_config__ = _FORBID

    uri: str = ""
    """MLflow server or database; empty takes MLFLOW_TRACKING_URI, or SQLite beside the runs."""

    experiment: str = "aweigh"
    """MLflow experiment of the run."""

    every_steps: int = 10
    """Steps between logged losses, rates and times."""

    ledger: bool = False
    """Write the id of every sample, in training order, to the run's folder; `aweigh drill` compares them."""

    system_seconds: float = 10.0
    """Seconds between measurements of CPU, memory, disk, network and GPU; 0 measures nothing."""

    log_model: bool = True
    """Log the best checkpoint as an MLflow model once training has ended: as large as its weights, 10 to 760 MB."""

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ConfigError(f"tracking.every_steps is {self.every_steps}; it must be 1 or more.")
        if not 0 <= self.system_seconds < math.inf:
            raise ConfigError(f"tracking.system_seconds is {self.system_seconds:g}; it must be 0 (none) or more.")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Name and folder of this training."""

    __pydantic_config__ = _FORBID

    name: str = ""
    """Name of the run. The same name resumes it; empty derives a name from the recipe, so the same command resumes."""

    folder: str = "runs"
    """Folder of all runs, on a file system that every node mounts."""

    def __post_init__(self) -> None:
        if "://" in self.folder:
            raise ConfigError(
                f"run.folder is {self.folder}; it must be a folder that every node mounts, because it holds locks and "
                f"logs. Set checkpoint.location to copy checkpoints to a bucket."
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a run computes, and where."""

    __pydantic_config__ = _FORBID

    recipe: str
    """Name of the recipe that these settings started from."""

    purpose: str = ""
    """Purpose of the recipe, in one line."""

    seed: int = 0
    """Seed of initial weights, sample order and augmentation."""

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
