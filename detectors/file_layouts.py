"""Layouts of weights files: the names and values that other libraries use for a detector's parameters."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class FileLayout:
    """The layout of one library's files."""

    library: str
    """The library's name, for messages."""
    variant: str = ""
    """The detector's `variant` that computes what the library does with such a file; empty if the keys do not tell."""
    marker: str
    """A file with a key that starts with this (after "module.") has this layout."""
    behind: str = ""
    """Prefix that the keys have to be behind, where the marker alone is also that of the detector's own files."""
    renames: tuple[tuple[str, str], ...] = ()
    """Regular expressions and their replacements in a key of the file; the first that matches is applied."""
    norm_eps: float | None = None
    """Epsilon of the frozen batch norm that the file was trained with. If the detector's differs, the difference is
    added to `running_var`, so that the layers compute the same."""
    absent: tuple[tuple[str, float], ...] = ()
    """Regular expressions of the detector's keys that the library may leave out, and their values then."""
    class_rows: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """By the detector's number of classes, their rows in the file's class layers."""
    refusal: str | None = None
    """Reason to refuse such a file, and the remedy: its keys are alike, but the network computes something else."""
    note: str | None = None
    """Warning about such a file, which loads nevertheless."""
    published_with: tuple[str, ...] = ()
    """Settings of the library that its published numbers depend on, where the detector's differ."""

    renames_back: tuple[tuple[str, str], ...] = ()
    """The reverse of `renames`, for a key of the detector."""
    wrapper: str | None = None
    """Key under which the library's files hold the state dict; None if they are the state dict."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """Entries that the library's loader expects beside the state dict."""
    counters: str | None = None
    """Regular expression of the library's keys of batch norm with a counter, which ours lacks."""
    single_numbers: str | None = None
    """Regular expression of the library's keys without a dimension, where ours have one."""
    leaves_out_zero: str | None = None
    """Regular expression of the detector's keys that the library leaves out if all of them are 0."""

    def value_of_absent(self, name: str) -> float | None:
        """Value of a key of the detector that the library leaves out; None for a key that it has."""
        return next((value for pattern, value in self.absent if re.fullmatch(pattern, name)), None)

    def their_name(self, name: str) -> str:
        """The library's name for a key of the detector."""
        return _renamed(name, self.renames_back)

    def own_name(self, key: str) -> str:
        """The detector's likely name for a key of a file."""
        return _renamed(key, self.renames)


AUTHORS_STATE_DICT = FileLayout(library="its authors", marker="", wrapper="state_dict", beside={"epoch": 0})
"""The keys of the detector itself, wrapped as CenterNet's loader expects it."""


def _renamed(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    return key
