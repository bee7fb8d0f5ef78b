"""Suggestions for mistyped words."""

import difflib
from collections.abc import Iterable

_MOST_SHOWN = 4


def did_you_mean(word: str, known: Iterable[str], otherwise: str, *, form: str = "{!r}", cutoff: float = 0.6) -> str:
    """End a message about an unknown word with the known words that may be meant.

    Args:
        word: what was typed.
        known: what could have been typed.
        otherwise: ends the message if no known word is similar; often a command that lists them.
        form: how a suggestion is written, for example `--{}`.
        cutoff: similarity from 0 to 1 from which a word is suggested.
    """
    words = list(known)
    # Similarity alone would suggest a single variant of `centernet_resdcn18`, and not always the one that was meant.
    variants = [one for one in words if one.startswith(f"{word}_") or one.endswith(f".{word}")]
    similar = difflib.get_close_matches(word, words, n=1, cutoff=cutoff)
    close = [*(one for one in similar if one not in variants), *variants]
    if not close:
        return otherwise
    *first, last = (form.format(one) for one in close[:_MOST_SHOWN])
    return f"did you mean {', '.join(first)} or {last}?" if first else f"did you mean {last}?"
