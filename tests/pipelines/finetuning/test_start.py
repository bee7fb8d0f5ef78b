"""The initial weights of a fine-tuning, and what is said of them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import detectors
from detectors import Detector
from detectors.errors import DetectorError
from pipelines.errors import ConfigError
from pipelines.finetuning.base_recipe import base_recipe
from pipelines.finetuning.machine import Cost, Machine
from pipelines.finetuning.start import Source, expectations, load_start, source_of, with_start
from pipelines.recipes.recipe import with_flags
from pipelines.recipes.settings import Recipe

NARROW = {"width": 8, "deconv_channels": [8, 8, 8], "head_channels": 8}


def _detector(classes: int, seed: int = 0, **settings: object) -> Detector:
    torch.manual_seed(seed)
    return detectors.build("centernet_resnet18", classes, **{**NARROW, **settings})


def _file(path: Path, detector: Detector) -> Path:
    save_file({name: value.contiguous() for name, value in detector.state_dict().items()}, path)
    return path


def _recipe(path: Path | str) -> Recipe:
    return with_start(base_recipe("centernet_resnet18", NARROW), Source(str(path)), set())


def test_a_file_of_coco_gives_all_but_the_classes_and_those_by_name(tmp_path: Path) -> None:
    theirs, ours = _detector(80, seed=1), _detector(3)
    before = ours.state_dict()["hm.2.weight"].clone()
    loaded = load_start(
        _recipe(_file(tmp_path / "coco.safetensors", theirs)), ours, ["Cat", "RBC", "traffic_light"], set()
    )
    assert loaded.start == "detector"
    assert (loaded.recipe.detector.match_classes, loaded.recipe.detector.skip_mismatched) == (True, True)
    own, file = ours.state_dict(), theirs.state_dict()
    assert torch.equal(own["wh.2.weight"], file["wh.2.weight"])
    assert torch.equal(own["hm.2.weight"][0], file["hm.2.weight"][15])  # cat
    assert torch.equal(own["hm.2.weight"][2], file["hm.2.weight"][9])  # traffic light
    assert torch.equal(own["hm.2.weight"][1], before[1])
    assert "classes it knows by name: Cat, traffic_light; classes that are new to it: RBC" in loaded.text


def test_classes_without_names_start_anew(tmp_path: Path) -> None:
    theirs, ours = _detector(5, seed=1), _detector(3)
    before = ours.state_dict()["hm.2.weight"].clone()
    loaded = load_start(_recipe(_file(tmp_path / "five.safetensors", theirs)), ours, ["a", "b", "c"], set())
    assert (loaded.recipe.detector.match_classes, loaded.recipe.detector.skip_mismatched) == (False, True)
    assert torch.equal(ours.state_dict()["hm.2.weight"], before)
    assert torch.equal(ours.state_dict()["wh.2.weight"], theirs.state_dict()["wh.2.weight"])
    assert loaded.text.endswith("; 1 layer not in it or for other classes, from random weights: hm.2")


def test_what_the_user_sets_about_classes_is_kept(tmp_path: Path) -> None:
    recipe = with_flags(
        _recipe(_file(tmp_path / "coco.safetensors", _detector(80))), ["--detector.skip_mismatched", "true"]
    )
    loaded = load_start(recipe, _detector(2), ["cat", "dog"], {"detector.skip_mismatched"})
    assert not loaded.recipe.detector.match_classes


def test_weights_of_another_detector_are_refused(tmp_path: Path) -> None:
    path = _file(tmp_path / "wide.safetensors", _detector(80, width=16))
    with pytest.raises(
        DetectorError, match=r"wide.safetensors is of another detector than centernet_resnet18, or of one"
    ):
        load_start(_recipe(path), _detector(3), ["a", "b", "c"], set())


def test_a_backbone_alone_is_said_to_be_one(tmp_path: Path) -> None:
    state = {
        name: value for name, value in _detector(3).state_dict().items() if name.startswith(("conv1", "layer", "bn1"))
    }
    save_file(state, tmp_path / "backbone.safetensors")
    loaded = load_start(_recipe(tmp_path / "backbone.safetensors"), _detector(3), ["a", "b", "c"], set())
    assert loaded.start == "imagenet"
    assert loaded.text.endswith(
        "backbone.safetensors, the backbone alone; the layers that find objects start from random weights"
    )


def test_no_weights_are_random_ones() -> None:
    assert load_start(_recipe("none"), _detector(3), ["a", "b", "c"], set()).start == "random"


def test_weights_that_are_not_there_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--from lost.pth: there is no such file or run"):
        source_of("lost.pth")
    with pytest.raises(ConfigError, match="has no checkpoint"):
        source_of(str(tmp_path))
    assert source_of("imagenet") == Source("imagenet")
    assert source_of("s3://bucket/a.pth") == Source("s3://bucket/a.pth")


def test_two_sources_of_weights_are_refused() -> None:
    recipe = with_flags(base_recipe("centernet_resnet18", {}), ["--detector.weights", "a.pth"])
    with pytest.raises(ConfigError, match=r"--from and --detector.weights both name initial weights"):
        with_start(recipe, Source("b.pth"), {"detector.weights"})


def test_the_expectations_name_quality_time_and_few_images() -> None:
    recipe = with_flags(base_recipe("centernet_resnet18", {}), ["--schedule.epochs", "80", "--batch.global_size", "8"])
    cpu, gpu = (Machine(device, 1, 2, 0) for device in ("cpu", "cuda"))
    cost = Cost(0, 0.0, seconds_per_pixel=1e-6)
    lines = expectations(recipe, _detector(3), "detector", cpu, cost, 205, 12)
    assert lines == [
        "a useful detector after a few epochs, since it already knows what objects look like (205 images to train on)",
        "the AP will be rough: it is measured on 12 images, so compare runs by a few hundredths at least",
        # 2,000 steps × 8 images × 512 × 512 pixels × 1e-6 s
        "about 1 h 09 m on this CPU for 2,000 steps; a smaller --data.input_size or fewer --schedule.epochs take less",
    ]
    lines = expectations(recipe, _detector(3), "random", gpu, cost, 205, 87)
    assert lines[0].startswith(
        "little, unless there are tens of thousands of images; give weights with --from FILE (205"
    )
    assert lines[1:] == [
        "less than that: 2,000 steps are few, and about 8,000 are usual",
        "2,000 steps; the time left is on every line of the log",
    ]
