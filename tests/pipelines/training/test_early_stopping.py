"""The early end: a function of the scores, the same whether a run was interrupted or not."""

import pytest

from pipelines.recipes.settings import Schedule
from pipelines.training.early_stopping import best_of, early_end_in_words, evaluations_in_vain, is_over


@pytest.mark.parametrize(
    ("scores", "min_improvement", "in_vain"),
    [
        ([], 0, 0),
        ([0.0], 0, 0),
        ([0.1, 0.2, 0.3], 0, 0),
        ([0.1, 0.3, 0.2], 0, 1),
        # As good as the best one is not better.
        ([0.1, 0.3, 0.3, 0.3], 0, 2),
        ([0.1, 0.3, 0.2, 0.29, 0.31], 0, 0),
        ([0.1, 0.105, 0.11, 0.115], 0.02, 3),
        # Small improvements add up, since each is compared with the last one that counted.
        ([0.1, 0.105, 0.11, 0.125, 0.13], 0.02, 1),
        # The first evaluation is better than none, however poor.
        ([0.0, 0.0], 0.5, 1),
    ],
)
def test_evaluations_are_counted_since_the_last_better_one(
    scores: list[float], min_improvement: float, in_vain: int
) -> None:
    schedule = Schedule(patience=2, min_improvement=min_improvement)
    by_step = {10 * (number + 1): score for number, score in enumerate(scores)}
    assert evaluations_in_vain(schedule, by_step) == in_vain
    # Whatever the order in which they were recorded.
    assert evaluations_in_vain(schedule, dict(reversed(by_step.items()))) == in_vain
    assert is_over(schedule, by_step) == (in_vain >= 2)
    assert not is_over(Schedule(patience=0), by_step)


def test_the_best_of_equals_is_the_later_one_as_for_the_checkpoints_that_stay() -> None:
    assert best_of({}) is None
    assert best_of({3: 0.5, 6: 0.7, 9: 0.7, 12: 0.1}) == (9, 0.7)


def test_the_end_says_why_and_which_checkpoint_is_the_best() -> None:
    scores = {10: 0.25, 20: 0.5, 1030: 0.4, 1040: 0.3}
    assert early_end_in_words(Schedule(patience=2), scores) == (
        "AP has not improved in 2 evaluations (schedule.patience); the best is 0.5000 at step 20"
    )
    assert early_end_in_words(Schedule(patience=1, min_improvement=0.3), {1: 0.1, 2: 0.2}) == (
        "AP has not improved by more than 0.3 in 1 evaluation (schedule.patience); the best is 0.2000 at step 2"
    )
