"""A recipe has no secrets, whatever the addresses it was given."""

import base64
import os
from pathlib import Path

import pytest

from pipelines import recipes
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import from_yaml, to_yaml, with_flags
from pipelines.recipes.secrets import addresses_with_secrets, full_address, recipe_to_send, web_request
from pipelines.tracking import tracking_uri


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore afterwards what reading a recipe adds."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_user_and_password_of_mlflow_move_to_its_variables(tmp_path: Path) -> None:
    recipe = with_flags(recipes.get("demo"), ["--tracking.uri", "http://trainer:s3cr3t%40pw@127.0.0.1:1/ml"])
    assert recipe.tracking.uri == "http://127.0.0.1:1/ml"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "trainer"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "s3cr3t@pw"
    assert tracking_uri(recipe) == "http://127.0.0.1:1/ml"
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe).replace("http://", "http://other:s3cr3t@"))
    again = from_yaml(tmp_path / "recipe.yaml")
    assert "s3cr3t" not in to_yaml(again)
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "other"


def test_the_variable_of_mlflow_is_read_without_its_password() -> None:
    recipe = recipes.get("demo")
    os.environ["MLFLOW_TRACKING_URI"] = "https://trainer:s3cr3t@host/ml"
    assert tracking_uri(recipe) == "https://host/ml"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "s3cr3t"
    os.environ["MLFLOW_TRACKING_URI"] = "mysql://user:s3cr3t@host/ml"
    assert tracking_uri(recipe) == "mysql://user:s3cr3t@host/ml"


def test_a_database_is_used_with_its_password_and_shown_without(tmp_path: Path) -> None:
    uri = "postgresql://user:s3cr3t@host:5432/ml"
    recipe = with_flags(recipes.get("demo"), [f"--tracking.uri={uri}"])
    assert recipe.tracking.uri == "postgresql://host:5432/ml"
    assert tracking_uri(recipe) == uri
    # As in a worker or a job, which has the environment and the recipe as it was recorded.
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    assert tracking_uri(from_yaml(tmp_path / "recipe.yaml")) == uri


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://host/w.pth?X-Amz-Signature=s3cr3t&id=7", "https://host/w.pth"),
        ("https://user:s3cr3t@host/w.pth", "https://host/w.pth"),
        ("https://host/download?id=7", "https://host/download?id=7"),
    ],
)
def test_weights_are_fetched_from_the_full_address(address: str, shown: str) -> None:
    recipe = with_flags(recipes.get("demo"), ["--detector.weights", address])
    assert recipe.detector.weights == shown
    assert "s3cr3t" not in to_yaml(recipe)
    assert full_address(shown) == address
    request = web_request(shown)
    if "user" in address:
        assert request.full_url == shown
        assert request.get_header("Authorization") == f"Basic {base64.b64encode(b'user:s3cr3t').decode()}"
    else:
        assert request.full_url == address


def test_an_error_does_not_repeat_the_password() -> None:
    with pytest.raises(ConfigError) as caught:
        with_flags(recipes.get("demo"), ["--tracking.every_steps", "http://user:s3cr3t@host"])
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 50_000])
def test_a_recipe_nested_too_deeply_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"recipe\.yaml") as caught:
        from_yaml(tmp_path / "recipe.yaml")
    assert "\n" not in str(caught.value)


def test_a_recipe_is_sent_without_its_secrets_which_the_job_has_in_its_environment(tmp_path: Path) -> None:
    uri, weights = "postgresql://user:s3cr3t@host:5432/ml", "https://host/w.pth?X-Amz-Signature=s3cr3t"
    text = to_yaml(recipes.get("demo"))
    text = text.replace("  uri: ''", f"  uri: '{uri}'  # of our group").replace("weights: null", f"weights: {weights}")
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "copy").mkdir()
    recipe = from_yaml(tmp_path / "mine.yaml")
    sent = recipe_to_send(tmp_path / "mine.yaml", tmp_path / "copy")
    assert sent == tmp_path / "copy" / "mine.yaml"
    assert "s3cr3t" not in sent.read_text()
    assert "# of our group" in sent.read_text()
    assert from_yaml(sent) == recipe
    assert (tracking_uri(from_yaml(sent)), full_address(str(recipe.detector.weights))) == (uri, weights)
    # The copy has nothing to hide, and is sent as it is.
    assert recipe_to_send(sent, tmp_path) == sent


def test_a_secret_that_cannot_be_replaced_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text('tracking:\n  uri: "http://user:s3c\\x723t@host"\n')
    with pytest.raises(ConfigError, match=r"mine\.yaml has an address with a password, written with escapes"):
        recipe_to_send(tmp_path / "mine.yaml", tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("other.yaml", "a: 1\nuri: http://user:s3cr3t@host:5000/ml\n", "other.yaml, line 2 (http://host:5000/ml)"),
        ("conf/a.JSON", '{"uri": "mysql://user:s3cr3t@host/ml"}', "conf/a.JSON, line 1 (mysql://host/ml)"),
        ("load.py", "get('https://host/w.pth?X-Amz-Signature=s3cr3t&X=1')", "load.py, line 1 (https://host/w.pth)"),
        ("x.toml", "# see http://HOST:PORT\nu='http://t0ken@host'", "x.toml, line 2 (http://host)"),
        ("run.sh", "curl http://$USER:$PASSWORD@host https://user:$PASSWORD@host", ""),
        ("load.py", "f'http://{user}:{password}@host/x?token={token}', 'https://host/w?token={}'", ""),
        ("load.py", "'http://127.0.0.1:8265', 'http://HOST:PORT', 'https://host/w.pth?id=7', 'a@b.org'", ""),
        ("tests/test_load.py", "'http://user:s3cr3t@host'", ""),
        ("image.jpg", "http://user:s3cr3t@host", ""),
        ("large.json", " " * (1 << 20) + "http://user:s3cr3t@host", ""),
    ],
)
def test_files_with_a_secret_in_an_address_are_named_without_it(
    tmp_path: Path, name: str, text: str, found: str
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    assert addresses_with_secrets({name: file}) == ([found] if found else [])
