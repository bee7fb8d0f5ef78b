"""Failures of storage and of MLflow during a training."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from cluster.fake_cluster import free_port
from data_shards.storage.open import open_store
from pipelines import tracking
from pipelines.drill.fault import fault
from pipelines.drill.runs import Course, DrillError, running
from pipelines.stand_ins.s3_proxy import FaultyStore, faulty_store

_BUCKET = "drill"


@fault("store-503", "the store answers 503 to every third request and drops every fifth connection")
def store_503(course: Course, name: str) -> None:
    """Retry the requests; training does not notice."""
    with faulty_store(_BUCKET) as store:
        flags = _upload(course, store)

        def refuse(method: str, path: str, number: int) -> str:
            return "503" if number % 3 == 0 else "reset" if number % 5 == 0 else "pass"

        store.rule = refuse  # type: ignore[assignment]
        environment = {**store.environment, "AWEIGH_CACHE": str(course.folder / f"{name}-cache")}
        with running(course.start(name, *flags, **environment)) as attempt:
            attempt.finish()
        if not store.refused:
            raise DrillError("the store refused no request, so nothing was drilled")


@fault("cached-shard-corrupted", "a byte of a cached shard flips between two attempts")
def cached_shard(course: Course, name: str) -> None:
    """Detect the change by its sha256, and fetch the shard again."""
    with faulty_store(_BUCKET) as store:
        flags = _upload(course, store)
        cache = course.folder / f"{name}-cache"
        environment = {**store.environment, "AWEIGH_CACHE": str(cache)}
        with running(course.start(name, *flags, **environment)) as attempt:
            attempt.wait_for_step(course.steps // 2 + 1)
            attempt.kill_driver()
        for shard in cache.rglob("*.tar"):
            content = bytearray(shard.read_bytes())
            content[len(content) // 2] ^= 1
            shard.write_bytes(content)
        with running(course.start(name, *flags, **environment)) as attempt:
            attempt.finish_resumed()
        for shard in cache.rglob("*.tar"):  # each is named by the sha256 it should have
            if hashlib.sha256(shard.read_bytes()).hexdigest() != shard.stem:
                raise DrillError(f"{shard} is still corrupted: training did not read it, or did not verify it")


@fault("mlflow-down", "the MLflow server is killed during training and started again after its end")
def mlflow_down(course: Course, name: str) -> None:
    """Keep the metrics on disk; `aweigh tracking flush` then delivers each once."""
    database = course.folder / f"{name}-server.db"
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    server = _mlflow(database, port)
    try:
        with running(course.start(name, "--tracking.uri", uri)) as attempt:
            attempt.wait_for_step(course.steps // 3)
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            attempt.wait_for("cannot be reached")
            attempt.finish()
        server = _mlflow(database, port)
        flushed = subprocess.run(
            [sys.executable, "-m", "pipelines", "tracking", "flush", str(course.folder / name)],
            capture_output=True,
            text=True,
            check=False,
        )
        if flushed.returncode or "delivered" not in flushed.stdout:
            raise DrillError(f"aweigh tracking flush: {flushed.stderr.strip()}")
        record = tracking.RunRecord.load(course.folder / name / "tracking")
        steps = tracking.logged_steps(uri, record.experiment_id, name, "train/loss")
        if [sorted(found) for found in steps.values()] != [list(range(1, course.steps + 1))]:
            raise DrillError(f"MLflow's steps are not the {course.steps} that were trained: {steps}")
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    # The server is gone, so the comparison reads its database.
    record.uri = f"sqlite:///{database}"
    record.save(course.folder / name / "tracking")


def _mlflow(database: Path, port: int) -> "subprocess.Popen[bytes]":
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{database}"),
            *("--artifacts-destination", str(database.with_suffix(".artifacts"))),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return server
        except OSError:
            time.sleep(0.5)
    raise DrillError("the MLflow server did not start")


def _upload(course: Course, store: FaultyStore) -> tuple[str, ...]:
    """Copy the course's shards into the bucket; returns the flags that train on them."""
    # The store's rule still passes every request; this process reaches it through the same variables as a training.
    before = {key: os.environ.get(key) for key in store.environment}
    os.environ.update(store.environment)
    flags: list[str] = []
    try:
        for split in ("train", "validation"):
            source = course.shards[split]
            if not source:
                continue
            bucket = open_store(f"s3://{_BUCKET}/{split}")
            for name in open_store(source).list_names():
                path = open_store(source).local_path(name)
                assert path is not None
                bucket.upload(path, name)
            flags += [f"--data.{split}", f"s3://{_BUCKET}/{split}"]
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
    return tuple(flags)
