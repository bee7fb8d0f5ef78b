"""The command line: what a newcomer sees, and one clear line with exit status 2 for every mistake."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines.cli import command_line, main
from pipelines.commands.synonyms import SYNONYMS
from pipelines.hints import did_you_mean
from pipelines.recipes.recipe import fields
from tests.conftest import reset_auth
from tests.data_shards.samples import document, write_coco

# A network and schedule so small that only the checks before training take time.
SMALL = shlex.split(
    "--detector.settings.width 8 --detector.settings.deconv_channels 8 8 8 --detector.settings.head_channels 8 "
    "--data.input_size 64 64 --batch.global_size 4 --schedule.epochs 1 --schedule.drops_at []"
)


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert ended.value.code == 2
    lines = printed.err.strip().splitlines()
    assert lines[-1].startswith("aweigh: ")
    assert "Traceback" not in printed.err
    assert printed.out == ""
    return lines[-1]


def _train(shards: Path, folder: Path, *flags: object) -> list[object]:
    return [
        *("train", "demo", "--data.train", shards / "train", "--data.validation", shards / "val"),
        *("--run.folder", folder, "--run.name", "refused", *SMALL, *flags),
    ]


def test_help_and_lists_come_without_torch_ray_or_mlflow() -> None:
    heavy = "{'torch', 'ray', 'mlflow', 'deepspeed', 'cv2'} & set(sys.modules)"
    program = f"import sys; from pipelines.cli import main; main(['recipes']); sys.exit(bool({heavy}))"
    listed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "centernet_resdcn18_1x" in listed.stdout


def test_the_version_names_the_commit_of_a_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    # A copy without its history, such as a job's working directory, has no commit.
    assert re.fullmatch(
        r"aweigh (\d+\.\d+\.\d+|\(not installed\))(, commit [0-9a-f]{7,}(-dirty)?)?\n", capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("resume", "`aweigh train` with the same --run.name resumes a run."),
        ("fit", "`aweigh train RECIPE` trains."),
        *((word, "`aweigh evaluate RUN` measures AP.") for word in ("val", "validate", "eval", "test")),
        *((word, "`aweigh shards examine LOCATION` looks for problems") for word in ("info", "doctor", "check")),
        *((word, "`aweigh ui` compares runs in MLflow.") for word in ("diff", "compare")),
        *((word, "`aweigh recipe show NAME` prints all settings of a recipe") for word in ("config", "cfg")),
        ("download", "`aweigh shards pull` copies shards from S3 into a folder."),
        ("list", "`aweigh recipes` lists recipes, `aweigh checkpoints ls RUN` checkpoints"),
        ("version", "`aweigh --version` prints it."),
        ("infer", "`aweigh predict RUN IMAGES --output FOLDER` finds objects in new images."),
        ("onnx", "`aweigh export RUN --to onnx --output FILE.onnx`"),
    ],
)
def test_a_word_that_people_try_leads_to_the_command(
    word: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"unknown command {word!r}; {answer}" in _refused(capsys, word)


def test_no_synonym_hides_a_command_and_every_command_it_names_exists() -> None:
    parser = command_line()
    names = {action.dest: action.choices for action in parser._actions}["command"]
    assert names
    assert not set(SYNONYMS) & set(names)
    for answer in SYNONYMS.values():
        for command in re.findall("`aweigh ([^`]*)`", answer):
            name, _, rest = command.partition(" ")
            assert name in {*names, "--version", "--help"}, answer
            action = rest.split(" ")[0]
            if name in ("shards", "weights", "checkpoints", "recipe"):
                assert action in next(one.choices for one in names[name]._actions if one.dest == "action"), answer


def test_fields_are_listed_by_section_within_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--fields"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert {line.split()[0] for line in lines if line.startswith("  --")} == {f"--{name}" for name in fields()}
    at = lines.index("  --schedule.drops_at  [90, 120]")
    assert lines[at + 1 : at + 3] == [
        "      Epochs after which the learning rate is multiplied by drop_factor (Objects",
        "      as Points, section 5).",
    ]
    # Even the longest name and its default are two words.
    assert "  --evaluation.scaled_longer_side_limit  2000" in lines


def test_fields_are_found_by_name_and_by_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--fields", "LETTERBOXED"])
    shown = capsys.readouterr().out
    assert shown.startswith("evaluation: ")
    assert [line for line in shown.splitlines() if line.startswith("  --")] == ["  --evaluation.geometry  fixed"]
    main(["train", "--fields", "zero_stage"])
    assert "  --engine.zero_stage  1" in capsys.readouterr().out
    assert "no field has 'xyzzy' in its name or meaning; `aweigh train --fields` lists them all." in _refused(
        capsys, "train", "--fields", "xyzzy"
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("aweigh tr", ["train", "tracking"]),
        ("aweigh train centernet_dla34_p", ["centernet_dla34_pose_1x", "centernet_dla34_pose_3x"]),
        (
            "aweigh train demo --schedule.dr",
            ["--schedule.drops_at", "--schedule.drops_at_steps", "--schedule.drop_factor"],
        ),
        ("aweigh train demo --detector.name fcos", ["fcos_resnet101", "fcos_resnet50"]),
        ("aweigh shards show place --recipe dem", ["demo"]),
    ],
)
def test_tab_completes_commands_recipes_detectors_and_fields(line: str, words: list[str], tmp_path: Path) -> None:
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "words"),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run([sys.executable, "-c", "from pipelines.cli import main; main()"], env=environment, check=True)
    assert sorted(word.strip() for word in (tmp_path / "words").read_text().splitlines()) == sorted(words)


@pytest.mark.parametrize(
    ("word", "suggestion"),
    [
        ("epochs", "did you mean schedule.epochs?"),  # the last part of the name is enough
        ("schedule.epoch", "did you mean schedule.epochs?"),
        ("data.cache", "did you mean data.cache_gb or data.cache_folder?"),
        ("nothing.like.it", "see the list."),
    ],
)
def test_a_suggestion_names_the_nearest_word_or_all_variants(word: str, suggestion: str) -> None:
    known = ["schedule.epochs", "data.cache_gb", "data.cache_folder", "seed"]
    assert did_you_mean(word, known, "see the list.", form="{}") == suggestion


def test_help_shows_the_first_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for command in ("aweigh demo", "aweigh shards build", "aweigh train", "aweigh evaluate", "aweigh ui"):
        assert command in shown


def test_recipe_show_prints_the_resolved_recipe_as_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipe", "show", "demo", "--seed", "5"])
    assert "seed: 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate"], "aweigh evaluate needs RUN; `aweigh evaluate --help` explains the arguments."),
        (["ui", "--port", "http"], "--port is 'http'; it must be a whole number."),
        (["ui", "--port"], "--port needs a value."),
        (["evaluate", "runs/first", "--pictures", "x.gif"], "--pictures x.gif: pictures are written as PNG or JPEG"),
        (["shards", "show", "x", "--output", "x.bmp"], "--output x.bmp: pictures are written as PNG or JPEG"),
        (["train", "demo", "--input_size", "3"], "did you mean --data.input_size or --evaluation.input_size?"),
        (["demo", "--schedul.epochs", "3"], "did you mean --schedule.epochs?"),  # a field may come first
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["train"], "which recipe? `aweigh recipes` lists them."),
        (["train", "demoo"], "unknown recipe 'demoo'; did you mean 'demo'?"),
        (["train", "demo", "--schedule.epoch", "3"], "did you mean --schedule.epochs?"),
        (["train", "centernet_resnet18_1x"], "data.train is empty: give --data.train LOCATION/SPLIT"),
        (["train", "--cluster.workers", "1", "demo"], "train takes its argument first and fields after it"),
        (
            shlex.split("shards build --annotations a --images b --output c --split d --degenerate-boxes foo"),
            "unknown --degenerate-boxes 'foo'; known are drop, refuse.",
        ),
        (["recipes", "--surplus"], "unknown argument '--surplus'"),
        (["shards"], "aweigh shards needs build|verify|examine|"),
        (["shards", "verify", "x", "--decod3"], "unknown argument '--decod3'; did you mean --decode?"),
        (["shards", "pull", "s3://a/b", "c", "d"], "unknown argument 'd'; `aweigh shards pull --help` lists them."),
        (["shards", "verify", "nowhere/train"], "there are no shards at"),
        (["evaluate", "nowhere"], "nowhere has no checkpoint."),
        (["ui", "--folder", "nowhere"], "nowhere has no mlflow.db"),
        (["bench", "train", "demo", "--steps", "2"], "--steps is 2; at least 4 are needed"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in _refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch.global_size", "5"], "batch.global_size 5 does not divide among 2 workers; set it to 4 or 6"),
        (["--batch.global_size", "16"], "global batch"),
        (["--data.input_size", "64", "70"], "centernet_resnet18 needs multiples of 32, such as 64 64."),
        (["--detector.name", "centernet_resnet81"], "did you mean 'centernet_resnet18'?"),
        (["--detector.settings.widht", "8"], "did you mean 'width'?"),
        (["--detector.weights", "nowhere.pth"], "nowhere.pth"),
        (["--tracking.uri", "ftp://somewhere"], "ftp"),
        (["--engine.deepspeed.zero_optimization.nonsense", "1"], "nonsense is refused by DeepSpeed"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_before_anything_starts(
    flags: list[str], message: str, small_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in _refused(capsys, *_train(small_shards, tmp_path, *flags))
    assert not (tmp_path / "refused" / "logs").exists()


def test_shards_that_are_not_what_was_built_are_refused(
    small_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harmed = tmp_path / "shards"
    shutil.copytree(small_shards, harmed)
    shard = harmed / "train" / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert "train-000000.tar does not match the manifest" in _refused(capsys, *_train(harmed, tmp_path))
    # It was looked for and found: not a mistake of the command.
    with pytest.raises(SystemExit) as ended:
        main(["shards", "verify", str(harmed / "train")])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert "train-000000.tar does not match the manifest" in printed.err.splitlines()[-1]
    assert printed.out == ""


def test_a_bucket_that_is_missing_or_refuses_is_one_line(
    s3: str, s3_endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = _refused(capsys, "train", "demo", "--data.train", "s3://nowhere/train", "--run.folder", tmp_path)
    assert "bucket" in line
    assert "nowhere" in line
    reset_auth(s3_endpoint, "0")
    line = _refused(capsys, "train", "demo", "--data.train", f"{s3}/train", "--run.folder", tmp_path)
    assert "credentials" in line


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("missing", "instances.json"),
        ("cut", "is cut short"),
        ("image", "100.jpg: neither a JPEG nor a PNG"),
        ("category", "category"),
    ],
)
def test_annotations_and_images_that_cannot_be_used_build_nothing(
    harm: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = document(6)
    if harm == "category":
        content["annotations"][0]["category_id"] = 999
    annotations, images = write_coco(tmp_path, content)
    if harm == "missing":
        annotations.unlink()
    elif harm == "cut":
        annotations.write_text(annotations.read_text()[:200])
    elif harm == "image":
        (images / "100.jpg").write_bytes(b"not an image")
    words = ("shards", "build", "--annotations", annotations, "--images", images)
    line = _refused(capsys, *words, "--output", tmp_path / "out", "--split", "train", "--processes", "1")
    assert message in line
    assert not list(tmp_path.glob("out/**/manifest.json"))


def test_validation_shards_of_other_classes_are_refused(
    small_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = _refused(capsys, *_train(small_shards, tmp_path, "--data.validation", small_shards / "other"))
    assert "has other classes than" in line
    assert "person, dog, vase instead of person, dog, bottle" in line


def test_a_run_folder_that_cannot_be_written_is_refused(
    small_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    line = _refused(capsys, *_train(small_shards, tmp_path / "file"))
    assert "cannot be written" in line
    assert "set --run.folder" in line


def test_a_finished_checkpoint_of_other_classes_detector_or_data_is_refused(
    small_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import dataclasses

    import torch

    from cluster.checkpoints.checkpoint import CheckpointFolder
    from cluster.engine.engine import TrainingState
    from data_shards.format.manifest import load_manifest
    from pipelines import recipes
    from pipelines.recipes.recipe import to_dict, with_flags
    from pipelines.training.from_recipe import build_detector

    manifest = load_manifest(str(small_shards / "train"))
    recipe = with_flags(recipes.get("demo"), [*SMALL, "--data.validation", str(small_shards / "val")])
    weights = dict(build_detector(recipe, manifest, initial=False).state_dict())
    facts = {
        "step": 1,
        "detector": recipe.detector.name,
        "classes": [dataclasses.asdict(item) for item in manifest.classes],
        "manifest": manifest.digest,
        "recipe": to_dict(recipe),
    }

    def save(folder: Path, **changed: object) -> Path:
        state = TrainingState(weights, {}, {"0|random_state": torch.get_rng_state()})
        CheckpointFolder(folder / "checkpoints").save(state, {**facts, **changed})
        return folder

    run = save(tmp_path / "a" / "refused")
    line = _refused(capsys, "evaluate", run, "--data", small_shards / "other")
    assert "was trained with another class list: it has class 44 'bottle' where the shards have 44 'vase'" in line
    save(tmp_path / "b" / "refused", detector="centernet_resdcn18")
    line = _refused(capsys, *_train(small_shards, tmp_path / "b"))
    assert "holds detector centernet_resdcn18, but the recipe says centernet_resnet18" in line
    save(tmp_path / "c" / "refused", manifest="0" * 64)
    assert "was trained on shards 000000000000, but data.train is" in _refused(
        capsys, *_train(small_shards, tmp_path / "c")
    )
    line = _refused(capsys, "evaluate", run, "--detector.settings.width", "16")
    assert "detector.settings.width: 8 → 16 belongs to the trained weights" in line
    assert "needs multiples of 32" in _refused(capsys, "evaluate", run, "--data.input_size", "64", "100")
    main(["evaluate", str(run), "--json"])  # the right shards are judged
    assert '"AP":' in capsys.readouterr().out
    page = tmp_path / "page.jpg"
    main(["evaluate", str(run), "--tta", "none", "flip", "multiscale", "--timed-images", "1", "--pictures", str(page)])
    assert page.read_bytes()[:2] == b"\xff\xd8"  # a JPEG, as its name says
    out, progress = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["AP", "N.A.", "F", "MS"]
    assert "images one by one, mean of 1 after 3 to warm up" in progress
    main(["evaluate", str(run), "--tta", "flip", "--json", "--nms", "--evaluation.geometry", "keep"])
    modes = json.loads(capsys.readouterr().out)["modes"]
    assert set(modes) == {"flip"}
    assert modes["flip"]["frames_per_second"] == pytest.approx(1000 / modes["flip"]["milliseconds_per_image"])
    main(["evaluate", str(run), "--tta", "all", "--json", "--timed-images", "1"])
    assert list(json.loads(capsys.readouterr().out)["modes"]) == ["none", "flip", "multiscale"]
    assert "unknown --tta 'mirror'; known are none, flip, multiscale, all" in _refused(
        capsys, "evaluate", run, "--tta", "mirror"
    )
    assert "evaluation.scales contains 0; every scale must be from 0.1 to 10" in _refused(
        capsys, "evaluate", run, "--evaluation.scales", "0", "1"
    )


# A command that waits for the end of its input, run as the installed script runs it.
_WAITING = """
import sys
from pipelines import cli
from pipelines.commands import recipes
def wait(known):
    print("ready", flush=True)
    sys.stdin.read()
