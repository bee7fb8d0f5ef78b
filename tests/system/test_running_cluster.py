"""Training on a Ray cluster of two nodes that is already running: joined at RAY_ADDRESS, or through its job server.

One cluster serves all tests here, protected by a token as Ray 2.60 protects every cluster.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.fake_cluster import free_port
from tests.system.commands import TINY, Command, train
from tests.system.ray_head import SCRIPTS, Head, private_folders_work, ray_head, ray_node

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose content differs on the second node."""
    return tmp_path_factory.mktemp("private")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, private: Path) -> Iterator[Head]:
    """Two nodes of one core each, so that two workers always use both."""
    with (
        ray_head(tmp_path_factory.mktemp("r"), cpus=1) as head,
        ray_node(head, cpus=1, private=private if private_folders_work() else None),
    ):
        yield head


def _recipe(shards: Path, runs: Path, name: str) -> list[str]:
    return [
        *("--data.train", f"{shards}/train", "--data.validation", f"{shards}/val"),
        *("--run.folder", str(runs), "--run.name", name, *TINY),
    ]


def _submit(head: Head, *words: str) -> Command:
    return Command("submit", "demo", "--address", head.dashboard, *words, environment=head.environment)


def _output_until(command: Command, text: str) -> None:
    assert command.process.stdout is not None
    said = []
    for line in command.process.stdout:
        said.append(line)
        if text in line:
            return
    raise AssertionError(f"{text!r} was never printed:\n" + "".join(said))


def test_a_run_joins_the_cluster_at_ray_address(shards: Path, tmp_path: Path, cluster: Head) -> None:
    command = train(shards, tmp_path, "joined", RAY_ADDRESS=cluster.address, **cluster.environment)
    assert f"2 workers on Ray, {cluster.address}" in command.wait_for("cluster   ")
    assert "AP50" in command.finish()
    assert (tmp_path / "joined" / "result.json").exists()


def test_a_cluster_that_is_not_there_is_one_line(shards: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    command = train(shards, tmp_path, "nowhere", RAY_ADDRESS=address)
    command.finish(status=2)
    assert f"aweigh: the Ray cluster at RAY_ADDRESS={address} did not answer" in command.lines[-1]


def test_a_submitted_run_is_left_refused_stopped_and_resumed(shards: Path, tmp_path: Path, cluster: Head) -> None:
    words = [*_recipe(shards, tmp_path, "left"), "--cluster.preflight", "false"]
    words += ["--schedule.epochs", "2000", "--evaluation.every_epochs", "2000"]  # it never ends by itself
    first = _submit(cluster, *words)
    assert "files" in first.wait_for("package ")
    variables = first.wait_for("variables ")
    assert "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S" in variables
    assert cluster.environment["RAY_AUTH_TOKEN"] not in variables
    assert "left-1 on" in first.wait_for("job ")
    _output_until(first, "step 5/")

    again = _submit(cluster, *words)
    again.finish(status=2)
    assert "aweigh: run left is already being trained as job left-1" in again.lines[-1]

    first.interrupt()
    first.finish(status=130)
    assert any("job left-1 keeps running" in line for line in first.lines)
    assert any(f"aweigh logs left --address {cluster.dashboard}" in line for line in first.lines)

    jobs = Command("jobs", "--json", "--address", cluster.dashboard, environment=cluster.environment)
    (job,) = [one for one in json.loads(jobs.finish()) if one["run"] == "left"]
    assert (job["id"], job["status"]) == ("left-1", "RUNNING")

    Command("stop", "left", "--address", cluster.dashboard, environment=cluster.environment).finish()
    shown = Command("logs", "left", "--no-follow", "--address", cluster.dashboard, environment=cluster.environment)
    assert "step 5/10,000" in shown.finish()

    resumed = _submit(cluster, *words)
    assert "left-2 on" in resumed.wait_for("job ")
    assert f"{cluster.dashboard}/#/jobs/left-2" in resumed.wait_for("look ")
    _output_until(resumed, "resumed   attempt 2 at step")
    Command("stop", "left", "--address", cluster.dashboard, environment=cluster.environment).finish()
    resumed.finish(status=1)
    assert "job left-2 stopped" in resumed.lines[-1]

    ranks = Command("logs", tmp_path / "left", "--rank", "1")
    ranks.finish()
    assert "2 ranks in" in ranks.lines[-1]


def test_plain_ray_job_submit_trains_on_two_nodes_after_checking_them(
    shards: Path, tmp_path: Path, cluster: Head
) -> None:
    path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [
            *("ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", "."),
            *("--", "python", "-m", "pipelines", "train", "demo", *_recipe(shards, tmp_path, "plain")),
        ],
        cwd=ROOT,
        env={**os.environ, **cluster.environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"dashboard {cluster.dashboard}" in done.stdout
    assert "preflight checking 2 workers on 2 nodes" in done.stdout
    assert "preflight gloo all-reduce: 2 ranks, correct sum" in done.stdout
    assert (tmp_path / "plain" / "result.json").exists()
    assert list(tmp_path.glob("plain/.preflight*")) == []


def test_the_exit_status_of_a_job_is_that_of_the_command(tmp_path: Path, cluster: Head) -> None:
    nowhere = tmp_path / "nowhere"
    words = ["--data.train", str(nowhere), "--data.validation", "", "--run.folder", str(tmp_path)]
    command = _submit(cluster, *words, "--run.name", "wrong")
    assert f"{nowhere}" in command.finish(status=2)
    assert "job wrong-1 failed" in command.lines[-1]


def test_preflight_finds_a_run_folder_that_differs_on_the_second_node(
    shards: Path, cluster: Head, private: Path
) -> None:
    if not private_folders_work():
        pytest.skip("a process here may not have a file system of its own")
    command = Command(
        *("preflight", "demo", "--json", *_recipe(shards, private, "apart"), "--tracking.uri", "http://127.0.0.1:9"),
        environment={**cluster.environment, "RAY_ADDRESS": cluster.address},
    )
    printed = json.loads(command.finish(status=1))
    findings = {one["check"]: one for one in printed["findings"]}
    assert printed["ok"] is False
    assert {name for name, one in findings.items() if one["verdict"] == "wrong"} == {"run folder", "MLflow"}
    assert "is not the folder that the driver writes to" in findings["run folder"]["found"]
    assert findings["run folder"]["stops_training"]
    assert not findings["MLflow"]["stops_training"]
    for name in ("python", "torch", "ray", "deepspeed", "numpy", "aweigh", "gloo all-reduce", "clocks", "data.train"):
        assert findings[name]["verdict"] == "ok"
    assert list(private.iterdir()) == []


def test_a_missing_token_is_reported_with_where_to_get_it(tmp_path: Path, cluster: Head) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    asked = subprocess.run(
        [sys.executable, "-m", "pipelines", "jobs", "--address", cluster.dashboard],
        env={**environment, "HOME": str(tmp_path)},  # without a stored token
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 2
    assert (
        f"aweigh: the Ray cluster at {cluster.dashboard} requires a token; `ray get-auth-token` prints it on the head"
        in asked.stderr
    )
