"""The command line: what can be asked of aweigh, and how a mistake is answered.

Nothing heavy is imported before a command needs it, so that help and lists come at once. Exit status: 0 done, 1 failed,
2 something given cannot be used, 130 stopped with Ctrl-C.
"""

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipelines.commands.shards import add_shards_commands
from pipelines.commands.submit import add_jobs_commands, add_submission_arguments
from pipelines.commands.weights import add_weights_commands
from pipelines.console import end_progress_line

if TYPE_CHECKING:
    from pipelines.recipes.settings import Recipe

DESCRIPTION = """\
Train anchor-free object detectors on COCO-format data, and resume to the exact sample.

  aweigh demo                                         a first training, minutes on two cores
  aweigh shards build --annotations instances.json --images photos --output shards --split train
  aweigh train centernet_resdcn18_1x --data.train shards/train --data.validation shards/val --run.name first
  aweigh evaluate runs/first                          AP of the best checkpoint
  aweigh ui                                           compare runs in MLflow

The same `aweigh train` command resumes a run that was stopped, killed or lost.
"""


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, with the nearest word that would have been right."""

    def error(self, message: str) -> NoReturn:
        missing = message.replace("the following arguments are required: ", f"{self.prog} needs ")
        if missing != message:
            missing += f"; `{self.prog} --help` says more."
        fail(missing.replace("argument command: ", ""))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but what nobody knows is refused by the command that it was given to."""
        known, rest = super().parse_known_args(args, namespace)
        if rest and not getattr(known, "takes_flags", False):
            option = rest[0].partition("=")[0]
            close = difflib.get_close_matches(option, self._option_string_actions, n=1)
            hint = f"did you mean {close[0]}?" if close else f"`{self.prog} --help` lists them."
            self.error(f"unknown argument {rest[0]!r}; {hint}")
        return known, rest

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            close = difflib.get_close_matches(str(value), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
            what = f"{action.option_strings[0]}" if action.option_strings else "command"
            self.error(f"unknown {what} {value!r}; {hint}")


def fail(message: str, status: int = 2) -> NoReturn:
    """Say what is wrong in one line and end."""
    end_progress_line()
    print(f"aweigh: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    known, rest = command_line().parse_known_args(words)
    if getattr(known, "takes_flags", False) and any("." in word for word in words[:2] if word.startswith("--")):
        fail(f"{words[0]} takes its argument first and fields after it: aweigh {words[0]} NAME --field.subfield VALUE")
    known.rest = rest
    # Warnings of any library and what our rooms have to say, as plain lines.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("aweigh").setLevel(logging.INFO)
    from cluster.errors import ClusterError, StoppedError, WorkersFailedError
    from data_shards.errors import DataError
    from detectors.errors import DetectorError
    from pipelines.errors import ConfigError

    mistakes: tuple[type[Exception], ...] = (ConfigError, DataError, DetectorError, ClusterError)
    try:
        known.run(known)
    except KeyboardInterrupt:
        fail(f"stopped with Ctrl-C{_resumes(known)}.", 130)
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except StoppedError as error:
        fail(f"{error}; the same command goes on from the last checkpoint.", 128 + error.signal)
    except WorkersFailedError as error:
        fail(str(error), 1)
    except mistakes as error:
        fail(str(error))


def _resumes(known: argparse.Namespace) -> str:
    """What becomes of the work of a command that is stopped."""
    if known.command in ("train", "demo"):
        return "; the same command goes on from the last checkpoint"
    if known.command == "shards" and known.action in ("build", "verify", "pull", "push"):
        return "; the same command goes on with the shards that are left"
    return ""


def command_line() -> argparse.ArgumentParser:
    """Every command with its arguments; recipe fields are left over for `with_flags`."""
    parser = _Parser(prog="aweigh", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="command", required=True, parser_class=_Parser)

    demo = commands.add_parser("demo", help="write a small data set, train on it, evaluate and show the result")
    demo.add_argument("--folder", default="demo", help="where the data set goes (default: demo)")
    _flags(demo, _demo)

    train = commands.add_parser(
        "train",
        help="train a recipe, or go on where it stopped",
        description="Train a recipe by name or YAML file. Any field is set as --field.subfield VALUE; "
        "`aweigh train --fields` lists them. The same command resumes.",
    )
    train.add_argument("recipe", nargs="?", help="a name of `aweigh recipes`, or a recipe.yaml")
    train.add_argument("--fields", action="store_true", help="list every field with its default and meaning")
    _flags(train, _train)

    evaluate = commands.add_parser("evaluate", help="AP of a run or checkpoint on validation shards")
    evaluate.add_argument("run_folder", metavar="RUN", help="a run's folder (its best checkpoint) or a checkpoint's")
    evaluate.add_argument("--data", help="shards to evaluate on (default: the run's data.validation)")
    evaluate.add_argument("--newest", action="store_true", help="the newest checkpoint instead of the best")
    evaluate.add_argument("--pictures", type=Path, metavar="PNG", help="draw predictions beside the truth here")
    evaluate.add_argument("--json", action="store_true", help="print the figures as JSON")
    evaluate.add_argument(
        "--tta",
        nargs="+",
        choices=("none", "flip", "multiscale"),
        default=[],
        metavar="MODE",
        help="compare modes of test-time augmentation: none, flip, multiscale",
    )
    evaluate.add_argument(
        "--nms", action="store_true", help="soft-NMS for a single scale too, the published --nms of CenterNet"
    )
    evaluate.add_argument(
        "--timed-images", type=int, default=20, help="images timed one by one for each mode of --tta (default: 20)"
    )
    _flags(evaluate, _evaluate)

    recipes = commands.add_parser("recipes", help="list the recipes with what each is for")
    recipes.set_defaults(run=_recipes)

    recipe = commands.add_parser("recipe", help="show one recipe")
    actions = recipe.add_subparsers(dest="action", metavar="show", required=True, parser_class=_Parser)
    show = actions.add_parser("show", help="print a recipe, resolved, as YAML that `aweigh train FILE.yaml` takes")
    show.add_argument("recipe")
    _flags(show, _recipe_show)

    add_shards_commands(commands)
    add_jobs_commands(commands)
    add_weights_commands(commands)

    preflight = commands.add_parser(
        "preflight",
        help="check a cluster for a training, before a GPU minute is spent",
        description="Run it where Ray runs, with RAY_ADDRESS set, or from here with --address. It stands one process "
        "where each worker will stand; a row for each check, with what to do. Exit status 1 where something is wrong.",
    )
    preflight.add_argument("recipe", nargs="?", help="what will be trained; without it, the cluster alone is checked")
    preflight.add_argument("--json", action="store_true", help="print the findings as JSON")
    add_submission_arguments(preflight)
    preflight.set_defaults(detach=False)
    _flags(preflight, _preflight)

    bench = commands.add_parser("bench", help="measure speed and memory on this machine")
    actions = bench.add_subparsers(dest="action", metavar="subject", required=True, parser_class=_Parser)
    bench_train = actions.add_parser("train", help="where the time of a training step goes")
    bench_train.add_argument("recipe")
    bench_train.add_argument("--steps", type=int, default=20, help="steps to train, 3 of them to warm up (default: 20)")
    bench_train.add_argument("--json", action="store_true", help="print the figures as JSON")
    _flags(bench_train, _bench_train)
    bench_loader = actions.add_parser(
        "loader",
        help="CPU per image of the loader, beside decoding alone and other loaders",
        description="Every way of reading takes its turn, several times, in one run; what is compared is CPU time.",
    )
    bench_loader.add_argument("--data", metavar="LOCATION", help="shards to read (default: the demo's photographs)")
    bench_loader.add_argument("--rounds", type=int, default=5, help="turns of each way (default: 5)")
    bench_loader.add_argument("--images", type=int, default=320, help="images of a turn, about (default: 320)")
    bench_loader.add_argument("--json", action="store_true", help="print the figures as JSON")
    bench_loader.set_defaults(run=_bench_loader)
    bench_detectors = actions.add_parser(
        "detectors", help="ms per image of every detector beside what its authors publish; needs torch and numpy only"
    )
    bench_detectors.add_argument("--names", nargs="+", default=[], metavar="NAME", help="detectors (default: all)")
    bench_detectors.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="input in pixels (default: the published test size of each)",
    )
    _device(bench_detectors)
    bench_detectors.add_argument(
        "--repeats", type=int, help="timed repetitions, of which the median counts (default: 20 on a GPU, 3 on a CPU)"
    )
    bench_detectors.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="by autocast")
    bench_detectors.add_argument("--channels-last", action="store_true", help="keep weights and images channels last")
    bench_detectors.add_argument("--json", action="store_true", help="print the figures as JSON")
    bench_detectors.set_defaults(run=_bench_detectors)
    bench_deformable = actions.add_parser(
        "deformable", help="the deformable convolution against a plain one, and any torchvision found here"
    )
    _device(bench_deformable)
    bench_deformable.add_argument("--repeats", type=int, default=10, help="timed repetitions (default: 10)")
    bench_deformable.add_argument("--json", action="store_true", help="print the figures as JSON")
    bench_deformable.set_defaults(run=_bench_deformable)
    store = actions.add_parser(
        "object-store", help="an epoch from S3 with latency and little bandwidth, and from a folder"
    )
    store.add_argument(
        "--data", required=True, metavar="LOCATION", help="shards in a folder; they are served from there"
    )
    store.add_argument("--rounds", type=int, default=3, help="turns of each way (default: 3)")
    store.add_argument("--threads", type=int, default=1, help="that decode (default: 1)")
    store.add_argument("--latency", type=float, default=100, metavar="MS", help="of each answer (default: 100)")
    store.add_argument("--bandwidth", type=float, default=80, metavar="MB/S", help="of all connections (default: 80)")
    store.add_argument("--json", action="store_true", help="print the figures as JSON")
    store.set_defaults(run=_bench_object_store)
    bench_engine = actions.add_parser("engine", help="our step against bare DeepSpeed and plain DDP, by ZeRO stage")
    bench_engine.add_argument("recipe")
    bench_engine.add_argument("--rounds", type=int, default=12, help="steps of each engine, in turns (default: 12)")
    bench_engine.add_argument("--json", action="store_true", help="print the figures as JSON")
    _flags(bench_engine, _bench_engine)
    bench_checkpoint = actions.add_parser("checkpoint", help="what a checkpoint holds up")
    bench_checkpoint.add_argument("recipe")
    bench_checkpoint.add_argument("--checkpoints", type=int, default=3, help="how many to take (default: 3)")
    bench_checkpoint.add_argument("--json", action="store_true", help="print the figures as JSON")
    _flags(bench_checkpoint, _bench_checkpoint)
    bench_scaling = actions.add_parser("scaling", help="simulate weak scaling of every detector, 8 to 1,024 GPUs")
    bench_scaling.add_argument(
        "--images-per-second", type=float, default=60.0, help="what one GPU trains, an assumption (default: 60)"
    )
    bench_scaling.add_argument("--batch-per-gpu", type=int, default=16, help="images of a GPU's step (default: 16)")
    bench_scaling.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), default=1, help="(default: 1)")
    bench_scaling.add_argument(
        "--overlap",
        action="store_true",
        help="as with zero_optimization.overlap_comm and small buckets (stages 1 to 3)",
    )
    bench_scaling.set_defaults(run=_bench_scaling)

    drill = commands.add_parser(
        "drill",
        help="train under a fault and compare bit for bit with the same training undisturbed",
        description="Train a recipe, made short by flags, once undisturbed and once under each fault, with real "
        "processes and kills; say `bitwise equal`, or the first step, tensor and samples that differ.",
    )
    drill.add_argument(
        "recipe", nargs="?", help="a name of `aweigh recipes`, or a recipe.yaml (default: the demo, in 30 steps)"
    )
    drill.add_argument("--fault", nargs="+", default=[], metavar="NAME", help="what is to happen (default: everything)")
    drill.add_argument("--faults", action="store_true", help="list the faults")
    drill.add_argument("--folder", type=Path, default=Path("drill"), help="where the runs go (default: drill)")
    drill.add_argument("--json", action="store_true", help="print JSON")
    _flags(drill, _drill)

    checkpoints = commands.add_parser(
        "checkpoints", help="what a run can be resumed from: list, show, verify, clean up"
    )
    actions = checkpoints.add_subparsers(
        dest="action", metavar="ls|show|verify|gc", required=True, parser_class=_Parser
    )
    for name, meaning in (
        ("ls", "list checkpoints with step, score, size and age, and what killed processes left"),
        ("show", "print what a checkpoint says of itself"),
        ("verify", "compare every file with its sha256"),
        ("gc", "remove what killed processes left and, with --keep, all but the newest and the best"),
    ):
        action = actions.add_parser(name, help=meaning)
        action.add_argument("place", metavar="RUN", help="a run's folder, or s3://BUCKET/PREFIX/NAME")
        action.add_argument("--json", action="store_true", help="print JSON")
        if name == "show":
            action.add_argument("--step", type=int, help="of this step (default: the newest)")
        if name == "gc":
            action.add_argument("--keep", type=int, help="how many of the newest stay; the best stays beside them")
        action.set_defaults(run=_checkpoints)

    tracked = commands.add_parser("tracking", help="what MLflow has not been told yet")
    actions = tracked.add_subparsers(dest="action", metavar="flush", required=True, parser_class=_Parser)
    flush = actions.add_parser("flush", help="deliver what a run keeps on disk because the server was away")
    flush.add_argument("run_folder", metavar="RUN", help="a run's folder")
    flush.set_defaults(run=_tracking_flush)

    ui = commands.add_parser("ui", help="open MLflow on the runs of a folder")
    ui.add_argument("--folder", default="runs", help="folder of the runs (default: runs)")
    ui.add_argument("--port", type=int, default=5000)
    ui.set_defaults(run=_ui)
    return parser


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU where there is one (default: auto)")


