"""From a folder to the recipe that is trained, and back to it when the run resumes."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import detectors
from data_shards.format.manifest import load_manifest
from pipelines.cli import main
from pipelines.errors import ConfigError
from pipelines.finetuning import finetune
from pipelines.finetuning.finetune import Request, finetuning_recipe
from pipelines.finetuning.machine import Cost, Machine
from pipelines.recipes.recipe import to_dict, with_flags
from pipelines.recipes.settings import Recipe
from tests.data_shards.building.folders import Photo, photos, roboflow_yolo
from tests.data_shards.samples import jpeg, photo

NARROW = (
    *("--detector.settings.width", "8", "--detector.settings.deconv_channels", "[8, 8, 8]"),
    *("--detector.settings.head_channels", "8", "--detector.weights", "none"),
)


@pytest.fixture(autouse=True)
def _small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "this_machine", lambda device: Machine("cpu", 1, 2, 4_000_000_000))
    monkeypatch.setattr(finetune, "training_cost", lambda detector: Cost(1_000_000, 500.0, 1e-6))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return roboflow_yolo(tmp_path / "pets", {"train": photos(8), "valid": photos(3, 8), "test": photos(1, 11)})


def _request(pets: Path, *flags: str, **given: Any) -> Request:
    return Request(data=str(pets), flags=(*NARROW, "--run.folder", str(pets.parent / "runs"), *flags), **given)


def _say(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_a_folder_becomes_a_recipe_and_a_plan(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = finetuning_recipe(_request(pets))
    lines = _say(capsys)
    assert recipe.recipe == "finetune"
    assert recipe.run.name.startswith("finetune-pets-")
    assert load_manifest(recipe.data.train).num_samples == 8
    assert load_manifest(recipe.data.validation).num_samples == 3
    assert (recipe.batch.global_size, recipe.schedule.epochs) == (8, 300)
    assert with_flags(recipe, []) == recipe  # whole, and valid
    topics = [line.split(" ")[0] for line in lines.splitlines() if line[:1].strip()]
    order = [
        "found",
        "shards",
        "findings",
        "detector",
        "start",
        "input",
        "machine",
        "batch",
        "rate",
        "epochs",
        "expect",
    ]
    assert [topic for topic in dict.fromkeys(topics) if topic in order] == order
    assert "train 8 images (train/images); val 3 images (valid/images); test 1 image (test/images)" in lines
    assert f"aweigh evaluate RUN --data {recipe.data.train.removesuffix('train')}test" in lines


def test_the_same_command_names_the_same_run_and_another_one_does_not(pets: Path) -> None:
    first = finetuning_recipe(_request(pets))
    assert finetuning_recipe(_request(pets)) == first
    assert finetuning_recipe(_request(pets, "--cluster.grace_seconds", "7")).run.name == first.run.name
    assert finetuning_recipe(_request(pets, "--schedule.epochs", "3")).run.name != first.run.name
    assert finetuning_recipe(_request(pets, "--run.name", "mine")).run.name == "mine"
    roboflow_yolo(pets, {"train": photos(1, 20)})
    assert finetuning_recipe(_request(pets)).run.name != first.run.name


def test_a_run_that_resumes_keeps_its_numbers_whatever_the_machine(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = finetuning_recipe(_request(pets))
    checkpoint = SimpleNamespace(facts={"detector": "", "classes": [], "manifest": "", "recipe": to_dict(first)})
    monkeypatch.setattr(finetune, "newest_checkpoint", lambda *places: checkpoint)
    monkeypatch.setattr(finetune, "this_machine", lambda device: pytest.fail("the machine was looked at"))
    capsys.readouterr()
    assert finetuning_recipe(_request(pets)) == first
    assert "numbers   as derived when run" in _say(capsys)
    # Fields that decide nothing may change; the others are compared with the checkpoint by the training.
    changed = finetuning_recipe(_request(pets, "--evaluation.pictures", "3", "--run.name", first.run.name))
    assert changed.evaluation.pictures == 3
    assert dataclasses.replace(changed, evaluation=first.evaluation) == first


def test_a_run_of_another_recipe_is_refused(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = to_dict(Recipe(recipe="demo"))
    checkpoint = SimpleNamespace(facts={"detector": "", "classes": [], "manifest": "", "recipe": values})
    monkeypatch.setattr(finetune, "newest_checkpoint", lambda *places: checkpoint)
    with pytest.raises(ConfigError, match=r"run mine was begun with the recipe demo. Choose another --run.name"):
        finetuning_recipe(_request(pets, "--run.name", "mine"))


def test_a_run_stopped_before_its_first_checkpoint_is_planned_anew(pets: Path) -> None:
    first = finetuning_recipe(_request(pets, "--run.name", "mine"))
    folder = Path(first.run.folder) / "mine"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("recipe: finetune\n")
    again = finetuning_recipe(_request(pets, "--run.name", "mine", "--batch.global_size", "4"))
    assert again.optimizer.learning_rate == pytest.approx(first.optimizer.learning_rate / 2, rel=1e-3)


def test_copies_in_both_splits_are_warned_of_with_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = Photo("again.jpg", jpeg(photo(2), 70))
    pets = roboflow_yolo(tmp_path / "pets", {"train": photos(4), "valid": [*photos(2, 4), again]})
    for _ in range(2):  # the second time from the record
        finetuning_recipe(_request(pets))
        assert (
            "finding   images that the other split has too, recompressed or resized (1): train/images/photo 2.jpg, "
            in _say(capsys)
        )


def test_copies_in_train_and_test_are_found_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = {"train": photos(4), "valid": photos(2, 4), "test": [Photo("again.jpg", jpeg(photo(2)))]}
    finetuning_recipe(_request(roboflow_yolo(tmp_path / "pets", splits)))
    assert "finding   images that the other split has too, byte for byte (1): " in _say(capsys)


def test_weights_that_describe_their_detector_choose_it(pets: Path, tmp_path: Path) -> None:
    detector = detectors.build("centernet_dla34_original", 2)
    text = (
        '{"format": 1, "detector": "centernet_dla34_original", "settings": {}, "num_classes": 2, '
        '"classes": [{"id": 1, "name": "dog"}, {"id": 2, "name": "bird"}]}'
    )
    state = {name: value.contiguous() for name, value in detector.state_dict().items()}
    save_file(state, tmp_path / "dla.safetensors", metadata={"aweigh": text})
    request = Request(
        data=str(pets), weights=str(tmp_path / "dla.safetensors"), flags=("--run.folder", str(tmp_path / "runs"))
    )
    recipe = finetuning_recipe(request)
    assert recipe.detector.name == "centernet_dla34_original"
    assert recipe.detector.match_classes
    assert recipe.detector.weights == str(tmp_path / "dla.safetensors")


def test_built_shards_are_fine_tuned_on_as_well(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = finetuning_recipe(_request(pets))
    flags = (*NARROW, "--data.train", built.data.train, "--run.folder", built.run.folder)
    recipe = finetuning_recipe(Request(flags=flags))
    assert (recipe.data.train, recipe.data.validation) == (built.data.train, "")
    assert recipe.batch == built.batch
    assert recipe.run.name.startswith("finetune-train-")


def test_the_folder_of_runs_may_be_inside_the_data(pets: Path) -> None:
    flags = (*NARROW, "--run.folder", str(pets / "runs"))
    first = finetuning_recipe(Request(data=str(pets), flags=flags))
    assert finetuning_recipe(Request(data=str(pets), flags=flags)) == first


def test_shards_can_be_put_elsewhere(pets: Path, tmp_path: Path) -> None:
    recipe = finetuning_recipe(_request(pets, shards=str(tmp_path / "fast disk")))
    assert Path(recipe.data.train).is_relative_to(tmp_path / "fast disk")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --data FOLDER, the folder with your images and their annotations"),
        (
            ["--data", "pets", "--data.train", "x"],
            "--data builds shards from a folder, and --data.train names built ones",
        ),
        (["--data", "lost"], "the folder lost does not exist; give the folder with the images"),
        (["--data", "pets", "--validation-share", "1"], "--validation-share is 1; give a number from 0"),
        (["--data", "pets", "--data.trian", "x"], "unknown field --data.trian"),
        (["--data", "pets", "--detector.name", "dla"], "unknown detector 'dla'"),
        (["--data", "pets", "--run.name", "../x"], "run.name '../x' is not a path inside run.folder"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pets.parent)
    with pytest.raises(SystemExit) as ended:
        main(["train", "finetune", *words])
    last = _say(capsys).splitlines()[-1]
    assert last.startswith("aweigh: ")
    assert message in last
    assert ended.value.code == 2


def test_other_recipes_refuse_the_arguments_of_finetune(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "demo", "--from", "x.pth"])
    assert "--from is for the recipe finetune; demo takes --data.train LOCATION/SPLIT" in _say(capsys)


def test_planning_draws_no_random_number(pets: Path) -> None:
    state = torch.random.get_rng_state()
    finetuning_recipe(_request(pets))
    assert torch.equal(torch.random.get_rng_state(), state)
