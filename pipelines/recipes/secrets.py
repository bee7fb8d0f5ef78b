"""Secrets in the addresses of a recipe: used, and never recorded.

When a recipe is read, the full address moves to this process's environment, which workers and jobs inherit, and the
recipe keeps what may be shown. So neither recipe.yaml nor a checkpoint, a parameter or a command line has a password.
"""

import base64
import dataclasses
import hashlib
import os
import re
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from data_shards.addresses import has_secret, shown_address
from pipelines.errors import ConfigError
from pipelines.recipes.settings import Recipe

# Of a prefix that local workers and submitted jobs receive.
_PREFIX = "AWEIGH_ADDRESS_"
_TEXTS = (".yaml", ".yml", ".json", ".toml", ".ini", ".cfg", ".conf", ".py", ".sh", ".txt")
_LARGEST_TEXT_BYTES = 1 << 20
# Anything in quotes that has a scheme; placeholders such as {password} and $PASSWORD are not secrets.
_WRITTEN_ADDRESS = re.compile(r"""\b[A-Za-z][\w+.-]*://[^\s"'`<>{}$\\]++(?![{$\\])""")


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


def recipe_to_send(path: Path, folder: Path) -> Path:
    """Return a recipe's file, or a copy in `folder` without the secrets, which the job finds in its environment.

    Args:
        path: the file, which this process has read as its recipe.
        folder: receives the copy.

    Raises:
        ConfigError: an address is written in a way that cannot be replaced.
    """
    text = path.read_text()
    clean = text
    for value in sorted(_values_with_secrets(text), key=len, reverse=True):
        clean = clean.replace(value, shown_address(value))
    if any(_values_with_secrets(clean)):
        raise ConfigError(
            f"{path} has an address with a password, written with escapes. Write the address in one piece, or leave "
            "the password out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        )
    if clean == text:
        return path
    copy = folder / path.name
    copy.write_text(clean)
    return copy


def _values_with_secrets(text: str) -> Iterator[str]:
    return (value for value in _strings(yaml.safe_load(text)) if has_secret(value))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def addresses_with_secrets(files: Mapping[str, Path]) -> list[str]:
    """Find addresses with a password or a signed query in texts that are sent somewhere.

    Args:
        files: files by the names to show. Those of tests are skipped: their addresses are examples.

    Returns:
        For each such file, its name, the line of the first such address, and the address without the secret.
    """
    found = []
    for name, path in sorted(files.items()):
        if (
            path.suffix.lower() not in _TEXTS
            or "tests" in Path(name).parts
            or path.stat().st_size > _LARGEST_TEXT_BYTES
        ):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            addresses = (match[0] for match in _WRITTEN_ADDRESS.finditer(line))
            # Without an @ or a query there is no secret, only a port that is a word, such as http://HOST:PORT.
            if secret := next((each for each in addresses if re.search("[@?#]", each) and has_secret(each)), None):
                found.append(f"{name}, line {number} ({shown_address(secret)})")
                break
    return found


def _variable(shown: str) -> str:
    return f"{_PREFIX}{hashlib.sha256(shown.encode()).hexdigest()[:16].upper()}"
