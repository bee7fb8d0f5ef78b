"""A loop whose number of rounds is known, and which tracing keeps as a loop."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

State = tuple[Tensor, ...]


def repeated(step: Callable[[State], State], state: State, rounds: int) -> State:
    """Apply `step` to a state this many times.

    Args:
        step: returns a state of the same shapes and dtypes, computed from tensors alone and not in place.
        state: to begin with.
        rounds: at least 1.
    """
    if not torch.compiler.is_compiling():
        for _ in range(rounds):
            state = step(state)
        return state

    def body(carried: State, _: Tensor) -> tuple[State, Tensor]:
        # The loop's graph may not return a tensor twice, nor one of its own inputs.
        return tuple(values.clone() for values in step(carried)), carried[0].new_zeros(())

    result: tuple[State, Tensor] = scan(body, state, torch.zeros(rounds, device=state[0].device))
    return result[0]
