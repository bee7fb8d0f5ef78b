"""Output for people: in a terminal, in a file, and when a command is stopped."""

import io
import signal
import sys
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.console import FittedLog, end_progress_line, fail, fit, print_rows, progress_line, say, step_line
from tests.data_shards.samples import document, write_coco


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_about_ten_lines_however_large_the_steps_are(capsys: pytest.CaptureFixture[str]) -> None:
    # Shards of 37 images: no step ends where a tenth of 1,000 begins.
    for turn in range(2):
        for done in [*range(37, 1000, 37), 1000]:
            progress_line("shards", done, 1000, "images")
        lines = capsys.readouterr().err.splitlines()
        shares = [int(line.split("  ")[-1].rstrip("%")) for line in lines]
        assert [share // 10 for share in shares] == list(range(1, 11)), turn
    for done in range(1, 101):
        progress_line("verify", done, 100, "images")
    assert capsys.readouterr().err.splitlines()[0] == "verify    10/100 images  10%"
    progress_line("shards", 3, 3, "images", "12 a second")
    assert capsys.readouterr().err == "shards    3/3 images  100%  12 a second\n"


def test_a_message_in_a_terminal_starts_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    progress_line("shards", 1, 4, "images")
    progress_line("shards", 2, 4, "images")
    say("note", "a shard was fetched again")
    progress_line("shards", 4, 4, "images")
    say("done", "all of it")
    end_progress_line()
    assert terminal.getvalue().replace("\x1b[K", "").replace("\r", "<") == (
        "<shards    1/4 images  25%<shards    2/4 images  50%\nnote      a shard was fetched again\n"
        "<shards    4/4 images  100%\ndone      all of it\n"
    )


def test_topics_are_coloured_in_a_terminal_only_and_not_where_no_color_is_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    say("done", "run first")
    assert capsys.readouterr().err == "done      run first\n"
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    say("done", "run first")
    say("warning", "a shard is missing")
    say("data", "shards/train")
    with pytest.raises(SystemExit):
        fail("which recipe?")
    assert terminal.getvalue() == (
        "\x1b[32mdone\x1b[0m      run first\n\x1b[33mwarning\x1b[0m   a shard is missing\ndata      shards/train\n"
        "\x1b[31maweigh:\x1b[0m which recipe?\n"
    )
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as plain:
            plain.setenv(name, value)
            plain.setattr(sys, "stderr", terminal := Terminal())
            say("done", "run first")
        assert terminal.getvalue() == "done      run first\n"


PACE = {"time/images_per_second": 312.4, "time/data_fraction": 0.01}
STEP = step_line(61_450, 129_360, {"loss": 1.561, "heatmap": 0.88, "size": 4.6, "offset": 0.22}, PACE, 27_840)


def test_a_step_line_drops_brackets_first_then_data_then_speed() -> None:
    whole = (
        "step 61,450/129,360  47.5%  loss 1.56 (heatmap 0.88, size 4.6, offset 0.22)  312.4 img/s  data 1%  "
        "eta 7 h 44 m"
    )
    assert STEP == fit(STEP, 200) == whole
    assert fit(STEP, 80) == "step 61,450/129,360  47.5%  loss 1.56  312.4 img/s  data 1%  eta 7 h 44 m"
    assert fit(STEP, 70) == "step 61,450/129,360  47.5%  loss 1.56  312.4 img/s  eta 7 h 44 m"
    assert fit(STEP, 60) == "step 61,450/129,360  47.5%  loss 1.56  eta 7 h 44 m"


def test_a_log_is_fitted_to_a_terminal_and_whole_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    warning = "warning: a line that is not about a step keeps what is in brackets (" + "x" * 60 + ")\n"
    for stream, expected in ((Terminal(), fit(STEP, 80)), (io.StringIO(), STEP)):
        log = FittedLog(stream)
        # The follower may read half a line.
        for part in (STEP[:30], STEP[30:] + "\n" + warning):
            log.write(part)
            log.flush()
        assert stream.getvalue() == f"{expected}\n{warning}"


def test_a_progress_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    progress_line("examine", 4, 4, "images", "310 a second, 2 m 10 s left")
    assert terminal.getvalue() == "\rexamine   4/4 images  100%  3\x1b[K\n"  # 29 columns: the last one would wrap


def test_meanings_wrap_in_a_terminal_and_are_one_line_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("demo", "what `aweigh demo` trains, in minutes"), ("long_name", "another")]
    print_rows(rows)
    assert capsys.readouterr().out == "demo       what `aweigh demo` trains, in minutes\nlong_name  another\n"
    monkeypatch.setenv("COLUMNS", "38")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    print_rows(rows)
    assert terminal.getvalue() == ("demo       what `aweigh demo` trains,\n           in minutes\nlong_name  another\n")


def test_a_build_that_is_stopped_says_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations, images = write_coco(tmp_path, document(6))
    build = ["shards", "build", "--annotations", str(annotations), "--images", str(images), "--output", str(tmp_path)]
    build += ["--split", "train", "--processes", "1", "--shard-megabytes", "0.005"]
    with monkeypatch.context() as first_only:
        first_only.setattr("pipelines.console.progress_line", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(SystemExit) as ended:
            main(build)
    assert ended.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "aweigh: stopped with Ctrl-C; run the same command again to continue with the remaining shards."
    )
    main(build)
    assert "1 shard of an earlier build kept, every byte compared" in capsys.readouterr().out
