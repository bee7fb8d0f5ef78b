"""What every worker does: read, augment, encode, forward, losses, backward, step; evaluate, checkpoint, record."""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from torch import Tensor

import detectors
import detectors.published
from cluster.agreement import Agreement
from cluster.checkpoint import Checkpoint, open_checkpoint
from cluster.checkpoint_writer import CheckpointWriter
from cluster.engine import BatchSplit, Engine, ResolvedPrecision, resolve_precision, split_batch
from cluster.errors import ClusterError
from cluster.preemption import preemption_notice
from cluster.stopping import mark_stopped
from cluster.workers import UnrecoverableError, WorkerContext
from data_shards.augment import augment
from data_shards.errors import DataError
from data_shards.loader import Batch, TrainingLoader
from data_shards.manifest import Manifest, load_manifest
from data_shards.plan import Plan, World, make_plan
from detectors import Detector, DetectorError
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.evaluate import Evaluation, evaluate
from pipelines.files import write_json
from pipelines.finite import LossWatch
from pipelines.ledger import Ledger
from pipelines.recipe import to_dict, to_yaml
from pipelines.report import write_report
from pipelines.resuming import check_fits, checkpoint_places, lost_line, newest_checkpoint
from pipelines.settings import OptimizerSettings, Recipe
from pipelines.stopwatch import Stopwatch
from pipelines.tracking import Tracker, log_recipe_and_versions, start_system_metrics
from pipelines.weights import fetch_weights

logger = logging.getLogger("aweigh")

_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
_CALMER = "lower optimizer.learning_rate or set engine.clip_norm, under another --run.name."
# So many steps without one that counts: the weights are beyond help.
_MOST_SKIPS = 50
_STEPS_BESIDE_WRITING = 8


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker."""

    recipe: Recipe
    run: str
    attempt: int
    tracking_uri: str
    tracking_run: str
    """MLflow's id of the run; empty where the server could not be asked yet."""
    measured_steps: int = 0
    """For the benchmark: train this many steps with the phases timed, and keep nothing."""
    measured_checkpoints: int = 0
    """For the benchmark: end with so many checkpoints, each followed by some of the steps."""


def train_worker(context: WorkerContext, job: Job) -> None:
    """Train on this worker from the newest checkpoint to the end of the schedule."""
    try:
        _Training(context, job).run()
    except (ConfigError, DataError, DetectorError, ClusterError) as error:
        raise UnrecoverableError(str(error)) from error


@dataclass
class _Interval:
    """What has happened since the last recorded step."""

    began: float = field(default_factory=time.perf_counter)
    steps: int = 0


