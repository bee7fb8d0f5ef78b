"""`aweigh export`: a trained detector as one ONNX or torch file, with a receipt of what it computes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import console
from pipelines.commands.arguments import Commands, add_json, takes_fields
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from data_shards.reading.reading import Reading
    from pipelines.exporting.receipt import Receipt
    from pipelines.trained.trained import Trained


def add(commands: Commands) -> None:
    """Add `export`."""
    export = commands.add_parser(
        "export",
        help="write a trained detector as one ONNX or torch file, checked against the run",
        description="Writes normalisation, network, decoding and suppression into one file, runs it on real images "
        "beside the run, and keeps it only if both find the same. Next to it is FILE.receipt.json with all figures.",
    )
    export.add_argument(
        "run_folder", metavar="RUN", help="a run's folder (its best checkpoint), a checkpoint's, or a weights file"
    )
    export.add_argument("--to", required=True, choices=("onnx", "torch"), help="onnx (.onnx), or torch (.pt2)")
    export.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write")
    export.add_argument("--data", help="shards for the receipt (default: the run's data.validation)")
    export.add_argument(
        "--images", type=int, default=32, help="images whose detections are compared (default: 32); AP is of all"
    )
    export.add_argument(
        "--input-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="the one height and width that the file takes (default: the run's, if its geometry has one)",
    )
    export.add_argument("--dynamic", action="store_true", help="take any height and width that the network does")
    export.add_argument(
        "--batch", type=_batch, default=1, metavar="N|dynamic", help="images of a call (default: 1), or any number"
    )
    export.add_argument(
        "--input",
        choices=("uint8", "float"),
        help="type of the pixels, 0 to 255 (default: uint8; float if images are padded with their mean, as for FCOS)",
    )
    export.add_argument("--half", action="store_true", help="compute the network in float16")
    export.add_argument("--limit", type=int, help="detections of an image (default: the run's evaluation.limit)")
    export.add_argument(
        "--bound",
        type=float,
        metavar="PIXELS",
        help="largest difference of a box, in input pixels (default: 0.1; 2 with --half)",
    )
    export.add_argument("--newest", action="store_true", help="the newest checkpoint instead of the best")
    add_json(export, "the receipt")
    takes_fields(export, run)


def run(known: argparse.Namespace) -> None:
    """Export a run."""
    from pipelines.exporting.export import ExportSettings, export, input_of, plan_lines
    from pipelines.trained.exported_file import ExportedDetector
    from pipelines.trained.trained import open_trained

    settings = ExportSettings(
        to=known.to,
        output=known.output,
        input_size=tuple(known.input_size) if known.input_size else None,
        dynamic=known.dynamic,
        batch=known.batch,
        pixels=known.input,
        half=known.half,
        limit=known.limit,
        images=known.images,
        bound=known.bound,
    )
    settings.check()
    trained = open_trained(known.run_folder, flags=known.rest, newest=known.newest)
    if isinstance(trained.detector, ExportedDetector):
        raise ConfigError(f"{known.run_folder} is an exported file already; give the run that it was made of.")
    given = input_of(trained, settings)
    for topic, text in plan_lines(trained, given, settings):
        console.say(topic, text)
    location, reading = _data(known, trained)
    receipt = export(
        trained,
        reading,
        location,
        settings,
        progress=lambda topic, total, done: console.progress_line(topic, done, total, "images"),
        waiting=lambda text: console.say("wait", text),
    )
    print(json.dumps(receipt.as_dict(), ensure_ascii=False) if known.json else receipt.text())
    if abs(receipt.ap_difference) > 0.001:
        console.say("warning", f"AP differs by {receipt.ap_difference:+.4f}; see the receipt")
    console.say("done", f"{known.output}, and {known.output.name}.receipt.json beside it")
    _track(trained, receipt, settings.half)


def _batch(word: str) -> int | None:
    if word == "dynamic":
        return None
    try:
        return int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is neither a number nor the word dynamic.") from None


def _data(known: argparse.Namespace, trained: Trained) -> tuple[str, Reading]:
    """Open the shards of the receipt."""
    from data_shards.counting import counted
    from pipelines.trained.trained import check_classes

    location = known.data or trained.recipe.data.validation
    if not location:
        raise ConfigError(
            f"{known.run_folder} names no validation shards, without which the file cannot be checked; give --data "
            "LOCATION/SPLIT."
        )
    split = trained.recipe.data.split(location)
    check_classes(trained.identity.location, trained.classes, split.manifest)
    console.say("data", f"{location}, {counted(split.manifest.num_samples, 'image')}")
    return location, trained.recipe.data.reading(split, trained.detector.box_corners)


def _track(trained: Trained, receipt: Receipt, half: bool) -> None:
    """Log to the MLflow run that trained the checkpoint, if it is known."""
    from pipelines import tracking

    checkpoint = Path(trained.identity.location)
    folder = checkpoint.parent.parent / "tracking"
    if not checkpoint.is_dir() or not (folder / "run.json").exists():
        return
    kind = receipt.facts["format"] + ("_half" if half else "")
    name = f"export/{receipt.facts['file']}.receipt"
    texts = {f"{name}.json": json.dumps(receipt.as_dict(), indent=1), f"{name}.txt": receipt.text() + "\n"}
    if tracking.log_afterwards(folder, trained.identity.step, receipt.metrics(f"export/{kind}"), texts):
        console.say("tracked", f"export/{kind}/* and the receipt in the run's MLflow")
