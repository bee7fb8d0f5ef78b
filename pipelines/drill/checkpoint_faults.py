"""Checkpoints that are cut off, harmed, or find no room."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from pipelines.drill.faults import fault
from pipelines.drill.runs import Course, DrillError, running
from pipelines.stand_ins.s3_proxy import faulty_store

_BUCKET = "drill"


@fault("kill-in-checkpoint-write", "kill -9 of rank 0 between the first and the last byte of a checkpoint")
def kill_in_write(course: Course, name: str) -> None:
    """The half-written one is an orphan; the one before is taken."""
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
        time.sleep(0.0005)
    raise DrillError("no checkpoint was written within 300 s")


@fault("kill-in-checkpoint-upload", "kill -9 during an upload to S3, and the machine's own copies lost with it")
def kill_in_upload(course: Course, name: str) -> None:
    """What has no seal in the bucket is not taken; the one before comes back from there."""
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
        kept = course.folder / name / "checkpoints"
        shutil.rmtree(kept)
        with running(course.start(name, *flags, **store.environment)) as attempt:
            attempt.finish_resumed()


@fault("checkpoint-truncated", "the newest checkpoint lost its last bytes while nothing ran")
def truncated(course: Course, name: str) -> None:
    """It is passed over with a warning, and the one before is taken."""
    with running(course.start(name)) as attempt:
        attempt.wait_for_step(course.steps // 2 + 1)
        attempt.kill_driver()
    newest = sorted((course.folder / name / "checkpoints").glob("step-*"))[-1] / "optimizer.safetensors"
    os.truncate(newest, newest.stat().st_size - 7)
    with running(course.start(name)) as attempt:
        attempt.wait_for(r"^warning +passed over: .*optimizer\.safetensors")
        attempt.finish_resumed()


@fault(
    "checkpoint-disk-full", "no room for checkpoints: training says so and ends; there is room, the same command again"
)
def disk_full(course: Course, name: str) -> None:
    """A file system of its own, of one and a half checkpoints; needs the right to mount one."""
    whole = sorted((course.folder / "whole" / "checkpoints").glob("step-*"))[-1]
    size = sum(path.stat().st_size for path in whole.iterdir())
    place = course.folder / f"{name}-disk"
    place.mkdir(exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={int(2.6 * size)}", "drill", str(place))
    try:
        flags = ("--checkpoint.location", str(place))
        with running(course.start(name, *flags)) as attempt:
            attempt.wait_for("No space left on device")
            attempt.finish(status=1)
        _run("mount", "-o", f"remount,size={100 * size}", str(place))
        with running(course.start(name, *flags)) as attempt:
            attempt.finish_resumed()
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
        raise DrillError(f"{' '.join(words[:4])} is not possible here ({done.stderr.strip()}); run it as root")
