"""Signals while Ray starts, and during the preflight: the status says which signal, and no process is left."""

import signal
from pathlib import Path

import psutil
import pytest

from tests.system.commands import Command, train

pytestmark = pytest.mark.slow


# An answer from nowhere is quicker than the creation of a database.
NO_TRACKING = ("--tracking.uri", "http://127.0.0.1:9")


def _signalled(command: Command, number: signal.Signals) -> str:
    """Send a signal; returns the last line of a command that ended in order and left no process of Ray."""
    started = command.descendants()
    command.process.send_signal(number)
    command.finish(status=128 + number)
    _, left = psutil.wait_procs(started, timeout=60)
    assert left == []
    return command.lines[-1]


def test_ctrl_c_at_the_line_that_says_that_ray_starts_ends_with_130(shards: Path, runs: Path) -> None:
    command = train(shards, runs, "interrupted-early", *NO_TRACKING, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    command.wait_for("on Ray, started on this machine")
    assert _signalled(command, signal.SIGINT).startswith("aweigh: stopped with Ctrl-C")


def test_sigterm_while_the_processes_of_ray_start_ends_with_143(shards: Path, runs: Path) -> None:
    command = train(shards, runs, "ended-early", *NO_TRACKING, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    command.wait_for_process("gcs_server")
    assert _signalled(command, signal.SIGTERM).startswith(
        "aweigh: stopped with SIGTERM before a checkpoint was written"
    )


def test_sigterm_during_the_preflight_ends_with_143(tmp_path: Path) -> None:
    command = Command("preflight", "demo", "--data.train", "", "--data.validation", "", "--run.folder", tmp_path)
    command.wait_for_process("raylet")
    assert _signalled(command, signal.SIGTERM) == "aweigh: stopped with SIGTERM.\n"