class _Training:
    def __init__(self, context: WorkerContext, job: Job) -> None:
        recipe = job.recipe
        torch.manual_seed(recipe.seed + context.rank)
        self.context, self.job, self.recipe = context, job, recipe
        self.manifest: Manifest = load_manifest(recipe.data.train)
        self.plan: Plan = make_plan(self.manifest, seed=recipe.seed, global_batch_size=recipe.batch.global_size)
        self.split: BatchSplit = split_batch(
            recipe.batch.global_size, context.world_size, recipe.batch.microbatch_limit
        )
        self.world = World(ranks=context.world_size, rank=context.rank, nodes=context.nodes, node=context.node)
        self.checkpoints, self.remote = checkpoint_places(
            recipe, job.run, context.folder, warn=lambda line: logger.warning("%s", line)
        )
        self.writer = CheckpointWriter(self.checkpoints, self.remote)
        self.life = 0
        checkpoint = None if job.measured_steps else self._agreed_checkpoint()
        self.facts: dict[str, Any] = checkpoint.facts if checkpoint else {}
        self.step: int = int(self.facts.get("step", 0))
        self.skipped_steps: int = int(self.facts.get("skipped_steps", 0))
        self.detector = build_detector(recipe, self.manifest, initial=checkpoint is None)
        precision = self._agreed_precision()
        self.engine = Engine(
            self.detector,
            _OPTIMIZERS[recipe.optimizer.name],
            parameter_groups(self.detector, recipe.optimizer),
            dataclasses.replace(recipe.engine, precision=precision),
            self.split,
            context.device,
            checkpoint.training_state() if checkpoint else None,
        )
        self.stopwatch = Stopwatch(
            context.device,
            exact=bool(job.measured_steps),
            begins=lambda phase: context.heartbeat.begin(phase, self.step),
        )
        self.agreement = Agreement(("save", "stop", "preempted"))
        self.losses = LossWatch(self.plan, self.world)
        self.ledger: Ledger | None = None
        self.tracker: Tracker | None = None
        self.last_step = job.measured_steps or recipe.schedule.last_step(self.plan.steps_per_epoch)
        self.saved_step = self.step if checkpoint else -1
        self.saved_at = time.monotonic()
        self.asked_to_save = False
        self.stopping = False
        self.preempted = False
        self.skips_in_a_row = 0
        self.evaluation: Evaluation | None = None
        self.interval = _Interval()

    @property
    def first_rank(self) -> bool:
        return self.context.rank == 0

    def run(self) -> None:
        if self.job.measured_steps:
            self._measure()
            return
        if self.first_rank:
            self.tracker = Tracker(self.context.folder / "tracking", self.job.tracking_uri, self.job.tracking_run)
            log_recipe_and_versions(self.tracker, to_yaml(self.recipe), self._digests())
            self.tracker.log_text(json.dumps(self.engine.config, indent=1), "deepspeed.json")
            self._say_where_it_stands()
        try:
            with self._system_metrics(), self._ledger(), self._loader() as batches:
                source = iter(batches)
                if self.facts.get("evaluation_due"):
                    self._evaluate_late()
                while self.step < self.last_step and not self.stopping:
                    self._one_step(source)
            self.agreement.close()
            self._begin_phase("checkpoint")
            self.writer.wait()
            self._finish()
        finally:
            self.writer.close()
            if self.tracker:
                self.tracker.close()

    def _begin_phase(self, name: str) -> None:
        self.context.heartbeat.begin(name, self.step)

    @contextmanager
    def _ledger(self) -> Iterator[None]:
        """The ids of all samples, where the recipe asks for them."""
        if not self.recipe.tracking.ledger:
            yield
            return
        place = {"start": self.step, "world_size": self.context.world_size, "attempt": self.job.attempt}
        with Ledger(self.context.folder, self.life, self.context.rank, **place) as self.ledger:
            yield

    @contextmanager
    def _system_metrics(self) -> Iterator[None]:
        """CPU, memory, disk, network and GPU of rank 0's node, in MLflow beside the losses."""
        seconds = self.recipe.tracking.system_seconds
        if self.tracker is None or not seconds:
            yield
            return
        stop = start_system_metrics(self.tracker, seconds)
        try:
            yield
        finally:
            stop()

    def _loader(self) -> TrainingLoader:
        data = self.recipe.data
        return TrainingLoader(
            data.store(data.train),
            self.plan,
            self.world,
            input_size=data.input_size,
            max_objects=data.max_objects,
            augmentation=self.recipe.augmentation,
            boxes=data.box_rules,
            size_divisor=self.detector.preprocessing.size_divisor,
            start_step=self.step,
            stop_step=self.last_step,
            microbatches=self.split.accumulation_steps,
            threads=data.threads,
            prefetch=data.prefetch,
            cache_folder=data.cache_folder or None,
            cache_bytes=data.cache_bytes,
            undecodable=data.undecodable,
            decoded_cache_bytes=round(data.decoded_cache_gb * 1e9),
        )

    def _one_step(self, source: Iterator[Batch]) -> None:
        rate = self.recipe.optimizer.learning_rate * self.recipe.schedule.factor(self.step, self.plan.steps_per_epoch)
        parts = self._optimizer_step(source, rate)
        self.interval.steps += 1
        self.losses.add(self.step, parts)
        self._count_skip()
        unplanned = self._agreed()
        evaluate_now, save_now = self._due()
        if self.step % self.recipe.tracking.every_steps == 0 or save_now:
            self._record(parts, rate)
        elif unplanned:
            self._check_losses()
        if evaluate_now and not self.stopping:
            self._evaluate()
        if save_now or unplanned:
            self._checkpoint(evaluation_due=evaluate_now and self.stopping)

    def _agreed(self) -> bool:
        """What all ranks agreed on at this step's end, beyond the plan: whether a checkpoint is to be written."""
        minutes = self.recipe.checkpoint.every_minutes
        wishes = self.context.wishes()
        late = minutes > 0 and time.monotonic() - self.saved_at > 60 * minutes
        if self.first_rank and late and not self.asked_to_save:
            wishes.append("save")
            self.asked_to_save = True
        agreed = self.agreement.exchange(wishes)
        self.stopping = "stop" in agreed and self.step < self.last_step
        noticed = "preempted" in agreed and not self.preempted
        if noticed:
            # Saved once; training goes on until the node is gone, for to return would end the run as a success.
            self.preempted = True
            if self.first_rank:
                logger.warning(
                    "preempted %s; a checkpoint is written, training goes on until then", preemption_notice()
                )
        return self.stopping or noticed or "save" in agreed

    def _count_skip(self) -> None:
        self.skips_in_a_row = self.skips_in_a_row + 1 if self.engine.skipped else 0
        self.skipped_steps += self.engine.skipped
        if self.skips_in_a_row > _MOST_SKIPS:
            raise UnrecoverableError(
                f"gradients are not finite in {self.skips_in_a_row} steps one after the other, up to step "
                f"{self.step:,}, so all were skipped. The last checkpoint is from before them; {_CALMER}"
            )

    def _optimizer_step(self, source: Iterator[Batch], rate: float) -> list[dict[str, Tensor]]:
        """Every microbatch of one step; gives the losses of each."""
        self.engine.set_learning_rate(rate)
        parts = []
        sample_ids: list[int] = []
        for _ in range(self.split.accumulation_steps):
            with self.stopwatch.phase("data"):
                batch = next(source)
            if self.ledger:
                sample_ids += batch.sample_ids.tolist()
            parts.append(self._microbatch(batch))
        self.step += 1
        if self.ledger:
            self.ledger.add(self.step, sample_ids)
        return parts

    def _microbatch(self, batch: Batch) -> dict[str, Tensor]:
        phase = self.stopwatch.phase
        height, width = batch.images.shape[-2:]
        with phase("augment"):
            batch = batch.to(self.context.device)
            images = augment(batch, self.detector.preprocessing)
        with phase("encode"):
            targets = self.detector.encode(batch.boxes, batch.labels, (height, width), **batch.extra)
        with phase("forward"):
            outputs = self.engine.forward(images)
            losses = self.detector.losses(outputs, targets)
        with phase("backward"):
            self.engine.backward(losses["loss"])
        with phase("optimizer"):
            self.engine.step()
        return {name: value.detach() for name, value in losses.items()}

    def _due(self) -> tuple[bool, bool]:
        """Whether this step ends with an evaluation, and whether with a checkpoint."""
        recipe = self.recipe
        epoch, inside = divmod(self.step, self.plan.steps_per_epoch)
        last = self.step == self.last_step
        # A schedule in steps may end inside an epoch.
        evaluation = last or (inside == 0 and epoch % recipe.evaluation.every_epochs == 0)
        evaluation = evaluation and bool(recipe.data.validation)
        at_epoch = last or (inside == 0 and epoch % recipe.checkpoint.every_epochs == 0)
        at_step = recipe.checkpoint.every_steps > 0 and self.step % recipe.checkpoint.every_steps == 0
        return evaluation, evaluation or at_epoch or at_step

    def _record(self, parts: list[dict[str, Tensor]], rate: float) -> None:
        """Losses of this step over all ranks, and the pace since the last record; every rank calls it."""
        names = list(parts[0])
        values = torch.stack([torch.stack([part[name] for name in names]) for part in parts]).mean(dim=0).double()
        torch.distributed.all_reduce(values)
        losses = dict(zip(names, (values / self.context.world_size).tolist(), strict=True))
        self._check_losses()
        seconds = time.perf_counter() - self.interval.began
        phases, steps = self.stopwatch.take(), self.interval.steps
        self.interval = _Interval()
        if self.tracker is None:
            return
        pace = {
            "train/learning_rate": rate,
            "train/epoch": self.step / self.plan.steps_per_epoch,
            "time/images_per_second": steps * self.split.global_size / seconds,
            "time/step_seconds": seconds / steps,
            "time/data_seconds": phases["data"] / steps,
            "time/data_fraction": phases["data"] / seconds,
        }
        norm = self.engine.gradient_norm
        if norm is not None:
            pace["train/gradient_norm"] = norm
        if self.engine.loss_scale:
            pace["train/loss_scale"] = self.engine.loss_scale.value
        if self.skipped_steps:
            pace["train/skipped_steps"] = self.skipped_steps
        named = {f"train/{'loss' if name == 'loss' else f'loss_{name}'}": value for name, value in losses.items()}
        figures = {key: value for key, value in {**named, **pace}.items() if math.isfinite(value)}
        self.tracker.log_metrics(self.step, figures)
        remaining = (self.last_step - self.step) * seconds / steps
        logger.info("%s", console.step_line(self.step, self.last_step, losses, pace, remaining))

    def _check_losses(self) -> None:
        """Name what is not finite in the losses since the last look, and stop there or go on as the recipe says."""
        found = self.losses.ask()
        if found is None:
            return
        if self.recipe.engine.not_finite == "skip":
            if self.first_rank:
                logger.warning("skipped   %s: the loss is not finite", found)
            return
        raise UnrecoverableError(
            f"the loss is not finite at {found}. The last checkpoint is from before it; {_CALMER} "
            f"Or skip such steps with engine.not_finite skip."
        )

    def _evaluate_late(self) -> None:
        """The evaluation that the last attempt had no time for, and its score with the checkpoint."""
        self._evaluate()
        self.saved_step = -1
        self._checkpoint()

    def _evaluate(self) -> None:
        self._begin_phase("evaluate")
        began = time.perf_counter()
        epoch = self.step // self.plan.steps_per_epoch
        # A second network, so that training's own buffers and ZeRO's shares stay untouched.
        judged = build_detector(self.recipe, self.manifest, initial=False).to(self.context.device)
        judged.load_state_dict(self.engine.evaluation_weights())
        recipe = self.recipe
        self.evaluation = evaluate(
            judged,
            recipe.data.store(recipe.data.validation),
            load_manifest(recipe.data.validation),
            recipe.evaluation,
            input_size=recipe.evaluation.input_size or recipe.data.input_size,
            max_objects=recipe.data.max_objects,
            boxes=recipe.data.box_rules,
            cache_folder=recipe.data.cache_folder or None,
            cache_bytes=recipe.data.cache_bytes,
            undecodable=recipe.data.undecodable,
            threads=recipe.data.threads,
            device=self.context.device,
            world=self.world,
            progress=lambda num_images: self.context.heartbeat.progress(),
        )
        if self.evaluation is not None and self.tracker is not None:
            self.tracker.log_metrics(self.step, self.evaluation.metrics())
            logger.info("%s", console.evaluation_line(epoch, self.evaluation, time.perf_counter() - began))
            write_report(
                self.evaluation, self.manifest.class_names, self.job.run, self.step, self.tracker, self.context.folder
            )
        self._begin_interval()

    def _checkpoint(self, *, evaluation_due: bool = False) -> None:
        """Copy the state, on every rank; rank 0 writes it while training goes on."""
        self.saved_at, self.asked_to_save = time.monotonic(), False
        if self.saved_step == self.step:
            return
        self._begin_phase("checkpoint")
        state = self.engine.state()
        if state is not None:
            if broken := [name for name, value in state.weights.items() if not torch.isfinite(value).all()]:
                raise UnrecoverableError(
                    f"{broken[0]} is not finite after step {self.step:,}, so no checkpoint of it is kept; {_CALMER}"
                )
            self.facts = {
                "step": self.step,
                "epoch": self.step // self.plan.steps_per_epoch,
                "samples_seen": self.step * self.split.global_size,
                "steps_per_epoch": self.plan.steps_per_epoch,
                "seed": self.recipe.seed,
                "detector": self.recipe.detector.name,
                "classes": [dataclasses.asdict(item) for item in self.manifest.classes],
                "manifest": self.manifest.digest,
                "recipe": to_dict(self.recipe),
                "run": self.job.run,
                "attempt": self.job.attempt,
                "mlflow_run": self.job.tracking_run,
                "world_size": self.context.world_size,
                "zero_stage": self.recipe.engine.zero_stage,
                "precision": self.engine.precision,
                "skipped_steps": self.skipped_steps,
                "evaluation_due": evaluation_due,
                "saved_at": time.time(),
            }
            self.writer.save(state, self.facts, score=self._score())
            self.evaluation = None
        self.saved_step = self.step
        self._begin_interval()

    def _score(self) -> float | None:
        """AP of the weights as they are; None where they were not evaluated, or nothing was there to be found."""
        return None if self.evaluation is None or math.isnan(self.evaluation.score) else self.evaluation.score

    def _begin_interval(self) -> None:
        """Leave what was not training out of the pace."""
        self.interval = _Interval()
        self.stopwatch.take()

    def _finish(self) -> None:
        """Say that the run is complete, or stopped as it was asked: everything is on disk and uploaded."""
        if not self.first_rank:
            return
        if self.step < self.last_step:
            mark_stopped(self.context.folder, self.step)
            logger.info("stopped   at step %s, its checkpoint is written", f"{self.step:,}")
            return
        facts = {"step": self.step, "epochs": self.step / self.plan.steps_per_epoch, "run": self.job.run}
        write_json(self.context.folder / "result.json", facts)

    def _measure(self) -> None:
        """The benchmark: the same steps with exact phases, the first ones left out as warm-up."""
        warm_up = min(3, self.last_step - 1)
        with self._loader() as batches:
            source = iter(batches)
            began = time.perf_counter()
            while self.step < self.last_step:
                self._optimizer_step(source, self.recipe.optimizer.learning_rate)
                if self.step == warm_up:
                    self.stopwatch.take()
                    began = time.perf_counter()
                if self.step == self.last_step - self._steps_after_checkpoints():
                    seconds, phases = time.perf_counter() - began, self.stopwatch.take()
                    checkpoints = self._measure_checkpoints(source)
            steps = self.last_step - self._steps_after_checkpoints() - warm_up
        if self.first_rank:
            write_json(
                self.context.folder / "measured.json",
                {
                    "steps": steps,
                    "seconds": seconds,
                    "images": steps * self.split.global_size,
                    "phases": phases,
                    "checkpoints": checkpoints,
                    "peak_bytes": _peak_bytes(self.context.device),
                    "precision": self.engine.precision,
                    "device": str(self.context.device),
                },
            )

    def _steps_after_checkpoints(self) -> int:
        return self.job.measured_checkpoints * _STEPS_BESIDE_WRITING

    def _measure_checkpoints(self, source: Iterator[Batch]) -> list[dict[str, float]]:
        """What each checkpoint holds up: the copy at the step's end, and steps that run beside the writing."""
        found = []
        for _ in range(self.job.measured_checkpoints):
            torch.distributed.barrier()
            began = time.perf_counter()
            self._checkpoint()
            copied = time.perf_counter()
            for _ in range(_STEPS_BESIDE_WRITING):
                self._optimizer_step(source, self.recipe.optimizer.learning_rate)
            beside = time.perf_counter() - copied
            self.writer.wait()
            written = time.perf_counter() - copied
            found.append({"copy_seconds": copied - began, "beside_seconds": beside, "write_seconds": written})
        return found

    def _agreed_checkpoint(self) -> Checkpoint | None:
        """Rank 0 chooses and verifies, the others follow: all start from one state."""
        chosen: list[Any] = [None, time.time_ns()]
        if self.first_rank:
            newest = newest_checkpoint(self.checkpoints, self.remote)
            chosen[0] = newest.path.name if newest else None
        torch.distributed.broadcast_object_list(chosen)
        name, self.life = chosen
        if name is None:
            return None
        path = self.checkpoints.folder / name
        if self.remote and not path.exists():  # a node whose run folder is its own
            self.remote.fetch(name, self.checkpoints.folder)
        checkpoint = open_checkpoint(path, verify=False)
        check_fits(checkpoint, self.recipe, self.manifest)
        return checkpoint

    def _agreed_precision(self) -> ResolvedPrecision:
        """One precision for all ranks and attempts, though their devices may differ in what "auto" would mean."""
        chosen = [self.facts.get("precision") or resolve_precision(self.recipe.engine.precision, self.context.device)]
        torch.distributed.broadcast_object_list(chosen)
        return chosen[0]

    def _digests(self) -> dict[str, str]:
        validation = self.recipe.data.validation
        return {
            "train": self.manifest.digest,
            **({"validation": load_manifest(validation).digest} if validation else {}),
        }

    def _say_where_it_stands(self) -> None:
        where = f"{self.context.world_size} workers on {self.context.device.type}, {self.engine.precision}"
        if not self.facts:
            logger.info("start     at step 0, %s", where)
            return
        resumed = console.resumed_line(self.job.attempt, self.step, self.plan.steps_per_epoch)
        logger.info("%s; %s", resumed, where)
        previous, saved_at = self.context.heartbeat.previous, float(self.facts.get("saved_at", 0))
        logger.info("%s", lost_line(previous, self.step, self.split.global_size, saved_at))


