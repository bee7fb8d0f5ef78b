"""The training loop, as every worker runs it.

The life of a step: each microbatch is read, moved to the device, augmented, encoded into targets, and taken forward and
backward; the optimizer steps; its losses are kept on the device. Then comes what is due: a record, an evaluation, a
checkpoint, the end of the attempt. All ranks do the same in the same order, since most of it is collective.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from cluster.checkpoints.checkpoint import Checkpoint
from cluster.engine.engine import BatchSplit, Engine, ResolvedPrecision, resolve_precision, split_batch
from cluster.errors import ClusterError
from cluster.stopping import mark_stopped
from cluster.workers import UnrecoverableError, WorkerContext
from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.format.manifest import Manifest
from data_shards.loading.augment import augment
from data_shards.loading.batch import Batch
from data_shards.loading.training_loader import TrainingLoader
from data_shards.order.plan import Plan, World
from detectors import DetectorError
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.evaluation.evaluate import Evaluation, EvaluationError, EvaluationStoppedError, evaluate
from pipelines.evaluation.report import write_report
from pipelines.files import write_json
from pipelines.recipes.recipe import to_yaml
from pipelines.recipes.settings import Recipe
from pipelines.tracking import Tracker, log_recipe_and_versions, start_system_metrics
from pipelines.trained.checkpoint_facts import facts_of, was_begun_ungrouped
from pipelines.training.checkpoints import Saver, lost_line
from pipelines.training.due import Milestones
from pipelines.training.evaluation_log import EvaluationLog
from pipelines.training.from_recipe import (
    OPTIMIZERS,
    build_detector,
    load_initial_weights,
    parameter_groups,
    sample_order,
    training_loader,
)
from pipelines.training.recorder import Recorder
from pipelines.training.sample_ledger import Ledger
from pipelines.training.stopwatch import Stopwatch

logger = logging.getLogger("aweigh")


@dataclass(frozen=True)
class Job:
    """A training as the driver hands it to every worker."""

    recipe: Recipe
    run: str
    attempt: int
    tracking_uri: str
    tracking_run: str
    """MLflow's id of the run; empty if the server has not answered yet."""


def train_worker(context: WorkerContext, job: Job) -> None:
    """Train on this worker, from the newest checkpoint to the end of the schedule.

    Raises:
        UnrecoverableError: another attempt would end the same way.
    """
    training: Training | None = None
    with mistakes_end_the_run():
        try:
            training = Training(context, job)
            training.run()
        except RuntimeError as error:
            # After the first step, another attempt may have the memory that something else has taken here.
            is_first = training is None or training.step == training.began_at
            if is_first and (advice := advice_on_memory(error, job.recipe, context)):
                raise UnrecoverableError(advice) from error
            raise


def advice_on_memory(error: RuntimeError, recipe: Recipe, context: WorkerContext) -> str:
    """Say what to do about memory that does not suffice for one step; "" if the error has another cause."""
    text = str(error).strip()
    # torch raises a plain RuntimeError for the CPU's memory.
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in text:
        return ""
    size = split_batch(recipe.batch.global_size, context.world_size, recipe.batch.microbatch_limit).microbatch_size
    what = text.splitlines()[0] if text else "out of memory"
    ways = [f"--batch.microbatch_limit {size // 2}"] if size > 1 else ["a smaller --data.input_size"]
    if "hourglass" in recipe.detector.name:
        ways.append("--detector.settings.activation_checkpointing true")
    return (
        f"the memory of {context.device} does not suffice for the first step with {counted(size, 'image')} at a time: "
        f"{what.rstrip('.')}. Set {' or '.join(ways)}; the batch of a step stays the same."
    )


@contextmanager
def mistakes_end_the_run() -> Iterator[None]:
    """Turn errors that another start of the workers would repeat into `UnrecoverableError`, which ends the run."""
    try:
        yield
    except (ConfigError, DataError, DetectorError, ClusterError) as error:
        raise UnrecoverableError(str(error)) from error


