"""`aweigh demo`: from nothing to a trained, evaluated, tracked detector with the commands a user would type."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_shards.building.build import build_shards
from data_shards.demo.write import write_demo
from pipelines import console, recipes
from pipelines.commands.show import show_result
from pipelines.recipes.recipe import with_flags
from pipelines.training.train import train


def run_demo(folder: Path, flags: Sequence[str]) -> None:
    """Write the demo set, build its shards, and train the recipe `demo` on them.

    Args:
        folder: where the data set goes; runs go where the recipe says.
        flags: change the recipe, as for `aweigh train`.
    """
    recipe = recipes.get("demo")
    shards = folder / "shards"
    data = replace(recipe.data, train=str(shards / "train"), validation=str(shards / "val"))
    recipe = with_flags(replace(recipe, data=data), flags)
    console.say("demo", f"1 of 3: a small COCO-format data set in {folder}, like photographs, the same every time")
    written = write_demo(folder, progress=lambda done, total: console.progress_line("images", done, total, "drawn"))
    console.say("demo", "2 of 3: its WebDataset shards and their manifest")
    for split, annotations in (("train", written.train_annotations), ("val", written.val_annotations)):
        report = build_shards(annotations, written.images, str(shards), split=split, shard_bytes=1_000_000)
        console.say("shards", "; ".join(report.describe().split("\n")))
    console.say(
        "demo", f"3 of 3: train and evaluate, as `aweigh train demo` does; Ray starts {recipe.cluster.workers_in_words}"
    )
    began = time.monotonic()
    result = train(recipe)
    console.say("demo", f"trained and evaluated in {console.duration(time.monotonic() - began)}")
    show_result(result, recipe)
