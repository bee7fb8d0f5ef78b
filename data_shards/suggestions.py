"""Suggestions for names that are not known."""

import difflib
from collections.abc import Sequence

_MOST_LISTED = 12


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return `did you mean 'person'?` if a known name is close, else `known are …` with the first dozen."""
    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {close[0]!r}?"
    more = f", … ({len(known)} in all)" if len(known) > _MOST_LISTED else ""
    return f"known are {', '.join(known[:_MOST_LISTED])}{more}."
