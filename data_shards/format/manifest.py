"""The manifest: one small JSON file that describes a set of shards, byte for byte.

Layout of a location, a folder or an S3 prefix. A recipe names `LOCATION/SPLIT`, the folder with the manifest:

    LOCATION/SPLIT/manifest.json
    LOCATION/SPLIT/SPLIT-000000.tar          {key}.jpg (original bytes) and {key}.json for every sample
    LOCATION/SPLIT/SPLIT-000000.index.npz    offset of each sample, and its boxes as arrays

The manifest is written last, so a folder without one is not a data set, only the remains of a build.
"""

import hashlib
import json
import re
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property
from typing import Any

from data_shards.errors import DataError, LargerError
from data_shards.format.plain_name import is_plain_name
from data_shards.storage.open import open_store
from data_shards.storage.store import Store

FORMAT = "aweigh-shards"
VERSIONS = (1, 2)
"""Versions that can be read. A manifest is written as version 1, or as 2 if it uses a field that 1 does not have."""
MANIFEST_NAME = "manifest.json"
# Field of the file with the manifest's digest. Files of earlier versions have none.
_CHECKSUM = "sha256"
# Shards that are turned into JSON at a time.
_SHARDS_AT_ONCE = 1000
_LARGEST_BYTES = 1 << 30
# Attempts to fetch the right bytes.
_FETCHES = 3
_SHA256 = re.compile(r"[0-9a-f]{64}")
# An image and its JSON each take a header and a body of at least 512 bytes in a tar file.
_LEAST_SAMPLE_BYTES = 2 * (512 + 512)


@dataclass(frozen=True)
class CocoClass:
    """A class with its COCO category id; a label is the index of its class in the manifest."""

    id: int
    name: str
    keypoints: tuple[str, ...] = ()
    """Names of its joints, in the order of the annotations; empty if the file lists none."""
    skeleton: tuple[tuple[int, int], ...] = ()
    """Pairs of joints that a line connects, counted from 1 as COCO does."""


@dataclass(frozen=True)
class IgnoredCategory:
    """A category whose boxes are ignored: a detection of its class there counts neither as found nor as wrong."""

    id: int
    name: str
    label: int
    """Index of the class that it may be taken for; -1 for every class."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file and its index."""

    name: str
    samples: int
    bytes: int
    sha256: str
    index: str
    index_sha256: str


_SHARD_FIELDS = tuple(field.name for field in fields(Shard))


@dataclass(frozen=True)
class Source:
    """The source of the shards; a second build into the same location must agree with it."""

    annotations_sha256: str
    shard_bytes: int
    degenerate_boxes: str
    boxes: int
    dropped_boxes: int
    empty_images: str = "keep"
    dropped_images: int = 0
    left_out: tuple[str, ...] = ()
    """Categories whose annotations were left out."""
    max_size: int = 0
    """Longer side, in pixels, to which larger images were shrunk; 0 if all bytes are the original ones."""
    jpeg_quality: int = 0
    """JPEG quality of the shrunk images."""


