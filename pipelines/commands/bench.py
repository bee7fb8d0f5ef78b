"""`aweigh bench`: measure speed and memory on this machine."""

import argparse
from pathlib import Path

from pipelines.commands.arguments import (
    Commands,
    add_actions,
    add_device,
    add_json,
    add_recipe,
    completes,
    detector_names,
    resolved,
    takes_fields,
)
from pipelines.errors import ConfigError


def add(commands: Commands) -> None:
    """Add `bench` and its subjects."""
    bench = commands.add_parser("bench", help="measure speed and memory on this machine")
    subjects = add_actions(bench, "subject")
    for add_subject in (
        _add_train,
        _add_loader,
        _add_predict,
        _add_detectors,
        _add_deformable,
        _add_corner_pooling,
        _add_object_store,
        _add_padding,
        _add_engine,
        _add_checkpoint,
        _add_scaling,
    ):
        add_subject(subjects)


def _add_train(subjects: Commands) -> None:
    train = subjects.add_parser("train", help="the time of each part of a training step")
    add_recipe(train)
    train.add_argument("--steps", type=int, default=20, help="steps to train, 3 of them to warm up (default: 20)")
    add_json(train)
    takes_fields(train, _train)


def _train(known: argparse.Namespace) -> None:
    from pipelines.bench.train import bench_train

    bench_train(resolved(known.recipe, known.rest), steps=known.steps, as_json=known.json)


def _add_loader(subjects: Commands) -> None:
    loader = subjects.add_parser(
        "loader",
        help="CPU per image of the loader, beside decoding alone and other loaders",
        description="Let every way of reading take its turn, several times, in one run, and compare their CPU time.",
    )
    loader.add_argument("--data", metavar="LOCATION", help="shards to read (default: the demo's photographs)")
    loader.add_argument("--rounds", type=int, default=5, help="turns of each way (default: 5)")
    loader.add_argument("--images", type=int, default=320, help="images of a turn, about (default: 320)")
    add_json(loader)
    loader.set_defaults(run=_loader)


def _loader(known: argparse.Namespace) -> None:
    from pipelines.bench.loader import bench_loader

    bench_loader(known.data, rounds=known.rounds, images=known.images, as_json=known.json)


def _add_predict(subjects: Commands) -> None:
    predict = subjects.add_parser(
        "predict",
        help="the cost of a prediction from file to boxes, beside decode, network and decoding alone",
        description="Measure the recipe's detector with random weights, one image at a time and in batches.",
    )
    add_recipe(predict)
    predict.add_argument(
        "--images", type=Path, metavar="FOLDER", help="photographs to read (default: the demo's photographs)"
    )
    predict.add_argument("--count", type=int, default=64, help="photographs in each round (default: 64)")
    predict.add_argument("--rounds", type=int, default=5, help="rounds, and one more to warm up (default: 5)")
    add_device(predict)
    add_json(predict)
    takes_fields(predict, _predict)


def _predict(known: argparse.Namespace) -> None:
    from pipelines.bench.predict import bench_predict

    bench_predict(
        resolved(known.recipe, known.rest),
        images=known.images,
        count=known.count,
        rounds=known.rounds,
        device=known.device,
        as_json=known.json,
    )


def _add_detectors(subjects: Commands) -> None:
    detectors = subjects.add_parser(
        "detectors", help="ms per image of every detector, beside its authors' figures; needs only torch and numpy"
    )
    names = detectors.add_argument("--names", nargs="+", default=[], metavar="NAME", help="detectors (default: all)")
    completes(names, detector_names)
    detectors.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="input in pixels (default: the published test size of each)",
    )
    add_device(detectors)
    detectors.add_argument(
        "--repeats", type=int, help="timed repetitions; the median is printed (default: 20 on a GPU, 3 on a CPU)"
    )
    detectors.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="precision, by autocast (default: fp32)"
    )
    detectors.add_argument("--channels-last", action="store_true", help="keep weights and images channels last")
    add_json(detectors)
    detectors.set_defaults(run=_detectors)


def _detectors(known: argparse.Namespace) -> None:
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


def _add_deformable(subjects: Commands) -> None:
    deformable = subjects.add_parser(
        "deformable", help="the deformable convolution beside a plain one, and beside torchvision's if it is installed"
    )
    add_device(deformable)
    deformable.add_argument("--repeats", type=int, default=10, help="timed repetitions (default: 10)")
    add_json(deformable)
    deformable.set_defaults(run=_deformable)


def _deformable(known: argparse.Namespace) -> None:
    from pipelines.bench.deformable import bench_deformable

    bench_deformable(device=known.device, repeats=known.repeats, as_json=known.json)


