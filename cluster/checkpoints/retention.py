"""The checkpoints of a run that are kept: the newest ones and the best one, in a folder as in a bucket."""

import json
from collections.abc import Mapping, Sequence


def read_score(state: str | bytes) -> float | None:
    """Read the score from the text of `state.json`; None if it was not scored or the text is damaged."""
    try:
        score = json.loads(state)["score"]
        return None if score is None else float(score)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None  # whoever opens this checkpoint reports the damage


def best_first(scores: Mapping[str, float | None]) -> list[str]:
    """Sort the scored checkpoints of a run by score; the newer one of equals comes first."""
    scored = [(score, name) for name, score in scores.items() if score is not None]
    return [name for _, name in sorted(scored, reverse=True)]


def kept(names: Sequence[str], scores: Mapping[str, float | None], keep: int, newest: str = "") -> set[str]:
    """Choose the checkpoints that stay.

    Args:
        names: of all complete ones, the oldest first.
        scores: by name.
        keep: number of the newest that stay; the best one stays as well.
        newest: the one that was just written, if any. Those after it were written by another attempt and stay.
    """
    later = [name for name in names if newest and name > newest]
    earlier = names[: len(names) - len(later)]
    return {*earlier[-keep:], *later, *best_first(scores)[:1]}
