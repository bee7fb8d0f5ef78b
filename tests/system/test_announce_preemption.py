"""A node of a real cluster announces that it will be taken away, and Ray drains it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.fake_cluster import fake_cluster

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "announce_preemption.py"
# An idle node ends as soon as it is drained.
ASK = """
import sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
draining = {id if isinstance(id, bytes) else bytes.fromhex(id) for id in client.get_draining_nodes()}
for node in client.get_all_node_info(timeout=30).values():
    print("head" if node.is_head_node else "node", node.state == 0 and node.node_id not in draining)
"""


def test_the_nodes_of_this_machine_are_drained_and_the_head_is_not() -> None:
    with fake_cluster(1, 1, {}) as cluster:
        environment = {**os.environ, **cluster.environment}
        environment.pop("PYTHONPATH", None)  # a node has only Ray and this script
        address = cluster.environment["RAY_ADDRESS"]
        subprocess.run([sys.executable, str(SCRIPT), "now", address, "0"], env=environment, check=True, timeout=600)
        asked = subprocess.run(
            [sys.executable, "-c", ASK, address],
            env=environment,
            check=True,
            timeout=600,
            capture_output=True,
            text=True,
        )
    assert sorted(asked.stdout.splitlines()) == ["head True", "node False"]
