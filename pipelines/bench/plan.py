"""Time and memory of `aweigh shards plan` for a billion samples."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from data_shards.format.manifest import MANIFEST_NAME, CocoClass, Manifest, Shard, Source

_SHARDS, _SAMPLES = 100_000, 10_000
# Not ru_maxrss: for a new process the kernel also counts its parent's memory. VmHWM does not.
_PROGRAM = """
import re, sys
from pipelines.cli import main
main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
"""


def plan_of_a_billion(folder: Path) -> tuple[float, int]:
    """Run the command on a generated manifest as a user would; returns its CPU seconds and its most bytes in memory."""
    location = folder / "billion" / "train"
    location.mkdir(parents=True)
    shards = tuple(
        Shard(
            name=f"train-{number:06d}.tar",
            samples=_SAMPLES,
            bytes=90_000_000,
            sha256=hashlib.sha256(f"{number}".encode()).hexdigest(),
            index=f"train-{number:06d}.index.npz",
            index_sha256=hashlib.sha256(f"{number} index".encode()).hexdigest(),
        )
        for number in range(_SHARDS)
    )
    manifest = Manifest("train", (CocoClass(1, "thing"),), shards, Source("0" * 64, 90_000_000, "drop", 1, 0))
    (location / MANIFEST_NAME).write_text(json.dumps(manifest.as_json()))
    command = [sys.executable, "-c", _PROGRAM, "shards", "plan", str(location), "--json"]
    process = subprocess.Popen(
        [*command, "--batch", "3072", "--nodes", "16", "--workers", "128", "--cache", "1000"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdout is not None
    with process.stdout as answer:
        found, peak = map(json.loads, answer)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert found["samples"] == _SHARDS * _SAMPLES
    return used.ru_utime + used.ru_stime, peak * 1024
