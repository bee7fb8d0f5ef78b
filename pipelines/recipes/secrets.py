"""Secrets in the addresses of a recipe: used, and never recorded.

When a recipe is read, the full address moves to this process's environment, which workers and jobs inherit, and the
recipe keeps what may be shown. So neither recipe.yaml nor a checkpoint, a parameter or a command line has a password.
"""

import base64
import dataclasses
import hashlib
import os
import urllib.request
from urllib.parse import unquote, urlsplit

from data_shards.addresses import has_secret, shown_address
from pipelines.recipes.settings import Recipe

# Of a prefix that local workers and submitted jobs receive.
_PREFIX = "AWEIGH_ADDRESS_"


def without_secrets(recipe: Recipe) -> Recipe:
    """Return the recipe with addresses that may be recorded; `full_address` returns what they were."""
    tracking, detector = recipe.tracking, recipe.detector
    if has_secret(tracking.uri):
        tracking = dataclasses.replace(tracking, uri=hide_tracking(tracking.uri))
    if detector.weights and has_secret(detector.weights):
        detector = dataclasses.replace(detector, weights=hide(detector.weights))
    if (tracking, detector) == (recipe.tracking, recipe.detector):
        return recipe
    return dataclasses.replace(recipe, tracking=tracking, detector=detector)


def hide(address: str) -> str:
    """Remember an address in this process's environment; returns it without user, password and query."""
    shown = shown_address(address)
    if shown != address:
        os.environ[_variable(shown)] = address
    return shown


def full_address(shown: str) -> str:
    """Return the address that `hide` was called with, or `shown` itself."""
    return os.environ.get(_variable(shown), shown)


def web_request(shown: str) -> urllib.request.Request:
    """Return a request for the full address; user and password go into its header, as urllib takes none in a URL."""
    address = full_address(shown)
    parts = urlsplit(address)
    if parts.username is None:
        return urllib.request.Request(address)
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    request = urllib.request.Request(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
    # Not a redirected one: another server must not receive the password.
    request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(user.encode()).decode('ascii')}")
    return request


def hide_tracking(uri: str) -> str:
    """Hide an address of MLflow; user and password of a server go to the variables that MLflow itself reads."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.username is not None and not parts.query:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
        return shown_address(uri)
    return hide(uri)


def _variable(shown: str) -> str:
    return f"{_PREFIX}{hashlib.sha256(shown.encode()).hexdigest()[:16].upper()}"
