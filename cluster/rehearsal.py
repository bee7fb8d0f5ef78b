"""A Ray cluster of several raylets on one machine, whose nodes can be lost and come back: for drills and tests.

`python -m cluster.rehearsal NODES CPUS` prints the address to join, then obeys lines on stdin: "kill" ends the newest
node's raylet with SIGKILL, its workers with it; "add" starts another one; end of file takes everything down.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil

from cluster.errors import ClusterError


class Rehearsal:
    """The cluster of another process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.address = self._answer()

    def kill_node(self) -> None:
        """kill -9 of the newest node's raylet and of the workers below it."""
        self._ask("kill")

    def add_node(self) -> None:
        """Start one more node."""
        self._ask("add")

    def _ask(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("rehearsal: "):
                return line.removeprefix("rehearsal: ").strip()
        raise ClusterError(
            "the cluster of several raylets did not start; run `python -m cluster.rehearsal 2 1` to see."
        )


@contextmanager
def rehearsal(nodes: int, cpus: int, environment: Mapping[str, str]) -> Iterator[Rehearsal]:
    """Start a cluster in a process of its own: a head for the driver, and nodes with so many CPUs each."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.rehearsal", str(nodes), str(cpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        yield Rehearsal(process)
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

    nodes, cpus = int(sys.argv[1]), int(sys.argv[2])
    # Ray Train's controller needs no CPU of its own; the head has none to spare for workers.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    added = [cluster.add_node(num_cpus=cpus) for _ in range(nodes)]
    print(f"rehearsal: {cluster.address}", flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            node = added.pop()
            raylets = [found.process.pid for found in node.all_processes["raylet"]]
            below = [child for raylet in raylets for child in psutil.Process(raylet).children(recursive=True)]
            for process in [*raylets, *(child.pid for child in below)]:
                os.kill(process, signal.SIGKILL)
            cluster.remove_node(node, allow_graceful=False)
        elif line.strip() == "add":
            added.append(cluster.add_node(num_cpus=cpus))
        print("rehearsal: done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
