"""What is refused before anything is sent to a cluster, and what needs no cluster."""

import os
from pathlib import Path

import pytest

from cluster.fake_cluster import free_port
from cluster.package import Package
from cluster.submit import Job
from pipelines import recipes
from pipelines.cli import main
from pipelines.recipes.recipe import to_yaml


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


class _Cluster:
    """A job server that keeps the package it receives."""

    address = "http://head:8265"

    def submit(self, run: str, entrypoint: str, package: Package, environment: dict[str, str]) -> Job:
        self.texts = {name: path.read_text() for name, path in package.files.items() if name.endswith(".yaml")}
        self.environment = environment
        return Job(f"{run}-1", run, "PENDING", entrypoint, None, None, "", None)


def test_passwords_in_files_are_not_sent_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = _Cluster()
    monkeypatch.setattr("pipelines.commands.submit._server", lambda address: cluster)
    monkeypatch.setattr("pipelines.training.checks.check_before_submission", lambda recipe: None)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.chdir(tmp_path)
    recipe = to_yaml(recipes.get("demo")).replace("  uri: ''", "  uri: http://trainer:s3cr3t@mlflow:5000")
    (tmp_path / "mine.yaml").write_text(recipe)
    for number in range(5):
        (tmp_path / f"other-{number}.yaml").write_text("uri: mysql://user:s3cr3t@host/ml")
    main(["submit", "mine.yaml", *CLUSTER, "--run.name", "first", "--detach"])
    assert "uri: http://mlflow:5000" in cluster.texts["mine.yaml"]
    assert cluster.environment["MLFLOW_TRACKING_PASSWORD"] == "s3cr3t"
    said = capsys.readouterr().err
    assert "s3cr3t" not in said
    warning = next(line for line in said.splitlines() if line.startswith("warning"))
    assert "other-0.yaml, line 1 (mysql://host/ml); other-1.yaml, line 1 (mysql://host/ml); other-2" in warning
    assert warning.endswith(
        ", and 2 more files: the package has an address with a password or key. Take it out, pass it with --env, or "
        "list the file in .rayignore"
    )
