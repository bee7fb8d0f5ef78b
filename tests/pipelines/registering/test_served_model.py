"""The model as MLflow uses it: bytes or paths in, detections out; in this process, alone, and over HTTP."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas
import PIL.Image
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from pipelines import load
from pipelines.registering.model_folder import REQUIREMENTS, write_model
from pipelines.registering.register import register
from pipelines.registering.served_model import _SERVING, IMAGES_FOLDER, ServedModel
from pipelines.trained.trained import open_trained

PATIENCE_SECONDS = 300.0
COLUMNS = ["width", "height", "boxes", "scores", "labels", "class_names", "error"]


def _jpeg(seed: int, width: int = 80, height: int = 60) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def model_folder(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "detector"
    write_model(folder, open_trained(checkpoints.parent))
    return folder


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Any:
    return mlflow.pyfunc.load_model(str(model_folder))


def test_every_row_has_what_the_predictor_finds(model: Any, checkpoints: Path) -> None:
    images = [_jpeg(1), _jpeg(2, 64, 96)]
    rows = model.predict(pandas.DataFrame({"image": images}), params={"threshold": 0.0})
    assert list(rows) == COLUMNS
    expected = load(checkpoints.parent).predict(images, threshold=0.0)
    for row, one in zip(rows.to_dict("records"), expected, strict=True):
        assert (row["height"], row["width"]) == one.size
        assert len(one) > 0
        assert row["boxes"] == one.boxes.tolist()
        assert (row["scores"], row["labels"]) == (one.scores.tolist(), one.labels.tolist())
        assert (row["class_names"], row["error"]) == (one.class_names, "")
    json.dumps(rows.to_dict("records"))  # nothing of numpy's


def test_without_a_threshold_the_best_of_the_runs_evaluation_counts(model: Any, checkpoints: Path) -> None:
    (row,) = model.predict(pandas.DataFrame({"image": [_jpeg(1)]})).to_dict("records")
    assert row["scores"] == load(checkpoints.parent).predict(_jpeg(1)).scores.tolist()
    flipped = model.predict(pandas.DataFrame({"image": [_jpeg(1)]}), params={"threshold": 0.0, "tta": "flip"})
    assert flipped["scores"][0] == load(checkpoints.parent).predict(_jpeg(1), threshold=0.0, tta="flip").scores.tolist()


def test_a_row_that_cannot_be_read_does_not_affect_the_others(model: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(_jpeg(1))
    frame = pandas.DataFrame(
        {
            "image": [_jpeg(1), b"no image", _jpeg(1)[:300], None, None, None],
            "path": [None, None, None, str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg"), None],
        }
    )
    rows = model.predict(frame, params={"threshold": 0.0}).to_dict("records")
    assert [bool(row["error"]) for row in rows] == [False, True, True, False, True, True]
    assert rows[0]["boxes"] == rows[3]["boxes"] != []
    assert all(row["boxes"] == [] and row["width"] == 0 for row in rows if row["error"])
    assert "neither a JPEG nor a PNG" in rows[1]["error"]
    assert rows[4]["error"] == f"{tmp_path}/b.jpg cannot be read (No such file or directory)."
    assert "give the bytes of a JPEG or PNG file, or its path" in rows[5]["error"]


@pytest.mark.parametrize("start", ["", "data:image/jpeg;base64,"])
def test_base64_that_mlflow_leaves_is_decoded(start: str, checkpoints: Path) -> None:
    served = ServedModel(load(checkpoints.parent))
    text = start + base64.b64encode(_jpeg(1)).decode()
    for value in (text, text.encode()):
        (row,) = served.predict(pandas.DataFrame({"image": [value]}), {"threshold": 0.0}).to_dict("records")
        assert row["error"] == ""
        assert row["scores"] == load(checkpoints.parent).predict(_jpeg(1), threshold=0.0).scores.tolist()


@pytest.mark.parametrize(
    ("columns", "params", "message"),
    [
        (["image"], {"threshold": 5.0}, "threshold is 5.0 for cat; give a number from 0 to 1"),
        (["image"], {"tta": "sideways"}, "sideways"),
        (["photo"], {}, "the columns are photo; give image"),
        ([], {}, "the columns are none; give image"),
    ],
)
def test_a_mistake_in_a_request_is_said(
    columns: list[str], params: dict[str, Any], message: str, checkpoints: Path
) -> None:
    served = ServedModel(load(checkpoints.parent))
    with pytest.raises(MlflowException, match=message):
        served.predict(pandas.DataFrame({name: [_jpeg(1)] for name in columns}), params)


def test_a_server_reads_only_the_folder_that_it_was_given(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = ServedModel(load(checkpoints.parent))
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for place in ("secret.jpg", "photos/a.jpg", "photos/more/b.jpg"):
        (tmp_path / place).write_bytes(_jpeg(1))
    (tmp_path / "photos" / "link.jpg").symlink_to(tmp_path / "secret.jpg")

    def errors(*paths: str) -> list[str]:
        return list(served.predict(pandas.DataFrame({"path": list(paths)}))["error"])

    asked = ["a.jpg", "more/b.jpg", str(tmp_path / "photos" / "a.jpg"), "../secret.jpg", str(tmp_path / "secret.jpg")]
    asked += ["link.jpg", "more/../../secret.jpg", "a\0.jpg"]
    monkeypatch.setenv(_SERVING, "/model")
    assert all("this server reads no files" in one for one in errors(*asked))
    monkeypatch.setenv(IMAGES_FOLDER, str(tmp_path / "photos"))
    found = errors(*asked)
    assert found[:3] == ["", "", ""]
    assert all(one for one in found[3:])
    assert found[3:7] == [f"this server reads only files in {IMAGES_FOLDER}."] * 4


def test_an_image_that_claims_to_be_huge_is_not_decoded(checkpoints: Path) -> None:
    data = bytearray(_jpeg(1))
    start = data.index(b"\xff\xc0")  # its frame: height and width follow length and precision
    data[start + 5 : start + 9] = b"\xf0\x00\xf0\x00"
    rows = ServedModel(load(checkpoints.parent)).predict(pandas.DataFrame({"image": [bytes(data)]}))
    assert "61,440 x 61,440 pixels, more than 200,000,000" in rows["error"][0]


def test_the_model_says_what_it_takes_and_returns(model_folder: Path, checkpoints: Path) -> None:
    described = Model.load(str(model_folder))
    assert described.signature.inputs.input_names() == ["image", "path"]
    assert described.signature.outputs.input_names() == COLUMNS
    assert [one.name for one in described.signature.params.params] == ["threshold", "tta"]
    assert described.metadata == {"detector": "centernet_resnet18", "classes": ["cat", "dog"], "run": "cats", "step": 2}
    example = described.load_input_example(str(model_folder))
    (row,) = mlflow.pyfunc.load_model(str(model_folder)).predict(example).to_dict("records")
    assert (row["width"], row["height"], row["error"]) == (96, 64, "")
    # No place of this machine.
    texts = [path.read_text() for path in model_folder.iterdir() if path.is_file()]
    assert not [text for text in texts if str(checkpoints) in text]


# Run where neither the project nor its sources are, by what a server has: the folder's own code.
_ALONE = """
import sys
import mlflow.pyfunc, pandas
before = set(sys.modules)
model = mlflow.pyfunc.load_model(sys.argv[1])
(row,) = model.predict(pandas.DataFrame({"image": [open(sys.argv[2], "rb").read()]})).to_dict("records")
assert not row["error"], row
import pipelines
assert pipelines.__file__.startswith(sys.argv[1]), pipelines.__file__
print(" ".join(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def test_the_model_works_without_the_project_and_its_requirements_are_complete(
    model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(_jpeg(1))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, str(model_folder), str(tmp_path / "a.jpg")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert not loaded & {"ray", "deepspeed"}
    distributions = packages_distributions()
    imported = {name.lower() for module in loaded for name in distributions.get(module, ())}
    # What the requirements bring with them, which pip installs.
    wanted, closure = [*REQUIREMENTS, "mlflow"], set[str]()
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name not in closure:
            closure.add(name)
            with suppress(PackageNotFoundError):
                lines = [line for line in requires(name) or [] if "extra ==" not in line]
                wanted += [found[0] for line in lines if (found := re.match(r"[\w.-]+", line))]
    missing = {name.replace("_", "-") for name in imported} - closure - {"aweigh", "pip", "setuptools", "pytest"}
    assert not missing


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _post(port: int, content: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.slow
def test_a_registered_model_is_served_over_http(run: Path, uri: str, tmp_path: Path) -> None:
    register(str(run), "cats", alias="champion")
    port = _free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/cats@champion"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    # `mlflow models serve` finds its uvicorn on the PATH.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment.pop("PYTHONPATH", None)
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--env-manager", "local", "--port", str(port)],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        encoded = base64.b64encode(_jpeg(1)).decode()
        expected = load(run).predict(_jpeg(1), threshold=0.0)
        rows = [{"image": encoded}, {"image": base64.b64encode(b"no image").decode()}]
        for content in (
            {"dataframe_records": rows},
            {"dataframe_split": {"columns": ["image"], "data": [[row["image"]] for row in rows]}},
            {"inputs": {"image": [row["image"] for row in rows]}},
        ):
            status, answer = _post(port, {**content, "params": {"threshold": 0.0}})
            assert status == 200
            good, bad = answer["predictions"]
            assert good["scores"] == pytest.approx(expected.scores.tolist())
            assert np.array(good["boxes"]) == pytest.approx(expected.boxes, abs=1e-3)
            assert good["class_names"] == expected.class_names
            assert (bad["boxes"], bool(bad["error"])) == ([], True)
        status, answer = _post(port, {"dataframe_records": [{"image": encoded}], "params": {"threshold": 5}})
        assert status == 400
        assert "threshold is 5" in answer["message"]
        _, answer = _post(port, {"dataframe_records": [{"path": "/etc/passwd"}]})
        assert "this server reads no files" in answer["predictions"][0]["error"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(PATIENCE_SECONDS)