def _flags(parser: argparse.ArgumentParser, run: object) -> None:
    parser.allow_abbrev = False
    parser.set_defaults(run=run, takes_flags=True)


def _demo(known: argparse.Namespace) -> None:
    from pipelines.commands.demo import run_demo

    run_demo(Path(known.folder), known.rest)


def _train(known: argparse.Namespace) -> None:
    from pipelines.recipes.recipe import field_help

    if known.fields:
        for name, default, meaning in field_help():
            print(f"--{name:<32}{default:<24} {meaning}")
        return
    if not known.recipe:
        fail("which recipe? `aweigh recipes` lists them.")
    recipe = _resolved(known.recipe, known.rest)
    from pipelines.commands.show import show_result
    from pipelines.training.train import train

    show_result(train(recipe), recipe)


def _preflight(known: argparse.Namespace) -> None:
    # Without a recipe, the cluster alone is looked at.
    flags = [*([] if known.recipe else ["--data.train", "", "--data.validation", ""]), *known.rest]
    name = known.recipe or "demo"
    recipe = _resolved(name, flags)
    if not known.address:
        if known.env:
            fail(f"--env {known.env[0]} is for a job: give --address too, or set the variable here.")
        from pipelines.training.preflight import preflight

        sys.exit(0 if preflight(recipe, known.json) else 1)
    if known.json:
        fail("--json prints where Ray runs, a job's log holds more: leave out --address, and set RAY_ADDRESS there.")
    from pipelines.commands.submit import submit_command
    from pipelines.recipes.recipe import run_name
    from pipelines.training.checks import check_places

    check_places(recipe)
    submit_command("preflight", name, recipe, flags, known, job_run=f"{run_name(recipe)}-preflight")


