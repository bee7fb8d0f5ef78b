"""The token of a Ray cluster: Ray 2.60 requires one by default, but its clients send theirs only if told to."""

import os
from pathlib import Path

WHERE = (
    "`ray get-auth-token` prints it on the head; on this machine, put it into RAY_AUTH_TOKEN or ~/.ray/auth_token "
    "(RAY_AUTH_TOKEN_PATH names another file)"
)
"""Instructions for messages: how to find the token, and the places to put it."""


def send_token() -> None:
    """Make Ray send this machine's token, if there is one. Call it before Ray is imported; the user's setting stays."""
    if has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def has_token() -> bool:
    """Return True if this machine has a token."""
    named = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return any(os.environ.get(name) for name in named) or (Path.home() / ".ray" / "auth_token").exists()
