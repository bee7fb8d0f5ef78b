"""`aweigh weights import` and `export`, as a user types them."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import detectors
from cluster.checkpoints.checkpoint import CheckpointFolder
from cluster.engine.engine import TrainingState
from detectors.fcos.file_keys import LAYOUTS
from detectors.weights.save import save_as
from pipelines import recipes
from pipelines.cli import main
from pipelines.recipes.recipe import to_dict, with_flags
from pipelines.trained.trained import open_trained
from tests.pipelines.test_cli import SMALL, _refused, _train

NARROW = ["--detector.settings.width", "8", "--detector.settings.head_channels", "8"]


@pytest.fixture(scope="module")
def published_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow DLA-34 as the authors' code saves it."""
    torch.manual_seed(0)
    state = detectors.build("centernet_dla34", 3, width=8, head_channels=8).state_dict()
    path = tmp_path_factory.mktemp("weights") / "model_last.pth"
    torch.save({"epoch": 230, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    return path


def test_a_published_file_comes_in_and_goes_out_again(
    published_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    brought = ["weights", "import", str(published_file), "--detector", "centernet_dla34", "--num-classes", "3", *NARROW]
    main([*brought, "--output", str(ours)])
    out, err = capsys.readouterr()
    assert out == (
        f"{published_file}: 400 loaded (400 of them under another name), 1 skipped, 0 missing\n"
        "prefix  module. removed from the keys\n"
        "skipped  epoch: beside 'state_dict': not a weight\n"
    )
    assert f"weights   {ours}, for --detector.weights" in err
    # The file says which detector it is of.
    main(["weights", "export", str(ours), "--output", str(back)])
    assert capsys.readouterr().out == (
        f"{back}: 400 keys of centernet_dla34 in the layout of its authors, 0 left out, 0 added\n"
    )
    content, before = (torch.load(path, weights_only=True) for path in (back, published_file))
    assert content["epoch"] == 0
    assert list(content["state_dict"]) == [key.removeprefix("module.") for key in before["state_dict"]]
    for key, value in before["state_dict"].items():
        assert torch.equal(content["state_dict"][key.removeprefix("module.")], value)


def test_the_command_printed_after_an_export_reads_the_file_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"width": 8, "deconv_channels": [8, 8, 8], "head_channels": 8, "trunk_start": "he"}
    torch.manual_seed(0)
    weights = dict(detectors.build("centernet_resnet18", 2, **settings).state_dict())
    recipe = with_flags(recipes.get("demo"), ["--detector.settings", json.dumps(settings)])
    facts = {
        "step": 1,
        "detector": "centernet_resnet18",
        "classes": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "manifest": "0" * 64,
        "recipe": to_dict(recipe),
    }
    run = tmp_path / "my runs" / "first"
    CheckpointFolder(run / "checkpoints").save(TrainingState(weights, {}, {}), facts)
    main(["weights", "export", str(run), "--output", str(tmp_path / "my runs" / "best.pth")])
    said = capsys.readouterr().err
    command = said[said.index("`aweigh ") + 1 : said.rindex("`")]
    assert command == f"aweigh weights import '{tmp_path}/my runs/best.pth'"
    back = tmp_path / "back.safetensors"
    main([*shlex.split(command)[1:], "--output", str(back)])
    out, said = capsys.readouterr()
    assert f"{len(weights)} loaded" in out
    assert "describes centernet_resnet18, classes cat, dog, images as in recipe demo" in said
    opened = open_trained(back)
    assert (opened.class_names, opened.recipe.detector.settings) == (("cat", "dog"), settings)
    assert opened.recipe.evaluation == recipe.evaluation
    assert all(torch.equal(value, weights[name]) for name, value in opened.detector.state_dict().items())


def test_the_average_of_a_file_is_brought_in_on_request(
    published_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = torch.load(published_file, weights_only=True)["state_dict"]
    both, ours = tmp_path / "both.pth", tmp_path / "ours.safetensors"
    torch.save({"model": weights, "model_ema": {key: value + 1 for key, value in weights.items()}}, both)
    brought = ["weights", "import", str(both), "--detector", "centernet_dla34", "--num-classes", "3", *NARROW]
    main([*brought, "--averaged", "--output", str(ours)])
    out, _ = capsys.readouterr()
    assert (
        "weights  the keys module.… under 'model_ema' (the moving average) loaded; the file also has the keys module.… "
        "under 'model' (the last step)"
    ) in out.splitlines()
    assert torch.equal(load_file(ours)["base.fc.bias"], weights["module.base.fc.bias"] + 1)
    # Without an average the flag is a mistake.
    assert "holds no moving average of the weights" in _refused(
        capsys, *[str(published_file) if word == str(both) else word for word in brought], "--averaged"
    )


def test_the_receipt_as_json_and_line_by_line_has_every_key(
    published_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    brought = ["weights", "import", str(published_file), "--detector", "centernet_dla34", "--num-classes", "5", *NARROW]
    main([*brought, "--skip-mismatched", "--json"])
    receipt = json.loads(capsys.readouterr().out)
    assert (receipt["detector"], receipt["num_classes"], len(receipt["renamed"])) == ("centernet_dla34", 5, 398)
    assert receipt["skipped"]["module.hm.2.bias"] == "shape 3, the detector's is 5"
    assert receipt["missing"] == dict.fromkeys(("hm.2.weight", "hm.2.bias"), "another shape in the file")
    main([*brought, "--skip-mismatched", "--keys"])
    lines = capsys.readouterr().out.splitlines()
    assert "renamed  module.base.fc.bias → base.fc.bias" in lines
    assert "skipped  module.hm.2.bias: shape 3, the detector's is 5" in lines
    assert "missing  hm.2.bias: another shape in the file" in lines
    assert sum(line.startswith("renamed  ") for line in lines) == 398


def test_a_file_of_the_backbone_alone_is_not_written_as_a_detector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = detectors.build("centernet_dla34", 3, width=8).state_dict()
    path = tmp_path / "dla34.pth"
    torch.save({key.removeprefix("base."): value for key, value in base.items() if key.startswith("base.")}, path)
    line = _refused(
        capsys, "weights", "export", path, "--detector", "centernet_dla34", *NARROW, "--output", tmp_path / "back.pth"
    )
    assert "it does not hold all of centernet_dla34, so it cannot be used as one" in line
    assert not (tmp_path / "back.pth").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "{file}", "--detector", "centernet_dla43"], "did you mean 'centernet_dla34'?"),
        (
            ["import", "{file}", "--detector", "centernet_dla34", "--data.threads", "3"],
            "unknown argument '--data.threads'",
        ),
        (
            ["import", "{file}", "--detector", "centernet_dla34", "--detector.weights", "other.pth"],
            "unknown argument '--detector.weights'",
        ),
        (["import", "{file}", "--detector", "centernet_dla34", *NARROW], "trained on 3 classes, the detector has 80"),
        (["import", "nowhere.pth", "--detector", "centernet_dla34", *NARROW], "nowhere.pth is not there"),
        (
            ["import", "{file}", "--detector", "centernet_dla34", *NARROW, "--output", "ours.pth"],
            "--output ours.pth: the weights are written as .safetensors",
        ),
        (
            ["export", "{file}", "--detector", "centernet_dla34", "--layout", "authors", "--output", "a.safetensors"],
            "other code loads what torch.save writes, so end it in .pth",
        ),
        (["import", "{file}"], "does not name its detector; give --detector NAME"),
        (["import", "nowhere.pth"], "nowhere.pth is not there"),
        (["import", "imagenet"], "imagenet needs --detector NAME"),
        (["export", "nowhere.pth", "--output", "back.pth"], "nowhere.pth does not exist; give a run's folder"),
        (["export", "{file}", "--output", "back.pth"], "does not name its detector; give --detector NAME"),
        (
            [
                *("export", "{file}", "--detector", "centernet_dla34", "--num-classes", "3", *NARROW),
                *("--layout", "torchvision", "--output", "back.pth"),
            ],
            "centernet_dla34 cannot be written as 'torchvision'; known are authors.",
        ),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, published_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("{file}", str(published_file)) for word in arguments]
    assert message in _refused(capsys, "weights", *words)


def test_training_says_at_once_that_weights_do_not_fit_or_cannot_be_had(
    published_file: Path,
    small_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWEIGH_WEIGHTS_URL", str(tmp_path / "copies"))
    monkeypatch.setenv("AWEIGH_CACHE", str(tmp_path / "cache"))
    command = _train(small_shards, tmp_path, *SMALL)
    line = _refused(capsys, *command, "--detector.weights", "imagenet")
    assert f"weights file {tmp_path}/copies/resnet18-5c106cde.pth is not there" in line
    line = _refused(capsys, *command, "--detector.weights", published_file, "--detector.weights_sha256", "0" * 8)
    assert "not 00000000: it is damaged or another file" in line
    assert not (tmp_path / "refused" / "logs").exists()


def test_a_librarys_file_chooses_its_variant_unless_the_user_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, out = tmp_path / "FCOS_R_50_1x.pth", tmp_path / "w.safetensors"
    narrow = {"width": 4, "channels": 64}
    detector = detectors.build("fcos_resnet50", 3, variant="adelaidet", **narrow)
    save_as(detector, theirs, "adelaidet")
    brought = ["weights", "import", str(theirs), "--detector", "fcos_resnet50", "--num-classes", "3"]
    brought += ["--detector.settings.width", "4", "--detector.settings.channels", "64"]
    main([*brought, "--output", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert "library  AdelaiDet, variant adelaidet" in lines
    assert not [line for line in lines if line.startswith("note")]
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["settings"]) == {**narrow, "variant": "adelaidet"}
    # What was written names its variant, so it goes out in the library's layout again.
    main(["weights", "export", str(out), "--output", str(tmp_path / "b.pth"), "--layout", "adelaidet"])
    back = torch.load(tmp_path / "b.pth", weights_only=True)["model"]
    original = torch.load(theirs, weights_only=True)["model"]
    assert list(back) == list(original)
    assert all(torch.equal(back[key], value) for key, value in original.items())
    capsys.readouterr()
    main([*brought, "--detector.settings.variant", "improved", "--json"])
    receipt = json.loads(capsys.readouterr().out)
    assert receipt["settings"]["variant"] == "improved"
    assert receipt["variant"] == "adelaidet"
    (note,) = receipt["notes"]
    assert 'computes variant="adelaidet" with these weights; this detector has variant="improved"' in note


@pytest.mark.parametrize(
    "metadata",
    [{"settings": "["}, {"settings": "[" * 100_000}, {"settings": "3"}, {"num_classes": "many"}],
    ids=["cut", "deep", "number", "classes"],
)
def test_a_file_that_describes_its_detector_wrongly_is_refused(
    metadata: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"conv1.weight": torch.ones(2)}, path, {"detector": "centernet_dla34", **metadata})
    line = _refused(capsys, "weights", "export", path, "--output", tmp_path / "back.pth")
    assert f"{path} describes its detector in another form" in line


def test_the_flags_that_a_receipt_names_exist() -> None:
    texts = [text for layouts in LAYOUTS.values() for layout in layouts for text in layout.published_with]
    flags = {found for text in texts for found in re.findall(r"(--[\w.]+) ([\w.]+)", text)}
    assert len(flags) == 5
    for flag, value in flags:
        recipe = with_flags(recipes.get("fcos_resnet50_1x"), [flag, value])
        field = recipe
        for part in flag.removeprefix("--").split("."):
            field = field[part] if isinstance(field, dict) else getattr(field, part)
        assert str(field) == value or float(field) == float(value)