def _add_corner_pooling(subjects: Commands) -> None:
    pooling = subjects.add_parser("corner-pooling", help="corner pooling beside the same made of torch.cummax")
    add_device(pooling)
    pooling.add_argument("--repeats", type=int, default=10, help="timed repetitions (default: 10)")
    add_json(pooling)
    pooling.set_defaults(run=_corner_pooling)


def _corner_pooling(known: argparse.Namespace) -> None:
    from pipelines.bench.corner_pooling import bench_corner_pooling

    bench_corner_pooling(device=known.device, repeats=known.repeats, as_json=known.json)


def _add_object_store(subjects: Commands) -> None:
    store = subjects.add_parser(
        "object-store", help="an epoch from S3 with high latency and low bandwidth, and from a folder"
    )
    store.add_argument("--data", required=True, metavar="LOCATION", help="folder of shards, which a local S3 serves")
    store.add_argument("--rounds", type=int, default=3, help="turns of each way (default: 3)")
    store.add_argument("--threads", type=int, default=1, help="decoding threads (default: 1)")
    store.add_argument("--latency", type=float, default=100, metavar="MS", help="delay of each answer (default: 100)")
    store.add_argument(
        "--bandwidth", type=float, default=80, metavar="MB/S", help="bandwidth of all connections (default: 80)"
    )
    add_json(store)
    store.set_defaults(run=_object_store)


def _object_store(known: argparse.Namespace) -> None:
    from pipelines.bench.object_store import print_object_store

    print_object_store(
        known.data,
        rounds=known.rounds,
        threads=known.threads,
        latency_milliseconds=known.latency,
        megabytes_per_second=known.bandwidth,
        as_json=known.json,
    )


def _add_padding(subjects: Commands) -> None:
    padding = subjects.add_parser(
        "padding",
        help="pixels that grouping by aspect ratio saves",
        description="Count the pixels of an epoch's inputs, with and without grouping by aspect ratio. Without "
        "--data.train, the images have the shapes of COCO's.",
    )
    add_recipe(padding)
    add_json(padding)
    takes_fields(padding, _padding)


def _padding(known: argparse.Namespace) -> None:
    from pipelines.bench.padding import bench_padding

    bench_padding(resolved(known.recipe, known.rest), as_json=known.json)


def _add_engine(subjects: Commands) -> None:
    engine = subjects.add_parser("engine", help="our step beside bare DeepSpeed and plain DDP, by ZeRO stage")
    add_recipe(engine)
    engine.add_argument("--rounds", type=int, default=12, help="steps of each engine, in turns (default: 12)")
    add_json(engine)
    takes_fields(engine, _engine)


def _engine(known: argparse.Namespace) -> None:
    from pipelines.bench.engine import bench_engine

    bench_engine(resolved(known.recipe, known.rest), rounds=known.rounds, as_json=known.json)


def _add_checkpoint(subjects: Commands) -> None:
    checkpoint = subjects.add_parser("checkpoint", help="the time for which a checkpoint stops training")
    add_recipe(checkpoint)
    checkpoint.add_argument("--checkpoints", type=int, default=3, help="checkpoints to write (default: 3)")
    add_json(checkpoint)
    takes_fields(checkpoint, _checkpoint)


def _checkpoint(known: argparse.Namespace) -> None:
    from pipelines.bench.train import bench_checkpoint

    bench_checkpoint(resolved(known.recipe, known.rest), checkpoints=known.checkpoints, as_json=known.json)


def _add_scaling(subjects: Commands) -> None:
    scaling = subjects.add_parser("scaling", help="simulated weak scaling of every detector, 8 to 1,024 GPUs")
    scaling.add_argument(
        "--images-per-second", type=float, default=60.0, help="assumed training speed of one GPU (default: 60)"
    )
    scaling.add_argument("--batch-per-gpu", type=int, default=16, help="images of a GPU's step (default: 16)")
    scaling.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), default=1, help="ZeRO stage (default: 1)")
    scaling.add_argument(
        "--overlap",
        action="store_true",
        help="as with zero_optimization.overlap_comm and small buckets (stages 1 to 3)",
    )
    scaling.set_defaults(run=_scaling)


def _scaling(known: argparse.Namespace) -> None:
    from pipelines.bench.scaling import print_scaling

    if not (known.images_per_second > 0 and known.batch_per_gpu > 0):
        raise ConfigError("--images-per-second and --batch-per-gpu must be above 0.")
    if known.overlap and known.zero_stage == 0:
        raise ConfigError(
            "--overlap needs --zero-stage 1, 2 or 3, because DeepSpeed reduces after backward at stage 0."
        )
    print_scaling(known.images_per_second, known.batch_per_gpu, known.zero_stage, overlap=known.overlap)
