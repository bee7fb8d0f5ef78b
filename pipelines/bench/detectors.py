"""`aweigh bench detectors`: milliseconds per image of every detector, beside the time that its authors publish, and
the memory that it takes.

It needs nothing but torch and numpy, so that it runs on a machine where aweigh is not installed: `python -m pipelines
bench detectors` in a copy of the project.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

import detectors
from detectors import Detector, DetectorError
from pipelines import console
from pipelines.bench.device import chosen_device, clock_name, clock_of, device_name, synchronize
from pipelines.bench.network_size import network_size
from pipelines.bench.published_times import OTHERS, TIMES, PublishedTime
from pipelines.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
_WARM_UP = 1
# With random weights nothing scores above the published threshold, and decoding would have nothing to do.
_NEXT_TO_NOTHING = 1e-6


@dataclass(frozen=True)
class DetectorTime:
    """The measured times of one detector, the published one, and its memory."""

    name: str
    size: tuple[int, int]
    forward: float
    """Median milliseconds of the network for one image."""
    forward_and_decode: float
    """The same with decoding and suppression, up to detections in the input frame."""
    parameters: int
    kept_bytes: int
    """Bytes of activations that training keeps for backward, for one image in float32."""
    published: float | None
    hardware: str
    remark: str


def bench_detectors(
    *,
    names: Sequence[str],
    size: Sequence[int] | None,
    device: str,
    repeats: int | None,
    precision: Precision,
    channels_last: bool,
    as_json: bool,
) -> None:
    """Time detectors with random weights on random images, one image at a time, and print a table.

    Args:
        names: the detectors; empty for all.
        size: height and width of the input; None for the published test size of each.
        device: "cpu", "cuda" or "auto".
        repeats: number of timed repetitions, whose median is reported; None for 20 on a GPU and 3 on a CPU.
        precision: fp32, or a dtype for autocast.
        channels_last: store weights and images with channels last.
        as_json: print the figures as one JSON object.

    Raises:
        ConfigError: there are no repetitions to measure, or the device does not exist.
        DetectorError: a name is unknown, or the network does not accept the size.
    """
    if repeats is not None and repeats < 1:
        raise ConfigError(f"--repeats is {repeats}; it must be 1 or more.")
    where = chosen_device(device)
    known = detectors.names()
    for name in names:
        if name not in known:
            raise DetectorError(f"unknown detector {name!r}{detectors.nearest(name, known)}")
    repeats = repeats or (20 if where.type == "cuda" else 3)
    shown = f"{device_name(where)}, {precision}{', channels last' if channels_last else ''}"
    console.say("bench", f"{shown}, {clock_name(where)}, one image at a time, median of {repeats} after 1 for warm-up")
    rows = []
    chosen = list(names) or known
    for number, name in enumerate(chosen, start=1):
        published = TIMES.get(name, OTHERS)
        rows.append(
            _time(name, tuple(size) if size else published.size, published, where, repeats, precision, channels_last)
        )
        console.progress_line("bench", number, len(chosen), f"detectors ({name})")
    if as_json:
        facts = {
            "device": device_name(where),
            "clock": clock_name(where),
            "precision": precision,
            "channels_last": channels_last,
        }
        print(
            json.dumps({**facts, "repeats": repeats, "torch": torch.__version__, "rows": [asdict(row) for row in rows]})
        )
        return
    print(_table(rows))


def _time(
    name: str,
    size: tuple[int, ...],
    published: PublishedTime,
    device: torch.device,
    repeats: int,
    precision: Precision,
    channels_last: bool,
) -> DetectorTime:
    detector = _built(name).eval().to(device)
    # The user's size is padded for any network; a published size fits its own already.
    height, width = detector.sizes.padded(*size)
    images = torch.randn(1, 3, height, width, device=device)
    if channels_last:
        # mypy does not know this keyword of Module.to.
        detector = detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)

    takes = network_size(name, (height, width))

    def context() -> AbstractContextManager[object]:
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)

    def forward() -> object:
        with context():
            return detector(images)

    def forward_and_decode() -> object:
        return _decoded(detector, forward(), (height, width))

    with torch.no_grad():
        return DetectorTime(
            name=name,
            size=(height, width),
            forward=_median(forward, device, repeats),
            forward_and_decode=_median(forward_and_decode, device, repeats),
            parameters=takes.parameters,
            kept_bytes=takes.kept_bytes,
            published=published.milliseconds,
            hardware=published.hardware,
            remark=published.remark,
        )


def _built(name: str) -> Detector:
    """Build the detector with next to no score threshold, if it has one."""
    try:
        return detectors.build(name, score_threshold=_NEXT_TO_NOTHING)
    except DetectorError:
        return detectors.build(name)


def _decoded(detector: Detector, outputs: object, size: tuple[int, int]) -> list[Tensor]:
    found = detector.decode(outputs, size)
    return [one.boxes.cpu() for one in found]


def _median(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    clock = clock_of(device)
    seconds = []
    for turn in range(_WARM_UP + repeats):
        synchronize(device)
        start = clock()
        work()
        synchronize(device)
        if turn >= _WARM_UP:
            seconds.append(clock() - start)
    return 1000 * statistics.median(seconds)


def _table(rows: Sequence[DetectorTime]) -> str:
    width = max(len("detector"), *(len(row.name) for row in rows))
    lines = [
        f"{'detector':<{width}}  {'input':>10}  {'forward':>9}  {'+ decode':>9}  {'FPS':>6}  {'M param':>7}  "
        f"{'MiB':>5}  published"
    ]
    for row in rows:
        published = "-"
        if row.published is not None:
            published = f"{row.published:g} ms, {row.hardware}{f' ({row.remark})' if row.remark else ''}"
        size = f"{row.size[0]}x{row.size[1]}"
        lines.append(
            f"{row.name:<{width}}  {size:>10}  {row.forward:>9.1f}  {row.forward_and_decode:>9.1f}  "
            f"{1000 / row.forward_and_decode:>6.1f}  {row.parameters / 1e6:>7.1f}  {row.kept_bytes / 2**20:>5.0f}  "
            f"{published}"
        )
    lines.append(
        "ms per image, without reading and normalising; weights are random, and every point of FCOS is a candidate"
    )
    lines.append("MiB of activations that training keeps for one such image in fp32; bf16 halves most of them")
    return "\n".join(lines)
