"""The network that gloo uses on this node."""

import os
import socket


def choose_gloo_network(address: str) -> str:
    """Make gloo use the network interface that has this node's address in Ray; returns its name, "" if none has it.

    Gloo alone takes what the host's name resolves to, which is a loopback address on Ubuntu and in host-network pods.
    A user's own GLOO_SOCKET_IFNAME stays.

    Args:
        address: of this node, as other nodes reach it.
    """
    import psutil

    chosen = os.environ.get("GLOO_SOCKET_IFNAME", "")
    if chosen:
        return chosen
    families = (socket.AF_INET, socket.AF_INET6)
    for name, addresses in psutil.net_if_addrs().items():
        # An IPv6 address may carry the name of its interface after a percent sign.
        if any(one.family in families and one.address.partition("%")[0] == address for one in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            return name
    return ""
