"""Addresses in messages and records: without user, password and query, which may be secrets."""

import re

_ADDRESS = re.compile(r"\b([A-Za-z][A-Za-z0-9+.\-]*)://([^\s\"<>]*)")
_PUNCTUATION = re.compile(r"[')\],.;:]*$")
_HOST = re.compile(r"([^:@\[\]]*|\[[^\]]*\])(:\d*)?")


def shown(text: str) -> str:
    """Return a text with every address in it without user, password, query and fragment.

    A query may be a signature (a presigned S3 address) or hold a token. A password may contain any character, also
    those that it should have written as %40 or %2F.
    """
    return _ADDRESS.sub(lambda found: f"{found[1]}://{_without_secrets(found[2])}", text)


def _without_secrets(rest: str) -> str:
    path = re.split(r"[?#]", rest, maxsplit=1)[0]
    authority, *_ = path.split("/", 1)
    host = _HOST.fullmatch(authority)
    if "@" in rest and (host is None or host[2]):
        # There is a user, or what looks like a port is the start of a password. All before the last @ may belong to
        # the password; an @ behind a question mark may belong to either, so nothing is shown.
        if "@" in rest[len(path) :] or host is not None:
            return "…"
        path = path.rpartition("@")[2]
    elif host is None:
        return "…"
    # What follows the address in a sentence is not a part of it.
    punctuation = _PUNCTUATION.search(rest)
    return path + punctuation[0] if punctuation and not rest.endswith(path) else path
