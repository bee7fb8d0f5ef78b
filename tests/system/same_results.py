"""Do trainings and evaluations still compute the same bits? Run it before and after a refactoring.

    python -m tests.system.same_results record before.json    # on the old code
    python -m tests.system.same_results check before.json     # on the new code, on the same machine

It trains short fixed runs through the command line (Ray, DeepSpeed, shards, evaluation) and hashes every tensor of
their last checkpoints and every figure of their evaluations. Golden values are not committed: another CPU or another
torch rounds differently. It uses only commands and file formats, so that it does not change with the modules' names.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHORT = shlex.split(
    "--seed 3 --schedule.epochs 2 --schedule.drops_at 1 --schedule.warmup_steps 3 --data.input_size 96 96 "
    "--batch.global_size 24 --checkpoint.every_epochs 1 --evaluation.every_epochs 1 --tracking.system_seconds 0"
)
NARROW = shlex.split(
    "--detector.settings.width 8 --detector.settings.deconv_channels 16 16 16 --detector.settings.head_channels 16"
)


def results(folder: Path) -> dict[str, str]:
    """Train and evaluate everything in `folder`; a digest for each tensor file and each set of figures, by name."""
    os.environ.update(OMP_NUM_THREADS="1", AWEIGH_CACHE=str(folder / "cache"))
    found: dict[str, str] = {}
    runs = ["--run.folder", str(folder / "runs"), "--run.name"]
    _aweigh("demo", "--folder", folder / "demo", *SHORT, *NARROW, *runs, "demo")
    shards = folder / "demo" / "shards"
    data = ["--data.train", shards / "train", "--data.validation", shards / "val"]
    for name, flags in {
        "one-worker": ["--cluster.workers", "1"],
        "zero-0": ["--engine.zero_stage", "0"],
        "zero-1": ["--engine.zero_stage", "1"],
        "zero-2": ["--engine.zero_stage", "2", "--engine.precision", "bf16"],
    }.items():
        _aweigh("train", "demo", *data, *SHORT, *NARROW, *flags, *runs, name)
    _interrupt_and_resume("train", "demo", *data, *SHORT, *NARROW, *runs, "resumed")
    # Large networks on two cores: few steps of small batches, counted in steps so that no epoch has to end.
    few = shlex.split(
        "--seed 3 --detector.weights none --batch.global_size 8 --cluster.workers 2 --data.input_size 64 64 "
        "--schedule.steps 4 --schedule.drops_at_steps 2 --schedule.warmup_steps 2 --tracking.system_seconds 0 "
        "--evaluation.shorter_side 64 --evaluation.longer_side_limit 96"
    )
    _aweigh("train", "fcos_resnet50_1x", *data, *few, *runs, "fcos")
    pose = _pose_shards(folder)
    data = ["--data.train", pose / "train", "--data.validation", pose / "val"]
    _aweigh(
        "train",
        "centernet_dla34_pose_1x",
        *data,
        *few,
        "--schedule.epochs",
        "0",
        "--schedule.drops_at",
        "[]",
        *runs,
        "pose",
    )
    for run in sorted((folder / "runs").glob("*/checkpoints")):
        newest = sorted(run.glob("step-*"))[-1]
        for path in sorted(newest.glob("*.safetensors")):
            found[f"{run.parent.name}/{newest.name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        figures = json.loads((run.parent / "evaluation" / "metrics.json").read_text())
        found[f"{run.parent.name}/metrics"] = _digest(figures)
    for name in ("zero-1", "fcos", "pose"):
        modes = ["none", "flip", "multiscale"] if name != "fcos" else ["none", "multiscale"]
        printed = _aweigh(
            "evaluate", folder / "runs" / name, "--newest", "--json", "--timed-images", "1", "--tta", *modes
        )
        found[f"{name}/test-time modes"] = _digest(json.loads(printed))
    return found


def _digest(figures: Any) -> str:
    """Return the digest of a JSON value without the times and places in it."""

    def lasting(value: Any) -> Any:
        if isinstance(value, dict):
            left_out = ("milliseconds", "frames_per_second", "seconds", "checkpoint", "data")
            return {key: lasting(one) for key, one in value.items() if not any(word in key for word in left_out)}
        return [lasting(one) for one in value] if isinstance(value, list) else value

    return hashlib.sha256(json.dumps(lasting(figures), sort_keys=True).encode()).hexdigest()


def _aweigh(*words: object) -> str:
    done = subprocess.run([sys.executable, "-m", "pipelines", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"aweigh {shlex.join(map(str, words))} failed:\n{done.stderr[-4000:]}")
    print("done:", shlex.join(map(str, words))[:110], file=sys.stderr)
    return done.stdout


def _interrupt_and_resume(*words: object) -> None:
    """Stop a training with SIGINT as soon as it has taken some steps, and resume it."""
    command = [sys.executable, "-m", "pipelines", *map(str, words), "--tracking.every_steps", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 4/"):
            process.send_signal(signal.SIGINT)
            break
    process.communicate()
    if process.returncode != 130:
        raise SystemExit(f"the interrupted training ended with status {process.returncode}, not 130")
    _aweigh(*command[3:])


def _pose_shards(folder: Path) -> Path:
    """The demo's images as a pose data set: 17 joints on a grid in every box, some of them invisible."""
    location = folder / "pose"
    for split in ("train", "val"):
        source = next((folder / "demo").rglob(f"*{split}*.json"))
        data = json.loads(source.read_text())
        for annotation in data["annotations"]:
            x, y, width, height = annotation["bbox"]
            joints = [
                (x + width * (joint % 5 + 0.5) / 5, y + height * (joint // 5 + 0.5) / 4, (joint + annotation["id"]) % 3)
                for joint in range(17)
            ]
            annotation["keypoints"] = [value for joint in joints for value in joint]
            annotation["num_keypoints"] = sum(joint[2] > 0 for joint in joints)
            annotation["category_id"] = 1
        names = [f"joint {number}" for number in range(17)]
        data["categories"] = [{"id": 1, "name": "person", "keypoints": names, "skeleton": []}]
        annotations = folder / f"pose_{split}.json"
        annotations.write_text(json.dumps(data))
        images = next(path.parent for path in (folder / "demo").rglob("*.jpg"))
        _aweigh(
            "shards", "build", "--annotations", annotations, "--images", images, "--output", location, "--split", split
        )
    return location


def main() -> None:
    """Record digests to a file, or compare with those in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "check"))
    parser.add_argument("file", type=Path, help="JSON of digests by name")
    parser.add_argument("--keep", type=Path, help="folder for the runs (default: a temporary one)")
    known = parser.parse_args()
    with contextlib.ExitStack() as stack:
        found = results(known.keep or Path(stack.enter_context(tempfile.TemporaryDirectory())))
    if known.action == "record":
        known.file.write_text(json.dumps(found, indent=2) + "\n")
        print(f"recorded {len(found)} digests in {known.file}")
        return
    expected = json.loads(known.file.read_text())
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    for name in differing:
        print("DIFFERS", name)
    print(f"{len(expected) - len(differing)} of {len(expected)} digests are identical")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
