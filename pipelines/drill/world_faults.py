"""Resuming on another number of workers, or at another ZeRO stage."""

from pipelines.drill.fault import fault
from pipelines.drill.runs import Course, running


def _then(course: Course, name: str, *flags: str) -> None:
    with running(course.start(name)) as attempt:
        attempt.wait_for_step(course.steps // 2 + 1)
        attempt.terminate()
        attempt.finish(status=143)
    with running(course.start(name, *flags)) as attempt:
        attempt.finish_resumed()


@fault("more-workers", "resume with twice the workers: same samples, same weights to rounding", rounding=True)
def more_workers(course: Course, name: str) -> None:
    """Give each worker half as many microbatches."""
    _then(course, name, "--cluster.workers", "4")


@fault("fewer-workers", "resume with one worker: same samples, same weights to rounding", rounding=True)
def fewer_workers(course: Course, name: str) -> None:
    """Give the one worker all microbatches, one after the other."""
    _then(course, name, "--cluster.workers", "1")


@fault("zero-stage", "resume at another ZeRO stage: same samples, same weights to rounding", rounding=True)
def zero_stage(course: Course, name: str) -> None:
    """Change from stage 1 to stage 2, which adds gradients in another order."""
    _then(course, name, "--engine.zero_stage", "2")