class Training:
    """One rank's part of a training.

    Args:
        context: this rank.
        job: what is trained.
        measured_steps: for the benchmark, train this many steps from the recipe's own weights, ignoring checkpoints,
            and wait for the device at the end of each phase; 0 trains the schedule.
    """

    def __init__(self, context: WorkerContext, job: Job, *, measured_steps: int = 0) -> None:
        recipe = job.recipe
        # Ranks draw different numbers; initial weights do not depend on it (see build_detector).
        torch.manual_seed(recipe.seed + context.rank)
        self.context, self.job, self.recipe = context, job, recipe
        self.split_to_train, self.split_to_evaluate = recipe.data.splits()
        self.manifest: Manifest = self.split_to_train.manifest
        self.plan: Plan = sample_order(recipe, self.split_to_train)
        self.split: BatchSplit = split_batch(
            recipe.batch.global_size, context.world_size, recipe.batch.microbatch_limit
        )
        self.world = World(ranks=context.world_size, rank=context.rank, nodes=context.nodes, node=context.node)
        self.last_step = measured_steps or recipe.schedule.last_step(self.plan.steps_per_epoch)
        self.saver = Saver(context, recipe, job.run, self.manifest)
        checkpoint = None if measured_steps else self.saver.start()
        self.resumed_from = facts_of(checkpoint) if checkpoint else None
        self.step = checkpoint.step if checkpoint else 0
        self.began_at = self.step
        """Steps done when this attempt began."""
        self.detector = build_detector(recipe, self.manifest, initial=False)
        self.weights_sha256 = (
            self.resumed_from.weights_sha256 if self.resumed_from else load_initial_weights(self.detector, recipe)
        )
        """Of the file of initial weights; empty for random ones."""
        self.engine = self._engine(checkpoint)
        self.stopwatch = Stopwatch(context.device, exact=bool(measured_steps), begins=self._begin_phase)
        self.milestones = Milestones(recipe, self.plan.steps_per_epoch, self.last_step, context)
        self.recorder = Recorder(
            context,
            recipe,
            self.plan,
            self.world,
            self.split,
            self.stopwatch,
            self.last_step,
            skipped_steps=self.resumed_from.skipped_steps if self.resumed_from else 0,
        )
        self.ledger: Ledger | None = None
        self.evaluations = EvaluationLog(context.folder)
        self.stopped = False
        """True if the attempt ends on request, before the schedule does or before its last evaluation."""

    def run(self) -> None:
        """Train to the end of the schedule, or until asked to stop; returns when the last checkpoint is written."""
        with self._tracked():
            with self._system_metrics(), self._ledger(), self.loader() as batches:
                source = iter(batches)
                if self.resumed_from and self.resumed_from.evaluation_due:
                    self._evaluate_again()
                while self.step < self.last_step and not self.stopped:
                    self._train_step(source)
            self.milestones.close()
            self._begin_phase("checkpoint")
            self.saver.writer.wait()
            # Last: the run counts as complete only when its checkpoint is on disk and uploaded.
            self._finish()

    def _train_step(self, source: Iterator[Batch]) -> None:
        """Train one step and do what is due after it."""
        rate = self.recipe.optimizer.learning_rate * self.recipe.schedule.factor(self.step, self.plan.steps_per_epoch)
        parts = self.optimizer_step(source, rate)
        self.recorder.add(self.step, parts, skipped=self.engine.skipped)
        due = self.milestones.reached(self.step)
        if self.step % self.recipe.tracking.every_steps == 0 or due.checkpoint:
            self.recorder.record(self.step, parts, rate, self.engine)
        elif due.wished:
            # As record does: no checkpoint is taken before the losses up to it are known to be finite.
            self.recorder.check_losses()
        if due.checkpoint or due.wished:
            # Before the evaluation, which may fail, or be ended with the process.
            self.save(evaluation_due=due.evaluation)
        self.stopped = due.stop
        # A grace period is too short for an evaluation; the next attempt does it.
        if due.evaluation and not due.stop:
            self._evaluate_and_score()

    def optimizer_step(self, source: Iterator[Batch], rate: float) -> list[dict[str, Tensor]]:
        """Train one optimizer step.

        Args:
            source: this rank's batches.
            rate: the learning rate.

        Returns:
            For each microbatch, its scalar losses by name, on the device and without gradient.
        """
        self.engine.set_learning_rate(rate)
        parts = []
        sample_ids: list[int] = []
        for _ in range(self.split.accumulation_steps):
            with self.stopwatch.phase("data"):
                batch = next(source)
            sample_ids += batch.sample_ids.tolist() if self.ledger else []
            parts.append(self._microbatch(batch))
        self.step += 1
        if self.ledger:
            self.ledger.add(self.step, sample_ids)
        return parts

    def _microbatch(self, batch: Batch) -> dict[str, Tensor]:
        """Take one microbatch forward and backward; the engine steps the optimizer at the last one of a step."""
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
        # Detached, not read: .item() would wait for the whole backward pass.
        return {name: value.detach() for name, value in losses.items()}

    def _evaluate_again(self) -> None:
        """Do the evaluation at which the last attempt ended, unless it is known to fail. Collective."""
        worth = [self.context.rank != 0 or self.evaluations.worth_another_try(self.step)]
        torch.distributed.broadcast_object_list(worth)
        if worth[0]:
            self._evaluate_and_score()

    def _evaluate_and_score(self) -> None:
        """Evaluate the weights of the newest checkpoint, and save it again with its score. Collective.

        A failure is reported, and training continues: the checkpoint stays, without a score.
        """
        self._begin_phase("evaluate")
        evaluation: Evaluation | None = None
        outcome = ["measured"]
        if self.context.rank == 0:
            self.evaluations.begin(self.step)
        try:
            evaluation = self._evaluate()
        except EvaluationStoppedError:
            outcome = ["stopped"]
        except (ConfigError, DataError, DetectorError) as error:
            outcome = ["failed"]
            self._report_failure(error)
        # Only rank 0 knows the outcome, and saving is collective.
        self._begin_phase("checkpoint")
        torch.distributed.broadcast_object_list(outcome, group=self.context.patient)
        self.recorder.pause()
        if outcome[0] == "measured":
            self.save(evaluation)
            if self.context.rank == 0:
                self.evaluations.succeeded(self.step)
        elif outcome[0] == "stopped":
            self.stopped = True

    def _report_failure(self, error: Exception) -> None:
        self.evaluations.failed(self.step, str(error))
        logger.error("the evaluation after step %s failed: %s; training continues", f"{self.step:,}", error)
        trace = error.trace if isinstance(error, EvaluationError) else ""
        with (self.context.folder / "logs" / f"rank-{self.context.rank}-errors.log").open("a") as errors:
            errors.write(trace or f"{error}\n")

    def _progress(self) -> None:
        """Report progress of an evaluation, and end it early if the attempt has to stop: its checkpoint is taken."""
        self.context.heartbeat.progress()
        if self.context.control.stop_is_asked():
            raise EvaluationStoppedError

    def _evaluate(self) -> Evaluation | None:
        """Evaluate the current weights. Collective. Returns the result on rank 0 and None elsewhere."""
        began = time.perf_counter()
        # A second network: under ZeRO 3 a rank holds only its part of the weights, and the evaluation mode and averaged
        # buffers of this one must not reach training.
        judged = build_detector(self.recipe, self.manifest, initial=False).to(self.context.device)
        judged.load_state_dict(self.engine.evaluation_weights())
        data, settings = self.recipe.data, self.recipe.evaluation
        assert self.split_to_evaluate is not None
        evaluation = evaluate(
            judged,
            data.reading(self.split_to_evaluate, judged.box_corners),
            settings,
            input_size=settings.input_size or data.input_size,
            device=self.context.device,
            world=self.world,
            progress=lambda num_images: self._progress(),
            group=self.context.patient,
            computing=self.context.heartbeat.computing,
        )
        tracker = self.recorder.tracker
        if evaluation is not None and tracker is not None:
            tracker.log_metrics(self.step, evaluation.metrics())
            epoch = self.step // self.plan.steps_per_epoch
            logger.info("%s", console.evaluation_line(epoch, evaluation, time.perf_counter() - began))
            with self.context.heartbeat.computing():
                self._write_report(evaluation)
        return evaluation

    def _write_report(self, evaluation: Evaluation) -> None:
        folder, names = self.context.folder, self.manifest.class_names
        try:
            write_report(evaluation, names, self.job.run, self.step, self.recorder.tracker, folder)
        except Exception as error:  # of the disk or of a drawing library: the metrics and the weights are kept
            logger.warning(
                "warning   the tables and pictures of step %s could not be written to %s: %s",
                f"{self.step:,}",
                folder / "evaluation",
                error,
            )

    def save(self, evaluation: Evaluation | None = None, *, evaluation_due: bool = False) -> None:
        """Take a checkpoint of the current state, with the score of its evaluation if there was one. Collective."""
        self._begin_phase("checkpoint")
        self.saver.save(
            self.engine,
            self.plan,
            self.step,
            evaluation,
            run=self.job.run,
            attempt=self.job.attempt,
            mlflow_run=self.job.tracking_run,
            skipped_steps=self.recorder.skipped_steps,
            evaluation_due=evaluation_due,
            begun_ungrouped=self.resumed_from is not None and was_begun_ungrouped(self.resumed_from),
            weights_sha256=self.weights_sha256,
        )
        self.milestones.saved()
        self.recorder.pause()

    def _finish(self) -> None:
        """Mark the run as complete, or as stopped on request; everything is on disk and uploaded."""
        if self.context.rank != 0:
            return
        if self.stopped:
            mark_stopped(self.context.folder, self.step)
            logger.info("stopped   at step %s; the checkpoint is written", f"{self.step:,}")
            return
        facts = {"step": self.step, "epochs": self.step / self.plan.steps_per_epoch, "run": self.job.run}
        write_json(self.context.folder / "result.json", facts)

    def _begin_phase(self, name: str) -> None:
        self.context.heartbeat.begin(name, self.step)

    def _engine(self, checkpoint: Checkpoint | None) -> Engine:
        return Engine(
            self.detector,
            OPTIMIZERS[self.recipe.optimizer.name],
            parameter_groups(self.detector, self.recipe.optimizer),
            dataclasses.replace(self.recipe.engine, precision=self._agreed_precision()),
            self.split,
            self.context.device,
            checkpoint.training_state() if checkpoint else None,
        )

    def _agreed_precision(self) -> ResolvedPrecision:
        """Return one precision for all ranks and attempts. Collective: rank 0 decides.

        "auto" depends on the device, and a later attempt may run on other devices; the checkpoint's precision stays.
        """
        own = resolve_precision(self.recipe.engine.precision, self.context.device)
        # A resumed run keeps its precision; what was recorded is one of the three.
        chosen: list[Any] = [(self.resumed_from and self.resumed_from.precision) or own]
        torch.distributed.broadcast_object_list(chosen)
        return chosen[0]

    def loader(self) -> TrainingLoader:
        """Open this rank's loader for the steps that are left."""
        return training_loader(
            self.recipe,
            self.split_to_train,
            self.plan,
            self.world,
            sizes=self.detector.sizes,
            corners=self.detector.box_corners,
            microbatches=self.split.accumulation_steps,
            steps=(self.step, self.last_step),
        )

    @contextmanager
    def _tracked(self) -> Iterator[None]:
        """Track on rank 0; on the way out, finish the checkpoint being written and the metrics being delivered."""
        try:
            if self.context.rank == 0:
                folder = self.context.folder / "tracking"
                self.recorder.tracker = Tracker(folder, self.job.tracking_uri, self.job.tracking_run)
                log_recipe_and_versions(self.recorder.tracker, to_yaml(self.recipe), self._digests())
                if self.weights_sha256:
                    self.recorder.tracker.set_tags({"weights.sha256": self.weights_sha256})
                deepspeed = json.dumps(self.engine.config, indent=1)
                (self.context.folder / "logs" / "deepspeed.json").write_text(deepspeed)
                self.recorder.tracker.log_text(deepspeed, "deepspeed.json")
                self._say_where_it_stands()
            yield
        finally:
            self.saver.writer.close()
            if self.recorder.tracker:
                self.recorder.tracker.close()

    @contextmanager
    def _system_metrics(self) -> Iterator[None]:
        """Log CPU, memory, disk, network and GPU use of rank 0's node to MLflow."""
        seconds, tracker = self.recipe.tracking.system_seconds, self.recorder.tracker
        if tracker is None or not seconds:
            yield
            return
        stop = start_system_metrics(tracker, seconds)
        try:
            yield
        finally:
            stop()

    @contextmanager
    def _ledger(self) -> Iterator[None]:
        """Keep the ledger of sample ids, if the recipe asks for it."""
        if not self.recipe.tracking.ledger:
            yield
            return
        place = {"start": self.step, "world_size": self.context.world_size, "attempt": self.job.attempt}
        with Ledger(self.context.folder, self.saver.life, self.context.rank, **place) as self.ledger:
            yield

    def _digests(self) -> dict[str, str]:
        validation = self.split_to_evaluate
        return {
            "train": self.manifest.digest,
            **({"validation": validation.manifest.digest} if validation else {}),
        }

    def _say_where_it_stands(self) -> None:
        workers = counted(self.context.world_size, "worker")
        where = f"{workers} on {self.context.device.type}, {self.engine.precision}"
        if not self.resumed_from:
            logger.info("start     at step 0, %s", where)
            return
        resumed = console.resumed_line(self.job.attempt, self.step, self.plan.steps_per_epoch)
        logger.info("%s; %s", resumed, where)
        previous, saved_at = self.context.heartbeat.previous, self.resumed_from.saved_at
        logger.info("%s", lost_line(previous, self.step, self.split.global_size, saved_at))
