"""The early end of a training whose evaluations no longer improve.

The decision is a function of the scores so far and nothing else. Every checkpoint carries them, and every rank receives
them, so that a run that is killed and resumed, on any number of workers, ends at the same step.
"""

from collections.abc import Mapping

from data_shards.counting import counted
from pipelines.recipes.settings import Schedule


def best_of(scores: Mapping[int, float]) -> tuple[int, float] | None:
    """Return the step with the highest score, and the score; None without scores. The later one of equals is the best.

    Args:
        scores: AP of each evaluation, by step.
    """
    return max(scores.items(), key=lambda item: (item[1], item[0]), default=None)


def evaluations_in_vain(schedule: Schedule, scores: Mapping[int, float]) -> int:
    """Return the number of evaluations since the last one that was better than all before it.

    Args:
        schedule: says how much better counts.
        scores: AP of each evaluation, by step. Those that failed, or had no object to find, are not among them.
    """
    in_vain, best = 0, float("-inf")
    for _, score in sorted(scores.items()):
        if score > best + schedule.min_improvement or best == float("-inf"):
            in_vain, best = 0, score
        else:
            in_vain += 1
    return in_vain


def is_over(schedule: Schedule, scores: Mapping[int, float]) -> bool:
    """Return True if training ends early after these evaluations."""
    return 0 < schedule.patience <= evaluations_in_vain(schedule, scores)


def early_end_in_words(schedule: Schedule, scores: Mapping[int, float]) -> str:
    """Say why training ended early, and which checkpoint is the best."""
    best = best_of(scores)
    assert best is not None
    step, score = best
    more = f" by more than {schedule.min_improvement:g}" if schedule.min_improvement else ""
    return (
        f"AP has not improved{more} in {counted(evaluations_in_vain(schedule, scores), 'evaluation')} "
        f"(schedule.patience); the best is {score:.4f} at step {step:,}"
    )