def _evaluate(known: argparse.Namespace) -> None:
    from pipelines.commands.evaluate import evaluate_run

    evaluate_run(
        Path(known.run_folder),
        data=known.data,
        newest=known.newest,
        pictures=known.pictures,
        as_json=known.json,
        flags=[*known.rest, *(["--evaluation.soft_nms", "true"] if known.nms else [])],
        modes=known.tta,
        timed_images=known.timed_images,
    )


def _recipes(known: argparse.Namespace) -> None:
    from pipelines import recipes

    width = max(len(name) for name in recipes.names())
    for name in recipes.names():
        print(f"{name:<{width}}  {recipes.get(name).purpose}")
    print("\n`aweigh recipe show NAME` prints one; `aweigh train NAME --data.train LOCATION/SPLIT` trains it.")


def _recipe_show(known: argparse.Namespace) -> None:
    from pipelines.recipes.recipe import to_yaml

    print(to_yaml(_resolved(known.recipe, known.rest)), end="")


def _bench_train(known: argparse.Namespace) -> None:
    from pipelines.bench.train import bench_train

    bench_train(_resolved(known.recipe, known.rest), steps=known.steps, as_json=known.json)


def _bench_loader(known: argparse.Namespace) -> None:
    from pipelines.bench.loader import bench_loader

    bench_loader(known.data, rounds=known.rounds, images=known.images, as_json=known.json)


