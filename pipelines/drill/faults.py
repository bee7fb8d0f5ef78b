"""What can happen to a training: every fault by name, with what it promises."""

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.drill.runs import Course


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Args:
        name: as `--fault` takes it.
        meaning: one line.
        happen: trains under the fault to the end, in the run of the given name.
        rounding: the result is the same to float rounding; else bit for bit.
    """

    name: str
    meaning: str
    happen: Callable[[Course, str], None]
    rounding: bool = False


_FAULTS: dict[str, Fault] = {}


def fault(
    name: str, meaning: str, *, rounding: bool = False
) -> Callable[[Callable[[Course, str], None]], Callable[[Course, str], None]]:
    """Register what happens under a name."""

    def register(happen: Callable[[Course, str], None]) -> Callable[[Course, str], None]:
        _FAULTS[name] = Fault(name, meaning, happen, rounding)
        return happen

    return register


def faults() -> dict[str, Fault]:
    """Every fault by name, in the order in which `make drill` goes through them."""
    from pipelines.drill import (  # noqa: F401
        checkpoint_faults,
        cluster_faults,
        process_faults,
        service_faults,
        world_faults,
    )

    return dict(_FAULTS)
