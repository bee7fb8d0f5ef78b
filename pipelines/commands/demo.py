"""`aweigh demo`: write a small data set, build its shards, train on them, and show the result."""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from pipelines.commands.arguments import RESUMES, Commands, takes_fields


def add(commands: Commands) -> None:
    """Add `demo`."""
    demo = commands.add_parser(
        "demo",
        help="write a small data set, train on it, evaluate and show the result",
        description="Write a small data set, build its shards, train the recipe `demo` and show the result. Set any "
        "field of the recipe with --field.subfield VALUE, such as --seed 7.",
    )
    demo.add_argument("--folder", type=Path, default="demo", help="folder for the data set (default: demo)")
    demo.set_defaults(when_stopped=RESUMES)
    takes_fields(demo, run)


def run(known: argparse.Namespace) -> None:
    """Write the demo set, build its shards, and train the recipe `demo` on them."""
    from data_shards.building.build import build_shards
    from data_shards.demo.write import write_demo
    from pipelines import console, recipes
    from pipelines.commands.train import show_result
    from pipelines.recipes.recipe import with_flags
    from pipelines.training.train import train

    folder: Path = known.folder
    recipe = recipes.get("demo")
    shards = folder / "shards"
    data = replace(recipe.data, train=str(shards / "train"), validation=str(shards / "val"))
    recipe = with_flags(replace(recipe, data=data), known.rest)
    console.say("demo", f"1 of 3: write a small photo-like data set in COCO format to {folder}, the same every time")
    written = write_demo(folder, progress=lambda done, total: console.progress_line("images", done, total, "drawn"))
    console.say("demo", "2 of 3: build its WebDataset shards and their manifest")
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
