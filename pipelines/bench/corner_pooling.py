"""`aweigh bench corner-pooling`: the four corner poolings, beside the same made of `torch.cummax`."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import get_args

import torch
from torch import Tensor

from detectors.layers.corner_pooling import Side, corner_pool
from pipelines import console
from pipelines.bench.device import chosen_device, clock_name, clock_of, device_name, synchronize
from pipelines.errors import ConfigError

SHAPE = (2, 128, 128, 128)
"""Images, channels, height and width of the map: CornerNet's at stride 4."""
_WARM_UP = 2


@dataclass(frozen=True)
class PoolingTime:
    """Pooling towards one side, or towards all four one after the other; medians in milliseconds."""

    towards: str
    forward: float
    backward: float
    cummax_forward: float
    cummax_backward: float

    @property
    def ratio(self) -> float:
        """Our time of both passes over that of `torch.cummax`."""
        return (self.forward + self.backward) / (self.cummax_forward + self.cummax_backward)


def bench_corner_pooling(*, device: str, repeats: int, as_json: bool) -> None:
    """Time pooling towards each side, forward and backward, and print a table.

    Args:
        device: "cpu", "cuda" or "auto".
        repeats: number of timed repetitions; their median is reported.
        as_json: print the figures as one JSON object.

    Raises:
        ConfigError: there are no repetitions to measure, or the device does not exist.
    """
    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}; it must be 1 or more.")
    where = chosen_device(device)
    console.say(
        "bench", f"{device_name(where)}, fp32, {clock_name(where)}, median of {repeats} after {_WARM_UP} for warm-up"
    )
    rows = list(_rows(where, repeats))
    if as_json:
        facts = {"device": device_name(where), "torch": torch.__version__, "repeats": repeats, "shape": SHAPE}
        print(json.dumps({**facts, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]}))
        return
    print(_table(rows))


def pool_by_cummax(features: Tensor, towards: Side) -> Tensor:
    """Corner pooling as PyTorch's own operations suggest it; of equal cells, the last one receives the gradient."""
    dim = -2 if towards in ("top", "bottom") else -1
    if towards in ("bottom", "right"):
        return features.cummax(dim).values
    return features.flip(dim).cummax(dim).values.flip(dim)


def _rows(device: torch.device, repeats: int) -> Iterator[PoolingTime]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(SHAPE, generator=generator).to(device).requires_grad_()
    gradient = torch.randn(SHAPE, generator=generator).to(device)
    rows = []
    for towards in get_args(Side):
        ours, cummax = (
            _time(functools.partial(pool, features, towards), features, gradient, repeats)
            for pool in (corner_pool, pool_by_cummax)
        )
        rows.append(PoolingTime(towards, *ours, *cummax))
        yield rows[-1]
    times = ("forward", "backward", "cummax_forward", "cummax_backward")
    yield PoolingTime("all four", *(sum(getattr(row, name) for row in rows) for name in times))


def _time(pool: Callable[[], Tensor], features: Tensor, gradient: Tensor, repeats: int) -> tuple[float, float]:
    clock, device = clock_of(features.device), features.device
    forward, backward = [], []
    for _ in range(_WARM_UP + repeats):
        synchronize(device)
        start = clock()
        result = pool()
        synchronize(device)
        middle = clock()
        torch.autograd.grad(result, features, gradient)
        synchronize(device)
        forward.append(middle - start)
        backward.append(clock() - middle)
    return 1000 * median(forward[_WARM_UP:]), 1000 * median(backward[_WARM_UP:])


def _table(rows: Sequence[PoolingTime]) -> str:
    shape = " x ".join(map(str, SHAPE))
    lines = [f"{shape:<24}{'forward':>10}{'backward':>12}{'cummax':>12}{'backward':>12}{'ratio':>8}"]
    for row in rows:
        lines.append(
            f"{'towards ' * (row.towards in get_args(Side)) + row.towards:<24}{row.forward:>7.1f} ms"
            f"{row.backward:>9.1f} ms{row.cummax_forward:>9.1f} ms{row.cummax_backward:>9.1f} ms{row.ratio:>8.2f}"
        )
    lines.append("ratio: both passes, over those of torch.cummax")
    return "\n".join(lines)
