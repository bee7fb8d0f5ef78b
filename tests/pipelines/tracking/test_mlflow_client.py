"""The address, the names and the import of MLflow."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.tracking import absolute_uri, class_metric_name, metric_name
from tests.pipelines.tracking.runs import ROOT


def test_importing_it_does_not_import_mlflow() -> None:
    code = "import sys, pipelines.tracking, pipelines.evaluation.coco_metrics; print('mlflow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "False\n"


def test_addresses_mean_the_same_everywhere_or_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///deep/mlflow.db") == f"sqlite:///{tmp_path}/deep/mlflow.db"
    assert (tmp_path / "deep").is_dir()
    assert absolute_uri(f"sqlite:///{tmp_path}/a.db?timeout=3") == f"sqlite:///{tmp_path}/a.db?timeout=3"
    assert absolute_uri("https://host:5000") == "https://host:5000"
    assert absolute_uri("postgresql+psycopg2://host/db") == "postgresql+psycopg2://host/db"
    for bad in ("./mlruns", "file:///mlruns", "ftp://host", ""):
        with pytest.raises(
            ConfigError, match=r"is not an address at which MLflow stores runs. Write sqlite:////FOLDER"
        ):
            absolute_uri(bad)
    with pytest.raises(ConfigError, match="names no file"):
        absolute_uri("sqlite://")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/sub cannot be created \(Not a directory\)"):
        absolute_uri("sqlite:///file/sub/mlflow.db")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("val/AP/hot dog", "val/AP/hot dog"),
        ("val/AP/cat (big)", "val/AP/cat _big_"),
        ("val/AP/人", "val/AP/人"),
        ("val/AP/Box/Square", "val/AP/Box/Square"),  # points that are spooled already keep their name
        ("/a//b/./../c/", "a/b/c"),
        ("..", "_"),
        ("", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_metric_names_are_ones_that_mlflow_takes(text: str, name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert metric_name(text) == name
    _validate_metric_name(metric_name(text))


@pytest.mark.parametrize(
    ("class_name", "name"),
    [
        ("Box/Square", "val/AP/Box_Square"),
        ("/a//b/", "val/AP/_a__b_"),
        ("cat (big)", "val/AP/cat _big_"),
        ("hot dog", "val/AP/hot dog"),
        ("三角", "val/AP/三角"),
    ],
)
def test_every_class_is_in_one_section(class_name: str, name: str) -> None:
    assert class_metric_name("val/AP", class_name) == name
