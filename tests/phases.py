"""Run all tests in two phases: light ones side by side on every core, then one by one those that need the machine.

    python -m tests.phases            # both phases, as CI does
    python -m tests.phases together   # the light ones only, while you work

Tests marked `slow` start Ray, DeepSpeed or Ceph and fill the cores by themselves; tests marked `alone` measure or wait.
"""

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

# A file stays on one worker, so that its fixtures are made once. Four workers fit in the memory of a small machine.
PHASES = {
    "together": ["-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "-m", "not slow and not alone"],
    "alone": ["-m", "slow or alone"],
}
_INTERRUPTED = 2


def summary(counts: Counter[str], seconds: float) -> str:
    """Word counts as pytest's last line does, which CI reads."""
    parts = [f"{counts[name]} {name}" for name in ("failed", "passed", "skipped", "error") if counts[name]]
    return f"{', '.join(parts) or 'no tests ran'} in {seconds:.2f}s"


def counted(report: Path) -> Counter[str]:
    """Count the outcomes in a JUnit report; none if pytest ended before it wrote one."""
    if not report.exists():
        return Counter()
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    total = sum((Counter({key: int(suite.get(key, 0)) for key in _KEYS}) for suite in suites), Counter())
    failed, error, skipped = total["failures"], total["errors"], total["skipped"]
    return Counter(passed=total["tests"] - failed - error - skipped, failed=failed, skipped=skipped, error=error)


_KEYS = ("tests", "failures", "errors", "skipped")


def run(names: list[str]) -> int:
    """Run the named phases; the exit status is that of the first one that failed."""
    started, total, statuses = time.monotonic(), Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            report = Path(folder) / f"{name}.xml"
            command = [sys.executable, "-m", "pytest", "--durations=10", f"--junit-xml={report}", *PHASES[name]]
            # More threads than cores would slow every worker down.
            statuses.append(subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode)
            total += counted(report)
            if statuses[-1] == _INTERRUPTED:
                break
    failing = [f"{name} (status {status})" for name, status in zip(names, statuses, strict=False) if status]
    if failing:
        print(f"phases that failed: {', '.join(failing)}")
    print(summary(total, time.monotonic() - started))
    return next(filter(None, statuses), 0)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:] or list(PHASES)))
