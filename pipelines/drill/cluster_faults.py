"""Nodes that are lost, warned or replaced, and a job that loses its supervisor: on several raylets of this machine."""

import re
from contextlib import AbstractContextManager

from cluster.fake_cluster import FakeCluster, fake_cluster
from pipelines.drill.fault import fault
from pipelines.drill.runs import PATIENCE, Attempt, Course, DrillError, running

# An elastic group continues with fewer workers once this has passed, instead of waiting for the lost node.
_ELASTIC = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60"}


@fault("raylet-kill", "kill -9 of a node's raylet with its worker, and another node in its place")
def raylet_kill(course: Course, name: str) -> None:
    """Run on two nodes of one worker each; Ray waits for the replacement."""
    with _nodes(course) as cluster, running(course.start(name, **cluster.environment)) as attempt:
        attempt.wait_for_step(course.steps // 2 + 1)
        cluster.kill_node(1)
        cluster.add_node()
        attempt.finish_resumed()


@fault("preemption", "notice that a node will be taken away; it is killed later, and another one replaces it")
def preemption(course: Course, name: str) -> None:
    """Save on all ranks at one step, train on until the node is gone, then resume on the replacement."""
    with _nodes(course) as cluster, running(course.start(name, **cluster.environment)) as attempt:
        attempt.wait_for_step(max(1, course.steps // 8))
        cluster.drain_node(1, seconds=120)
        step = _step_of(attempt, r"^preempted at step ([\d,]+)")
        cluster.add_node()
        attempt.wait_for_step(step + 1)
        cluster.kill_node(1)
        resumed = _step_of(attempt, r"^resumed .* at step ([\d,]+)")
        attempt.finish()
    if not (attempt.folder / "checkpoints" / f"step-{step:08d}").exists():
        raise DrillError(f"the notice at step {step} was followed by no checkpoint of that step")
    if resumed < step:
        raise DrillError(
            f"training resumed at step {resumed}, before the checkpoint that the notice led to at step {step}"
        )


@fault("supervisor-kill", "kill -9 of a submitted job's supervisor on the head; the run is submitted again")
def supervisor_kill(course: Course, name: str) -> None:
    """Lose the job, which Ray ends with its supervisor; the next job of the run resumes."""
    with fake_cluster(1, 2, {**PATIENCE, **course.environment}, dashboard=True) as cluster:
        with running(course.submit(name, cluster)) as attempt:
            attempt.wait_for_step(course.steps // 2 + 1)
            cluster.kill_process("JobSupervisor")
            attempt.finish(status=1)
        with running(course.submit(name, cluster)) as attempt:
            attempt.finish_resumed()


@fault("two-nodes", "submitted to two nodes, one of which is killed; training continues on the other", rounding=True)
def two_nodes(course: Course, name: str) -> None:
    """Follow an elastic run of 1 to 2 workers from `aweigh submit` to its AP in MLflow."""
    environment = {**PATIENCE, **_ELASTIC, **course.environment}
    with (
        fake_cluster(2, 1, environment, dashboard=True) as cluster,
        running(course.submit(name, cluster, "--cluster.workers", "1:2", **_ELASTIC)) as attempt,
    ):
        attempt.wait_for("^start .* 2 workers")
        attempt.wait_for_step(course.steps // 2 + 1)
        cluster.kill_node(1)
        attempt.wait_for("^resumed .* 1 worker")
        attempt.finish()


def _nodes(course: Course) -> AbstractContextManager[FakeCluster]:
    """Start two nodes of one CPU each, and a head for the driver."""
    return fake_cluster(2, 1, {**PATIENCE, **course.environment})


def _step_of(attempt: Attempt, pattern: str) -> int:
    found = re.search(pattern, attempt.wait_for(pattern))
    assert found
    return int(found[1].replace(",", ""))
