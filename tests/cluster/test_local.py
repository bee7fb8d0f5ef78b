"""A real Ray on this machine: what its workers import, and where it listens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# In a process of its own, as a command: Ray reads its environment when it is imported.
_PROGRAM = """
import json, socket, psutil
from cluster.local import connected
from cluster.settings import ClusterSettings

def imported():
    import queue, sys
    import cluster, data_shards, detectors, pipelines
    return [module.__file__ for module in (queue, cluster, data_shards, detectors, pipelines)]

with connected(ClusterSettings(workers=1)) as ray:
    files = ray.get(ray.remote(imported).remote())
    address = ray.util.get_node_ip_address()
    listening = set()
    for process in psutil.Process().children(recursive=True):
        for found in process.net_connections(kind="inet"):
            if found.status == psutil.CONN_LISTEN:
                listening.add(found.laddr.ip)
left = psutil.Process().children(recursive=True)
print(json.dumps({"files": files, "address": address, "listening": sorted(listening), "left": len(left)}))
"""


@pytest.mark.slow
def test_a_local_ray_imports_our_code_and_listens_on_this_machine_only(tmp_path: Path) -> None:
    mine, temporary = tmp_path / "mine", tmp_path / ("a" * 80)
    mine.mkdir()
    temporary.mkdir()
    # Scripts without a main guard, named like our packages and like a module of the standard library.
    for name in ("pipelines", "detectors", "cluster", "data_shards", "queue"):
        (mine / f"{name}.py").write_text(f"raise SystemExit('this is {name}.py of the user')\n")
    known = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    ended = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM],
        cwd=mine,
        # A path that is too long for a socket.
        env={**known, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert [Path(file).is_relative_to(ROOT) for file in found["files"]] == [False, True, True, True, True]
    assert not any(Path(file).is_relative_to(mine) for file in found["files"])
    assert found["address"] == "127.0.0.1"
    assert set(found["listening"]) <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert found["left"] == 0
