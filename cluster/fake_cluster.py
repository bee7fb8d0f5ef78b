"""A Ray cluster of several raylets on one machine, whose nodes can be warned, lost and replaced: for drills and tests.

`python -m cluster.fake_cluster NODES CPUS DASHBOARD` prints the addresses to join, then obeys lines on stdin: "kill N"
ends the raylet of a node and its workers with SIGKILL; "drain N SECONDS" announces to the cluster that the node will be
taken away; "add" starts one more node; end of file stops everything.
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
_ANSWER = "fake cluster: "  # Ray prints to the same stdout


def free_port() -> int:
    """Find a port that nobody listens on, outside the range that Ray assigns to its workers."""
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            if (port := int(free.getsockname()[1])) >= 20000:
                return port


class FakeCluster:
    """A cluster that runs in another process.

    Attributes:
        dashboard: address of its job server; empty if it has none.
        environment: variables with which a command uses it.
    """

    def __init__(self, process: "subprocess.Popen[str]", token: Mapping[str, str]) -> None:
        self._process = process
        address, _, self.dashboard = self._answer().partition(" ")
        self.environment: dict[str, str] = {**token, **({} if self.dashboard else {"RAY_ADDRESS": address})}

    def kill_node(self, node: int) -> None:
        """Kill a node's raylet and its workers with SIGKILL; nodes count from 0, without the head."""
        self._ask(f"kill {node}")

    def drain_node(self, node: int, seconds: int) -> None:
        """Announce that a node will be taken away after these seconds, as an autoscaler does for a spot instance."""
        self._ask(f"drain {node} {seconds}")

    def add_node(self) -> None:
        """Start one more node."""
        self._ask("add")

    def kill_process(self, title: str) -> None:
        """Kill the one process of the cluster that has this in its command line.

        Raises:
            ClusterError: there is none, or more than one.
        """
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if title in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        if len(found) != 1:
            raise ClusterError(f"the fake cluster has {len(found)} {title} processes instead of 1.")
        found[0].kill()

    def _ask(self, words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                return line.removeprefix(_ANSWER).strip()
        raise ClusterError("the fake cluster did not start; run `python -m cluster.fake_cluster 2 1 0` to see why.")


@contextmanager
def fake_cluster(
    nodes: int, cpus: int, environment: Mapping[str, str], *, dashboard: bool = False
) -> Iterator[FakeCluster]:
    """Start a cluster in a process of its own: a head for the driver, and nodes for the workers.

    Args:
        nodes: number of nodes, without the head, which offers no CPU.
        cpus: CPUs of each node.
        environment: variables of Ray's processes.
        dashboard: start a job server too.
    """
    # Ray starts jobs as `python`, which it looks up on the PATH that the head was started with.
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
        yield FakeCluster(process, token)
    finally:
        # Listed before the process ends: afterwards its children can no longer be found through it.
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
    """Run the cluster, and obey the lines on stdin."""
    from ray.cluster_utils import Cluster

    nodes, cpus, dashboard = (int(word) for word in sys.argv[1:4])
    head: dict[str, Any] = {"num_cpus": 0, "include_dashboard": bool(dashboard)}
    if dashboard:
        head |= {"dashboard_host": "127.0.0.1", "dashboard_port": free_port()}
        head["dashboard_agent_listen_port"] = free_port()
    # No CPUs on the head, so that every worker runs on a node that can be lost. Ray Train's controller needs none.
    cluster = Cluster(initialize_head=True, head_node_args=head)

    def add() -> Any:
        node = cluster.add_node(wait=False, num_cpus=cpus)
        cluster.wait_for_nodes(timeout=_START_SECONDS)
        return node

    added = [add() for _ in range(nodes)]
    web = f" http://127.0.0.1:{head['dashboard_port']}" if dashboard else ""
    if dashboard:
        _wait_for_job_server(head["dashboard_port"])
    print(f"{_ANSWER}{cluster.address}{web}", flush=True)
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "kill":
            _kill(cluster, added[int(numbers[0])])
        elif word == "drain":
            _drain(cluster.address, added[int(numbers[0])].node_id, numbers[1])
        elif word == "add":
            added.append(add())
        print(f"{_ANSWER}done", flush=True)
    cluster.shutdown()


def _kill(cluster: Any, node: Any) -> None:
    # Workers are killed as well: on a machine that is lost, they would not outlive their raylet.
    raylets = [found.process.pid for found in node.all_processes["raylet"]]
    below = [child.pid for raylet in raylets for child in psutil.Process(raylet).children(recursive=True)]
    for process in [*raylets, *below]:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended with its parent
    cluster.remove_node(node, allow_graceful=False)


def _drain(address: str, node_id: str, seconds: str) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the instance will be taken away"]
    subprocess.run([*command, "--deadline-remaining-seconds", seconds], check=True)


def _wait_for_job_server(port: int) -> None:
    """Wait until jobs can be started; the dashboard answers before its agent on the head can do that."""
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
    raise ClusterError(f"Ray's job server did not start within {_START_SECONDS:.0f} s; read its logs in /tmp/ray.")


if __name__ == "__main__":
    main()
