"""Findings of the preflight for answers that this machine cannot give; the system tests run it on real nodes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster import node_checks, preflight
from cluster.node_checks import Device
from cluster.preflight import Cache, Finding, Probe, SharedFolder, _Posts
from cluster.settings import ClusterSettings


@dataclass(frozen=True)
class Answers(_Posts):
    """Posts on two nodes with prepared answers: by function, one answer for each rank."""

    answers: dict[Callable[..., Any], list[Any]]

    def ask(
        self, ranks: Sequence[int], function: Callable[..., Any], *arguments: Any, pass_rank: bool = False
    ) -> dict[int, Any]:
        return {rank: self.answers[function][rank] for rank in ranks}


def _posts(nodes: str = "aabb", **answers: list[Any]) -> Answers:
    told = {getattr(node_checks, name): values for name, values in answers.items()}
    return Answers(None, [None] * len(nodes), list(nodes), told)


def _devices(*found: Device, gpu: bool = True) -> Finding:
    return preflight._devices(_posts("ab", device=list(found)), gpu=gpu)


A100 = Device("NVIDIA A100", "570.1", "13.0", 8, "")


def test_another_version_on_one_node_is_named_with_the_fix() -> None:
    here = node_checks.versions()
    other = {**here, "torch": "2.11.0", "aweigh": "0123456789ab"}
    rows = {row.check: row for row in preflight._versions(_posts(versions=[here, here, other, other]))}
    assert rows["ray"] == Finding("ray", "ok", here["ray"])
    assert rows["torch"].verdict == "wrong"
    assert rows["torch"].found == f"{here['torch']} here; b has 2.11.0"
    assert "install requirements.txt" in rows["torch"].fix
    assert rows["aweigh"].verdict == "wrong"
    assert "aweigh submit" in rows["aweigh"].fix


def test_a_gpu_that_torch_cannot_use_is_wrong_and_named() -> None:
    broken = Device("", "470.1", "13.0", 8, "torch for CUDA 13.0 finds no GPU (driver 470.1, 8 GPUs)")
    row = _devices(A100, broken)
    assert row.verdict == "wrong"
    assert row.found == "rank 1 on b: torch for CUDA 13.0 finds no GPU (driver 470.1, 8 GPUs)"


@pytest.mark.parametrize(("second", "verdict"), [(A100, "ok"), (Device("NVIDIA H100", "570.1", "13.0", 8, ""), "warn")])
def test_gpus_of_two_kinds_are_a_warning(second: Device, verdict: str) -> None:
    row = _devices(A100, second)
    assert row.verdict == verdict
    assert "driver 570.1, CUDA 13.0 of torch" in row.found


@pytest.mark.parametrize(("in_ray", "fix"), [(1, "set cluster.workers to 1"), (0, "start Ray on that node")])
def test_gpus_that_stay_unused_are_a_warning_with_the_way_to_use_them(in_ray: int, fix: str) -> None:
    posts = _posts("ab", device=[A100, Device("", "", "", 0, "torch is built for CPU")])
    posts = replace(posts, ray=SimpleNamespace(cluster_resources=lambda: {"CPU": 4.0, "GPU": float(in_ray)}))
    row = preflight._devices(posts, gpu=False)
    assert (row.verdict, row.found) == ("warn", "not used: 8 GPUs of a; workers compute on CPU")
    assert row.fix.startswith(fix)
    assert not row.stops_training


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch may be able to use a GPU here")
@pytest.mark.parametrize(
    ("visible", "device", "workers", "verdict", "word"),
    [
        ("0,1", "auto", 2, "wrong", "is built for CPU"),
        ("0,1", "auto", 3, "warn", "not used: 2 GPUs of this machine"),
        ("0,1", "cuda", 2, "wrong", "is built for CPU"),
        ("0,1", "cpu", 2, None, ""),
        ("", "auto", 2, None, ""),
    ],
)
def test_the_gpus_of_one_machine_are_checked_before_workers_start(
    visible: str, device: Any, workers: int, verdict: str | None, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    # The driver's answer is all that is made up: torch is asked in a process of its own.
    monkeypatch.setattr(node_checks, "_driver", lambda: ("570.1", 8))
    found = preflight.examine_gpus_here(ClusterSettings(device=device, workers=workers))
    assert [one.verdict for one in found] == ([verdict] if verdict else [])
    assert all(word in one.found and one.fix for one in found)


def test_an_old_driver_is_told_which_one_torch_needs() -> None:
    assert "580 or later" in node_checks._driver_for("13.0")
    assert "525 or later" in node_checks._driver_for("12.9")


def test_a_training_on_gpus_tries_both_libraries_that_it_reduces_with(tmp_path: Path) -> None:
    posts = _posts(
        versions=[node_checks.versions()] * 4,
        device=[A100] * 4,
        free_address=["tcp://a:1"] * 4,
        all_reduce=[4e9] * 4,
        free_bytes=[8 * 2**30] * 4,
    )
    posts.answers[time.time] = [time.time()] * 4
    checks = [one.check for one in preflight._findings(posts, [], [], None, gpu=True)]
    assert [check for check in checks if "all-reduce" in check] == ["nccl all-reduce", "gloo all-reduce"]


def test_the_slowest_rank_is_the_bandwidth_and_a_lost_rank_is_named() -> None:
    good = _posts(free_address=["tcp://a:1"] * 4, all_reduce=[4e9, 3e9, 2e9, 4e9])
    assert "4 ranks, correct sum, 2.00 GB/s" in preflight._all_reduce(good, "nccl").found
    lost = _posts(free_address=["tcp://a:1"] * 4, all_reduce=[4e9, TimeoutError("no answer within 180 s"), 4e9, 4e9])
    row = preflight._all_reduce(lost, "nccl")
    assert (row.verdict, row.found) == ("wrong", "rank 1 on a: no answer within 180 s")
    assert "NCCL_SOCKET_IFNAME" in row.fix


def test_a_container_of_64_mib_is_too_small_for_nccl() -> None:
    row = preflight._shared_memory(_posts(free_bytes=[8 * 2**30, 0, 64 * 2**20, 0]), gpu=True)
    assert row.verdict == "wrong"
    assert "0.1 GiB free in /dev/shm of b, 0.5 GiB needed" in row.found


@pytest.mark.parametrize(("free", "verdict"), [(200, "ok"), (99, "warn"), (9, "wrong")])
def test_a_small_cache_is_slow_and_a_tiny_one_wrong(free: int, verdict: str) -> None:
    posts = _posts(writable_free_bytes=[2**40, 0, free * 2**30, 0])
    row = preflight._cache(posts, Cache("/cache", whole_bytes=100 * 2**30, least_bytes=10 * 2**30))
    assert row.verdict == verdict
    assert "of b; a node reads 100.0 GiB" in row.found


def test_a_clock_that_is_off_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    posts = Answers(None, [None, None], ["a", "b"], {time.time: [time.time(), time.time() + 100]})
    row = preflight._clocks(posts)
    assert row.verdict == "wrong"
    assert "(b)" in row.found


def test_a_probe_has_to_find_the_same_everywhere() -> None:
    def manifest() -> str:
        return ""

    probe = Probe("data.train", manifest, fix="put it on S3")
    same = Answers(None, [None, None], ["a", "b"], {manifest: ["m", "m"]})
    assert preflight._probed(same, probe) == Finding("data.train", "ok", "m")
    other = Answers(None, [None, None], ["a", "b"], {manifest: ["m", "n"]})
    assert preflight._probed(other, probe) == Finding(
        "data.train", "wrong", "differs between nodes: a: m; b: n", "put it on S3"
    )
    gone = Answers(None, [None, None], ["a", "b"], {manifest: ["m", OSError("no folder /data")]})
    assert preflight._probed(gone, probe).found == "b: no folder /data"


def test_uneven_nodes_are_a_warning() -> None:
    assert preflight._workers(_posts("aabb")).verdict == "ok"
    assert preflight._workers(_posts("aaab")).verdict == "warn"


class Here(_Posts):
    """Posts that are all this process."""

    def ask(
        self, ranks: Sequence[int], function: Callable[..., Any], *arguments: Any, pass_rank: bool = False
    ) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for rank in ranks:
            try:
                found[rank] = function(*arguments)
            except OSError as error:
                found[rank] = error
        return found


def test_every_folder_that_training_writes_to_is_checked_and_left_as_it_was(tmp_path: Path) -> None:
    posts = Here(None, [None, None], ["a", "b"])
    good = preflight._shared_folder(posts, SharedFolder("checkpoints", tmp_path / "good", "checkpoint.location"))
    assert (good.check, good.verdict) == ("checkpoints", "ok")
    assert not (tmp_path / "good").exists()
    (tmp_path / "file").write_text("")
    bad = preflight._shared_folder(posts, SharedFolder("checkpoints", tmp_path / "file", "checkpoint.location"))
    assert bad.verdict == "wrong"
    assert "set checkpoint.location to a folder of a file system that every node mounts" in bad.fix
