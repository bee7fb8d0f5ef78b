"""Checks of a cluster that find what would make a training fail, before a minute of GPU time is spent.

One small process runs in the place of each worker. Every check reports what it found and, if something is wrong, what
to do. The caller passes checks of data and tracking as functions, for this package knows neither.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster import node_checks
from cluster.counting import counted
from cluster.local import connected
from cluster.placement import node_of_each_worker, reserved, wants_gpu
from cluster.settings import ClusterSettings

Verdict = Literal["ok", "warn", "wrong"]
Say = Callable[[str], None]

_ANSWER_SECONDS = 180
_SKEW_WARN_SECONDS, _SKEW_WRONG_SECONDS = 1.0, 30.0
_SEEN_SECONDS = 20


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    verdict: Verdict
    """ok; warn: training works, but worse than it could; wrong: it would fail, or its results would be lost."""
    found: str
    fix: str = ""
    stops_training: bool = True
    """True if a training must not start while this is wrong."""


@dataclass(frozen=True)
class Probe:
    """A check that the caller provides, to run on one worker of every node or on the first worker only."""

    check: str
    run: Callable[[], str]
    """Importable and picklable; returns what it found, and raises if something is wrong."""
    fix: str
    everywhere: bool = True
    """Run it on every node, and require the same result from all; otherwise run it on the node of rank 0."""
    stops_training: bool = True


@dataclass(frozen=True)
class SharedFolder:
    """A folder that must be the same one on every node and for this process."""

    check: str
    path: Path
    setting: str
    """The setting that names it."""


@dataclass(frozen=True)
class Cache:
    """Disk space that a node needs for the files it fetches."""

    folder: str
    whole_bytes: int
    """Bytes that a node reads in an epoch; with less space, it fetches files again."""
    least_bytes: int
    """Bytes without which it cannot read at all."""


@dataclass(frozen=True)
class Examination:
    """The results of all checks."""

    nodes: int
    """Number of nodes that run workers."""
    findings: list[Finding]


def examine(
    settings: ClusterSettings,
    *,
    folders: Sequence[SharedFolder],
    probes: Sequence[Probe],
    cache: Cache | None,
    say: Say,
    only_several_nodes: bool = False,
) -> Examination:
    """Check the cluster at RAY_ADDRESS, or this machine.

    Args:
        settings: workers, device and cores of the training.
        folders: folders that training writes to, such as the run's.
        probes: checks of data and tracking.
        cache: disk space for fetched shards; None if they are read in place.
        say: receives a line about what is being checked.
        only_several_nodes: if all workers run on one node, check only its GPUs.

    Raises:
        ClusterError: the cluster cannot be reached, or cannot hold the workers.
    """
    with connected(settings) as ray:
        gpu = wants_gpu(ray, settings)
        # `connected` has waited for missing nodes already; all that can take time now is Ray's own scheduling.
        with reserved(ray, settings, _ANSWER_SECONDS, gpu=gpu) as group:
            ids = node_of_each_worker(group)
            nodes = len(set(ids))
            alone = only_several_nodes and nodes == 1
            if alone and settings.device == "cpu":
                return Examination(nodes, [])
            say(f"checking {counted(len(ids), 'worker')} on {counted(nodes, 'node')}")
            with _posts(ray, group, settings, ids, gpu=gpu) as posts:
                if alone:
                    return Examination(nodes, [_devices(posts, gpu=gpu)])
                return Examination(nodes, list(_findings(posts, folders, probes, cache, gpu=gpu)))


def examine_gpus_here(settings: ClusterSettings) -> list[Finding]:
    """Check the GPUs of this machine, for workers that run on it under a Ray of their own.

    Returns nothing if there are none, or if the settings do without.
    """
    gpus = node_checks.visible_gpus()
    if not gpus or settings.device == "cpu":
        return []
    if gpus < settings.min_workers and settings.device == "auto":
        return [_unused_gpus({"this machine": gpus}, gpus)]
    return [_used_gpus({"this machine": node_checks.device_in_another_process()})]


@dataclass(frozen=True)
class _Posts:
    """The processes that run in the place of the workers, by rank."""

    ray: Any
    actors: list[Any]
    nodes: list[str]
    """A readable name of each rank's node."""

    @property
    def first_of_node(self) -> dict[str, int]:
        """Lowest rank of each node, by the node's name."""
        return {node: rank for rank, node in reversed(list(enumerate(self.nodes)))}

    def ask(
        self, ranks: Sequence[int], function: Callable[..., Any], *arguments: Any, pass_rank: bool = False
    ) -> dict[int, Any]:
        """Run a function on some ranks at once; returns each rank's value or exception.

        With `pass_rank`, the rank is the function's first argument.
        """
        pending = {
            self.actors[rank].run.remote(function, *([rank] if pass_rank else []), *arguments): rank for rank in ranks
        }
        self.ray.wait(list(pending), num_returns=len(pending), timeout=_ANSWER_SECONDS)
        return {rank: self._answer(reference) for reference, rank in pending.items()}

    def ask_nodes(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Run a function once on every node; returns each node's value or exception by the node's name."""
        first = self.first_of_node
        answers = self.ask(sorted(first.values()), function, *arguments)
        return {node: answers[rank] for node, rank in sorted(first.items(), key=lambda item: item[1])}

    def _answer(self, reference: Any) -> Any:
        try:
            return self.ray.get(reference, timeout=0.1)
        except self.ray.exceptions.GetTimeoutError:
            return TimeoutError(f"no answer within {_ANSWER_SECONDS} s")
        except Exception as error:
            # Ray wraps an exception of the function; the cause is what the function raised.
            return getattr(error, "cause", None) or error


class _Post:
    """An actor in the place of a worker, which runs functions."""

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


@contextmanager
def _posts(ray: Any, group: Any, settings: ClusterSettings, ids: Sequence[str], *, gpu: bool) -> Iterator[_Posts]:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    def actor(rank: int) -> Any:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        options = {"num_cpus": settings.cpus_per_worker, "num_gpus": 1 if gpu else 0, "scheduling_strategy": strategy}
        return ray.remote(_Post).options(**options).remote()

    actors = [actor(rank) for rank in range(len(ids))]
    try:
        yield _Posts(ray, actors, _names(ray, ids))
    finally:
        for one in actors:
            ray.kill(one)


def _names(ray: Any, ids: Sequence[str]) -> list[str]:
    """Name each rank's node by its host, with a part of Ray's id if several nodes share a host."""
    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    shared = [hosts[id] for id in set(ids)]
    return [hosts[id] if shared.count(hosts[id]) == 1 else f"{hosts[id]}/{id[:6]}" for id in ids]


def _findings(
    posts: _Posts, folders: Sequence[SharedFolder], probes: Sequence[Probe], cache: Cache | None, *, gpu: bool
) -> Iterator[Finding]:
    yield _workers(posts)
    yield from _versions(posts)
    yield _devices(posts, gpu=gpu)
    # Training on GPUs has groups of gloo, too, and each library finds its network in its own way.
    for backend in ("nccl", "gloo") if gpu else ("gloo",):
        yield _all_reduce(posts, backend)
    yield _shared_memory(posts, gpu=gpu)
    yield _clocks(posts)
    for folder in folders:
        yield _shared_folder(posts, folder)
    if cache is not None:
        yield _cache(posts, cache)
    for probe in probes:
        yield _probed(posts, probe)


def _workers(posts: _Posts) -> Finding:
    counts = {node: posts.nodes.count(node) for node in posts.first_of_node}
    shown = ", ".join(f"{node} {count}" for node, count in sorted(counts.items()))
    even = len(set(counts.values())) == 1
    return Finding(
        "workers",
        "ok" if even else "warn",
        f"{len(posts.nodes)} on {counted(len(counts), 'node')}: {shown}",
        "" if even else "workers share their node's network unevenly; take a multiple of a node's GPUs",
        stops_training=False,
    )


def _versions(posts: _Posts) -> Iterator[Finding]:
    """Compare Python, packages and our own code on every node with those of this process."""
    answers = posts.ask_nodes(node_checks.versions)
    if failed := _failures(answers):
        yield Finding("versions", "wrong", failed, "start Ray on every node in the environment of requirements.txt")
        return
    here = node_checks.versions()
    for name, value in here.items():
        others = {node: found[name] for node, found in answers.items() if found[name] != value}
        shown = ", ".join(f"{node} has {found}" for node, found in others.items())
        ours = name == "aweigh"
        fix = (
            "submit with `aweigh submit`, which sends the code, or install the same checkout on every node"
            if ours
            else "install requirements.txt of this checkout on that node, and start Ray from that environment"
        )
        yield Finding(
            name, "wrong" if others else "ok", f"{value} here; {shown}" if others else value, fix if others else ""
        )


def _devices(posts: _Posts, *, gpu: bool) -> Finding:
    answers = posts.ask(range(len(posts.actors)), node_checks.device)
    named = {f"rank {rank} on {posts.nodes[rank]}": answer for rank, answer in answers.items()}
    if failed := _failures(named):
        return Finding("GPU", "wrong", failed, "run `python -c 'import torch'` on that node, and mend what it reports")
    if gpu:
        return _used_gpus(named)
    gpus = {posts.nodes[rank]: found.gpus_of_node for rank, found in answers.items() if found.gpus_of_node}
    return _unused_gpus(gpus, int(posts.ray.cluster_resources().get("GPU", 0)) if gpus else 0)


def _used_gpus(found: Mapping[str, node_checks.Device]) -> Finding:
    """Say what torch reports of the GPU of each rank, by the rank's name."""
    if broken := {name: one for name, one in found.items() if one.problem}:
        problems = "; ".join(f"{name}: {one.problem}" for name, one in broken.items())
        return Finding("GPU", "wrong", problems, next(iter(broken.values())).remedy)
    kinds = sorted({one.name for one in found.values()})
    facts = sorted({f"driver {one.driver}, CUDA {one.cuda} of torch" for one in found.values()})
    mixed = len(kinds) > 1
    return Finding(
        "GPU",
        "warn" if mixed else "ok",
        f"{' and '.join(kinds)}; {'; '.join(facts)}",
        "every step waits for the slowest GPU; use nodes with one kind" if mixed else "",
        stops_training=False,
    )


def _unused_gpus(gpus: Mapping[str, int], in_ray: int) -> Finding:
    """Name the nodes whose GPUs stay unused: there are fewer than workers, or Ray does not know them.

    Args:
        gpus: number of GPUs of each node that has some.
        in_ray: GPUs that Ray counts.
    """
    if not gpus:
        return Finding("GPU", "ok", "none; workers compute on CPU", stops_training=False)
    shown = ", ".join(f"{counted(number, 'GPU')} of {node}" for node, number in sorted(gpus.items()))
    fix = (
        f"set cluster.workers to {in_ray}, so that each has one"
        if in_ray
        else "start Ray on that node with --num-gpus, and set cluster.device to cuda"
    )
    fix += "; set cluster.device to cpu if this is meant"
    return Finding("GPU", "warn", f"not used: {shown}; workers compute on CPU", fix, stops_training=False)


def _all_reduce(posts: _Posts, backend: Literal["nccl", "gloo"]) -> Finding:
    check, ranks = f"{backend} all-reduce", len(posts.actors)
    if ranks == 1:
        return Finding(check, "ok", "1 worker, nothing to reduce")
    address = posts.ask([0], node_checks.free_address)[0]
    fix = (
        "let nodes reach one another on every TCP port (AWS: a security group that allows all traffic from itself); "
        f"on nodes with several networks, name the one to use in {backend.upper()}_SOCKET_IFNAME"
    )
    if isinstance(address, Exception):
        return Finding(check, "wrong", _brief(address), fix)
    found = posts.ask(range(ranks), node_checks.all_reduce, address, ranks, backend, pass_rank=True)
    answers = {f"rank {rank} on {posts.nodes[rank]}": answer for rank, answer in found.items()}
    if failed := _failures(answers):
        return Finding(check, "wrong", failed, fix)
    slowest = min(answers.values())
    return Finding(
        check, "ok", f"{ranks} ranks, correct sum, {slowest / 1e9:.2f} GB/s bus bandwidth at the slowest rank"
    )


def _shared_memory(posts: _Posts, *, gpu: bool) -> Finding:
    needed = {node: (256 if gpu else 64) * 2**20 * posts.nodes.count(node) for node in posts.first_of_node}
    answers = posts.ask_nodes(node_checks.free_bytes, "/dev/shm")
    if failed := _failures(answers):
        return Finding("shared memory", "warn", failed, "mount /dev/shm", stops_training=False)
    least = min(answers, key=lambda node: answers[node] - needed[node])
    small = answers[least] < needed[least]
    return Finding(
        "shared memory",
        ("wrong" if gpu else "warn") if small else "ok",
        f"{_gib(answers[least])} free in /dev/shm of {least}, {_gib(needed[least])} needed for its workers",
        "start the container with --shm-size 8g (Kubernetes: mount an emptyDir of medium Memory at /dev/shm)"
        if small
        else "",
        stops_training=gpu,
    )


def _clocks(posts: _Posts) -> Finding:
    skews = {}
    for node, rank in posts.first_of_node.items():
        trips = []
        for _ in range(3):
            sent = time.time()
            there = posts.ask([rank], time.time)[rank]
            if isinstance(there, Exception):
                return Finding("clocks", "wrong", f"{node}: {_brief(there)}", "look for this node in Ray's dashboard")
            # Its clock was read about half-way through the round trip.
            trips.append((time.time() - sent, there - (sent + time.time()) / 2))
        # The shortest trip leaves the least doubt.
        skews[node] = min(trips)[1]
    worst = max(skews, key=lambda node: abs(skews[node]))
    skew = abs(skews[worst])
    verdict: Verdict = "ok" if skew < _SKEW_WARN_SECONDS else "warn" if skew < _SKEW_WRONG_SECONDS else "wrong"
    return Finding(
        "clocks",
        verdict,
        f"at most {skew:.2f} s off this machine's clock ({worst})",
        "" if verdict == "ok" else "run chrony on every node; S3 refuses requests whose time is 15 minutes off",
    )


def _shared_folder(posts: _Posts, shared: SharedFolder) -> Finding:
    """Write a file on each node, and look for it on all others and in this process."""
    check, folder = shared.check, shared.path
    token = f".preflight-{uuid.uuid4().hex[:12]}"
    fix = f"set {shared.setting} to a folder of a file system that every node mounts (EFS, FSx for Lustre, NFS)"
    try:
        node_checks.leave(folder / token, "driver")
        written = posts.ask_nodes(node_checks.leave, folder / token)
        if failed := _failures(written):
            return Finding(check, "wrong", f"{folder} cannot be written: {failed}", fix)
        names = {"driver", *written.values()}
        seen = posts.ask_nodes(node_checks.wait_for_names, folder / token, names, _SEEN_SECONDS)
        if failed := _failures(seen):
            return Finding(check, "wrong", f"{folder} cannot be read: {failed}", fix)
        here = node_checks.wait_for_names(folder / token, names, _SEEN_SECONDS)
        apart = [node for node, name in written.items() if name not in here or "driver" not in seen[node]]
        apart = apart or [node for node, found in seen.items() if found != names]
        if apart:
            shown = ", ".join(apart)
            return Finding(check, "wrong", f"{folder} on {shown} is not the folder that the driver writes to", fix)
        return Finding(check, "ok", f"{folder}, one folder for {counted(len(written), 'node')}, readable and writable")
    except OSError as error:
        return Finding(check, "wrong", f"{folder}: {error.strerror or error}", fix)
    finally:
        posts.ask_nodes(node_checks.clear, folder / token)
        node_checks.clear(folder / token)
        with suppress(OSError):
            folder.rmdir()  # fails unless it is empty: the check leaves no folder behind that was not there before


def _cache(posts: _Posts, cache: Cache) -> Finding:
    answers = posts.ask_nodes(node_checks.writable_free_bytes, cache.folder)
    fix = "set data.cache_folder, or AWEIGH_CACHE, to a disk of the node with more space"
    if failed := _failures(answers):
        return Finding("cache", "wrong", failed, fix)
    least = min(answers, key=lambda node: answers[node])
    free = answers[least]
    verdict: Verdict = "ok" if free >= cache.whole_bytes else "warn" if free >= cache.least_bytes else "wrong"
    return Finding(
        "cache",
        verdict,
        f"{_gib(free)} free in {cache.folder} of {least}; a node reads {_gib(cache.whole_bytes)} in an epoch",
        "" if verdict == "ok" else fix,
    )


def _probed(posts: _Posts, probe: Probe) -> Finding:
    if probe.everywhere:
        answers: Mapping[str, Any] = posts.ask_nodes(probe.run)
    else:
        answers = {posts.nodes[0]: posts.ask([0], probe.run)[0]}
    if failed := _failures(answers):
        return Finding(probe.check, "wrong", failed, probe.fix, probe.stops_training)
    if len(set(answers.values())) > 1:
        shown = "; ".join(f"{node}: {found}" for node, found in answers.items())
        return Finding(probe.check, "wrong", f"differs between nodes: {shown}", probe.fix, probe.stops_training)
    return Finding(probe.check, "ok", next(iter(answers.values())), stops_training=probe.stops_training)


def _failures(answers: Mapping[str, Any]) -> str:
    """Say in one line what failed where; empty if nothing did."""
    wrong: dict[str, list[str]] = {}
    for where, answer in answers.items():
        if isinstance(answer, Exception):
            wrong.setdefault(_brief(answer), []).append(where)
    return "; ".join(f"{', '.join(places)}: {problem}" for problem, places in wrong.items())


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300].rstrip(".")


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
