"""`aweigh shards …`: import, build, move, check and look at data."""

import argparse
import json
import math
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.commands.arguments import (
    Commands,
    add_actions,
    add_json,
    check_picture,
    completes,
    recipe_names,
    resolved,
    takes_fields,
)
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from data_shards.building.coco_writing import ImportReport

LOCATION = "LOCATION/SPLIT: a folder or s3:// prefix with manifest.json"


def add(commands: Commands) -> None:
    """Add `shards` and its actions."""
    shards = commands.add_parser("shards", help="build, examine, move and check WebDataset shards")
    actions = add_actions(shards, "build|verify|examine|show|plan|push|pull|import-voc|import-yolo")
    _add_build(actions)
    _add_imports(actions)
    _add_verify(actions)
    _add_examine(actions)
    _add_show(actions)
    _add_plan(actions)
    _add_moves(actions)


def _add_build(actions: Commands) -> None:
    build = actions.add_parser("build", help="turn COCO annotations and images into shards")
    build.add_argument("--annotations", required=True, help="COCO instances or person keypoints JSON")
    build.add_argument("--images", required=True, help="folder of the images")
    build.add_argument("--output", required=True, help="folder or s3://bucket/prefix")
    build.add_argument("--split", required=True, help="name of the split: the folder below the output")
    build.add_argument("--shard-megabytes", type=_amount, default=96, help="size of a shard (default: 96)")
    _add_processes(build)
    build.add_argument(
        "--degenerate-boxes",
        choices=("drop", "refuse"),
        default="drop",
        help="boxes of zero size or outside their image: drop and count them (default), or refuse the file",
    )
    build.add_argument(
        "--empty-images",
        choices=("keep", "drop"),
        default="keep",
        help="images without an object: keep (default), or drop, as the published FCOS and pose trainings do",
    )
    build.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        metavar="NAME=CLASS",
        help="categories not to learn, each with the class it may be mistaken for, or * for any (KITTI: Van=Car)",
    )
    build.add_argument("--leave-out", nargs="+", default=[], metavar="NAME", help="categories to leave out")
    build.add_argument(
        "--classes-from",
        default="",
        metavar="LOCATION",
        help="LOCATION/SPLIT or a COCO file: take its class ids and joints for the classes of the same names",
    )
    build.add_argument(
        "--max-size",
        type=int,
        default=0,
        metavar="PIXELS",
        help="shrink images whose longer side exceeds this, and their labels (default: keep every byte)",
    )
    build.add_argument("--jpeg-quality", type=int, default=95, help="quality of shrunk images (default: 95)")
    build.add_argument("--overwrite", action="store_true", help="replace a different data set in the output")
    build.set_defaults(run=_build, when_stopped=_RESUMES)


def _add_imports(actions: Commands) -> None:
    voc = actions.add_parser(
        "import-voc",
        help="turn Pascal VOC XML into COCO annotations",
        description="Corners are read as continuous edges, as today's tools write them: x = xmin, width = xmax - xmin. "
        "--one-based reads the files of the VOC challenges.",
    )
    voc.add_argument("--annotations", required=True, help="folder of the .xml files")
    voc.add_argument("--images", required=True, help="folder of the images")
    voc.add_argument("--output", required=True, help="the COCO JSON to write")
    voc.add_argument(
        "--classes",
        nargs="+",
        default=[],
        help="names in the order of their ids, or a file of them (default: in alphabetical order)",
    )
    voc.add_argument("--image-set", help="text file with the names to take, such as ImageSets/Main/train.txt")
    voc.add_argument("--difficult", choices=("keep", "drop"), default="keep", help="objects marked difficult")
    voc.add_argument("--one-based", action="store_true", help="pixels are counted from 1, and xmax and ymax included")
    voc.add_argument("--overwrite", action="store_true", help="replace the output")
    voc.set_defaults(run=_import_voc)

    yolo = actions.add_parser("import-yolo", help="turn YOLO text files into COCO annotations")
    yolo.add_argument("--images", required=True, help="folder of the images")
    yolo.add_argument("--labels", help="folder of the .txt files (default: `labels` beside `images`)")
    yolo.add_argument("--names", required=True, help="data.yaml, or a text file with a class on each line")
    yolo.add_argument("--output", required=True, help="the COCO JSON to write")
    yolo.add_argument("--overwrite", action="store_true", help="replace the output")
    yolo.set_defaults(run=_import_yolo)


def _add_verify(actions: Commands) -> None:
    verify = actions.add_parser(
        "verify", help="compare shards with their manifest, byte for byte; exit status 1 if one is damaged"
    )
    verify.add_argument("location", help=LOCATION)
    verify.add_argument("--decode", action="store_true", help="decode every image too")
    _add_cache(verify)
    _add_processes(verify, "--threads")
    verify.set_defaults(run=_verify, when_stopped=_RESUMES)


