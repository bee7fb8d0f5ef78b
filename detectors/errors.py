"""The error of this package; importing it does not import torch."""

import difflib
from collections.abc import Sequence


class DetectorError(ValueError):
    """A detector, setting or weights file that cannot be used. The message is one line: what, where, what to do."""


def nearest(word: str, known: Sequence[str]) -> str:
    """End an error message with the known word most like `word`, or with all of them."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}."
