"""Parts of a job on actors: each once, even if workers, nodes or the driver are lost."""

import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ClusterError, WorkersFailedError
from cluster.fake_cluster import fake_cluster
from cluster.parts import CLUSTER, Node, _failure, _Ledger, _portable, check_placement, local_share, places, run_parts

NODES = st.lists(st.builds(Node, st.integers(0, 70), st.integers(0, 8)), max_size=6)


def start_job(folder: Path, workers: int, kinds: list[str], environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.parts_job", str(folder), str(workers), *kinds],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_a_lost_node_and_a_deadly_part_leave_every_other_part_done_once(tmp_path: Path) -> None:
    kinds = ["done"] * 14
    kinds[3], kinds[6] = "once", "deadly"
    with fake_cluster(2, 1, {}) as cluster:
        job = start_job(tmp_path, 2, kinds, cluster.environment)
        assert job.stdout is not None
        assert job.stderr is not None
        finished = []
        for line in job.stdout:
            finished.append(json.loads(line)[0])
            if len(finished) == 4:
                cluster.kill_node(0)  # its parts have to run on the other node
        errors = job.stderr.read()
        assert job.wait(60) == 1
    assert sorted(finished) == sorted(f"part-{number}" for number in range(14) if number != 6)
    assert {path.stem for path in tmp_path.glob("*.done")} == set(finished)
    assert len(list(tmp_path.glob("part-6.begun.*"))) == 3
    lines = errors.strip().splitlines()
    assert lines[0] == "workers: 2 on the cluster, each with 1 CPU"
    assert "workers: part-3 done again, because the worker was lost" in lines
    assert lines[-1].startswith(
        "1 part could not be finished, each after 3 attempts: part-6. The last cause: its worker on"
    )
    # Ray's own words about the lost workers would hide ours.
    assert [line for line in lines if not line.startswith(("workers: ", "warning: ", "1 part"))] == []


@pytest.mark.slow
def test_a_killed_driver_continues_where_it_was_and_an_error_ends_the_job(tmp_path: Path) -> None:
    without_cluster = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    job = start_job(tmp_path, 2, ["done"] * 400, without_cluster)
    assert job.stdout is not None
    first = json.loads(job.stdout.readline())[0]
    job.kill()
    job.wait(60)
    job.stdout.close()
    assert job.stderr is not None
    job.stderr.close()
    kept = {path.stem for path in tmp_path.glob("*.done")}
    assert first in kept
    assert len(kept) < 400
    again = start_job(tmp_path, 2, ["done"] * 400 + ["wrong"], without_cluster)
    out, errors = again.communicate(timeout=300)
    assert again.returncode == 1
    assert not {json.loads(line)[0] for line in out.splitlines()} & kept
    assert "LookupError: part-400 is wrong" in errors
    assert "In the worker on" in errors


def test_a_job_without_parts_needs_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert list(run_parts(lambda shared, device: lambda work: None, [], workers=2)) == []


@given(nodes=NODES, workers=st.integers(1, 40), gpu=st.booleans(), where=st.sampled_from([CLUSTER, "this machine"]))
def test_workers_take_as_many_cpus_as_fit(nodes: list[Node], workers: int, gpu: bool, where: str) -> None:
    try:
        cpus = check_placement(nodes, workers, gpu=gpu, where=where)
    except ClusterError:
        assert places(nodes, 1, gpu=gpu) < workers
        return
    assert places(nodes, cpus, gpu=gpu) >= workers
    most = 4 if gpu else 8
    assert cpus == most or places(nodes, cpus + 1, gpu=gpu) < workers


def test_workers_do_not_span_nodes() -> None:
    nodes = [Node(7, 2), Node(3, 1)]
    assert places(nodes, 2, gpu=False) == 4  # 3 + 1
    assert places(nodes, 2, gpu=True) == 3  # 2 + 1
    assert check_placement(nodes, 4, gpu=False, where=CLUSTER) == 2


def test_the_refusal_says_what_the_cluster_has() -> None:
    nodes = [Node(8, 1), Node(8, 2)]
    with pytest.raises(ClusterError) as refused:
        check_placement(nodes, 4, gpu=True, where=CLUSTER)
    assert str(refused.value) == (
        "4 workers need 1 GPU and 1 CPU each, but the cluster has 2 nodes with 16 CPUs and 3 GPUs: set --workers 3, "
        "start more nodes, or compute on CPUs with --cluster.device cpu."
    )
    with pytest.raises(ClusterError) as refused:
        check_placement([Node(2)], 1, gpu=True, where="this machine")
    assert str(refused.value) == (
        "1 worker needs 1 GPU and 1 CPU, but this machine has 2 CPUs and 0 GPUs: compute on CPUs with "
        "--cluster.device cpu."
    )


@given(st.integers(1, 300), st.integers(1, 300))
def test_workers_of_one_machine_share_its_cores(workers: int, cores: int) -> None:
    share = local_share(workers, cores)
    assert 1 <= share <= 8
    assert share == 1 or share * workers <= cores


def test_the_ledger_knows_the_last_worker_of_a_part() -> None:
    ledger = _Ledger()
    assert ledger.begin(7, "alpha, pid 1") == (1, "")
    assert ledger.begin(7, "beta, pid 2") == (2, "its worker on alpha, pid 1 was killed")
    ledger.note(7, "CUDA error: an illegal memory access was encountered (on beta)")
    assert ledger.begin(7, "beta, pid 3") == (3, "CUDA error: an illegal memory access was encountered (on beta)")
    assert ledger.begin(8, "beta, pid 3") == (1, "")


class _AwkwardError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class _LockedError(Exception):
    def __init__(self) -> None:
        super().__init__("no key\nthe door is locked")
        self.lock = threading.Lock()


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ClusterError("no such folder"), ClusterError, "no such folder"),
        (_AwkwardError(1, 2), WorkersFailedError, "a worker failed: 1 and 2"),
        (_LockedError(), WorkersFailedError, "a worker failed: the door is locked"),
    ],
)
def test_every_exception_reaches_the_driver(error: Exception, kind: type[Exception], text: str) -> None:
    copy: Any = pickle.loads(pickle.dumps(_portable(raised(error))))
    assert type(copy) is kind
    assert str(copy) == text
    assert f"raise error\n{type(error).__module__}.{type(error).__name__}" in copy.__notes__[0]


def test_the_end_names_the_parts_that_failed() -> None:
    message = _failure([f"images {number}" for number in range(7)], "its worker on alpha, pid 1 was killed")
    assert message.startswith(
        "7 parts could not be finished, each after 3 attempts: images 0, images 1, images 2, images 3, images 4 and 2 "
        "more. The last cause: its worker on alpha, pid 1 was killed."
    )
