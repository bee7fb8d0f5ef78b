"""Input sizes that a network takes, and how others are padded to them.

The text form of each class completes the sentence "height and width have to be …". Importing this module does not
import torch, so that loader processes can use it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class InputSizes(ABC):
    """Heights and widths that a network takes."""

    divisor: int
    """A network halves its input, and doubles it back, until a cell is this many pixels wide."""

    def fits(self, height: int, width: int) -> bool:
        """Tell whether the network takes an input of this size."""
        return self.padded(height, width) == (height, width)

    @abstractmethod
    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Smallest input that holds an image of this size."""

    @abstractmethod
    def at_own_resolution(self, height: int, width: int) -> tuple[int, int]:
        """Input of an image that the published test keeps at its own resolution (`--keep_res`)."""

    @abstractmethod
    def nearest(self, height: int, width: int) -> tuple[int, int]:
        """Input closest to this size, smaller or larger."""

    @abstractmethod
    def side(self, multiple: int) -> int:
        """The side with this many times `divisor`; `multiple` may be symbolic."""


@dataclass(frozen=True)
class _SideBySide(InputSizes):
    """The same rule for height and width."""

    def padded(self, height: int, width: int) -> tuple[int, int]:
        return self._least(height), self._least(width)

    def at_own_resolution(self, height: int, width: int) -> tuple[int, int]:
        return self._around(height), self._around(width)

    def nearest(self, height: int, width: int) -> tuple[int, int]:
        return self._nearest(height), self._nearest(width)

    @abstractmethod
    def _least(self, side: int) -> int: ...

    @abstractmethod
    def _around(self, side: int) -> int: ...

    @abstractmethod
    def _nearest(self, side: int) -> int: ...


@dataclass(frozen=True)
class Multiples(_SideBySide):
    """Sides that are multiples of `divisor`."""

    def __str__(self) -> str:
        return f"multiples of {self.divisor}"

    def side(self, multiple: int) -> int:
        """The side with this many times `divisor`."""
        return self.divisor * multiple

    def _least(self, side: int) -> int:
        return (side + self.divisor - 1) // self.divisor * self.divisor

    def _around(self, side: int) -> int:
        # As published, `(side | divisor - 1) + 1`: also a side that is a multiple already goes to the next one.
        return (side // self.divisor + 1) * self.divisor

    def _nearest(self, side: int) -> int:
        return max(self.divisor, round(side / self.divisor) * self.divisor)


@dataclass(frozen=True)
class OneLessThanMultiples(_SideBySide):
    """Sides that are a pixel short of a multiple of `divisor`, such as 511 for 128, as CornerNet has them.

    Its stem rounds halves up, so the maps are as large as for the multiple.

    Source:
        princeton-vl/CornerNet, test/coco.py, `new_height | 127`.
    """

    keeps_last_pixel: bool = False
    """An image whose side is such a number is tested in a larger input. As published, CornerNet tests it in one of its
    own size, without its last row or column."""

    def __str__(self) -> str:
        return f"one less than multiples of {self.divisor}"

    def side(self, multiple: int) -> int:
        """The side that is a pixel short of this many times `divisor`."""
        return self.divisor * multiple - 1

    def _least(self, side: int) -> int:
        return (side + self.divisor) // self.divisor * self.divisor - 1

    def _around(self, side: int) -> int:
        return self._least(side + self.keeps_last_pixel)

    def _nearest(self, side: int) -> int:
        return max(self.divisor, round((side + 1) / self.divisor) * self.divisor) - 1
