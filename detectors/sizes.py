"""Input sizes that a network takes, and how others are padded to them.

Each class here has `fits`, `padded` and `nearest`, and its text form completes the sentence "height and width have to
be …". Importing this module does not import torch.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Multiples:
    """Sides that are multiples of `divisor`: a network halves them that often and doubles them back."""

    divisor: int

    def __str__(self) -> str:
        return f"multiples of {self.divisor}"

    def fits(self, height: int, width: int) -> bool:
        """Tell whether the network takes an input of this size."""
        return height % self.divisor == 0 and width % self.divisor == 0

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Smallest input that holds an image of this size."""
        return -(-height // self.divisor) * self.divisor, -(-width // self.divisor) * self.divisor

    def nearest(self, height: int, width: int) -> tuple[int, int]:
        """Input closest to this size, smaller or larger."""
        rounded_height, rounded_width = (
            max(self.divisor, round(side / self.divisor) * self.divisor) for side in (height, width)
        )
        return rounded_height, rounded_width
