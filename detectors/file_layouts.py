"""How files of other libraries name and keep what a detector of ours has."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class FileLayout:
    """One library's way to keep a detector."""

    library: str
    """Whose files these are, for messages."""
    marker: str
    """A file with a key that starts so (after "module.") is of this layout."""
    renames: tuple[tuple[str, str], ...] = ()
    """Regular expressions and what takes their place in a key of the file; the first that matches is applied."""
    norm_eps: float | None = None
    """Epsilon of the frozen batch norm that the file was trained with; where the detector has another one, the
    difference goes into `running_var`, so that the layers compute the same."""
    absent: tuple[tuple[str, float], ...] = ()
    """Regular expressions of the detector's keys that the library may leave out, and what they are then."""
    class_rows: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """By the detector's number of classes: which rows of the file's class layers those are."""
    refusal: str | None = None
    """Why such a file does not fit, and what to do: keys are alike, but not what is computed with them."""
    note: str | None = None
    """What to mind about such a file, though it fits."""

    renames_back: tuple[tuple[str, str], ...] = ()
    """The reverse of `renames`, for a key of the detector."""
    wrapper: str | None = None
    """Key under which the library's files hold the state dict; None where they are the state dict."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """What the library's loader expects beside the state dict."""
    counters: str | None = None
    """Regular expression of the library's keys of batch norm that come with a counter, which ours does without."""
    single_numbers: str | None = None
    """Regular expression of the library's keys that have no dimension, where ours have one."""
    leaves_out_zero: str | None = None
    """Regular expression of the detector's keys that the library leaves out where all of them are 0."""

    def value_of_absent(self, name: str) -> float | None:
        """What a key of the detector is where the library leaves it out; None for a key it has."""
        return next((value for pattern, value in self.absent if re.fullmatch(pattern, name)), None)

    def their_name(self, name: str) -> str:
        """What the library calls a key of the detector."""
        return _renamed(name, self.renames_back)

    def own_name(self, key: str) -> str:
        """What the detector may call the key of a file."""
        return _renamed(key, self.renames)


AUTHORS_STATE_DICT = FileLayout(library="its authors", marker="", wrapper="state_dict", beside={"epoch": 0})
"""The keys of the detector itself, wrapped as CenterNet's loader expects it."""


def _renamed(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    return key
