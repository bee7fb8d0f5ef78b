"""Nodes that are lost, warned or replaced, and a job that loses its supervisor: on raylets of our own, here."""

import re
from contextlib import AbstractContextManager

from cluster.fake_cluster import Rehearsal, rehearsal
from pipelines.drill.faults import fault
from pipelines.drill.runs import PATIENCE, Attempt, Course, DrillError, running

# An elastic group does not wait for a node that is gone.
_ELASTIC = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60"}


@fault("raylet-kill", "kill -9 of a node's raylet with its worker, and another node in its place")
def raylet_kill(course: Course, name: str) -> None:
    """Two nodes of one worker each; Ray waits for the new one."""
    with _nodes(course) as cluster, running(course.start(name, **cluster.environment)) as attempt:
        attempt.wait_for_step(course.steps // 2 + 1)
        cluster.kill_node(1)
        cluster.add_node()
        attempt.finish_resumed()


@fault("preemption", "notice that a node goes away; it is killed later, and another one is in its place")
def preemption(course: Course, name: str) -> None:
    """All ranks save at one step and train on until the node is gone; the rest is trained on the other one."""
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
        raise DrillError(f"no checkpoint of step {step} was written at the notice")
    if resumed < step:
        raise DrillError(f"training went on from step {resumed}, before the checkpoint of the notice at step {step}")


@fault("supervisor-kill", "kill -9 of the supervisor of a submitted job on the head; it is submitted again")
def supervisor_kill(course: Course, name: str) -> None:
    """Ray ends the job with its supervisor; the next job of the run resumes."""
    with rehearsal(1, 2, {**PATIENCE, **course.environment}, dashboard=True) as cluster:
        with running(course.submit(name, cluster)) as attempt:
            attempt.wait_for_step(course.steps // 2 + 1)
            cluster.kill_process("JobSupervisor")
            attempt.finish(status=1)
        with running(course.submit(name, cluster)) as attempt:
            attempt.finish_resumed()


@fault("two-nodes", "submitted to two nodes, of which one is killed: on with the other", rounding=True)
def two_nodes(course: Course, name: str) -> None:
    """An elastic run of one or two workers, from `aweigh submit` to its AP in MLflow."""
    environment = {**PATIENCE, **_ELASTIC, **course.environment}
    with (
        rehearsal(2, 1, environment, dashboard=True) as cluster,
        running(course.submit(name, cluster, "--cluster.workers", "1:2", **_ELASTIC)) as attempt,
    ):
        attempt.wait_for("^start .* 2 workers")
        attempt.wait_for_step(course.steps // 2 + 1)
        cluster.kill_node(1)
        attempt.wait_for("^resumed .* 1 worker")
        attempt.finish()


def _nodes(course: Course) -> AbstractContextManager[Rehearsal]:
    """Two nodes of one CPU each, beside a head for the driver."""
    return rehearsal(2, 1, {**PATIENCE, **course.environment})


def _step_of(attempt: Attempt, pattern: str) -> int:
    found = re.search(pattern, attempt.wait_for(pattern))
    assert found
    return int(found[1].replace(",", ""))
