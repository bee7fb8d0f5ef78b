"""The token of a Ray cluster: Ray 2.60 asks for one by default, but its clients send theirs only when told to."""

import os
from pathlib import Path

WHERE = (
    "on the head, `ray get-auth-token` prints it; here, put it into RAY_AUTH_TOKEN or ~/.ray/auth_token "
    "(RAY_AUTH_TOKEN_PATH names another file)"
)


def send_token() -> None:
    """Have Ray send this machine's token where there is one; call before Ray is imported. What the user set stays."""
    if has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def has_token() -> bool:
    """Whether this machine knows a token."""
    named = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return any(os.environ.get(name) for name in named) or (Path.home() / ".ray" / "auth_token").exists()
