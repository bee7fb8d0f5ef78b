"""Weights files that describe themselves: written, read, refused, and rebuilt as a detector."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import detectors
from cluster.checkpoints.checkpoint import CheckpointFolder
from cluster.engine.engine import TrainingState
from data_shards.format.manifest import CocoClass
from detectors.errors import DetectorError
from detectors.weights.description import KEY, read_description
from detectors.weights.save import save_as
from pipelines import recipes
from pipelines.cli import main
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import to_dict, with_flags
from pipelines.recipes.settings import Recipe
from pipelines.trained.checkpoint_facts import CheckpointFacts
from pipelines.trained.trained import open_trained
from pipelines.trained.weights_file import (
    Description,
    described,
    find_description,
    parse_description,
    write_weights,
)

SETTINGS = {"width": 8, "deconv_channels": [8, 8, 8], "head_channels": 8}
CLASSES = (CocoClass(3, "cat", keypoints=("nose", "tail"), skeleton=((1, 2),)), CocoClass(7, "Kätzchen"))


def _recipe() -> Recipe:
    places = [
        "--data.train",
        "/home/me/shards/train",
        "--data.validation",
        "s3://mine/val",
        "--data.cache_folder",
        "/c",
    ]
    return with_flags(
        recipes.get("demo"), ["--detector.settings", json.dumps(SETTINGS), "--evaluation.tta", "flip", *places]
    )


@pytest.fixture(scope="module")
def detector() -> detectors.Detector:
    torch.manual_seed(0)
    return detectors.build("centernet_resnet18", 2, **SETTINGS).eval()


@pytest.fixture
def description() -> Description:
    return described(_recipe(), CLASSES, run="cats", step=40, mlflow_run="abc", thresholds={"cat": 0.25})


def test_a_file_alone_rebuilds_its_detector(
    detector: detectors.Detector, description: Description, tmp_path: Path
) -> None:
    path = tmp_path / "cats.safetensors"
    write_weights(detector, path, description)
    opened = open_trained(path, flags=["--evaluation.batch_size", "1"])
    assert opened.classes == CLASSES
    assert opened.recipe.detector.settings == SETTINGS
    assert opened.recipe.evaluation == replace(_recipe().evaluation, batch_size=1)
    assert opened.recipe.data.input_size == opened.input_size == (160, 160)
    assert (opened.identity.location, opened.identity.run, opened.identity.step) == (str(path), "cats", 40)
    assert opened.identity.mlflow_run == "abc"
    assert opened.thresholds == {"cat": 0.25}
    assert not opened.detector.training
    assert all(torch.equal(value, detector.state_dict()[key]) for key, value in opened.detector.state_dict().items())
    # What is opened can be written again, with nothing lost.
    assert opened.describe() == replace(description, evaluation={**description.evaluation, "batch_size": 1})


def test_no_place_of_a_machine_is_recorded(
    detector: detectors.Detector, description: Description, tmp_path: Path
) -> None:
    path = tmp_path / "cats.safetensors"
    write_weights(detector, path, description)
    said = read_description(path)
    assert not [word for word in ("/home/me", "s3://mine", '/c"', "uri", "folder") if word in said]


@pytest.mark.parametrize("name", ["centernet_resnet18", "fcos_resnet50", "foveabox_resnet50"])
def test_other_libraries_load_what_they_expect_beside_a_description(name: str, tmp_path: Path) -> None:
    narrow = SETTINGS if name == "centernet_resnet18" else {"width": 4, "channels": 64}
    torch.manual_seed(0)
    for library in detectors.build(name, 3, **narrow).published.export_layouts:
        settings: dict[str, Any] = dict(narrow)
        if name == "fcos_resnet50":
            settings["variant"] = {"authors": "original"}.get(library, library)
        try:
            of_library = detectors.build(name, 3, **settings)
            save_as(of_library, tmp_path / "plain.pth", library)
        except DetectorError:
            continue  # not in this variant
        text = Description(detector=name, settings=settings, num_classes=3).to_json()
        save_as(of_library, tmp_path / "told.pth", library, description=text)
        plain, told = (torch.load(tmp_path / f"{one}.pth", weights_only=True) for one in ("plain", "told"))
        assert list(plain) == list(told)
        weights = [next((value for value in one.values() if isinstance(value, dict)), one) for one in (plain, told)]
        assert list(weights[0]) == list(weights[1])
        assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
        assert read_description(tmp_path / "told.pth") == text
        assert read_description(tmp_path / "plain.pth") == ""


def test_a_file_of_torch_save_rebuilds_its_detector_too(
    detector: detectors.Detector, description: Description, tmp_path: Path
) -> None:
    save_as(detector, tmp_path / "cats.pth", description=description.to_json())
    opened = open_trained(tmp_path / "cats.pth")
    assert opened.class_names == ("cat", "Kätzchen")
    assert all(torch.equal(value, detector.state_dict()[key]) for key, value in opened.detector.state_dict().items())


def test_files_of_a_checkpoint_are_used_alone_and_in_their_folder(detector: detectors.Detector, tmp_path: Path) -> None:
    facts = CheckpointFacts(
        detector="centernet_resnet18",
        classes=[{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        manifest="0" * 64,
        recipe=to_dict(_recipe()),
        run="cats",
        thresholds={"dog": 0.5},
    )
    state = TrainingState(dict(detector.state_dict()), {}, {})
    folder = CheckpointFolder(tmp_path / "cats" / "checkpoints")
    old = folder.save(state, {"step": 3, **facts.as_dict()}, 0.5)
    # In a checkpoint of an earlier version only the folder describes the weights.
    assert read_description(old.path / "weights.safetensors") == ""
    for place in (tmp_path / "cats", old.path, old.path / "weights.safetensors"):
        opened = open_trained(place)
        assert (opened.class_names, opened.identity.step, opened.thresholds) == (("cat", "dog"), 3, {"dog": 0.5})
    shutil.copy(old.path / "weights.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(ConfigError, match=r"alone\.safetensors does not say which detector its weights are of"):
        open_trained(tmp_path / "alone.safetensors")


def test_a_checkpoint_without_thresholds_has_none(detector: detectors.Detector, tmp_path: Path) -> None:
    facts = {"detector": "centernet_resnet18", "manifest": "0" * 64, "recipe": to_dict(_recipe())}
    state = TrainingState(dict(detector.state_dict()), {}, {})
    classes = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    CheckpointFolder(tmp_path / "checkpoints").save(state, {"step": 3, "classes": classes, **facts})
    assert open_trained(tmp_path).thresholds == {}


def test_a_file_that_an_earlier_version_imported_names_its_detector_but_no_class(
    detector: detectors.Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, whole = tmp_path / "old.safetensors", tmp_path / "whole.safetensors"
    metadata = {"detector": "centernet_resnet18", "num_classes": "2", "settings": json.dumps(SETTINGS), "source": "x"}
    save_file(dict(detector.state_dict()), path, metadata)
    with pytest.raises(ConfigError, match=r"names its detector, centernet_resnet18, but not its classes.*classes-from"):
        open_trained(path)
    names = tmp_path / "names.json"
    categories = [{"id": one.id, "name": one.name} for one in CLASSES]
    names.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    main(["weights", "import", str(path), "--classes-from", str(names), "--output", str(whole)])
    assert "classes cat, Kätzchen, images as in recipe centernet_resnet18_1x" in capsys.readouterr().err
    opened = open_trained(whole)
    assert opened.class_names == ("cat", "Kätzchen")
    assert opened.input_size == (512, 512)
    assert all(torch.equal(value, load_file(path)[key]) for key, value in opened.detector.state_dict().items())


def test_published_files_are_described_by_their_publication(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"width": 4, "channels": 64, "variant": "adelaidet"}
    save_as(detectors.build("fcos_resnet50", 80, **settings), tmp_path / "FCOS_R_50_1x.pth", "adelaidet")
    flags = ["--detector.settings.width", "4", "--detector.settings.channels", "64"]
    out = tmp_path / "fcos.safetensors"
    main(
        [
            "weights",
            "import",
            str(tmp_path / "FCOS_R_50_1x.pth"),
            "--detector",
            "fcos_resnet50",
            *flags,
            "--output",
            str(out),
        ]
    )
    opened = open_trained(out)
    assert (opened.classes[0], opened.classes[-1]) == (CocoClass(1, "person"), CocoClass(90, "toothbrush"))
    assert opened.recipe.evaluation.geometry == "shorter_side"
    main(["weights", "import", str(out), "--recipe", "fcos_adelaidet_resnet50_1x", "--output", str(out)])
    assert "images as in recipe fcos_adelaidet_resnet50_1x" in capsys.readouterr().err
    # AdelaiDet's boxes end at x + width.
    assert open_trained(out).recipe.data.box_ends == "edge"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "is described in format 2; this aweigh reads 1. Update aweigh"),
        ({"format": None}, "another form"),
        ({"num_classes": "2"}, "num_classes is '2'"),
        ({"classes": [{"id": 1, "name": "cat"}]}, "2 classes, but 1 names"),
        ({"classes": [{"id": 1, "name": 3}, {"id": 2, "name": "dog"}]}, "another form"),
        ({"classes": [{"id": 1}, {"id": 2}]}, "another form"),
        ({"classes": 7}, "another form"),
        ({"settings": []}, "settings is"),
        ({"thresholds": {"cat": "high"}}, "a threshold is not from 0 to 1"),
        ({"thresholds": {"cat": float("nan")}}, "a threshold is not from 0 to 1"),
        ({"detector": 3}, "detector is 3"),
    ],
    ids=str,
)
def test_a_damaged_description_is_one_line(change: dict[str, Any], message: str, description: Description) -> None:
    text = json.dumps({**json.loads(description.to_json()), **change})
    with pytest.raises(ConfigError, match=message) as refused:
        parse_description(text, "cats.safetensors")
    assert str(refused.value).startswith("cats.safetensors ")


@pytest.mark.parametrize("text", ["", "[", "3", "null", "[]", "{" * 100_000, '{"format": 1}'], ids=range(7))
def test_what_is_no_description_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="another form"):
        parse_description(text, "cats.safetensors")


def test_a_field_of_a_later_version_is_refused_where_it_would_change_results(
    detector: detectors.Detector, description: Description, tmp_path: Path
) -> None:
    later = replace(description, evaluation={**description.evaluation, "tilt": 3})
    write_weights(detector, tmp_path / "cats.safetensors", later)
    with pytest.raises(ConfigError, match=r"cats\.safetensors describes its detector.*unknown field evaluation\.tilt"):
        open_trained(tmp_path / "cats.safetensors")


def test_a_description_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cats.safetensors"
    save_file({"a": torch.ones(1)}, path, {KEY: " " * (9 << 20)})
    with pytest.raises(DetectorError, match="a description of 9,437,184 bytes, which no weights need"):
        find_description(path)


def test_weights_that_do_not_fit_their_description_are_refused(
    detector: detectors.Detector, description: Description, tmp_path: Path
) -> None:
    path = tmp_path / "cats.safetensors"
    write_weights(detector, path, replace(description, settings={**SETTINGS, "width": 16}))
    with pytest.raises(DetectorError, match=r"is 8 in .* but 16 in centernet_resnet18"):
        open_trained(path)
    weights = dict(detector.state_dict())
    del weights["conv1.weight"]
    save_file(weights, path, {KEY: description.to_json()})
    with pytest.raises(ConfigError, match=r"has no conv1\.weight: it does not hold all of centernet_resnet18"):
        open_trained(path)


def test_newest_is_for_runs(detector: detectors.Detector, description: Description, tmp_path: Path) -> None:
    write_weights(detector, tmp_path / "cats.safetensors", description)
    with pytest.raises(ConfigError, match="leave it out"):
        open_trained(tmp_path / "cats.safetensors", newest=True)
    with pytest.raises(ConfigError, match="belongs to the trained weights"):
        open_trained(tmp_path / "cats.safetensors", flags=["--detector.name", "centernet_dla34"])