def _add_examine(actions: Commands) -> None:
    examine = actions.add_parser("examine", help="find what would spoil a training, with a fix for each finding")
    examine.add_argument("location", help=LOCATION)
    examine.add_argument("--against", metavar="LOCATION", help="another split: find images that are in both")
    examine.add_argument("--stride", type=int, default=4, help="stride of the detector's finest output (default: 4)")
    examine.add_argument(
        "--input-size",
        type=int,
        nargs=2,
        default=(512, 512),
        metavar=("HEIGHT", "WIDTH"),
        help="data.input_size (default: 512 512)",
    )
    examine.add_argument("--max-objects", type=int, default=128, help="data.max_objects (default: 128)")
    _add_cache(examine)
    examine.add_argument("--examples", type=int, default=3, help="findings to print of each kind (default: 3)")
    examine.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: one per core")
    add_json(examine, "everything")
    examine.set_defaults(run=_examine)


def _add_show(actions: Commands) -> None:
    show = actions.add_parser("show", help="draw samples: labels, what the network receives, its targets")
    show.add_argument("location", help=LOCATION)
    show.add_argument("--output", required=True, type=Path, metavar="PNG", help="contact sheet to write, .png or .jpg")
    recipe = show.add_argument(
        "--recipe", default="demo", help="recipe with the input size, augmentation and detector (default: demo)"
    )
    completes(recipe, recipe_names)
    show.add_argument("--samples", type=int, default=8, help="how many, from the start of the epoch (default: 8)")
    show.add_argument("--key", action="append", default=[], help="a sample to draw instead; may be repeated")
    show.add_argument("--epoch", type=int, default=0, help="epoch of the augmentation (default: 0)")
    takes_fields(show, _show)


def _add_plan(actions: Commands) -> None:
    plan = actions.add_parser("plan", help="steps, shards, bytes and cache that an epoch takes on each node")
    plan.add_argument("location", help=LOCATION)
    plan.add_argument("--batch", type=int, required=True, metavar="N", help="the global batch size")
    plan.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (default: 1)")
    plan.add_argument("--workers", type=int, metavar="N", help="workers on all nodes (default: one per node)")
    plan.add_argument("--cache", type=_amount, metavar="GB", help="space for shards on each node")
    plan.add_argument("--seed", type=int, default=0, help="seed of the run (default: 0)")
    add_json(plan)
    plan.set_defaults(run=_plan)


def _add_moves(actions: Commands) -> None:
    pull = actions.add_parser("pull", help="copy shards from S3 into a folder, every byte compared")
    pull.add_argument("location", help="s3://bucket/prefix/SPLIT")
    pull.add_argument("folder", help="folder for the split")
    push = actions.add_parser("push", help="copy shards from a folder to S3, every byte read back and compared")
    push.add_argument("folder", help="the folder with manifest.json")
    push.add_argument("location", help="s3://bucket/prefix/SPLIT")
    for parser, run in ((pull, _pull), (push, _push)):
        parser.add_argument("--threads", type=int, default=4, help="shards to copy at the same time (default: 4)")
        parser.add_argument("--overwrite", action="store_true", help="replace a different data set there")
        parser.set_defaults(run=run, when_stopped=_RESUMES)


_RESUMES = "run the same command again to continue with the remaining shards"


def _add_processes(command: argparse.ArgumentParser, *other_names: str) -> None:
    command.add_argument(
        "--processes", *other_names, type=int, default=os.cpu_count() or 1, help="default: one per core"
    )


def _add_cache(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--cache", type=_amount, default=0, metavar="GB", help="space for shards from S3 (default: 0, no limit)"
    )


def _amount(text: str) -> float:
    """Read a finite number of 0 or more; argparse names the option if it is something else."""
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 <= amount < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give a number, 0 or more.")
    return amount


def _build(known: argparse.Namespace) -> None:
    from data_shards.building.build import Progress, build_shards
    from pipelines.console import Pace, progress_line, say

    pace = Pace()

    def show(at: Progress) -> None:
        note = pace.note(at.images, at.total_images, at.kept_images)
        progress_line("shards", at.images, at.total_images, "images", note)

    say("build", f"{known.annotations} → {known.output}/{known.split}, processes: up to {known.processes}")
    report = build_shards(
        known.annotations,
        known.images,
        known.output,
        split=known.split,
        shard_bytes=int(known.shard_megabytes * 1_000_000),
        degenerate_boxes=known.degenerate_boxes,
        processes=known.processes,
        progress=show,
        overwrite=known.overwrite,
        empty_images=known.empty_images,
        ignore=_ignored(known.ignore),
        leave_out=known.leave_out,
        max_size=known.max_size,
        jpeg_quality=known.jpeg_quality,
        classes_from=known.classes_from,
    )
    print(report.describe())
    location = shlex.quote(report.location)
    if _is_validation(known.split):
        print(f"evaluate on them with --data.validation {location}")
    else:
        print(f"train on them with --data.train {location}")