recipes.run = wait
sys.argv = ["aweigh", "recipes"]
cli.main()
"""


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")]
)
def test_a_signal_ends_any_command_in_one_line(number: signal.Signals, name: str) -> None:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", _WAITING], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate()
    assert errors == f"aweigh: stopped with {name}.\n"
    assert process.returncode == 128 + number


def test_process_1_of_a_container_answers_signals() -> None:
    alone = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this user may not make PID namespaces")
    pipe = subprocess.PIPE
    command = [*alone, sys.executable, "-c", _WAITING]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    # The kernel drops signals from outside for which process 1 has no handler.
    psutil.Process(process.pid).children()[0].terminate()
    _, errors = process.communicate()
    assert errors == "aweigh: stopped with SIGTERM.\n"
    assert process.returncode == 143


@pytest.mark.parametrize("redirection", ["2>&-", ">&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_closed_and_full_streams_change_no_exit_status(redirection: str) -> None:
    program = "import sys; from pipelines.cli import main; sys.argv = ['aweigh', *sys.argv[1:]]; main()"
    for words, status in ((["recipes"], 0), (["train"], 2)):
        command = shlex.join([sys.executable, "-c", program, *words])
        ended = subprocess.run(["sh", "-c", f"{command} {redirection}"], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (status, "" if "2>" in redirection else ended.stderr)
        assert "Traceback" not in ended.stderr


def test_output_that_takes_only_ascii_shows_the_rest_as_escapes(tmp_path: Path) -> None:
    program = "import sys; from pipelines.cli import main; sys.argv = ['aweigh', *sys.argv[1:]]; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program, "evaluate", str(tmp_path / "größe")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert ended.returncode == 2
    assert r"gr\xf6\xdfe has no checkpoint" in ended.stderr