def _bench_detectors(known: argparse.Namespace) -> None:
    from pipelines.bench.detectors import bench_detectors

    bench_detectors(
        names=known.names,
        size=known.size,
        device=known.device,
        repeats=known.repeats,
        precision=known.precision,
        channels_last=known.channels_last,
        as_json=known.json,
    )


def _bench_object_store(known: argparse.Namespace) -> None:
    from pipelines.bench.object_store import print_object_store

    print_object_store(
        known.data,
        rounds=known.rounds,
        threads=known.threads,
        latency_milliseconds=known.latency,
        megabytes_per_second=known.bandwidth,
        as_json=known.json,
    )


def _bench_deformable(known: argparse.Namespace) -> None:
    from pipelines.bench.deformable import bench_deformable

    bench_deformable(device=known.device, repeats=known.repeats, as_json=known.json)


def _drill(known: argparse.Namespace) -> None:
    from pipelines.drill.faults import FAULTS

    if known.faults:
        for one in FAULTS.values():
            print(f"{one.name:<26} {one.meaning}")
        return
    flags = known.rest
    if not known.recipe:
        from pipelines.drill.small_course import small_course

        flags = [*small_course(known.folder), *flags]
    from pipelines.drill.command import run_drill

    if not run_drill(known.recipe or "demo", flags, known.fault, known.folder, as_json=known.json):
        fail("a fault left a trace, or could not be carried out; see above.", 1)


