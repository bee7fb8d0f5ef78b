"""The input size of a file that takes one only.

Importing this module does not import torch: loader processes receive such sizes.
"""

from dataclasses import dataclass

from detectors.sizes import InputSizes


@dataclass(frozen=True)
class FixedSize(InputSizes):
    """One height and one width."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height} and {self.width}, as the exported file has them"

    def fits(self, height: int, width: int) -> bool:
        """Tell whether this is the size."""
        return (height, width) == (self.height, self.width)

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Return the size."""
        return self.height, self.width

    def at_own_resolution(self, height: int, width: int) -> tuple[int, int]:
        """Return the size."""
        return self.height, self.width

    def nearest(self, height: int, width: int) -> tuple[int, int]:
        """Return the size."""
        return self.height, self.width

    def side(self, multiple: int) -> int:
        """Refuse: height and width are not multiples of anything."""
        raise NotImplementedError
