"""The notice that a node will be taken away, as Ray hands it to each worker."""

import time


def preemption_notice() -> str:
    """One line of what is to be taken and when; empty while there is no notice.

    Read without `ray.train.get_preemption_info`, which is a barrier of all workers: asked at every step it would cost
    more than the step. Ranks that see the notice at different steps agree on one by `Agreement`.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    if info is None:
        return ""
    ranks = ", ".join(map(str, sorted(info.preempted_ranks)))
    deadline = time.strftime(" at %H:%M:%S", time.localtime(info.deadline_ms / 1000)) if info.deadline_ms else ""
    return f"the cluster will take the node of worker {ranks} away{deadline}"
