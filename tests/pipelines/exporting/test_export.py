"""A run becomes a file with a receipt; a file that computes something else is not kept."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_shards.format.manifest import load_manifest
from detectors import DetectorError
from detectors.portable import PortableDetector
from pipelines import cli
from pipelines.errors import ConfigError
from pipelines.exporting import export as exporting
from pipelines.exporting.export import ExportSettings, input_of, plan_lines
from pipelines.trained.exported_file import open_exported
from pipelines.trained.trained import Trained, open_trained
from tests.pipelines.exporting.small_runs import small_recipe, write_run


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory, small_shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    return write_run(folder, small_shards, small_recipe(small_shards))


def exported(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    cli.main(["export", *arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_an_onnx_file_finds_the_same_as_its_run(
    tmp_path: Path, small_run: Path, small_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "small.onnx"
    receipt = exported([str(small_run), "--to", "onnx", "--output", str(path)], capsys)
    assert json.loads((path.parent / "small.onnx.receipt.json").read_text()) == receipt
    assert sorted(one.name for one in path.parent.iterdir()) == ["small.onnx", "small.onnx.receipt.json"]
    compared = receipt["comparison"]
    assert compared["images"] == 6
    assert compared["detections"] >= 30
    assert compared["without_counterpart"] == 0
    assert compared["differences"]["boxes"]["largest"] < 0.01
    assert receipt["raw_maps"]["largest"] < 0.01
    assert receipt["file_figures"]["AP"] == pytest.approx(receipt["run_figures"]["AP"], abs=1e-3)
    assert receipt["bytes"] == path.stat().st_size
    assert {"torch", "onnx", "onnxruntime", "opset"} <= receipt["versions"].keys()
    assert receipt["run"]["step"] == 5

    detector, _ = open_exported(path)
    description = detector.description
    assert description.strides == (4,)
    assert description.input.fixed_size == (64, 64)
    assert description.limit == 20
    assert description.identity.weights_sha256 == receipt["run"]["weights_sha256"]
    assert [one.name for one in description.classes] == list(load_manifest(str(small_shards / "val")).class_names)

    cli.main(["evaluate", str(path), "--data", str(small_shards / "val"), "--json"])
    assert json.loads(capsys.readouterr().out)["AP"] == receipt["file_figures"]["AP"]
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(path)])
    assert "small.onnx names no validation shards; give --data LOCATION/SPLIT." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(path), "--data", str(small_shards / "val"), "--tta", "flip"])
    assert "one pass over one image, without test-time augmentation (flip)" in capsys.readouterr().err


def test_no_file_names_a_place_of_this_machine(
    tmp_path: Path, small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported([str(small_run), "--to", "onnx", "--output", str(tmp_path / "small.onnx")], capsys)
    exported([str(small_run), "--to", "torch", "--output", str(tmp_path / "small.pt2")], capsys)
    contents = [(tmp_path / "small.onnx").read_bytes()]
    with zipfile.ZipFile(tmp_path / "small.pt2") as archive:
        contents += [archive.read(name) for name in archive.namelist()]
    root = str(Path(__file__).resolve().parents[3]).encode()
    for content in contents:
        for place in (root, str(tmp_path).encode(), b"site-packages", str(Path.home()).encode() + b"/"):
            assert place not in content


def test_a_file_of_torch_takes_any_number_of_images_of_any_size(
    tmp_path: Path, small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.pt2"
    words = ["--to", "torch", "--output", str(path), "--batch", "dynamic", "--input", "float", "--dynamic"]
    large = ["--evaluation.input_size", "192", "160", "--images", "3"]
    receipt = exported([str(small_run), *words, *large], capsys)
    assert receipt["comparison"]["images"] == 3
    assert receipt["comparison"]["without_counterpart"] == 0
    detector, device = open_exported(path, torch.device("cpu"))
    assert str(detector.description.input) == "any number of images of any size, float32"
    found = detector.run(torch.rand(3, 3, 160, 224, device=device) * 255)
    assert len(found) == 3
    with pytest.raises(DetectorError, match=r"96 x 128 pixels; .*small\.pt2 takes height and width from 160 on"):
        detector.run(torch.rand(3, 3, 96, 128, device=device) * 255)


def test_half_precision_is_smaller_and_nearly_the_same(
    tmp_path: Path, small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = []
    for half in (False, True):
        path = tmp_path / f"{half}.pt2"
        words = ["--to", "torch", "--output", str(path), *(["--half"] if half else [])]
        receipt = exported([str(small_run), *words], capsys)
        with zipfile.ZipFile(path) as archive:
            sizes.append(sum(one.file_size for one in archive.infolist() if "data/weights/weight_" in one.filename))
    assert receipt["precision"] == "float16"
    assert receipt["comparison"]["bounds"]["pixels"] == 2
    assert 1e-5 < receipt["raw_maps"]["largest"] < 1
    assert sizes[1] < 0.55 * sizes[0]


def perturbed(portable: PortableDetector) -> None:
    with torch.no_grad():
        for parameter in portable.detector.parameters():
            parameter.mul_(1 + 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))


def with_channels_swapped(portable: PortableDetector) -> None:
    with torch.no_grad():
        first = next(portable.detector.parameters())
        first.copy_(first.flip(1))


def with_classes_moved(portable: PortableDetector) -> None:
    with torch.no_grad():
        last = portable.detector.hm.last
        last.weight.copy_(last.weight.roll(1, 0))


def with_another_mean(portable: PortableDetector) -> None:
    portable.offset += 0.1


@pytest.mark.parametrize("spoil", [perturbed, with_channels_swapped, with_classes_moved, with_another_mean])
def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path,
    small_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[PortableDetector], None],
) -> None:
    original = exporting.to_torch_export

    def spoiled(portable: PortableDetector, *arguments: Any) -> None:
        spoil(portable)
        original(portable, *arguments)

    monkeypatch.setattr(exporting, "to_torch_export", spoiled)
    path = tmp_path / "small.pt2"
    path.write_text("the file before")
    with pytest.raises(SystemExit):
        cli.main(["export", str(small_run), "--to", "torch", "--output", str(path)])
    said = capsys.readouterr().err.splitlines()[-1]
    assert "is not kept, because its boxes differ from the run's" in said
    assert "have no counterpart within 0.1 pixels and a score of 0.001" in said
    assert [one.name for one in tmp_path.iterdir()] == ["small.pt2"]
    assert path.read_text() == "the file before"


def test_an_exported_file_is_not_exported_again(
    tmp_path: Path, small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.pt2"
    exported([str(small_run), "--to", "torch", "--output", str(path)], capsys)
    with pytest.raises(SystemExit):
        cli.main(["export", str(path), "--to", "torch", "--output", str(tmp_path / "again.pt2")])
    assert "small.pt2 is an exported file already; give the run that it was made of." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output": Path("a.pt2")}, "a file of --to onnx ends in .onnx"),
        ({"to": "torch"}, "a file of --to torch ends in .pt2"),
        ({"dynamic": True, "input_size": (64, 64)}, "--dynamic takes any size, so --input-size has no use"),
        ({"batch": 0}, "--batch is 0; it must be 1 or more."),
        ({"limit": 0}, "--limit is 0; it must be 1 or more."),
        ({"images": -1}, "--images is -1; it must be 1 or more."),
        ({"bound": 0.0}, "--bound is 0; it must be above 0."),
        ({"bound": float("nan")}, "--bound is nan"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_opened(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        replace(ExportSettings(to="onnx", output=Path("a.onnx")), **changes).check()
    assert words in str(refused.value)


@pytest.fixture(scope="module")
def trained(small_run: Path) -> Trained:
    return open_trained(small_run, device=torch.device("cpu"))


def settings(**changes: Any) -> ExportSettings:
    return ExportSettings(to="onnx", output=Path("a.onnx"), **changes)


def with_geometry(trained: Trained, geometry: Any, **changes: Any) -> Trained:
    recipe = trained.recipe
    return replace(trained, recipe=replace(recipe, evaluation=replace(recipe.evaluation, geometry=geometry, **changes)))


def test_the_input_follows_from_the_geometry(trained: Trained) -> None:
    fixed = input_of(trained, settings())
    assert (fixed.height, fixed.width, fixed.batch, fixed.any_size, fixed.pixels) == (64, 64, 1, False, "uint8")
    keep = input_of(with_geometry(trained, "keep"), settings(batch=None))
    assert (keep.batch, keep.any_size, keep.pixels) == (None, True, "uint8")
    padded = input_of(with_geometry(trained, "shorter_side"), settings())
    assert (padded.any_size, padded.pixels) == (True, "float32")
    assert input_of(with_geometry(trained, "shorter_side"), settings(pixels="uint8")).pixels == "uint8"
    given = input_of(with_geometry(trained, "shorter_side"), settings(input_size=(96, 128)))
    assert (given.height, given.width, given.any_size, given.pixels) == (96, 128, False, "uint8")
    assert input_of(trained, settings(dynamic=True)).any_size


def test_a_size_that_the_network_does_not_take_is_refused_with_the_nearest(trained: Trained) -> None:
    with pytest.raises(ConfigError, match=r"needs multiples of 32: set --input-size 96 128\."):
        input_of(trained, settings(input_size=(100, 120)))


def test_what_a_file_leaves_out_is_said_before(trained: Trained) -> None:
    augmented = with_geometry(trained, "shorter_side", tta="flip")
    given = input_of(augmented, settings(input_size=(96, 96)))
    said = dict(plan_lines(augmented, given, settings()))
    assert said["geometry"] == "fixed, for the file and the run: shorter_side has inputs of many sizes"
    assert said["left out"] == "test-time augmentation (flip): a file holds one pass over one image"
    assert said["input"] == "1 image of 96 x 96 pixels, uint8, RGB from 0 to 255"
    assert said["output"] == "20 detections an image, in pixels of the input"
