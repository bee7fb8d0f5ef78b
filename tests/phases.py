"""Run all tests in two phases: light ones side by side on every core, then the slow ones, one by one.

    python -m tests.phases         # both phases, as CI does
    python -m tests.phases light   # the light ones only, while you work

Slow tests start Ray, DeepSpeed or Ceph: each fills the cores by itself, and its time limits allow for no neighbour.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

# A file stays on one worker, so that its fixtures are made once. Four workers fit in the memory of a small machine.
PHASES = {
    "light": ["-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "-m", "not slow"],
    "slow": ["-m", "slow"],
}
_INTERRUPTED = 2  # pytest's exit status after Ctrl-C
_OUTCOMES = ("tests", "failures", "errors", "skipped")


def summary(counts: Counter[str], seconds: float) -> str:
    """Word counts as pytest's last line does, which CI reads."""
    errors = "error" if counts["errors"] == 1 else "errors"
    words = {"failed": "failed", "passed": "passed", "skipped": "skipped", "errors": errors}
    parts = [f"{counts[name]} {word}" for name, word in words.items() if counts[name]]
    return f"{', '.join(parts) or 'no tests ran'} in {seconds:.2f}s"


def counted(report: Path) -> Counter[str]:
    """Count the outcomes in a JUnit report; none if pytest ended before it wrote one."""
    if not report.exists():
        return Counter()
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    total = sum((Counter({key: int(suite.get(key, 0)) for key in _OUTCOMES}) for suite in suites), Counter())
    failed, errors, skipped = total["failures"], total["errors"], total["skipped"]
    return Counter(passed=total["tests"] - failed - errors - skipped, failed=failed, skipped=skipped, errors=errors)


def run(names: list[str]) -> int:
    """Run the named phases; the exit status is that of the first one that failed."""
    # Ctrl-C reaches pytest too, which ends what tests have started; until it has, this process waits.
    signal.signal(signal.SIGINT, lambda *_: None)
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