@dataclass(frozen=True)
class Manifest:
    """A data set: its classes in the order of their COCO ids, and its shards in the order of sample ids."""

    split: str
    classes: tuple[CocoClass, ...]
    shards: tuple[Shard, ...]
    source: Source
    labels: tuple[str, ...] = ()
    """Labels in the indexes beside boxes: "keypoints", "3d"."""
    ignored: tuple[IgnoredCategory, ...] = ()

    @property
    def joints(self) -> int:
        """Joints of each object, those of the class with the most; 0 if none are labelled."""
        return max(len(item.keypoints) for item in self.classes) if "keypoints" in self.labels else 0

    @property
    def in_3d(self) -> bool:
        """True if depth, dimensions and orientation are known."""
        return "3d" in self.labels

    @cached_property
    def num_samples(self) -> int:
        """Images in all shards."""
        return sum(shard.samples for shard in self.shards)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of all shards, without their indexes."""
        return sum(shard.bytes for shard in self.shards)

    def most_index_bytes(self, shard: Shard) -> int:
        """Return a size that no index of a shard reaches: an object takes more space in the tar, as JSON.

        An index holds as many joints of each object as the class with the most has.
        """
        return (16 << 20) + 2 * (1 + self.joints) * shard.bytes

    @cached_property
    def digest(self) -> str:
        """Version of the data set: the sha256, in hexadecimal, of the manifest as canonical JSON. Computed once."""
        canonical = _canonical(replace(self, shards=()).as_json())
        begin, _, end = canonical.partition('"shards":[]')
        digest = hashlib.sha256(f'{begin}"shards":['.encode("ascii"))
        # In parts: the JSON of 100,000 shards at once takes many times the memory of the shards themselves.
        for first in range(0, len(self.shards), _SHARDS_AT_ONCE):
            part = _canonical([_fields(shard) for shard in self.shards[first : first + _SHARDS_AT_ONCE]])
            digest.update(f"{',' if first else ''}{part[1:-1]}".encode("ascii"))
        digest.update(f"]{end}".encode("ascii"))
        return digest.hexdigest()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return tuple(item.name for item in self.classes)

    def as_json(self) -> dict[str, Any]:
        """Return the contents of `manifest.json` as plain dictionaries and lists."""
        document: dict[str, Any] = {
            "format": FORMAT,
            "version": 1,
            "split": self.split,
            "classes": [_compact(item) for item in self.classes],
            "shards": [_fields(shard) for shard in self.shards],
            "source": _compact(self.source),
        }
        if self.labels:
            document["labels"] = self.labels
        if self.ignored:
            document["ignored"] = [vars(item) for item in self.ignored]
        if any(_is_of_version_2(item) for item in (self, self.source, *self.classes)):
            document["version"] = 2
        return document


def load_manifest(location: str | Store) -> Manifest:
    """Read the manifest of `LOCATION/SPLIT`.

    To read samples too, use `open_split`, which returns the manifest with the store.

    Raises:
        DataError: there is no manifest, it is damaged, or this version cannot read it.
    """
    return read_manifest(location if isinstance(location, Store) else open_store(location))[1]


def read_manifest(store: Store) -> tuple[bytes, Manifest]:
    """Read the manifest of a location; returns its bytes too, for a copy.

    Raises:
        DataError: as for `load_manifest`.
    """
    if not store.exists(MANIFEST_NAME):
        raise DataError(
            f"there are no shards at {store.location}: it has no {MANIFEST_NAME}. "
            "Build them with `aweigh shards build`, and give LOCATION/SPLIT."
        )
    where = f"{store.location}/{MANIFEST_NAME}"
    attempts = 1 if store.local_path(MANIFEST_NAME) else _FETCHES
    for attempt in range(1, attempts + 1):
        try:
            text = store.read_bytes(MANIFEST_NAME, most_bytes=_LARGEST_BYTES)
        except LargerError as error:
            raise DataError(
                f"{where} is larger than {_LARGEST_BYTES >> 20:,} MiB, so it is not a manifest of shards. Build or "
                "copy the shards again."
            ) from error
        try:
            return text, parse_manifest(text, where)
        except DataError as error:
            # Bytes can be damaged on the way without any S3 client noticing.
            if attempt == attempts:
                fetched = f" It was fetched {attempts} times." if attempts > 1 else ""
                raise DataError(f"{error}{fetched}") from error
    raise AssertionError("unreachable")


def parse_manifest(text: bytes, where: str) -> Manifest:
    """Read a manifest from its JSON, and check every value: it may come from a location that others can write to.

    Args:
        text: the bytes of `manifest.json`.
        where: its location, for error messages.

    Raises:
        DataError: the text is not a manifest, is one of another version, does not match its own checksum, or has a
            value that no build writes.
    """
    try:
        # Turn each shard into an object as it is read: 100,000 dictionaries at once take more memory than all else.
        document = json.loads(text, object_hook=_shard_or_dictionary)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise DataError(f"{where} is not a manifest of shards; give the folder that `aweigh shards build` made.")
        if type(document["version"]) is not int or document["version"] not in VERSIONS:
            raise DataError(
                f"{where} has version {str(document['version'])[:50]}, but this aweigh reads versions up to "
                f"{VERSIONS[-1]}: install a newer aweigh, or build the shards again."
            )
        manifest = _manifest(document)
        if document.get(_CHECKSUM, manifest.digest) != manifest.digest:
            raise _WrongValueError("its contents do not match its own sha256")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        # Of one line and bounded: the text is someone else's.
        cause = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise DataError(f"{where} is damaged ({cause}): build the shards again, or copy the file again.") from error
    return manifest


def manifest_text(manifest: Manifest) -> str:
    """Return the text of `manifest.json`, with a checksum that every reader compares."""
    return json.dumps({**manifest.as_json(), _CHECKSUM: manifest.digest}, indent=1, sort_keys=True)


def sample_key(image_id: int) -> str:
    """Return the WebDataset key of an image: its COCO id, twelve digits wide as in COCO's own file names."""
    return f"{image_id:012d}"


class _WrongValueError(ValueError):
    """A value that no build writes."""


def _shard_or_dictionary(item: dict[str, Any]) -> Any:
    return Shard(**item) if "index_sha256" in item else item


