"""`aweigh train`: train a recipe, or resume where it stopped."""

import argparse
import math
import shlex
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

from data_shards.counting import counted
from pipelines.commands.arguments import RESUMES, Commands, add_recipe, resolved, takes_fields
from pipelines.console import fail, say
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.recipes.settings import Recipe
    from pipelines.training.train import TrainingResult

_POOR_AP = 0.01


def add(commands: Commands) -> None:
    """Add `train`."""
    train = commands.add_parser(
        "train",
        help="train a recipe, or resume where it stopped",
        description="Train a recipe, given by name or as a YAML file. Set any field with --field.subfield VALUE; "
        "`aweigh train --fields` lists them. The same command resumes. `aweigh train finetune --data FOLDER` takes a "
        "folder of annotated images, builds its shards, and derives batch, learning rate, epochs and input size.",
    )
    add_recipe(train, optional=True)
    train.add_argument(
        "--fields",
        nargs="?",
        const="",
        metavar="WORD",
        help="list the fields with default and meaning; with WORD, those whose name or meaning contains it",
    )
    _add_finetuning(train)
    train.set_defaults(when_stopped=RESUMES)
    takes_fields(train, run)


def _add_finetuning(train: argparse.ArgumentParser) -> None:
    group = train.add_argument_group("for the recipe finetune")
    group.add_argument(
        "--data",
        metavar="FOLDER",
        help="images with annotations: YOLO (data.yaml), COCO or Pascal VOC, as tools export them",
    )
    group.add_argument(
        "--from",
        dest="weights",
        metavar="WEIGHTS",
        help="start from weights of the same detector, for whatever classes: a file, https://, s3://, or one of your "
        "runs (default: the published ImageNet weights of its backbone)",
    )
    group.add_argument(
        "--shards", metavar="FOLDER", help="folder for the shards that are built (default: shards in run.folder)"
    )
    group.add_argument(
        "--validation-share",
        type=float,
        metavar="SHARE",
        help="part of a folder without splits to validate on; 0 trains without validation (default: 0.2)",
    )
    group.add_argument("--split-seed", type=int, metavar="N", help="seed of that split (default: 0)")


def run(known: argparse.Namespace) -> None:
    """Train, or list the fields."""
    if known.fields is not None:
        print(describe_fields(known.fields, _columns()))
        return
    if not known.recipe:
        raise ConfigError("which recipe? `aweigh recipes` lists them.")
    recipe = _recipe_of(known)
    from pipelines.training.train import train

    show_result(train(recipe), recipe)


def _recipe_of(known: argparse.Namespace) -> "Recipe":
    """Return the recipe to train; for finetune, with everything that it derives."""
    names = ("data", "weights", "shards", "validation_share", "split_seed")
    given = {name: getattr(known, name) for name in names if getattr(known, name) is not None}
    if known.recipe != "finetune":
        if given:
            word = {"weights": "from"}.get(next(iter(given)), next(iter(given)).replace("_", "-"))
            raise ConfigError(
                f"--{word} is for the recipe finetune; {known.recipe} takes --data.train LOCATION/SPLIT and "
                "--detector.weights FILE. Or give `aweigh train finetune`."
            )
        return resolved(known.recipe, known.rest)
    from pipelines.finetuning.finetune import Request, finetuning_recipe

    if "validation_share" in given:
        given["share"] = given.pop("validation_share")
    return finetuning_recipe(Request(flags=tuple(known.rest), **given))


def _columns() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 80


