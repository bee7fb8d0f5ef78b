"""What the driver says before and while the workers start."""

import io
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from data_shards.format.manifest import load_manifest
from data_shards.order.plan import make_plan
from pipelines import recipes
from pipelines.console import say, waiting_line
from pipelines.recipes.recipe import with_flags
from pipelines.training.train import RankLog, _next_attempt, _say_what_will_happen


class Output(io.StringIO):
    """A stderr that counts its lines as they are written."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal
        self.written = threading.Semaphore(0)

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        length = super().write(text)
        if "starting" in text:
            self.written.release()
        return length


@pytest.mark.parametrize("terminal", [True, False])
def test_a_wait_is_shown_with_its_seconds(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", output := Output(terminal))
    with waiting_line("workers", "starting", every_seconds=0.001):
        for _ in range(3):
            assert output.written.acquire(timeout=300)
    say("done", "all of it")
    *waits, last = output.getvalue().removesuffix("\n").split("\r" if terminal else "\n")
    assert all(line.startswith("workers   starting, 0 s") for line in waits if line)
    # In a terminal the line is cleared, and what follows begins where it began.
    assert last.removeprefix("\x1b[K") == "done      all of it"


def test_a_short_wait_leaves_nothing_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", output := Output(terminal=False))
    with waiting_line("workers", "starting"):
        pass
    assert output.getvalue() == ""


def test_what_is_said_during_a_wait_begins_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", output := Output(terminal=True))
    with waiting_line("workers", "starting", every_seconds=300):
        say("warning", "a node is slow")
    assert output.getvalue() == "\rworkers   starting, 0 s\x1b[K\nwarning   a node is slow\n"


def test_the_first_text_of_rank_0_ends_the_wait() -> None:
    shown = io.StringIO()
    log = RankLog(shown, lambda: shown.write("<started>"))
    assert shown.getvalue() == ""
    log.write("start     at step 0\n")
    log.write("step 1/40\n")
    log.flush()
    assert shown.getvalue() == "<started>start     at step 0\nstep 1/40\n"


def _said(small_shards: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> list[str]:
    location = str(small_shards / "train")
    recipe = with_flags(recipes.get("demo"), ["--data.train", location, *flags])
    manifest = load_manifest(location)
    plan = make_plan(manifest, seed=recipe.seed, global_batch_size=recipe.batch.global_size)
    _say_what_will_happen(replace(recipe, run=replace(recipe.run, folder="/runs")), "first", manifest, plan)
    return capsys.readouterr().err.splitlines()


def test_before_training_numbers_agree_with_their_nouns(small_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = load_manifest(str(small_shards / "train")).num_samples
    one = _said(small_shards, capsys, "--batch.global_size", str(samples - 1), "--cluster.workers", "1")
    assert "; each epoch drops 1 sample, different ones every time" in one[1]
    assert one[2].endswith(" per worker × 1 worker × 1 accumulation")
    # Nothing is said about samples that are not dropped.
    assert "drops" not in _said(small_shards, capsys, "--batch.global_size", str(samples), "--cluster.workers", "1")[1]
    assert one[-1] == "engine    ZeRO 1, precision auto"


def test_attempts_are_counted_on_after_their_file_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [_next_attempt(tmp_path) for _ in range(3)] == [1, 2, 3]
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "run.json").write_text('{"attempt": 3}')
    for damaged in ("", "[", "[3]", '"x"'):
        (tmp_path / "attempt.json").write_text(damaged)
        assert _next_attempt(tmp_path) == 4
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"warning   {tmp_path}/attempt.json is damaged; this attempt is counted as number 4"
    assert len(lines) == 4