def _checkpoints(known: argparse.Namespace) -> None:
    from pipelines.commands import checkpoints as command

    if known.action == "ls":
        command.list_checkpoints(known.place, as_json=known.json)
    elif known.action == "show":
        command.show_checkpoint(known.place, known.step, as_json=known.json)
    elif known.action == "gc":
        if known.keep is not None and known.keep < 1:
            fail(f"--keep is {known.keep}; at least 1 has to stay to resume from.")
        command.collect_garbage(known.place, known.keep, as_json=known.json)
    elif not command.verify_checkpoints(known.place, as_json=known.json):
        fail("not every checkpoint is whole; resuming passes over those that are not.", 1)


def _tracking_flush(known: argparse.Namespace) -> None:
    from pipelines.commands.tracking import flush_run

    if not flush_run(Path(known.run_folder)):
        fail("something is left; see above. The same command goes on with it.", 1)


def _bench_engine(known: argparse.Namespace) -> None:
    from pipelines.bench.engine import bench_engine

    bench_engine(_resolved(known.recipe, known.rest), rounds=known.rounds, as_json=known.json)


def _bench_checkpoint(known: argparse.Namespace) -> None:
    from pipelines.bench.train import bench_checkpoint

    bench_checkpoint(_resolved(known.recipe, known.rest), checkpoints=known.checkpoints, as_json=known.json)


def _bench_scaling(known: argparse.Namespace) -> None:
    from pipelines.bench.scaling import print_scaling

    if not (known.images_per_second > 0 and known.batch_per_gpu > 0):
        fail("--images-per-second and --batch-per-gpu have to be above 0.")
    if known.overlap and known.zero_stage == 0:
        fail("--overlap is for ZeRO 1 to 3: DeepSpeed reduces after backward at stage 0.")
    print_scaling(known.images_per_second, known.batch_per_gpu, known.zero_stage, overlap=known.overlap)


def _ui(known: argparse.Namespace) -> None:
    from pipelines.commands.ui import open_ui

    open_ui(Path(known.folder), known.port)


def _resolved(name: str, flags: Sequence[str]) -> "Recipe":
    from pipelines import recipes
    from pipelines.recipes.recipe import with_flags

    return with_flags(recipes.get(name), flags)
