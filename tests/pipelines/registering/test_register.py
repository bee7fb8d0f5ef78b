"""`aweigh register`, and what is done with registered models."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from pipelines.cli import main
from pipelines.errors import ConfigError
from pipelines.registering.log_best import log_best_model
from pipelines.registering.register import register
from pipelines.tracking import RunRecord, start_run
from pipelines.trained.trained import open_trained
from tests.pipelines.test_cli import _refused


def test_a_run_is_registered_and_used_by_its_alias(
    run: Path, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["register", str(run), "cats"])
    out, err = capsys.readouterr()
    assert out == f"cats, version 1, alias champion, in {uri}\n"
    assert f"MLFLOW_TRACKING_URI={uri} aweigh predict models:/cats@champion photo.jpg --output found" in err
    assert f"MLFLOW_TRACKING_URI={uri} mlflow models serve -m models:/cats@champion --env-manager local" in err
    best = open_trained(run)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for address in ("models:/cats@champion", "models:/cats/1", "models:/cats/latest"):
        opened = open_trained(address)
        assert opened.identity.location == "models:/cats/1"
        assert (opened.identity.run, opened.identity.step, opened.class_names) == ("cats", 2, ("cat", "dog"))
        assert opened.thresholds == {"cat": 0.02}
        weights = opened.detector.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in best.detector.state_dict().items())
    # By flag too, and without the variable.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert open_trained("models:/cats@champion", flags=["--tracking.uri", uri]).identity.step == 2


def test_the_alias_moves_to_a_new_version_and_the_same_model_keeps_its_own(
    run: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert log_best_model(run) == 2
    first = register(str(run), "cats", alias="champion").version
    assert (first.number, first.is_new, first.previous) == (1, True, 0)
    # The model that the run had logged; none was added.
    client = MlflowClient(uri)
    (model,) = client.search_logged_models([RunRecord.load(run / "tracking").experiment_id])
    assert model.model_id == first.model_id
    again = register(str(run / "checkpoints" / "step-00000002"), "cats", alias="tested").version
    assert (again.number, again.is_new, again.previous) == (1, False, 0)
    main(["register", str(run), "cats", "--newest", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "name": "cats",
        "version": 2,
        "alias": "champion",
        "model_id": said["model_id"],
        "run": "cats",
        "step": 4,
        "uri": uri,
    }
    main(["register", str(run), "cats"])
    assert capsys.readouterr().out == (
        f"cats, version 1 (registered before), alias champion, which pointed to version 2, in {uri}\n"
    )
    main(["register", str(run), "cats", "--newest", "--alias", ""])
    out, err = capsys.readouterr()
    assert out == f"cats, version 2 (registered before), in {uri}\n"
    assert "models:/cats/2" in err
    assert client.get_registered_model("cats").aliases == {"champion": 1, "tested": 1}


def test_a_file_of_weights_is_registered_without_a_run(run: Path, uri: str, tmp_path: Path) -> None:
    main(["weights", "export", str(run), "--output", str(tmp_path / "cats.safetensors")])
    found = register(str(tmp_path / "cats.safetensors"), "cats", flags=["--tracking.uri", uri])
    assert (found.version.number, found.address) == (1, "models:/cats/1")
    # The file says which run it is of, but not where that run is tracked.
    assert open_trained("models:/cats/1", flags=["--tracking.uri", uri]).identity.step == 2


def test_runs_and_their_models_may_move(run: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(str(run), "cats", alias="champion")
    new = tmp_path / "elsewhere"
    shutil.move(tmp_path / "mlflow", new)
    _artifact_repos_cache.clear()
    monkeypatch.chdir(tmp_path)
    found = register(str(new / "cats"), "cats", newest=True)
    assert (found.version.number, found.uri) == (2, f"sqlite:///{new}/mlflow.db")
    for version in (1, 2):
        opened = open_trained(f"models:/cats/{version}", flags=["--tracking.uri", f"sqlite:///{new}/mlflow.db"])
        assert opened.identity.step == 2 * version


def test_receipts_of_exported_files_are_stored_with_the_model(run: Path, uri: str) -> None:
    (run / "exported").mkdir()
    (run / "exported" / "cats.receipt.json").write_text('{"largest difference": 0.001}')
    found = register(str(run), "cats")
    folder = Path(MlflowClient(uri).get_logged_model(found.version.model_id).artifact_location.removeprefix("file://"))
    assert (folder / "receipts" / "cats.receipt.json").read_text() == '{"largest difference": 0.001}'


def test_a_model_that_does_not_exist_is_one_line(
    run: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register(str(run), "cats", alias="champion")
    MlflowClient(uri).create_registered_model("empty")
    for address, message in {
        "models:/cast@champion": "has no registered model 'cast'; did you mean 'cats'?",
        "models:/zebra/1": "has no registered model 'zebra'; it has cats, empty.",
        "models:/cats@best": "'cats' has no alias 'best'; it has versions 1 and aliases @champion.",
        "models:/cats/7": "'cats' has no version 7; it has versions 1",
        "models:/cats": "Write models:/cats@ALIAS or models:/cats/VERSION",
        "models:/empty/latest": "'empty' has no version latest; it has versions none and aliases none",
        "models:cats": "models:cats is not the address of a model",
        "models:/m-00000000000000000000000000000000": "has no model m-0000",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(message)):
            open_trained(address, flags=["--tracking.uri", uri])
    monkeypatch.chdir(tmp_path)
    line = _refused(capsys, "evaluate", "models:/cats@champion", "--data", "shards/val")
    assert f"there is no MLflow database {tmp_path}/runs/mlflow.db" in line
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_a_model_of_other_code_is_refused_without_running_it(run: Path, uri: str, tmp_path: Path) -> None:
    client = MlflowClient(uri)
    client.create_registered_model("foreign")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text("flavors: {python_function: {loader_module: antigravity}}")
    client.create_model_version("foreign", (tmp_path / "model").as_uri())
    with pytest.raises(ConfigError, match=r"models:/foreign/1 has no data/weights\.safetensors"):
        open_trained("models:/foreign/1", flags=["--tracking.uri", uri])


@pytest.mark.slow
def test_a_server_takes_models_and_gives_their_weights(
    mlflow_server: tuple[str, Callable[[], None], Callable[[], None]], checkpoints: Path, tmp_path: Path
) -> None:
    uri, begin, _ = mlflow_server
    begin()
    run = tmp_path / "runs" / "cats"
    start_run(uri, "cells", "cats", params={}, tags={}, folder=run / "tracking")
    shutil.copytree(checkpoints, run / "checkpoints")
    assert log_best_model(run) == 2
    first = register(str(run), "cats", alias="champion")
    assert (first.version.number, first.uri) == (1, uri)
    assert register(str(run), "cats", alias="champion", newest=True).version.previous == 1
    opened = open_trained("models:/cats@champion", flags=["--tracking.uri", uri])
    assert (opened.identity.location, opened.identity.step) == ("models:/cats/2", 4)
    assert open_trained("models:/cats/1", flags=["--tracking.uri", uri]).thresholds == {"cat": 0.02}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "a/b"], "'a/b' cannot be the name of a model"),
        (["{run}", ""], "'' cannot be the name of a model"),
        (["{run}", "cats", "--alias", "a:b"], "--alias is 'a:b'"),
        (["{run}", "cats", "--alias", "v1"], "'cats' with alias 'v1' cannot be registered"),
        (["{run}", "cats", "--data.threads", "3"], "unknown argument '--data.threads'"),
        (["nowhere", "cats"], "nowhere has no checkpoint"),
        (["{run}", "cats", "--tracking.uri", "ftp://host"], "is not an address at which MLflow stores runs"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in _refused(capsys, "register", *[word.replace("{run}", str(run)) for word in arguments])


def test_a_server_that_does_not_answer_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    address = "http://me:secret@127.0.0.1:9"
    line = _refused(capsys, "register", run, "cats", "--tracking.uri", address)
    assert "cats cannot be registered at http://127.0.0.1:9" in line
    assert "secret" not in line
    line = _refused(capsys, "evaluate", "models:/cats@champion", "--tracking.uri", address)
    assert "models:/cats@champion cannot be looked up at http://127.0.0.1:9" in line
    assert "secret" not in line
