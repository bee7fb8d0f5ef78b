"""The example of a detector in a package of its own: found by its entry point, and trained by `aweigh train`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_shards.building.build import build_shards
from data_shards.demo.write import write_demo
from tests.docs.pages import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "center_cells"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes that have the package installed."""
    target, source = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("source") / "center_cells"
    shutil.copytree(EXAMPLE, source)  # setuptools leaves its work in the folder that it builds
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(target), str(source)], check=True, timeout=900)
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{target}"}


def test_the_example_passes_its_own_tests(installed: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "test_center_cells.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=installed, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_aweigh_trains_the_example(installed: dict[str, str], tmp_path: Path) -> None:
    written = write_demo(tmp_path / "photographs", train_images=32, val_images=8)
    for split, annotations in (("train", written.train_annotations), ("val", written.val_annotations)):
        build_shards(annotations, written.images, str(tmp_path / "shards"), split=split)
    flags = (
        "--detector.name center_cells --detector.settings {} --detector.settings.width 8 --data.input_size 96 96 "
        "--data.train shards/train --data.validation shards/val --run.name example --cluster.workers 1 "
        "--schedule.epochs 2 --schedule.drops_at 1 --evaluation.every_epochs 2 --checkpoint.every_epochs 2"
    )
    command = [sys.executable, "-m", "pipelines", "train", "demo", *flags.split()]
    done = subprocess.run(command, cwd=tmp_path, env=installed, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "example" / "evaluation" / "metrics.json").exists()
    assert "distances" in done.stderr, "a step's line names the parts of the loss"