def _manifest(document: dict[str, Any]) -> Manifest:
    split = _text(document["split"], "split")
    classes = tuple(_class(item, f"class {number}") for number, item in enumerate(document["classes"]))
    if len({item.id for item in classes}) != len(classes):
        raise _WrongValueError("two classes have the same id")
    labels = tuple(_text(item, "a label") for item in _list(document.get("labels", []), "labels"))
    if len({*labels} & {"keypoints", "3d"}) != len(labels):
        raise _WrongValueError(f"labels are {', '.join(labels)}; only keypoints and 3d are known, each once")
    return Manifest(
        split=split,
        classes=classes,
        shards=_shards(_list(document["shards"], "shards")),
        source=_source(document["source"]),
        labels=labels,
        ignored=tuple(
            _ignored(item, len(classes)) for item in _list(document.get("ignored", []), "ignored categories")
        ),
    )


def coco_class(item: dict[str, Any]) -> CocoClass:
    """Turn the JSON values of a class into the class; see `dataclasses.asdict`."""
    return CocoClass(**_tuples(item))


def _class(item: dict[str, Any], what: str) -> CocoClass:
    found = coco_class(item)
    _integer(found.id, f"the id of {what}", least=-(2**63))
    _text(found.name, f"the name of {what}")
    if not isinstance(found.keypoints, tuple) or not isinstance(found.skeleton, tuple):
        raise _WrongValueError(f"the joints of {what} are not lists")
    for joint in found.keypoints:
        _text(joint, f"a joint of {what}")
    for pair in found.skeleton:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise _WrongValueError(f"the skeleton of {what} is not pairs of joints")
        for place in pair:
            _integer(place, f"a joint in the skeleton of {what}", least=-(2**63))
    return found


def _ignored(item: dict[str, Any], num_classes: int) -> IgnoredCategory:
    found = IgnoredCategory(**item)
    _integer(found.id, "the id of an ignored category", least=-(2**63))
    _text(found.name, "the name of an ignored category")
    _integer(found.label, "the label of an ignored category", least=-1, most=num_classes - 1)
    return found


def _source(item: dict[str, Any]) -> Source:
    found = Source(**_tuples(item))
    for name in ("annotations_sha256", "degenerate_boxes", "empty_images"):
        _text(getattr(found, name), f"source.{name}")
    for name in ("shard_bytes", "boxes", "dropped_boxes", "dropped_images", "max_size", "jpeg_quality"):
        _integer(getattr(found, name), f"source.{name}")
    if not isinstance(found.left_out, tuple):
        raise _WrongValueError("source.left_out is not a list")
    for category in found.left_out:
        _text(category, "a category of source.left_out")
    return found


def _shards(items: list[Any]) -> "tuple[Shard, ...]":
    names: set[str] = {MANIFEST_NAME}
    for number, item in enumerate(items):
        what = f"shard {number}"
        if not isinstance(item, Shard):
            raise _WrongValueError(f"{what} is not a shard")
        for name in (item.name, item.index):
            # Whoever pulls the shards writes files of these names.
            if not is_plain_name(name):
                raise _WrongValueError(f"{what} names {str(name)[:100]!r}, which is not a plain file name")
            # Some file systems take names that differ in case alone for one file.
            if name.lower() in names:
                raise _WrongValueError(f"{what} names {name!r}, which is listed twice")
            names.add(name.lower())
        for digest in (item.sha256, item.index_sha256):
            # Files of the cache are named by it.
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                raise _WrongValueError(f"{what} has sha256 {str(digest)[:100]!r}, which is not 64 hexadecimal digits")
        _integer(item.bytes, f"bytes of {what}", least=1)
        _integer(item.samples, f"samples of {what}", least=1, most=item.bytes // _LEAST_SAMPLE_BYTES)
    return tuple(items)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _WrongValueError(f"{what} are not a list")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _WrongValueError(f"{what} is {str(value)[:50]!r}, which is not a text")
    # Half of a surrogate pair, which JSON can spell, cannot be printed or written to a file.
    value.encode()
    return value


def _integer(value: Any, what: str, least: int = 0, most: int = 2**63 - 1) -> int:
    # `type` and not `isinstance`: True is an int too.
    if type(value) is not int or not least <= value <= most:
        raise _WrongValueError(f"{what} is {str(value)[:50]}, which is not a whole number from {least:,} to {most:,}")
    return value


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _fields(shard: Shard) -> dict[str, Any]:
    return {name: getattr(shard, name) for name in _SHARD_FIELDS}


def _compact(item: Any) -> dict[str, Any]:
    """Return fields by name, without those at their default, so that a field that version 1 lacks is rare."""
    return {
        field.name: getattr(item, field.name)
        for field in fields(item)
        if field.default is MISSING or getattr(item, field.name) != field.default
    }


def _is_of_version_2(item: Any) -> bool:
    return any(field.default is not MISSING and field.name in _compact(item) for field in fields(item))


def _tuples(value: Any) -> Any:
    """Replace lists by tuples."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
