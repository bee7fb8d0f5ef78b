"""What is refused before anything is sent to a cluster, and what needs no cluster."""

from pathlib import Path

import pytest

from cluster.fake_cluster import free_port
from pipelines.cli import main


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def _submit(*flags: object) -> list[object]:
    # Nothing listens at that port, so any other refusal came before a connection was tried.
    return ["submit", "demo", "--address", f"http://127.0.0.1:{free_port()}", *flags]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data.train", "s3://b/train"], "run.folder 'runs' is relative to a folder of this machine"),
        (["--run.folder", "/runs"], "data.train 'demo/shards/train' is relative to a folder of this machine"),
        (["--schedul.epochs", "3"], "unknown field --schedul.epochs; did you mean --schedule.epochs?"),
        (["--data.train", ""], "data.train is empty"),
    ],
)
def test_a_recipe_that_cannot_train_there_is_refused_here(
    capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert said in _refused(capsys, *_submit(*flags))


CLUSTER = ["--data.train", "s3://b/train", "--data.validation", "s3://b/val", "--run.folder", "/runs"]


def test_an_input_size_that_the_network_cannot_halve_is_refused_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert "data.input_size is [100, 160]" in _refused(capsys, *_submit(*CLUSTER, "--data.input_size", 100, 160))


def test_a_deadline_of_s3_beyond_the_time_of_a_standstill_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    said = _refused(capsys, *_submit(*CLUSTER, "--data.read_deadline_seconds", 900))
    assert "a worker that waits for S3 would be taken for a hung one. Raise cluster.hang_seconds to 900 or more" in said


def test_a_cluster_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no Ray job server answers at http://127.0.0.1:" in _refused(capsys, *_submit(*CLUSTER))


def test_a_recipe_file_outside_the_working_directory_is_sent(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.commands.submit import _recipe_in_package

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    outside, inside = tmp_path / "mine.yaml", tmp_path / "here" / "recipes" / "mine.yaml"
    assert _recipe_in_package(str(outside), Path.cwd()) == ({"submitted-mine.yaml": outside}, "submitted-mine.yaml")
    assert _recipe_in_package("recipes/mine.yaml", Path.cwd()) == ({"recipes/mine.yaml": inside}, "recipes/mine.yaml")
    assert _recipe_in_package("demo", Path.cwd()) == ({}, "demo")


def test_a_run_in_the_folder_of_a_job_is_refused_because_ray_deletes_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert "run.folder is relative to the working directory of a submitted job, which Ray deletes" in _refused(
        capsys, "train", "demo"
    )


def test_the_logs_of_all_ranks_are_found_in_the_run_s_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    logs = tmp_path / "first" / "logs"
    logs.mkdir(parents=True)
    for rank in (0, 1):
        (logs / f"rank-{rank}.log").write_text(f"I am {rank}\n")
    (logs / "rank-1-errors.log").write_text("Traceback\nOSError\n")
    main(["logs", str(tmp_path / "first"), "--rank", "1"])
    printed = capsys.readouterr()
    assert printed.out == "I am 1\n"
    assert f"{logs / 'rank-1-errors.log'}, 2 lines" in printed.err
    assert "has no log of rank 2; it has those of ranks 0, 1" in _refused(
        capsys, "logs", tmp_path / "first", "--rank", 2
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["logs", "runs/none"], "runs/none/logs does not exist; give a run's folder, or the name of a run or job"),
        (
            ["logs", "first", "--rank", "3"],
            "--rank reads the logs in a run's folder, and first is not a folder here: give RUN_FOLDER/first",
        ),
        (["logs", ".", "--no-follow"], "--address and --no-follow are for runs of a cluster"),
        (["preflight", "--env", "A=b"], "--env A=b is for a job: give --address too, or set the variable here"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert said in _refused(capsys, *words)
