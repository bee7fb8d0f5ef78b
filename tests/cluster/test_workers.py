"""The log of rank 0, as the driver shows it."""

import io
from pathlib import Path

from cluster.workers import _followed


def test_the_start_is_reported_once_and_before_the_first_new_line(tmp_path: Path) -> None:
    log, shown = tmp_path / "rank-0.log", io.StringIO()
    log.write_text("of an earlier attempt\n")
    with _followed(log, shown, started=lambda: shown.write("<started>")), log.open("a") as file:
        file.write("start     at step 0\n")
    assert shown.getvalue() == "<started>start     at step 0\n"


def test_workers_that_say_nothing_have_not_started(tmp_path: Path) -> None:
    calls: list[str] = []
    with _followed(tmp_path / "rank-0.log", io.StringIO(), started=lambda: calls.append("started")):
        pass
    assert calls == []