def build_detector(recipe: Recipe, manifest: Manifest, *, initial: bool) -> Detector:
    """The recipe's detector for the data's classes; `initial` reads the weights to start from, too."""
    with torch.random.fork_rng(devices=[]):  # the same weights on every rank, whatever was drawn before
        torch.manual_seed(recipe.seed)
        detector = detectors.build(recipe.detector.name, len(manifest.classes), **recipe.detector.settings)
    if initial and recipe.detector.weights:
        path = fetch_weights(recipe.detector, detector, recipe.data.cache_folder)
        receipt = detectors.published.load(detector, path, skip_mismatched=recipe.detector.skip_mismatched)
        logger.info("%s", receipt.summary())
    return detector


def parameter_groups(detector: Detector, optimizer: OptimizerSettings) -> list[dict[str, Any]]:
    """What torch's optimizer is given: one group, or two where biases are trained otherwise."""
    own = {"momentum": optimizer.momentum} if optimizer.name == "sgd" else {"betas": optimizer.betas}
    learning = {name: parameter for name, parameter in detector.named_parameters() if parameter.requires_grad}
    biases = [parameter for name, parameter in learning.items() if name.endswith("bias")]
    others = [parameter for name, parameter in learning.items() if not name.endswith("bias")]
    decay, factor = optimizer.bias_weight_decay, optimizer.bias_learning_rate_factor
    if decay is None and factor == 1:
        others, biases = list(learning.values()), []
    groups = [
        (others, 1.0, optimizer.weight_decay),
        (biases, factor, optimizer.weight_decay if decay is None else decay),
    ]
    return [
        {
            "params": params,
            "lr": optimizer.learning_rate * scale,
            "lr_factor": scale,
            "weight_decay": weight_decay,
            **own,
        }
        for params, scale, weight_decay in groups
        if params
    ]


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
