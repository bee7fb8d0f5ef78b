"""Numbers agree with their nouns."""

from cluster.counting import counted


def test_one_is_singular() -> None:
    assert [counted(number, "worker") for number in (0, 1, 2, 1000)] == [
        *("0 workers", "1 worker", "2 workers", "1,000 workers"),
    ]
