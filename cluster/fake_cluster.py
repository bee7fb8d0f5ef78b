"""A Ray cluster of several raylets on one machine, whose nodes can be warned, lost and replaced: for drills and tests.

`python -m cluster.fake_cluster NODES CPUS DASHBOARD` prints the addresses to join, then obeys lines on stdin: "kill N"
ends the raylet of a node with SIGKILL, its workers with it; "drain N SECONDS" tells the cluster that the node will be
taken away; "add" starts one more; end of file takes everything down.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from cluster.errors import ClusterError

_START_SECONDS = 300.0


def free_port() -> int:
    """A port that nobody listens on, outside of those that Ray gives to its workers."""
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            if (port := int(free.getsockname()[1])) >= 20000:
                return port


class Rehearsal:
    """The cluster of another process.

    Attributes:
        dashboard: address of its job server; empty where it has none.
        environment: what a command needs to use it.
    """

    def __init__(self, process: "subprocess.Popen[str]", token: Mapping[str, str]) -> None:
        self._process = process
        address, _, self.dashboard = self._answer().partition(" ")
        self.environment: dict[str, str] = {**token, **({} if self.dashboard else {"RAY_ADDRESS": address})}

    def kill_node(self, node: int) -> None:
        """kill -9 of a node's raylet and of the workers below it; the first one is 0, the head is none of them."""
        self._ask(f"kill {node}")

    def drain_node(self, node: int, seconds: int) -> None:
        """Give notice that a node goes away in so many seconds, as an autoscaler does for a spot instance."""
        self._ask(f"drain {node} {seconds}")

    def add_node(self) -> None:
        """Start one more node."""
        self._ask("add")

    def kill_process(self, title: str) -> None:
        """kill -9 of the cluster's one process with this in its command line.

        Raises:
            ClusterError: there is none, or there are more.
        """
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if title in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        if len(found) != 1:
            raise ClusterError(f"{len(found)} processes of the cluster are a {title}, not one.")
        found[0].kill()

    def _ask(self, words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("rehearsal: "):
                return line.removeprefix("rehearsal: ").strip()
        raise ClusterError(
            "the cluster of several raylets did not start; run `python -m cluster.fake_cluster 2 1 0` to see why."
        )


@contextmanager
def rehearsal(nodes: int, cpus: int, environment: Mapping[str, str], *, dashboard: bool = False) -> Iterator[Rehearsal]:
    """Start a cluster in a process of its own: a head for the driver, and nodes with so many CPUs each.

    Args:
        nodes: beside the head, which has no CPU to spare.
        cpus: of each of them.
        environment: of Ray's processes.
        dashboard: with a job server.
    """
    # Jobs are started as `python`, by the path that the head was started with.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.fake_cluster", str(nodes), str(cpus), str(int(dashboard))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PATH": path, **environment, **token},
    )
    try:
        yield Rehearsal(process, token)
    finally:
        started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        for one in psutil.wait_procs(started, timeout=20)[1]:
            one.kill()


def main() -> None:
    """Hold the cluster and obey stdin."""
    from ray.cluster_utils import Cluster

    nodes, cpus, dashboard = (int(word) for word in sys.argv[1:4])
    head: dict[str, Any] = {"num_cpus": 0, "include_dashboard": bool(dashboard)}
    if dashboard:
        head |= {"dashboard_host": "127.0.0.1", "dashboard_port": free_port()}
        head["dashboard_agent_listen_port"] = free_port()
    # Ray Train's controller needs no CPU of its own; the head has none to spare for workers.
    cluster = Cluster(initialize_head=True, head_node_args=head)

    def add() -> Any:
        node = cluster.add_node(wait=False, num_cpus=cpus)
        cluster.wait_for_nodes(timeout=_START_SECONDS)
        return node

    added = [add() for _ in range(nodes)]
    web = f" http://127.0.0.1:{head['dashboard_port']}" if dashboard else ""
    if dashboard:
        _wait_for_job_server(head["dashboard_port"])
    print(f"rehearsal: {cluster.address}{web}", flush=True)
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "kill":
            _kill(cluster, added[int(numbers[0])])
        elif word == "drain":
            _drain(cluster.address, added[int(numbers[0])].node_id, numbers[1])
        elif word == "add":
            added.append(add())
        print("rehearsal: done", flush=True)
    cluster.shutdown()


def _kill(cluster: Any, node: Any) -> None:
    raylets = [found.process.pid for found in node.all_processes["raylet"]]
    below = [child.pid for raylet in raylets for child in psutil.Process(raylet).children(recursive=True)]
    for process in [*raylets, *below]:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it went with its parent
    cluster.remove_node(node, allow_graceful=False)


def _drain(address: str, node_id: str, seconds: str) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the instance is taken away"]
    subprocess.run([*command, "--deadline-remaining-seconds", seconds], check=True)


def _wait_for_job_server(port: int) -> None:
    """The dashboard answers before its agent on the head can start jobs."""
    import requests

    token = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            if requests.get(f"http://127.0.0.1:{port}/api/jobs/", headers=token, timeout=10).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.5)
    raise ClusterError("Ray's job server did not start.")


if __name__ == "__main__":
    main()
