"""Fetch the weights to start from (a file, a web address or S3), once for each node, and check their sha256.

Publishers put the first digits of a file's sha256 into its name (`resnet18-5c106cde.pth`); a file whose bytes do not
match is never loaded.
"""

import datetime
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING

import filelock

from data_shards.errors import DataError
from data_shards.storage.node_cache import default_cache_folder
from data_shards.storage.open import open_store
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.files import replacing
from pipelines.recipes.secrets import web_request
from pipelines.recipes.settings import IMAGENET, DetectorSettings

if TYPE_CHECKING:
    from detectors import Detector

_ATTEMPTS = 4
_TIMEOUT_SECONDS = 60
_BLOCK = 1 << 20


def fetch_weights(settings: DetectorSettings, detector: "Detector", cache_folder: str = "") -> Path:
    """Return the local file of `settings.weights`; a remote one is fetched into the cache.

    Args:
        settings: location of the weights, and their sha256 or its first digits, if the user set one.
        detector: knows the ImageNet weights that its publication starts from.
        cache_folder: the node's cache; empty is AWEIGH_CACHE, or ~/.cache/aweigh.

    Raises:
        ConfigError: the weights cannot be fetched, or do not have the sha256; nothing is kept then.
    """
    location = settings.weights
    assert location, "the recipe has no initial weights"
    is_imagenet = location == IMAGENET
    if is_imagenet:
        location = imagenet_location(detector)
    expected = settings.weights_sha256 or _hash_in_name(location)
    try:
        if "://" not in location:
            path = Path(location)
            if expected and path.is_file():
                _check(path, expected, location)
            return path
        return _cached(location, expected, Path(cache_folder) if cache_folder else default_cache_folder())
    except ConfigError as error:
        if not is_imagenet:
            raise
        raise ConfigError(
            f"the ImageNet weights of {detector.name}: {error} Give a copy as --detector.weights FILE, or train from "
            f"random weights with --detector.weights none."
        ) from error


def imagenet_location(detector: "Detector") -> str:
    """Return the address of the ImageNet weights of a detector's backbone.

    With AWEIGH_WEIGHTS_URL, it is the file of the same name below that address, for clusters without the internet.

    Raises:
        ConfigError: the detector's publication does not start from ImageNet weights.
    """
    published = detector.published.imagenet_weights
    if not published:
        raise ConfigError(
            f"there are no published ImageNet weights for {detector.name}; set detector.weights to a file, or to none."
        )
    copies = os.environ.get("AWEIGH_WEIGHTS_URL")
    return f"{copies.rstrip('/')}/{_file_name(published)}" if copies else published


def _cached(location: str, expected: str, cache: Path) -> Path:
    """Return the copy in the cache; one process of the node fetches it while the others wait for the lock."""
    # Two addresses may end in the same file name, so each has a folder of its own.
    folder = cache / "weights" / hashlib.sha256(location.encode()).hexdigest()[:12]
    path = folder / _file_name(location)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lock"):
            if not path.is_file() or (expected and not _sha256(path).startswith(expected)):
                _fetch(location, expected, path)
    except OSError as error:
        raise ConfigError(
            f"weights cannot be kept in {folder}: {error.strerror or error}. Set data.cache_folder to another folder."
        ) from error
    return path


def _fetch(location: str, expected: str, path: Path) -> None:
    console.say("weights", f"fetching {location}")
    with replacing(path) as unfinished:
        if location.startswith("s3://"):
            _from_store(location, unfinished)
        else:
            _from_web(location, unfinished)
        _check(unfinished, expected, location)


def _from_store(location: str, path: Path) -> None:
    folder, _, name = location.rpartition("/")
    if folder.count("/") < 2 or not name:
        raise ConfigError(f"{location} names no file; give s3://BUCKET/KEY of the weights.")
    try:
        with path.open("wb") as file:
            open_store(folder).fetch(name, file.fileno(), ranges=4)
    except DataError as error:
        raise ConfigError(str(error)) from error


def _from_web(location: str, path: Path) -> None:
    if not location.startswith(("http://", "https://")):
        raise ConfigError(f"weights cannot be fetched from {location}: give a file, http(s):// or s3://BUCKET/KEY.")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with (
                urllib.request.urlopen(web_request(location), timeout=_TIMEOUT_SECONDS) as answer,
                path.open("wb") as file,
            ):
                _copy(answer, file, int(answer.headers.get("Content-Length") or 0))
            return
        except urllib.error.HTTPError as error:
            # A refusal will be repeated; a busy server (429) or a broken one (5xx) may recover.
            cause, lasting = f"HTTP {error.code} {error.reason}", error.code < 500 and error.code != 429
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", None) or error
            cause, lasting = str(reason) or type(error).__name__, False
        if lasting or attempt == _ATTEMPTS:
            tried = "" if attempt == 1 else f" after {attempt} attempts"
            raise ConfigError(f"{location} cannot be fetched{tried}: {cause}. Check the address and the network.")
        time.sleep(0.25 * 2**attempt)


def _copy(answer: "http.client.HTTPResponse", file: "IO[bytes]", size: int) -> None:
    done = shown = 0
    while block := answer.read(_BLOCK):
        file.write(block)
        done += len(block)
        if size > _BLOCK and done >> 20 > shown:
            shown = done >> 20
            console.progress_line("weights", shown, max(size >> 20, 1), "MiB")
    if done < size:
        raise ConnectionError(f"the connection ended after {done:,} of {size:,} bytes")


def _check(path: Path, expected: str, location: str) -> None:
    found = _sha256(path) if expected else ""
    if not found.startswith(expected):
        raise ConfigError(
            f"{location} has sha256 {found[: max(len(expected), 12)]}…, not {expected}: it is damaged or another file. "
            f"Fetch it again, or correct detector.weights_sha256."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_name(location: str) -> str:
    return urllib.parse.urlsplit(location).path.rpartition("/")[2] or "weights"


def _hash_in_name(location: str) -> str:
    """Return the first digits of a sha256 at the end of a published file's name; "" if it has none."""
    found = re.search(r"-([0-9a-f]{8,64})\.[a-z.]+$", _file_name(location))
    return found.group(1) if found and not _is_date(found.group(1)) else ""


def _is_date(digits: str) -> bool:
    """Recognise a date, as in run-20261125.pth, which is not a hash."""
    try:
        return 1990 <= datetime.datetime.strptime(digits, "%Y%m%d").year <= 2100
    except ValueError:
        return False
