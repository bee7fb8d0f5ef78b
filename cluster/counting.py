"""Numbers with their nouns, in messages."""


def counted(number: int, thing: str) -> str:
    """Return a number with its noun: `1 worker`, `2 workers`, `1,000 nodes`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
