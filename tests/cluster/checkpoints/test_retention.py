"""The checkpoints that stay: the newest and the best; of equals the newer one is the best."""

from cluster.checkpoints.retention import best_first, kept, read_score

SCORES = {"step-1": 0.5, "step-2": 0.5, "step-3": None, "step-4": 0.375}


def test_the_newer_of_equal_scores_is_the_best() -> None:
    assert best_first(SCORES) == ["step-2", "step-1", "step-4"]


def test_the_newest_and_the_best_are_kept() -> None:
    assert kept(list(SCORES), SCORES, 1) == {"step-2", "step-4"}
    assert kept(list(SCORES), {}, 2) == {"step-3", "step-4"}
    assert kept([], {}, 2) == set()


def test_a_damaged_score_is_none() -> None:
    assert read_score('{"score": 0.25}') == 0.25
    assert [read_score(text) for text in ('{"score": null}', "{}", "[]", "nonsense", b"\xff")] == [None] * 5
