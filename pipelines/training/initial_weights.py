"""Fetch the weights to start from (a file, a web address or S3), once for each node, and check their bytes.

Publishers put the first digits of a file's sha256 into its name (`resnet18-5c106cde.pth`); a file whose bytes do not
match is never loaded. An object of S3 is compared with the checksum that the store keeps. The sha256 of a fetched file
is recorded beside it in the cache, and compared whenever the file is used.
"""

import datetime
import hashlib
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import filelock

from data_shards.addresses import shown_address
from data_shards.errors import DataError
from data_shards.storage.node_cache import default_cache_folder
from data_shards.storage.open import open_store
from data_shards.storage.store import FileVersion
from pipelines import console
from pipelines.errors import ConfigError
from pipelines.files import read_json, replacing, write_json
from pipelines.recipes.secrets import web_request
from pipelines.recipes.settings import IMAGENET, DetectorSettings
from pipelines.trained.weights_file import find_description

if TYPE_CHECKING:
    from detectors import Detector

logger = logging.getLogger("aweigh")

_ATTEMPTS = 4
_DOWNLOADS = 3
"""Downloads of an object whose bytes do not match its checksum."""
_TIMEOUT_SECONDS = 60
_BLOCK = 1 << 20


def fetch_weights(settings: DetectorSettings, detector: "Detector | None", cache_folder: str = "") -> Path:
    """Return the local file of `settings.weights`; a remote one is fetched into the cache.

    Args:
        settings: location of the weights, and their sha256 or its first digits, if the user set one.
        detector: knows the ImageNet weights that its publication starts from; None if others are fetched.
        cache_folder: the node's cache; empty is AWEIGH_CACHE, or ~/.cache/aweigh.

    Raises:
        ConfigError: the weights cannot be fetched, or their bytes do not match; nothing is kept then.
    """
    location = settings.weights
    assert location, "the recipe has no initial weights"
    is_imagenet = location == IMAGENET
    if is_imagenet:
        assert detector is not None, "each detector has ImageNet weights of its own"
        location = imagenet_location(detector)
    expected = settings.weights_sha256 or _hash_in_name(location)
    try:
        if "://" not in location:
            path = Path(location)
            if path.is_file():
                _check(path, expected, location)
        else:
            path = _cached(location, expected, Path(cache_folder) if cache_folder else default_cache_folder())
        return path
    except ConfigError as error:
        if not is_imagenet or detector is None:
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
            if not _is_good(path, expected, location):
                _fetch(location, expected, path)
            _log(location, sha256_of(path))
    except OSError as error:
        raise ConfigError(
            f"weights cannot be kept in {folder}: {error.strerror or error}. Set data.cache_folder to another folder."
        ) from error
    return path


def _is_good(path: Path, expected: str, location: str) -> bool:
    """Return True if the copy in the cache is whole, and the object is still the one that was fetched."""
    if not path.is_file():
        return False
    record = read_json(_record_of(path))
    found = sha256_of(path)
    if expected:
        return found.startswith(expected)
    if record.get("sha256", found) != found:
        console.say("weights", f"{path} is damaged and is fetched again")
        return False
    if not location.startswith("s3://"):
        if not record:
            _write_record(path, found, None)
        return True
    try:
        version = _version(location)
    except DataError as error:
        # A laptop on a train, or a node without the bucket's credentials: the copy is as it was fetched.
        console.say("weights", f"using the copy in {path.parent}, since its object cannot be compared: {error}")
        return True
    if record.get("version") == version.tag:
        return True
    # Copies without a record are good if the store knows their checksum.
    if not record and not _mismatch(path, version) and version.checksums:
        _write_record(path, found, version)
        return True
    if record:
        console.say("weights", f"{shown_address(location)} was replaced since it was fetched")
    return False


