"""Announce to Ray that this machine will be taken away, so that a training saves a checkpoint while there is time.

Unusual here: it runs as a script on the nodes of `ray_cluster.yaml` and `cluster/kuberay`, outside of any job and with
nothing but Ray installed, because Ray itself does not watch any cloud's notices.

    python announce_preemption.py watch HEAD:6379          wait for EC2's notice, two minutes before it takes the
                                                           spot instance back
    python announce_preemption.py now HEAD:6379 SECONDS    announce it now, then wait SECONDS: before Kubernetes ends
                                                           a pod
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime

_METADATA = "http://169.254.169.254"  # the same address on every EC2 instance
_ASK_SECONDS = 5.0


def seconds_until_taken(metadata: str) -> float | None:
    """Ask EC2's metadata service when this instance will be interrupted; None if nothing is planned.

    Args:
        metadata: address of the service.

    Raises:
        OSError: the service does not answer.

    Source:
        "Spot Instance interruption notices" and "Use IMDSv2" of the EC2 user guide.
    """
    ask = urllib.request.Request(f"{metadata}/latest/api/token", method="PUT")
    ask.add_header("X-aws-ec2-metadata-token-ttl-seconds", "60")
    with urllib.request.urlopen(ask, timeout=5) as answer:
        token = answer.read().decode()
    look = urllib.request.Request(f"{metadata}/latest/meta-data/spot/instance-action")
    look.add_header("X-aws-ec2-metadata-token", token)
    try:
        with urllib.request.urlopen(look, timeout=5) as answer:
            planned = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404:  # no notice
            return None
        raise
    taken = datetime.fromisoformat(planned["time"]).astimezone(UTC)
    return max(0.0, (taken - datetime.now(UTC)).total_seconds())


def announce(address: str, seconds: float, message: str) -> list[str]:
    """Tell a cluster that its nodes on this machine, except the head, end in `seconds`; returns their ids."""
    from ray._private.services import find_node_ids
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

    client = GcsClient(address=address)
    here = find_node_ids()
    known = [node for node in client.get_all_node_info(timeout=30).values() if not node.is_head_node]
    ids = [node.node_id.hex() for node in known if node.node_id.hex() in here]
    deadline = time.time_ns() // 1_000_000 + round(1000 * seconds)
    for id in ids:
        accepted, why_not = client.drain_node(id, DRAIN_NODE_REASON_PREEMPTION, message, deadline)
        if not accepted:
            raise RuntimeError(f"the cluster refuses to drain node {id}: {why_not}")
    return ids


def watch(address: str, metadata: str) -> None:
    """Ask every few seconds until there is a notice, and pass it on to Ray."""
    answered = True
    while True:
        try:
            seconds = seconds_until_taken(metadata)
            if seconds is not None and announce(address, seconds, "EC2 takes the spot instance back"):
                print(f"notice: this instance ends in {seconds:.0f} s; announced to the cluster", flush=True)
                return
            answered = True
        except Exception as error:  # the network, the metadata service or the head failed, and may recover
            if answered:  # one line for each outage
                print(f"cannot ask for the notice: {error}; retrying", flush=True)
            answered = False
        time.sleep(_ASK_SECONDS)


def main() -> None:
    """Run the command line."""
    action, address, *more = sys.argv[1:]
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if action == "watch":
        watch(address, os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", _METADATA).rstrip("/"))
    else:
        seconds = float(more[0])
        announce(address, seconds, "Kubernetes ends the pod")
        time.sleep(seconds)


if __name__ == "__main__":
    main()
