"""`aweigh drill` with the two fastest faults; `make drill` runs all of them."""

import json
from pathlib import Path

import pytest

from tests.system.commands import Command

pytestmark = pytest.mark.slow


def test_a_kill_in_a_checkpoint_write_and_a_sigterm_leave_no_trace(tmp_path: Path) -> None:
    command = Command("drill", "--folder", tmp_path, "--json", "--fault", "kill-in-checkpoint-write", "sigterm")
    faults = json.loads(command.finish())["faults"]
    assert [(row["fault"], row["passed"], row["problems"]) for row in faults] == [
        ("kill-in-checkpoint-write", True, []),
        ("sigterm", True, []),
    ]
    assert all(row["summary"].startswith("bitwise equal") for row in faults)
    assert faults[1]["summary"].endswith("no step trained again")
