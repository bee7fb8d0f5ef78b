"""Numbers with their nouns."""


def counted(number: int, thing: str) -> str:
    """Return a number with its noun: `1 box`, `2 boxes`, `1,000 shards`."""
    ending = "es" if thing.endswith(("s", "x")) else "s"
    return f"{number:,} {thing}{ending if number != 1 else ''}"
