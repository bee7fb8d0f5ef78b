"""What a person reads while a work goes on: in a terminal, in a file, and when it is stopped."""

import io
import signal
import sys
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.console import end_progress_line, progress_line, say
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


def test_what_is_said_in_a_terminal_begins_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_build_that_is_stopped_says_that_it_goes_on(
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
        "aweigh: stopped with Ctrl-C; the same command goes on with the shards that are left."
    )
    main(build)
    assert "1 shard of an earlier build kept, every byte compared" in capsys.readouterr().out
