"""The rank that blocks the others is named from the progress records, with the stacks of those that wait."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cluster.heartbeat import Heartbeat, Standing, describe_standstill, read_standing, waits_for_work

STANDING = Standing(0, "node-a", 11, 7, "backward", 46, since=100.0, written=130.0)


def test_the_rank_that_has_begun_the_fewest_phases_is_named() -> None:
    behind = replace(STANDING, rank=1, node="node-b", process=12, phase="data", phases_begun=43, since=95.0)
    line = describe_standstill([STANDING, behind], 30.0, 131.0)
    assert "worker 1 on node-b (process 12) has been in data after step 7 for 36 s" in line
    assert "worker 0" not in line


def test_a_rank_with_an_old_file_is_called_frozen() -> None:
    frozen = replace(STANDING, rank=1, written=101.0)  # in the phase in which the other waits for it
    line = describe_standstill([STANDING, frozen], 30.0, 131.0)
    assert "worker 1 on node-a" in line
    assert "and its process is frozen or gone" in line
    assert "worker 0" not in line


def test_a_standstill_of_all_names_the_phase() -> None:
    line = describe_standstill([STANDING, replace(STANDING, rank=1)], 30.0, 131.0)
    assert "all 2 workers have been in backward after step 7 for 30 s" in line


def test_a_hung_worker_writes_its_stacks_and_ends_and_the_next_attempt_knows_where_it_stood(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    ended = threading.Event()
    heartbeat = Heartbeat(tmp_path, 0, 1, hang_seconds=0.05, end=ended.set)
    assert heartbeat.previous is None
    heartbeat.begin("data", step=3)
    assert ended.wait(60)
    heartbeat.close()
    stacks = (tmp_path / "logs" / "rank-0.log").read_text()
    assert "test_a_hung_worker_writes_its_stacks" in stacks
    standing = read_standing(tmp_path, 0)
    assert standing is not None
    assert (standing.step, standing.phase) == (3, "data")
    again = Heartbeat(tmp_path, 0, 1, hang_seconds=0)
    again.close()
    assert again.previous is not None
    assert again.previous.step == 3


def test_ranks_keep_waiting_for_one_that_makes_progress() -> None:
    waiting = replace(STANDING, rank=1, phases_begun=47)
    uploading = replace(STANDING, phase="checkpoint", since=395.0, written=399.0)
    assert waits_for_work(1, [uploading, waiting], 300.0, 401.0)
    assert not waits_for_work(0, [uploading, waiting], 300.0, 401.0)  # nobody is behind the last one
    assert not waits_for_work(1, [uploading, waiting], 300.0, 700.0)  # no progress for 305 s
    frozen = replace(uploading, since=395.0, written=100.0)
    assert not waits_for_work(1, [frozen, waiting], 300.0, 401.0)
    assert not waits_for_work(0, [STANDING], 10.0, 131.0)


def test_a_gpu_that_has_finished_less_than_the_others_is_named() -> None:
    others = [replace(STANDING, rank=rank, device_phases=44) for rank in (0, 2)]
    line = describe_standstill([*others, replace(STANDING, rank=1, node="node-b", device_phases=42)], 30.0, 131.0)
    assert "the GPU of worker 1 on node-b (process 11) is 2 phases behind the others' after step 7" in line
    assert "worker 0" not in line


def test_what_the_gpu_has_finished_is_recorded(tmp_path: Path) -> None:
    queued: list[threading.Event] = []

    def mark() -> Callable[[], bool]:
        queued.append(threading.Event())
        return queued[-1].is_set

    heartbeat = Heartbeat(tmp_path, 0, 1, hang_seconds=0, mark=mark)
    for phase in ("forward", "backward", "optimizer"):
        heartbeat.begin(phase, step=1)
    for event in queued[:2]:
        event.set()
    while (standing := read_standing(tmp_path, 0)) is None or standing.device_phases < 2:
        threading.Event().wait(0.01)
    heartbeat.close()
    standing = read_standing(tmp_path, 0)
    assert standing is not None
    assert (standing.phases_begun, standing.device_phases) == (3, 2)


def test_a_long_computation_is_progress(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    ended = threading.Event()
    heartbeat = Heartbeat(tmp_path, 0, 1, hang_seconds=0.2, end=ended.set)
    with heartbeat.computing():
        assert not ended.wait(1)  # five times as long as a hang
    assert ended.wait(60)  # and no longer
    heartbeat.close()
