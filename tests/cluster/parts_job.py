"""A job of small parts, run as a program of its own: `python -m tests.cluster.parts_job FOLDER WORKERS KIND…`.

Part N does what the Nth word says: "done" leaves its file, "deadly" kills its worker each time, "once" the first time.
"""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch

from cluster.errors import ClusterError
from cluster.parts import Part, run_parts


def make_worker(shared: str, device: torch.device) -> "partial[str]":
    return partial(_run, Path(shared))


def _run(folder: Path, work: list[str]) -> str:
    name, kind = work
    (folder / f"{name}.begun.{time.time_ns()}").touch()
    if kind == "deadly" or (kind == "once" and len(list(folder.glob(f"{name}.begun.*"))) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "wrong":
        raise LookupError(f"{name} is wrong")
    partial_file = folder / f"{name}.{os.getpid()}.partial"
    partial_file.write_text(kind)
    partial_file.rename(folder / f"{name}.done")
    return f"{name} on {device_of_this_process()}"


def device_of_this_process() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def say(topic: str, text: str) -> None:
    print(f"{topic}: {text}", file=sys.stderr)


def main() -> None:
    folder, workers, *kinds = sys.argv[1:]
    parts = [Part(number, f"part-{number}", [f"part-{number}", kind]) for number, kind in enumerate(kinds)]
    parts = [part for part in parts if not (Path(folder) / f"{part.name}.done").exists()]
    try:
        done = run_parts(make_worker, parts, workers=int(workers), shared=folder, say=say)
        for part, value in done:
            print(json.dumps([part.name, value]), flush=True)
    except ClusterError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
