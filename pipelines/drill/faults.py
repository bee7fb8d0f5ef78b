"""Every fault of the drill, in the order in which `make drill` goes through them."""

from collections.abc import Mapping
from types import MappingProxyType

from pipelines.drill import checkpoint_faults, cluster_faults, process_faults, service_faults, world_faults
from pipelines.drill.fault import Fault

_ALL = (
    checkpoint_faults.kill_in_write,
    checkpoint_faults.kill_in_upload,
    checkpoint_faults.truncated,
    checkpoint_faults.disk_full,
    cluster_faults.raylet_kill,
    cluster_faults.preemption,
    cluster_faults.supervisor_kill,
    cluster_faults.two_nodes,
    process_faults.worker_kill,
    process_faults.worker_hang,
    process_faults.driver_kill,
    process_faults.sigterm,
    process_faults.sigterm_everyone,
    process_faults.sighup,
    process_faults.kill_while_tracking_database_is_made,
    service_faults.store_503,
    service_faults.cached_shard,
    service_faults.mlflow_down,
    world_faults.more_workers,
    world_faults.fewer_workers,
    world_faults.zero_stage,
    checkpoint_faults.corrupt_download,
    checkpoint_faults.empty_listing,
)

FAULTS: Mapping[str, Fault] = MappingProxyType({fault.name: fault for fault in _ALL})
"""Faults by name."""
