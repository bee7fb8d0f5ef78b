"""Addresses of servers: how to show them without secrets, and which proxy their requests go through."""

import ipaddress
import os
import re
import urllib.request
from urllib.parse import urlsplit

# The last @ before the path ends the password, which may itself contain an @. A password with an unescaped / is not
# part of the host for any client, but people write them, so everything up to the last @ of the word goes.
_CREDENTIALS = re.compile(r"(?<=://)[^\s\"'<>]*@")
_QUERY = re.compile(r"(?P<address>[a-z][a-z0-9+.-]*://[^\s\"'<>?#]*)(?P<query>[?#][^\s\"'<>]*)", re.IGNORECASE)
# A query such as ?id=7 says which file is meant; one with any of these is dropped as a whole.
_SECRET = re.compile(r"sig|token|secret|passw|pwd|key|credential|auth|session|code=", re.IGNORECASE)


def shown_address(text: str) -> str:
    """Return a text with every address in it reduced to what may be recorded: no user, password or signed query."""

    def without_query(match: re.Match[str]) -> str:
        return match["address"] if _SECRET.search(match["query"]) else match[0]

    return _QUERY.sub(without_query, _CREDENTIALS.sub("", text))


def has_secret(address: str) -> bool:
    """Return True if an address has a part that must not be recorded."""
    return shown_address(address) != address


def proxy_hint(address: str, *, like_requests: bool = False) -> str:
    """Say which proxy variable applies to an address; empty if none does.

    For the error of a server that does not answer: company machines set a proxy for everything, and NO_PROXY forgets
    the server next door.

    Args:
        address: of the server, such as `http://host:9000`.
        like_requests: read the variables as `requests` does, which also obeys ALL_PROXY and takes networks in NO_PROXY;
            botocore does neither.
    """
    parts = urlsplit(address)
    host = parts.hostname
    proxies = urllib.request.getproxies_environment()
    scheme = next((name for name in (parts.scheme, *(["all"] if like_requests else [])) if proxies.get(name)), None)
    if host is None or scheme is None:
        return ""
    if urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return ""
    if like_requests and _is_in_a_network(host, proxies.get("no", "")):
        return ""
    # Python prefers the lower-case spelling where both are set.
    variable = next((name for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()) if os.environ.get(name)), scheme)
    return (
        f"{variable} sends this request to the proxy {shown_address(proxies[scheme])}; to reach {host} "
        f"directly, add {host} to NO_PROXY."
    )


def _is_in_a_network(host: str, no_proxy: str) -> bool:
    try:
        place = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in no_proxy.replace(" ", "").split(","):
        try:
            if "/" in entry and place in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            continue
    return False
