"""One fault: a thing that goes wrong during a training, and the run that must survive it."""

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.drill.runs import Course


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Args:
        name: as `--fault` takes it.
        meaning: one line for `aweigh drill --faults`.
        happen: trains to the end under the fault, in the run of the given name.
        rounding: the result must match to float rounding; otherwise bit for bit.
    """

    name: str
    meaning: str
    happen: Callable[[Course, str], None]
    rounding: bool = False


def fault(name: str, meaning: str, *, rounding: bool = False) -> Callable[[Callable[[Course, str], None]], Fault]:
    """Turn a function that trains under a fault into that `Fault`."""
    return lambda happen: Fault(name, meaning, happen, rounding)
