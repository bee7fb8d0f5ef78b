"""Requests of single ranks that all ranks act on at the same step boundary, without a step ever waiting for them.

Unusual here: each exchange starts at one step boundary and is read at the next. The reduction of a few numbers runs
during the whole step in between, over gloo and a group of its own, so that it neither stalls a GPU nor mixes with NCCL.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed


class Agreement:
    """Requests of single ranks that become decisions of all. Collective: every rank exchanges at every step.

    Args:
        names: the possible requests.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._group: Any = torch.distributed.new_group(backend="gloo")
        self._pending: tuple[torch.Tensor, Any] | None = None

    def exchange(self, wishes: Sequence[str]) -> set[str]:
        """Send this rank's requests, and receive what any rank requested at the boundary before.

        Every rank receives the same set at the same step.
        """
        # The maximum over ranks: one rank's request is enough.
        agreed = self._receive()
        asked = torch.tensor([name in wishes for name in self._names], dtype=torch.int32)
        work = torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (asked, work)
        return agreed

    def close(self) -> None:
        """Receive the pending exchange; a peer that has ended already does not matter."""
        with suppress(RuntimeError):
            self._receive()

    def _receive(self) -> set[str]:
        if self._pending is None:
            return set()
        asked, work = self._pending
        self._pending = None
        work.wait()
        return {name for name, wished in zip(self._names, asked.tolist(), strict=True) if wished}
