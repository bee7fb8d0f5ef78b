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
        tolerance: 0 where the result has to be the same bit for bit.
        slow: takes much longer than the others.
    """

    name: str
    meaning: str
    happen: Callable[[Course, str], None]
    tolerance: float = 0.0
    slow: bool = False


_FAULTS: dict[str, Fault] = {}


def fault(
    name: str, meaning: str, *, tolerance: float = 0.0, slow: bool = False
) -> Callable[[Callable[[Course, str], None]], Callable[[Course, str], None]]:
    """Register what happens under a name."""

    def register(happen: Callable[[Course, str], None]) -> Callable[[Course, str], None]:
        _FAULTS[name] = Fault(name, meaning, happen, tolerance, slow)
        return happen

    return register


def faults() -> dict[str, Fault]:
    """Every fault by name, in the order in which `make drill` goes through them."""
    from pipelines.drill import checkpoint_faults, process_faults, service_faults, world_faults  # noqa: F401

    return dict(_FAULTS)
