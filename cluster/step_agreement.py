"""What any rank asks for, agreed by all ranks at one step boundary, without a step ever waiting for it.

Unusual here: each exchange is started at one boundary and read at the next. The reduction of a few numbers runs
beside the whole step in between, over gloo and a group of its own, so it neither stalls a GPU nor mixes with NCCL.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed


class Agreement:
    """Wishes of single ranks that become decisions of all; every rank makes one and exchanges at every step.

    Args:
        names: what can be asked for.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._group: Any = torch.distributed.new_group(backend="gloo")
        self._pending: tuple[torch.Tensor, Any] | None = None

    def exchange(self, wishes: Sequence[str]) -> set[str]:
        """Send this rank's wishes, and receive what any rank wished for at the boundary before.

        Every rank is given the same set at the same step.
        """
        agreed = self._receive()
        asked = torch.tensor([name in wishes for name in self._names], dtype=torch.int32)
        work = torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (asked, work)
        return agreed

    def close(self) -> None:
        """Receive what is under way; a peer that is gone does not matter any more."""
        with suppress(RuntimeError):
            self._receive()

    def _receive(self) -> set[str]:
        if self._pending is None:
            return set()
        asked, work = self._pending
        self._pending = None
        work.wait()
        return {name for name, wished in zip(self._names, asked.tolist(), strict=True) if wished}
