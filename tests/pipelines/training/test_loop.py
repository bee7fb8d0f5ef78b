"""The end of a step, in real worker processes without Ray: the checkpoint first, then the evaluation."""

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import torch

from cluster import workers
from cluster.checkpoints.checkpoint import CheckpointFolder
from cluster.engine.engine import Engine
from cluster.heartbeat import Heartbeat
from cluster.stopping import Control
from cluster.workers import UnrecoverableError, WorkerContext
from pipelines import recipes
from pipelines.evaluation import evaluate
from pipelines.evaluation.evaluate import EvaluationError
from pipelines.recipes.recipe import with_flags
from pipelines.trained.checkpoint_facts import facts_of
from pipelines.training import loop
from pipelines.training.evaluation_log import EvaluationLog
from pipelines.training.loop import Job, Training
from tests.cluster.processes import run_processes

# 12 images in batches of 4: 3 steps an epoch, an evaluation after each.
_FLAGS = (
    "--detector.settings.width 8 --detector.settings.deconv_channels 16 16 16 --detector.settings.head_channels 16 "
    "--data.input_size 64 64 --batch.global_size 4 --schedule.epochs 2 --schedule.drops_at [] --engine.precision fp32 "
    "--schedule.warmup_steps 1 --tracking.system_seconds 0 --evaluation.every_epochs 1 --evaluation.pictures 0 "
    "--checkpoint.keep 5 --cluster.workers 1"
)


class _NoTracker:
    """Takes everything and delivers nothing."""

    tags: dict[str, str]

    def __init__(self, *arguments: Any) -> None:
        self.tags = {}

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: None


def _training(rank: int, world_size: int, folder: Path, shards: Path, *more: str) -> Training:
    flags = [*more, *_FLAGS.split(), "--data.train", str(shards / "train"), "--data.validation", str(shards / "val")]
    recipe = with_flags(recipes.get("demo"), flags)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    context = WorkerContext(
        rank=rank,
        world_size=world_size,
        node=0,
        nodes=1,
        device=torch.device("cpu"),
        folder=folder,
        heartbeat=Heartbeat(folder, rank, world_size, hang_seconds=0),
        control=Control(folder, interval_seconds=0),
    )
    loop.Tracker = _NoTracker  # type: ignore[assignment, misc]
    workers.preemption_notice = lambda: ""  # only Ray has notices
    return Training(context, Job(recipe=recipe, run="first", attempt=1, tracking_uri="", tracking_run=""))


def _steps_and_scores(folder: Path) -> dict[int, tuple[bool, bool]]:
    """For each checkpoint, whether it has a score, and whether its evaluation is due."""
    found = CheckpointFolder(folder / "checkpoints").complete()
    states = [json.loads((path / "state.json").read_text()) for path in found]
    return {state["step"]: (state["score"] is not None, state["evaluation_due"]) for state in states}