def _fetch(location: str, expected: str, path: Path) -> None:
    console.say("weights", f"fetching {shown_address(location)}")
    with replacing(path) as unfinished:
        version = None
        if location.startswith("s3://"):
            version = _from_store(location, expected, unfinished)
        else:
            _from_web(location, unfinished)
        _check(unfinished, expected, location)
        # First the record: a kill between the two leaves an old file that does not match it, which is fetched again.
        _write_record(path, sha256_of(unfinished), version)


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_record(path: Path, sha256: str, version: FileVersion | None) -> None:
    record: dict[str, Any] = {"sha256": sha256}
    if version is not None:
        record["version"] = version.tag
    write_json(_record_of(path), record)


def _log(location: str, sha256: str) -> None:
    logger.info("initial weights: %s, sha256 %s", shown_address(location), sha256)


def _split(location: str) -> tuple[str, str]:
    folder, _, name = location.rpartition("/")
    if folder.count("/") < 2 or not name:
        raise ConfigError(f"{shown_address(location)} names no file; give s3://BUCKET/KEY of the weights.")
    return folder, name


def _version(location: str) -> FileVersion:
    folder, name = _split(location)
    return open_store(folder).version(name)


def _from_store(location: str, expected: str, path: Path) -> FileVersion:
    """Fetch an object, again if its bytes do not match its checksum. Returns the version that was fetched."""
    folder, name = _split(location)
    try:
        for _ in range(_DOWNLOADS):
            version = _version(location)
            with path.open("wb") as file:
                open_store(folder).fetch(name, file.fileno(), ranges=4)
            # A sha256 that the user knows is better than what the store says of itself.
            mismatch = "" if expected and sha256_of(path).startswith(expected) else _mismatch(path, version)
            if not mismatch:
                return version
    except DataError as error:
        raise ConfigError(str(error)) from error
    raise ConfigError(
        f"{shown_address(location)} arrived damaged in {_DOWNLOADS} downloads: {mismatch}. Upload it again. If the "
        f"store's ETags are not checksums, set detector.weights_sha256 to the file's."
    )


def _mismatch(path: Path, version: FileVersion) -> str:
    """Compare a file with what the store says of it; "" if nothing contradicts."""
    size = path.stat().st_size
    if version.size not in (-1, size):
        return f"it has {size:,} bytes instead of {version.size:,}"
    for algorithm, digest in version.checksums.items():
        found = _digest(path, algorithm)
        if found != digest:
            return f"its {algorithm} is {found[:12]}…, the store's {digest[:12]}…"
    return ""


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        if algorithm != "crc32":
            return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
        value = 0
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def _from_web(location: str, path: Path) -> None:
    if not location.startswith(("http://", "https://")):
        raise ConfigError(
            f"weights cannot be fetched from {shown_address(location)}: give a file, http(s):// or s3://BUCKET/KEY."
        )
    try:
        request = web_request(location)
    except ValueError:
        raise ConfigError(f"{shown_address(location)} is not an address; check it.") from None
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer, path.open("wb") as file:
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
            raise ConfigError(
                f"{shown_address(location)} cannot be fetched{tried}: {shown_address(cause)}. Check the address and "
                "the network."
            )
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
    found = sha256_of(path)
    if not found.startswith(expected):
        raise ConfigError(
            f"{shown_address(location)} has sha256 {found[: max(len(expected), 12)]}…, not {expected}: it is damaged "
            f"or another file. Fetch it again, or correct detector.weights_sha256."
        )
    if "://" not in location:
        _log(location, found)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def class_names_of_file(path: Path) -> list[str]:
    """Return the names of the classes that weights were trained for; none if the file does not describe itself."""
    description = find_description(path)
    return [one.name for one in description.classes] if description is not None else []


def _file_name(location: str) -> str:
    name = urllib.parse.urlsplit(location).path.rpartition("/")[2]
    # A leading dot is of the lock and of unfinished files.
    return "weights" if not name or name.startswith(".") else name


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
