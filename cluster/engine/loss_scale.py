"""The dynamic loss scale of float16: as large as gradients allow, halved where one overflows.

Unusual here: it is ours. DeepSpeed's, over torch's autocast, asks each rank about its own part of the gradient only,
so one rank skips a step that the others take, and clips gradients that are still scaled.
"""

from dataclasses import dataclass

_GROWTH, _BACKOFF = 2.0, 0.5
_STEPS_TO_GROW = 2000
_LEAST = 1.0


@dataclass
class LossScale:
    """What the loss is multiplied by before backward, and gradients are divided by after it.

    Source:
        Micikevicius et al., Mixed Precision Training, section 3.2 (arXiv:1710.03740); the numbers of torch.amp.
    """

    value: float = 2.0**16
    good_steps: int = 0
    """Steps since it last changed or overflowed."""

    def update(self, overflowed: bool) -> None:
        """Take note of a step; the same on every rank."""
        if overflowed:
            self.value, self.good_steps = max(_LEAST, self.value * _BACKOFF), 0
            return
        self.good_steps += 1
        if self.good_steps == _STEPS_TO_GROW:
            self.value, self.good_steps = self.value * _GROWTH, 0
