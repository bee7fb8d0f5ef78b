"""Run `aweigh` as a user does, in a separate process, and kill or interrupt its processes."""

import json
import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

# The demo's network and path at a size that trains in seconds; long enough to be killed half-way.
TINY = shlex.split(
    "--detector.settings.width 8 --detector.settings.deconv_channels 16 16 16 --detector.settings.head_channels 16 "
    "--data.input_size 96 96 --batch.global_size 8 --schedule.epochs 8 --schedule.drops_at 6 "
    "--checkpoint.every_epochs 1 --checkpoint.every_steps 4 --checkpoint.keep 3 --evaluation.every_epochs 4 "
    "--tracking.every_steps 1 --tracking.system_seconds 0 --tracking.log_model false --evaluation.pictures 4"
)


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


class Command:
    """A running `aweigh` command, with its stderr read line by line."""

    def __init__(self, *arguments: object, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", **(environment or {})},
        )
        self.lines: list[str] = []

    def wait_for(self, text: str) -> str:
        """Read until a line holds `text`."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"{text!r} was never printed:\n" + "".join(self.lines))

    def wait_for_process(self, name: str) -> None:
        """Wait until a process of this name runs below the command."""
        while name not in {_name(process) for process in self.descendants()}:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.02)
                raise AssertionError(f"the command ended before a {name} ran")

    def finish(self, status: int = 0) -> str:
        """Read to the end and return stdout; assert the exit status."""
        out, rest = self.process.communicate(timeout=900)
        self.lines += rest.splitlines(keepends=True)
        assert self.process.returncode == status, "".join(self.lines)
        return out

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill_worker(self) -> None:
        """End one training worker with SIGKILL."""
        for process in self.descendants():
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
                return
        raise AssertionError("no worker was found")

    def kill_driver(self) -> None:
        """End the command itself with SIGKILL, and wait until the processes it started have ended too."""
        started = self.descendants()
        agents = [process for process in started if "Agent" in " ".join(process.cmdline())]
        self.process.kill()
        self.process.communicate()
        # Workers, raylet and the rest end within seconds of their driver; two of Ray's agents would take a minute.
        for process in agents:
            process.kill()
        _, left = psutil.wait_procs(started, timeout=60)
        assert left == [], "a killed driver leaves nothing running"

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self.process.send_signal(signal.SIGINT)


def train(shards: Path | str, runs: Path, name: str, *flags: object, **environment: str) -> Command:
    """Start `aweigh train demo` on shards with splits train and val."""
    return Command(
        *("train", "demo", "--data.train", f"{shards}/train", "--data.validation", f"{shards}/val"),
        *("--run.folder", runs, "--run.name", name, *TINY, *flags),
        environment=environment,
    )


def final_weights(runs: Path, name: str) -> dict[str, Any]:
    """Tensors of a run's newest checkpoint."""
    from safetensors.torch import load_file

    newest = sorted((runs / name / "checkpoints").glob("step-*"))[-1]
    return {
        f"{part}/{key}": value
        for part in ("weights", "optimizer", "per_rank")
        for key, value in load_file(newest / f"{part}.safetensors").items()
    }


def logged(runs: Path, name: str) -> dict[str, list[tuple[int, float]]]:
    """Metrics of the one MLflow run of that name: (step, value) pairs in the order they were logged."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    record = json.loads((runs / name / "tracking" / "run.json").read_text())
    found = client.search_runs([record["experiment_id"]], filter_string=f"attributes.run_name = '{name}'")
    assert len(found) == 1, "one run over all attempts"
    run_id = found[0].info.run_id
    return {
        key: [(point.step, point.value) for point in client.get_metric_history(run_id, key)]
        for key in found[0].data.metrics
    }
