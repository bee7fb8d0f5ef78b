"""`aweigh bench train` on real workers."""

import json
from pathlib import Path

import pytest

from pipelines.training.stopwatch import PHASES
from tests.system.commands import TINY, Command

pytestmark = pytest.mark.slow


def test_the_phases_of_a_step_are_measured_and_nothing_is_left_behind(shards: Path, tmp_path: Path) -> None:
    out = Command(
        *("bench", "train", "demo", "--steps", "8", "--json", "--data.train", shards / "train"),
        *("--data.validation", shards / "val", "--run.folder", tmp_path / "runs", *TINY),
    ).finish()
    measured = json.loads(out)
    assert measured["steps"] == 5  # three of the eight warm up
    assert measured["images"] == 40
    assert set(measured["phases"]) == set(PHASES)
    assert all(seconds > 0 for seconds in measured["phases"].values())
    assert sum(measured["phases"].values()) <= measured["seconds"]
    assert measured["peak_bytes"] > 50_000_000
    assert list((tmp_path / "runs").iterdir()) == []
