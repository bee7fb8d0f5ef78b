"""Every test is in one of the phases of `make test`, and their summary reads as pytest's own."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.phases import PHASES, counted, summary


def test_the_summary_is_pytests_last_line() -> None:
    counts = Counter(passed=812, failed=1, skipped=3)
    assert summary(counts, 301.219) == "1 failed, 812 passed, 3 skipped in 301.22s"
    assert summary(Counter(errors=2), 1.0) == "2 errors in 1.00s"
    assert summary(Counter(), 0.5) == "no tests ran in 0.50s"


def test_outcomes_are_counted_as_pytest_counts_them(tmp_path: Path) -> None:
    (tmp_path / "test_few.py").write_text(
        "import pytest\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError\n"
        "def test_passes(): pass\n"
        "def test_passes_too(): pass\n"
        "def test_fails(): assert False\n"
        "def test_errs(broken): pass\n"
        "@pytest.mark.skip\n"
        "def test_is_skipped(): pass\n"
    )
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", f"--junit-xml={report}", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert counted(report) == Counter(passed=2, failed=1, skipped=1, errors=1)
    assert summary(counted(report), 0).rpartition(" in ")[0] == done.stdout.splitlines()[-1].rpartition(" in ")[0]
    assert counted(tmp_path / "never-written.xml") == Counter()


def test_the_phases_share_out_all_tests() -> None:
    assert [flags[flags.index("-m") + 1] for flags in PHASES.values()] == ["not slow", "slow"]
    assert "-n" in PHASES["light"]
    assert "-n" not in PHASES["slow"]
