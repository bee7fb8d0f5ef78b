"""FCOS through the command: a schedule in steps that ends inside an epoch, and its weights exported."""

import json
from pathlib import Path

import pytest
import torch

from tests.system.commands import Command, logged

pytestmark = pytest.mark.slow

LAYOUT = Path(__file__).parents[1] / "detectors" / "layouts" / "fcos_r50_tianzhi.json"


def test_fcos_trains_by_steps_and_exports_its_weights_as_the_authors_file(shards: Path, tmp_path: Path) -> None:
    train = [
        *("train", "fcos_resnet50_1x", "--data.train", shards / "train", "--data.validation", shards / "val"),
        *("--run.folder", tmp_path, "--run.name", "steps", "--detector.weights", "none", "--batch.global_size", "8"),
        *("--detector.settings.width", "8", "--detector.settings.channels", "64", "--optimizer.learning_rate", "1e-3"),
        *("--augmentation.shorter_sides", "64", "--augmentation.longer_side_limit", "96"),
        *("--evaluation.shorter_side", "64", "--evaluation.longer_side_limit", "96", "--evaluation.pictures", "0"),
        *("--schedule.steps", "7", "--schedule.drops_at_steps", "6", "--schedule.warmup_steps", "3"),
        *("--tracking.every_steps", "1", "--tracking.system_seconds", "0"),
    ]
    command = Command(*train)
    line = command.wait_for("schedule")
    assert "7 steps = 1.4 epochs of 5, ÷10 after step 6, constant warm-up over 3 steps from 0.333" in line
    command.finish()
    run = tmp_path / "steps"
    assert json.loads((run / "result.json").read_text())["step"] == 7
    metrics = logged(tmp_path, "steps")
    rates = [rate for _, rate in metrics["train/learning_rate"]]
    assert rates == pytest.approx([1e-3 / 3] * 3 + [1e-3] * 3 + [1e-4])
    assert [step for step, _ in metrics["val/loss"]] == [7]  # the end of training, though not of an epoch
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == ["step-00000005", "step-00000007"]

    Command("weights", "export", run, "--output", tmp_path / "fcos.pth").finish()
    written = torch.load(tmp_path / "fcos.pth", weights_only=True)["model"]
    assert list(written) == [key for key, *_ in json.loads(LAYOUT.read_text())]
