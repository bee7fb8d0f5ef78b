"""Slots: the rows that targets have for objects, the same number for each image and batch."""

from torch import Tensor
from torch.nn import functional


def in_slots(rows: Tensor, slots: int, fill: int = 0) -> Tensor:
    """Return the first `slots` entries of dimension 1, padded with `fill` if there are fewer."""
    # The number of slots is fixed, so that no shape of the training step depends on the data.
    rows = rows[:, :slots]
    missing = slots - rows.shape[1]
    return functional.pad(rows, (*(0, 0) * (rows.dim() - 2), 0, missing), value=fill)
