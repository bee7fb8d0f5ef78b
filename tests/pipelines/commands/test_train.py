"""The end of `aweigh train`: the result, its files, and the next commands."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from pipelines import recipes
from pipelines.cli import command_line
from pipelines.commands.train import show_result
from pipelines.recipes.recipe import with_flags
from pipelines.training.train import TrainingResult


def _shown(folder: Path, capsys: pytest.CaptureFixture[str], figures: dict[str, Any], *flags: str) -> list[str]:
    run = folder / "my runs" / "first"
    (run / "evaluation").mkdir(parents=True, exist_ok=True)
    (run / "evaluation" / "ap.txt").write_text("the table\n")
    recipe = with_flags(recipes.get("demo"), ["--run.folder", str(folder / "my runs"), *flags])
    show_result(TrainingResult("first", run, 30, figures), recipe)
    out, err = capsys.readouterr()
    assert out == "the table\n"
    return err.splitlines()


def test_the_next_commands_can_be_pasted_into_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    lines = _shown(tmp_path, capsys, {"AP": 0.4})
    assert lines[0] == "done      run first, 30 steps"
    commands = [line.removeprefix("next").strip().split("    ")[0] for line in lines if "aweigh" in line]
    assert commands == [
        f"aweigh ui --folder '{tmp_path}/my runs'",
        f"aweigh evaluate '{tmp_path}/my runs/first'",
        "aweigh recipe show demo",
    ]
    for command in commands:
        assert callable(command_line().parse_known_args(shlex.split(command)[1:])[0].run)


@pytest.mark.parametrize(
    ("figures", "flags", "note"),
    [
        (
            {"AP": 0.0004},
            [],
            "note      AP is 0.000 after 30 steps from random weights, usually a sign that training was too short; "
            "train longer with --schedule.epochs, or start from published weights with --detector.weights",
        ),
        (
            {"AP": 0.0, "highest_score": 0.1234},
            ["--detector.weights", "imagenet"],
            "note      AP is 0.000 after 30 steps from weights imagenet, and the most confident detection scores 0.12, "
            "usually a sign that training was too short; train longer with --schedule.epochs",
        ),
        (
            {"AP": 0.3, "keypoints": {"AP": 0.002}},
            ["--detector.weights", "imagenet"],
            "note      AP is 0.002 after 30 steps from weights imagenet, usually a sign that training was too short; "
            "train longer with --schedule.epochs",
        ),
        ({"AP": 0.01}, [], None),
        ({"AP": None}, [], None),  # there was nothing to find
    ],
)
def test_an_ap_near_zero_is_explained_in_one_line(
    figures: dict[str, Any], flags: list[str], note: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = [line for line in _shown(tmp_path, capsys, figures, *flags) if line.startswith("note")]
    assert notes == ([note] if note else [])


def test_an_evaluation_that_failed_is_the_last_line_and_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = with_flags(recipes.get("demo"), ["--run.folder", str(tmp_path)])
    failed = {10: "image 7: TypeError: no number", 1020: "image 9: TypeError: no number"}
    with pytest.raises(SystemExit) as ended:
        show_result(TrainingResult("first", tmp_path / "first", 1020, None, failed), recipe)
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "aweigh: training is complete, but the evaluations after steps 10, 1,020 failed: image 9: TypeError: no "
        f"number. Correct the validation shards, then run `aweigh evaluate {tmp_path}/first --data LOCATION/SPLIT`."
    )