def _is_validation(split: str) -> bool:
    """True for val, valid2, mini_val2017, test and the like."""
    return re.match(r"(mini_?)?(val|test|eval|dev)", split.lower()) is not None


def _ignored(words: list[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if odd := [word for word, (name, _, of) in zip(words, pairs, strict=True) if not (name and of)]:
        raise ConfigError(
            f"--ignore takes NAME=CLASS, such as Van=Car, or NAME=* for every class; {odd[0]!r} is neither."
        )
    return {name: of for name, _, of in pairs}


def _import_voc(known: argparse.Namespace) -> None:
    from data_shards.building.source_files import class_list
    from data_shards.building.voc import import_voc
    from pipelines.console import progress_line

    report = import_voc(
        known.annotations,
        known.images,
        known.output,
        classes=class_list(known.classes),
        image_set=known.image_set,
        difficult=known.difficult,
        one_based=known.one_based,
        overwrite=known.overwrite,
        progress=lambda done, total: progress_line("import", done, total, "images"),
    )
    _print_imported(report)


def _import_yolo(known: argparse.Namespace) -> None:
    from data_shards.building.yolo import import_yolo
    from pipelines.console import progress_line

    report = import_yolo(
        known.labels,
        known.images,
        known.output,
        names=known.names,
        overwrite=known.overwrite,
        progress=lambda done, total: progress_line("import", done, total, "images"),
    )
    _print_imported(report)


def _print_imported(report: "ImportReport") -> None:
    print(report.describe())
    name = Path(report.annotations).stem
    build = ["aweigh", "shards", "build", "--annotations", str(report.annotations), "--images", str(report.images)]
    build += ["--output", "shards", "--split", name if _is_validation(name) else "train"]
    print(f"next: {shlex.join(build)}")


def _verify(known: argparse.Namespace) -> None:
    from data_shards.checking.verify import verify_shards
    from pipelines.console import Pace, progress_line

    pace = Pace()
    report = verify_shards(
        known.location,
        decode=known.decode,
        cache_bytes=int(known.cache * 1e9),
        processes=known.processes,
        progress=lambda at: progress_line(
            "verify", at.images, at.total_images, "images", pace.note(at.images, at.total_images)
        ),
    )
    if report.problems:
        for problem in report.problems:
            print(f"aweigh: {problem}", file=sys.stderr)
        sys.exit(1)
    print(report.describe())


def _examine(known: argparse.Namespace) -> None:
    from data_shards.checking.examine import examine
    from pipelines.console import Pace, progress_line

    pace = Pace()
    found = examine(
        known.location,
        against=known.against,
        stride=known.stride,
        input_size=(known.input_size[0], known.input_size[1]),
        max_objects=known.max_objects,
        cache_bytes=int(known.cache * 1e9),
        threads=known.threads,
        progress=lambda done, total: progress_line("examine", done, total, "images", pace.note(done, total)),
    )
    print(json.dumps(found.as_json()) if known.json else found.describe(max(0, known.examples)))


def _show(known: argparse.Namespace) -> None:
    check_picture(known.output, "--output")
    from data_shards.counting import counted
    from pipelines.pictures.contact_sheet import write_contact_sheet

    recipe = resolved(known.recipe, known.rest)
    keys = write_contact_sheet(
        known.location, recipe, known.output, samples=known.samples, keys=known.key, epoch=known.epoch
    )
    shown = counted(len(keys), "sample")
    print(f"{known.output}: {shown} of {known.location}, as recipe {recipe.recipe} trains on them")


def _plan(known: argparse.Namespace) -> None:
    from data_shards.format.manifest import load_manifest
    from data_shards.order.epoch_cost import footprint

    found = footprint(
        load_manifest(known.location),
        global_batch_size=known.batch,
        nodes=known.nodes,
        workers=known.workers,
        cache_bytes=None if known.cache is None else int(known.cache * 1e9),
        seed=known.seed,
    )
    print(json.dumps(found.as_json()) if known.json else found.describe())


def _pull(known: argparse.Namespace) -> None:
    from data_shards.building.transfer import pull_shards

    report = pull_shards(
        known.location, known.folder, threads=known.threads, overwrite=known.overwrite, progress=_moved("pull")
    )
    print(report.describe())


def _push(known: argparse.Namespace) -> None:
    from data_shards.building.transfer import push_shards

    report = push_shards(
        known.folder, known.location, threads=known.threads, overwrite=known.overwrite, progress=_moved("push")
    )
    print(report.describe())


def _moved(topic: str) -> Any:
    from data_shards.building.transfer import TransferProgress
    from pipelines.console import progress_line

    def show(at: TransferProgress) -> None:
        progress_line(topic, at.shards, at.total_shards, f"shards, {at.bytes / 1e6:,.1f} MB")

    return show