def _fail_first_then_resume(rank: int, folder: Path, shards: Path) -> None:
    real, calls = loop.evaluate, [0]

    def evaluate(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 1:
            # Taken before the evaluation began, and written by a thread.
            training.saver.writer.wait()
            assert _steps_and_scores(folder) == {3: (False, True)}
            raise EvaluationError("image 7: ValueError: no number")
        return real(*arguments, **named)

    loop.evaluate = evaluate  # type: ignore[assignment]
    training = _training(rank, 1, folder, shards)
    training.run()
    assert _steps_and_scores(folder) == {3: (False, True), 6: (True, False)}
    assert EvaluationLog(folder).failures() == {3: "image 7: ValueError: no number"}
    assert (folder / "result.json").exists()

    # An attempt that resumes where the evaluation failed does not repeat it.
    CheckpointFolder(folder / "checkpoints").complete()[-1].rename(folder / "later")
    evaluated = calls[0]
    training = _training(rank, 1, folder, shards)
    assert training.resumed_from is not None
    assert training.resumed_from.evaluation_due
    training.run()
    assert calls[0] == evaluated + 1  # of step 6 only
    for file in ("weights.safetensors", "optimizer.safetensors"):
        again = CheckpointFolder(folder / "checkpoints").complete()[-1] / file
        assert again.read_bytes() == (folder / "later" / file).read_bytes()


def test_a_failing_evaluation_costs_nothing_and_is_not_repeated(tmp_path: Path, small_shards: Path) -> None:
    run_processes(_fail_first_then_resume, 1, tmp_path / "first", small_shards)


def _stop_in_the_last_evaluation(rank: int, folder: Path, shards: Path) -> None:
    real = loop.evaluate

    def evaluate(*arguments: Any, **named: Any) -> Any:
        if training.step == training.last_step:
            (folder / "control.json").write_text('{"stop": true}')
        return real(*arguments, **named)

    loop.evaluate = evaluate  # type: ignore[assignment]
    training = _training(rank, 1, folder, shards)
    training.run()
    assert json.loads((folder / "stopped.json").read_text()) == {"step": 6}
    assert not (folder / "result.json").exists()
    assert _steps_and_scores(folder) == {3: (True, False), 6: (False, True)}
    (folder / "control.json").unlink()
    loop.evaluate = real
    training = _training(rank, 1, folder, shards)
    training.run()
    assert _steps_and_scores(folder) == {3: (True, False), 6: (True, False)}
    newest = CheckpointFolder(folder / "checkpoints").latest()
    assert newest is not None
    assert not facts_of(newest).evaluation_due
    assert (folder / "result.json").exists()


def test_a_stop_during_the_last_evaluation_leaves_it_to_the_next_attempt(tmp_path: Path, small_shards: Path) -> None:
    run_processes(_stop_in_the_last_evaluation, 1, tmp_path / "first", small_shards)


def _start_from_a_file(rank: int, folder: Path, shards: Path) -> None:
    plain = _training(rank, 1, folder / "plain", shards)
    plain.run()
    assert "weights.sha256" not in plain.recorder.tracker.tags  # type: ignore[union-attr]
    file = folder / "trained.pth"
    torch.save(dict(plain.detector.state_dict()), file)
    expected = hashlib.sha256(file.read_bytes()).hexdigest()

    for _ in range(2):  # the second time resumes, and does not read the file
        training = _training(rank, 1, folder / "tuned", shards, "--detector.weights", str(file))
        training.run()
        assert training.weights_sha256 == expected
        assert training.recorder.tracker.tags["weights.sha256"] == expected  # type: ignore[union-attr]
        newest = CheckpointFolder(folder / "tuned" / "checkpoints").latest()
        assert newest is not None
        assert facts_of(newest).weights_sha256 == expected
        file.unlink(missing_ok=True)


def test_the_sha256_of_the_initial_weights_is_recorded(tmp_path: Path, small_shards: Path) -> None:
    run_processes(_start_from_a_file, 1, tmp_path / "first", small_shards)


def _run_out_of_memory(rank: int, folder: Path, shards: Path) -> None:
    real, calls = Engine.forward, [0]
    refused_at = 1

    def forward(self: Engine, images: torch.Tensor) -> Any:
        calls[0] += 1
        if calls[0] == refused_at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore about it")
        return real(self, images)

    Engine.forward = forward  # type: ignore[method-assign]
    job = _training(rank, 1, folder, shards).job

    def attempt() -> Exception:
        context = _training(rank, 1, folder, shards).context
        try:
            loop.train_worker(context, job)
        except Exception as error:
            return error
        raise AssertionError("the memory sufficed")

    first = attempt()
    assert isinstance(first, UnrecoverableError)
    assert "the memory of cpu does not suffice for the first step with 4 images at a time" in str(first)
    assert "Tried to allocate 2.00 GiB. Set --batch.microbatch_limit 2; the batch" in str(first)
    assert "\n" not in str(first)
    # Once a step is done, it is worth another attempt.
    calls[0], refused_at = 0, 2
    assert isinstance(attempt(), torch.OutOfMemoryError)


def test_a_first_step_that_needs_too_much_memory_ends_the_run_with_advice(tmp_path: Path, small_shards: Path) -> None:
    run_processes(_run_out_of_memory, 1, tmp_path / "first", small_shards)


def _judge_slowly(rank: int, folder: Path, shards: Path) -> None:
    training = _training(rank, 2, folder, shards)
    heartbeat, computed = training.context.heartbeat, []
    metrics = evaluate._metrics

    def slow(*arguments: Any) -> Any:
        # What the watching thread does at its next beat: progress, although this thread reports none.
        since = heartbeat._since
        deadline = time.monotonic() + 60
        while heartbeat._since == since and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        computed.append(heartbeat._since > since)
        return metrics(*arguments)

    evaluate._metrics = slow
    training.run()
    assert computed == ([True, True] if rank == 0 else [])


def test_metrics_that_take_long_are_progress(tmp_path: Path, small_shards: Path) -> None:
    run_processes(_judge_slowly, 2, tmp_path / "first", small_shards)
