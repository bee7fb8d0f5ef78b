"""Addresses of servers: how to show them without secrets, and which proxy their requests go through."""

import ipaddress
import os
import re
import urllib.request
from urllib.parse import urlsplit

_ADDRESS = re.compile(r"\b([A-Za-z][A-Za-z0-9+.\-]*)://([^\s\"<>]*)")
_PUNCTUATION = re.compile(r"[')\],.;:]*$")
_HOST = re.compile(r"([^:@\[\]]*|\[[^\]]*\])(:\d*)?")
# A query such as ?id=7 says which file is meant; one with any of these is dropped as a whole.
_SECRET = re.compile(r"sig|token|secret|passw|pwd|key|credential|auth|session|code=", re.IGNORECASE)


def shown_address(text: str) -> str:
    """Return a text with every address in it reduced to what may be recorded: no user, password or signed query.

    A password may contain any character, also those that it should have written as %40 or %2F.
    """
    return _ADDRESS.sub(lambda found: f"{found[1]}://{_without_secrets(found[2])}", text)


def _without_secrets(rest: str) -> str:
    path = re.split(r"[?#]", rest, maxsplit=1)[0]
    query = rest[len(path) :]
    authority, *_ = path.split("/", 1)
    host = _HOST.fullmatch(authority)
    if "@" in rest and (host is None or host[2]):
        # There is a user, or what looks like a port is the start of a password. All before the last @ may belong to
        # the password; an @ behind a question mark may belong to either, so nothing is shown.
        if "@" in query or host is not None:
            return "…"
        path = path.rpartition("@")[2]
    elif host is None:
        return "…"
    if not _SECRET.search(query):
        return path + query
    # What follows the address in a sentence is not a part of it.
    punctuation = _PUNCTUATION.search(rest)
    return path + punctuation[0] if punctuation else path


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
