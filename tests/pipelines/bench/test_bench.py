"""`aweigh bench detectors` and `bench deformable`: small real measurements, whose values are not checked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import detectors
from pipelines.bench.network_size import network_size
from pipelines.bench.published_times import TIMES
from pipelines.cli import main

_BARE = ("torch", "torchgen", "functorch", "numpy", "numpy.libs", "sympy", "mpmath", "networkx", "jinja2", "markupsafe")
_BARE_TOO = ("filelock", "fsspec", "typing_extensions.py", "setuptools")


def test_detectors_are_timed_with_the_published_time(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "detectors", "--size", "64", "96", "--repeats", "1", "--device", "cpu", "--names"]
    main([*words, "centernet_resdcn18", "fcos_resnet50", "--json"])
    measured = json.loads(capsys.readouterr().out)
    centernet, fcos = measured["rows"]
    assert (centernet["name"], centernet["published"], centernet["hardware"]) == ("centernet_resdcn18", 7, "Titan Xp")
    assert (fcos["published"], fcos["hardware"], fcos["size"]) == (45, "V100", [64, 96])
    assert centernet["forward"] > 0
    assert centernet["parameters"] == 14_437_349
    assert centernet["kept_bytes"] > 0
    assert fcos["forward_and_decode"] > 0
    # A size that a network cannot take is padded: 100 is not a multiple of 32.
    main(["bench", "detectors", "--size", "60", "100", "--repeats", "1", "--names", "centernet_resnet18"])
    header, row, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["detector", "input", "forward", "+", "decode", "FPS", "M", "param", "MiB", "published"]
    assert row.split()[:2] == ["centernet_resnet18", "64x128"]


def test_activations_are_those_that_a_training_keeps() -> None:
    detector = detectors.build("centernet_resnet18").train()
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = detector(torch.randn(1, 3, 64, 96))
    assert outputs
    measured = network_size("centernet_resnet18", (64, 96))
    assert measured.kept_bytes == sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert measured.parameters == sum(parameter.numel() for parameter in detector.parameters())


def test_every_detector_has_a_published_size_that_its_network_takes() -> None:
    for name in detectors.names():
        with torch.device("meta"):
            sizes = detectors.build(name).sizes
        assert name in TIMES
        assert sizes.fits(*TIMES[name].size), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["detectors", "--names", "centernet_resnet8"], "unknown detector 'centernet_resnet8'; did you mean"),
        (["detectors", "--repeats", "0"], "--repeats is 0; it must be 1 or more"),
        (["detectors", "--device", "tpu9"], "--device is 'tpu9'; choose auto, cpu or cuda"),
        (["deformable", "--repeats", "0"], "--repeats is 0"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_it_runs_where_only_torch_and_numpy_are_installed(tmp_path: Path) -> None:
    site = Path(torch.__file__).parents[1]
    for name in (*_BARE, *_BARE_TOO):
        if (site / name).exists():
            (tmp_path / name).symlink_to(site / name)
    project = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{project}"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert "No module named 'yaml'" in run("-c", "import yaml").stderr
    words = ("bench", "detectors", "--names", "centernet_resnet18", "--size", "64", "64", "--repeats", "1")
    done = run("-m", "pipelines", *words)
    assert done.returncode == 0, done.stderr
    assert "centernet_resnet18" in done.stdout


def test_the_deformable_convolution_is_timed_beside_a_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A torchvision that ends the process that imports it, as one that was built for another torch may.
    (tmp_path / "torchvision.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[3]}")
    main(["bench", "deformable", "--repeats", "1", "--device", "cpu", "--json"])
    measured = json.loads(capsys.readouterr().out)
    assert measured["torchvision"] == "does not work here (ended with status -6)"
    rows = {(row["layer"], *row["shape"]): row for row in measured["rows"]}
    assert set(rows) == {(layer, *shape) for layer in ("plain", "deformable") for shape in ((2, 64, 64), (2, 256, 32))}
    for row in measured["rows"]:
        assert row["forward"] > 0
        assert row["forward_and_backward"] > 0
        # The result alone is as large as the input; the nine sampled maps at once would be 9 inputs and more.
        assert 1 <= row["forward_memory"] < 6
        assert row["forward_memory"] < row["backward_memory"] < 12