def describe_fields(word: str, columns: int) -> str:
    """Describe the fields of a recipe by section, with name and default on a line and the meaning below.

    Args:
        word: part of a name or meaning, in any case; empty describes all fields.
        columns: width of the text.

    Raises:
        ConfigError: no field matches.
    """
    from pipelines.recipes.recipe import field_help, section_help

    sections = section_help()
    blocks: dict[str, list[str]] = {}
    for name, default, meaning in field_help():
        if word.lower() in f"{name} {meaning}".lower():
            fitted = textwrap.fill(meaning, columns, initial_indent=" " * 6, subsequent_indent=" " * 6)
            blocks.setdefault(name.rpartition(".")[0], []).append(f"  --{name}  {default}".rstrip() + f"\n{fitted}")
    if not blocks:
        raise ConfigError(f"no field has {word!r} in its name or meaning; `aweigh train --fields` lists them all.")
    headed = (
        (textwrap.fill(f"{name}: {sections[name]}", columns) if name else "", *rows) for name, rows in blocks.items()
    )
    return "\n\n".join("\n".join(line for line in block if line) for block in headed)


def show_result(result: "TrainingResult", recipe: "Recipe") -> None:
    """Print the AP table on stdout, and the run's files and the next commands on stderr.

    If an evaluation failed, the command ends here with exit status 1.
    """
    from data_shards.addresses import shown_address
    from pipelines.tracking import tracking_uri

    if result.evaluation is not None:
        print((result.folder / "evaluation" / "ap.txt").read_text(), end="")
    say("done", f"run {result.run}, {counted(result.step, 'step')}")
    if result.ended_early:
        say("early", result.ended_early)
    if result.evaluation is not None and (reading := _reading(result, recipe)):
        say("note", reading)
    if (pictures := result.folder / "evaluation" / "predictions.png").exists():
        say("pictures", str(pictures))
    say("weights", str(result.folder / "checkpoints"))
    say("logs", str(result.folder / "logs"))
    tracked = shown_address(tracking_uri(recipe))
    ui = shlex.join(["aweigh", "ui", "--folder", recipe.run.folder]) if tracked.startswith("sqlite") else tracked
    say("next", f"{ui}    curves, pictures and comparison of runs in MLflow")
    if result.evaluation is not None:
        evaluate = shlex.join(["aweigh", "evaluate", str(result.folder)])
        say("", f"{evaluate}    AP of the best checkpoint, on any shards with --data")
    # The numbers of a fine-tuning are in the run's own recipe; the one of that name leaves them open.
    shown = str(result.folder / "recipe.yaml") if recipe.recipe == "finetune" else recipe.recipe
    say("", f"{shlex.join(['aweigh', 'recipe', 'show', shown])}    every setting of the recipe")
    if result.failed_evaluations:
        fail(_describe_failures(result), 1)


def _describe_failures(result: "TrainingResult") -> str:
    """Describe the evaluations that failed in one line, with the command that evaluates again."""
    failed = result.failed_evaluations
    steps = ", ".join(f"{step:,}" for step in failed)
    which = f"the evaluation after step {steps}" if len(failed) == 1 else f"the evaluations after steps {steps}"
    again = shlex.join(["aweigh", "evaluate", str(result.folder)])
    return (
        f"training is complete, but {which} failed: {failed[max(failed)]}. Correct the validation shards, then run "
        f"`{again} --data LOCATION/SPLIT`."
    )


def _reading(result: "TrainingResult", recipe: "Recipe") -> str:
    """Explain an AP near 0, which looks like a defect and is usually a training that was too short."""
    assert result.evaluation is not None
    score = (result.evaluation.get("keypoints") or result.evaluation)["AP"]
    # A data set without any object has no AP.
    if score is None or math.isnan(score) or score >= _POOR_AP:
        return ""
    began = f"weights {recipe.detector.weights}" if recipe.detector.weights else "random weights"
    advice = f"train longer with --schedule.{'steps' if recipe.schedule.steps else 'epochs'}"
    if not recipe.detector.weights:
        advice += ", or start from published weights with --detector.weights"
    steps = counted(result.step, "step")
    highest = result.evaluation.get("highest_score")
    scores = "" if highest is None else f", and the most confident detection scores {highest:.2f}"
    return f"AP is {score:.3f} after {steps} from {began}{scores}, usually a sign that training was too short; {advice}"
