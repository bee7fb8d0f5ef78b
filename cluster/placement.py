"""CPUs and GPUs for the workers: reserved before training starts, and waited for on a cluster that grows by itself.

Unusual here: a placement group, not a request to the autoscaler, because Ray releases it when the driver dies, and the
autoscaler then stops nodes that nobody needs any more.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.errors import ClusterError
from cluster.settings import ClusterSettings

logger = logging.getLogger("aweigh")
_NOTE_SECONDS = 30


def wants_gpu(ray: Any, settings: ClusterSettings) -> bool:
    """Return True if each worker takes a GPU; with `auto`, if the cluster has one for each."""
    return settings.device == "cuda" or (
        settings.device == "auto" and ray.cluster_resources().get("GPU", 0) >= settings.min_workers
    )


@contextmanager
def reserved(ray: Any, settings: ClusterSettings, seconds: float, *, gpu: bool) -> Iterator[Any]:
    """Reserve the CPUs and GPUs of every worker while the block runs; yields the placement group.

    Raises:
        ClusterError: the cluster did not have them within `seconds`.
    """
    bundle = {"CPU": settings.cpus_per_worker, **({"GPU": 1} if gpu else {})}
    group = ray.util.placement_group([bundle] * settings.min_workers, strategy="PACK")
    try:
        began = time.monotonic()
        while not group.wait(min(_NOTE_SECONDS, max(1.0, seconds))):
            waited = time.monotonic() - began
            if waited > seconds:
                raise ClusterError(
                    f"the cluster could not reserve {settings.workers_in_words} with {_shown(bundle)} each within "
                    f"{waited / 60:.0f} minutes: it has {_shown(ray.cluster_resources())}. Start more nodes, raise "
                    f"max_workers of its autoscaler, or lower cluster.workers."
                )
            logger.info("%-10s%d so far, after %d s; waiting for more", "nodes", len(alive_nodes(ray)), waited)
        yield group
    finally:
        ray.util.remove_placement_group(group)


def alive_nodes(ray: Any) -> list[dict[str, Any]]:
    """Return Ray's records of the nodes that are up."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_of_each_worker(group: Any) -> list[str]:
    """Return Ray's node id for every bundle of a placement group that is ready."""
    from ray.util import placement_group_table

    nodes = placement_group_table(group)["bundles_to_node_id"]
    return [nodes[index] for index in sorted(nodes)]


def _shown(resources: Any) -> str:
    return " and ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU") if name in resources)
