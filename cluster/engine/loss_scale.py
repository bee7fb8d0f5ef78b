"""The dynamic loss scale of float16: as large as the gradients allow, halved when one overflows.

Unusual here: it replaces DeepSpeed's, which under torch's autocast checks only each rank's own part of the gradient, so
that one rank may skip a step that the others take, and clips gradients that are still scaled.
"""

from dataclasses import dataclass

_GROWTH, _BACKOFF = 2.0, 0.5
_STEPS_TO_GROW = 2000
_LEAST = 1.0


@dataclass
class LossScale:
    """The factor that multiplies the loss before backward, and divides the gradients after it.

    Source:
        Micikevicius et al., Mixed Precision Training, section 3.2 (arXiv:1710.03740); constants of torch.amp.
    """

    value: float = 2.0**16
    good_steps: int = 0
    """Steps since it last changed or overflowed."""

    def update(self, overflowed: bool) -> None:
        """Adapt the scale after a step. Every rank must call it with the same argument."""
        if overflowed:
            self.value, self.good_steps = max(_LEAST, self.value * _BACKOFF), 0
            return
        self.good_steps += 1
        if self.good_steps == _STEPS_TO_GROW:
            self.value, self.good_steps = self.value * _GROWTH, 0
