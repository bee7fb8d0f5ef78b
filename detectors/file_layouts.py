"""How files of other libraries name and keep what a detector of ours has."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


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
    absent_is_zero: str | None = None
    """Regular expression of the detector's keys that are 0 where the library leaves them out."""
    class_rows: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """By the detector's number of classes: which rows of the file's class layers those are."""
    refusal: str | None = None
    """Why such a file does not fit, and what to do: keys are alike, but not what is computed with them."""

    def own_name(self, key: str) -> str:
        """What the detector may call the key of a file."""
        for pattern, replacement in self.renames:
            renamed, count = re.subn(pattern, replacement, key)
            if count:
                return renamed
        return key
