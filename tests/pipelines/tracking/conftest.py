"""An MLflow database of its own for each test, and a picture."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mlflow import MlflowClient

from pipelines.tracking import absolute_uri


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, made once: making them takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").get_experiment_by_name("none")
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    (tmp_path / "mlflow").mkdir()
    shutil.copy(empty_database, tmp_path / "mlflow" / "mlflow.db")
    return absolute_uri(f"sqlite:///{tmp_path}/mlflow/mlflow.db")


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "page.png"
    cv2.imwrite(str(path), np.full((30, 40, 3), 200, dtype=np.uint8))
    return path
