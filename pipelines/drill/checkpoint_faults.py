"""Checkpoints that are cut off or damaged, or for which the disk is full."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.drill.fault import fault
from pipelines.drill.runs import Course, DrillError, running
from pipelines.stand_ins.s3_proxy import faulty_store

_BUCKET = "drill"


@fault("kill-in-checkpoint-write", "kill -9 of rank 0 between the first and the last byte of a checkpoint")
def kill_in_write(course: Course, name: str) -> None:
    """Resume from the checkpoint before; the half-written one is an orphan."""
    with running(course.start(name)) as attempt:
        attempt.wait_for_step(course.steps // 2)
        _kill_while(attempt.kill_worker, attempt.folder / "checkpoints")
        attempt.finish_resumed()


def _kill_while(kill_worker: object, checkpoints: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        partial = next(iter(checkpoints.glob(".step-*.partial/weights.safetensors")), None)
        if partial:
            kill_worker(0)  # type: ignore[operator]
            if partial.exists():
                return
            raise DrillError("the checkpoint was complete before the kill arrived; try again")
        # The write of a small checkpoint takes milliseconds, and the kill has to fall into it.
        time.sleep(0.0005)
    raise DrillError("no checkpoint was written within 300 s")


@fault("kill-in-checkpoint-upload", "kill -9 during an upload to S3, and the machine's own copies lost with it")
def kill_in_upload(course: Course, name: str) -> None:
    """Resume from the last sealed checkpoint in the bucket; an upload without a seal is ignored."""
    with faulty_store(_BUCKET) as store:
        flags = ("--checkpoint.location", f"s3://{_BUCKET}/runs")
        seen: set[str] = set()

        def hold_the_third(method: str, path: str, number: int) -> str:
            if method == "PUT" and path.split("?")[0].endswith("/optimizer.safetensors"):
                seen.add(path)
                return "hold" if len(seen) == 3 else "pass"
            return "pass"

        store.rule = hold_the_third  # type: ignore[assignment]
        with running(course.start(name, *flags, **store.environment)) as attempt:
            if not store.held.wait(600):
                raise DrillError("no third checkpoint was uploaded within 600 s")
            attempt.kill_driver()
        store.rule = lambda method, path, number: "pass"
        # As on a machine that is replaced: only the bucket has checkpoints now.
        shutil.rmtree(course.folder / name / "checkpoints")
        with running(course.start(name, *flags, **store.environment)) as attempt:
            attempt.finish_resumed()


@fault(
    "corrupt-checkpoint-download",
    "a replaced machine gets the newest checkpoint from S3 with one wrong byte",
)
def corrupt_download(course: Course, name: str) -> None:
    """Download the file again, and resume from the newest checkpoint all the same."""
    damaged: set[str] = set()

    def corrupt_once(method: str, path: str, number: int) -> str:
        if method == "GET" and path.split("?")[0].endswith("/optimizer.safetensors") and not damaged:
            damaged.add(path)
            return "corrupt"
        return "pass"

    _resume_elsewhere(course, name, corrupt_once)


@fault("empty-listing", "S3 answers a replaced machine, once, that there is no checkpoint")
def empty_listing(course: Course, name: str) -> None:
    """Ask again, and do not start at step 0."""
    listed: list[str] = []

    def empty_once(method: str, path: str, number: int) -> str:
        if method == "GET" and "list-type=2" in path:
            listed.append(path)
            return "empty" if len(listed) == 1 else "pass"
        return "pass"

    _resume_elsewhere(course, name, empty_once)


def _resume_elsewhere(course: Course, name: str, rule: Callable[[str, str, int], str]) -> None:
    """Kill a training, lose its machine's checkpoints, and resume from the newest one in the bucket under a rule."""
    with faulty_store(_BUCKET) as store:
        flags = ("--checkpoint.location", f"s3://{_BUCKET}/runs")
        with running(course.start(name, *flags, **store.environment)) as attempt:
            attempt.wait_for_step(course.steps // 2 + 1)
            attempt.kill_driver()
        checkpoints = course.folder / name / "checkpoints"
        # The upload of the newest may have been under way.
        uploaded = int(sorted(path.name for path in checkpoints.glob("step-*"))[-2].partition("-")[2])
        shutil.rmtree(checkpoints)
        store.rule = rule  # type: ignore[assignment]
        with running(course.start(name, *flags, **store.environment)) as attempt:
            resumed = attempt.wait_for("^resumed ")
            attempt.finish()
        if not store.refused:
            raise DrillError("the store gave no wrong answer, so nothing was drilled")
        found = re.search(r"step ([\d,]+)", resumed)
        if found is None or int(found[1].replace(",", "")) < uploaded:
            raise DrillError(f"training resumed too early, although step {uploaded} was in the bucket: {resumed}")
        if skipped := [line for line in attempt.lines if "skipped: " in line]:
            raise DrillError(f"one wrong answer cost a checkpoint: {skipped[0]}")


@fault("checkpoint-truncated", "the newest checkpoint loses its last bytes between two attempts")
def truncated(course: Course, name: str) -> None:
    """Warn about it, and resume from the checkpoint before."""
    with running(course.start(name)) as attempt:
        attempt.wait_for_step(course.steps // 2 + 1)
        attempt.kill_driver()
    newest = sorted((course.folder / name / "checkpoints").glob("step-*"))[-1] / "optimizer.safetensors"
    os.truncate(newest, newest.stat().st_size - 7)
    with running(course.start(name)) as attempt:
        attempt.wait_for(r"^warning +skipped: .*optimizer\.safetensors")
        attempt.finish_resumed()


@fault(
    "checkpoint-disk-full",
    "the disk is too full for a checkpoint and training ends; space is made, the same command again",
)
def disk_full(course: Course, name: str) -> None:
    """Keep checkpoints on a small file system made for this; mounting it takes root."""
    whole = sorted((course.folder / "whole" / "checkpoints").glob("step-*"))[-1]
    size = sum(path.stat().st_size for path in whole.iterdir())
    place = course.folder / f"{name}-disk"
    place.mkdir(exist_ok=True)
    # Two checkpoints fit and the third, written while both are kept, does not.
    _run("mount", "-t", "tmpfs", "-o", f"size={int(2.6 * size)}", "drill", str(place))
    try:
        flags = ("--checkpoint.location", str(place))
        with running(course.start(name, *flags)) as attempt:
            attempt.wait_for("No space left on device")
            attempt.finish(status=1)
        _run("mount", "-o", f"remount,size={100 * size}", str(place))
        with running(course.start(name, *flags)) as attempt:
            attempt.finish_resumed()
        # The comparison reads the checkpoints after the file system is gone.
        link = course.folder / name / "checkpoints"
        kept = link.resolve()
        link.unlink()
        shutil.copytree(kept, link)
    finally:
        _run("umount", str(place))
        place.rmdir()


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DrillError(f"`{' '.join(words[:4])}` failed ({done.stderr.strip()}); run the drill as root")
