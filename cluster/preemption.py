"""The notice that a node will be taken away, as Ray passes it to each worker."""

import time


def preemption_notice() -> str:
    """Say in one line which nodes will be taken away, and when; empty while there is no notice.

    `ray.train.get_preemption_info` is avoided: it is a barrier of all workers, and calling it at every step would cost
    more than the step. Ranks may see the notice at different steps; `Agreement` makes them act at the same one.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    if info is None:
        return ""
    ranks = ", ".join(map(str, sorted(info.preempted_ranks)))
    deadline = time.strftime(" at %H:%M:%S", time.localtime(info.deadline_ms / 1000)) if info.deadline_ms else ""
    return f"the cluster will take the node of worker {ranks} away{deadline}"
