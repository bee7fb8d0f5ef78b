"""The manifest: one small JSON file that describes a set of shards, byte for byte.

Layout of a location, a folder or an S3 prefix. A recipe names `LOCATION/SPLIT`, the folder with the manifest:

    LOCATION/SPLIT/manifest.json
    LOCATION/SPLIT/SPLIT-000000.tar          {key}.jpg (original bytes) and {key}.json for every sample
    LOCATION/SPLIT/SPLIT-000000.index.npz    offset of each sample, and its boxes as arrays

The manifest is written last, so a folder without one is not a data set, only the remains of a build.
"""

import hashlib
import json
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property
from typing import Any

from data_shards.errors import DataError
from data_shards.storage.open import open_store
from data_shards.storage.store import Store

FORMAT = "aweigh-shards"
VERSIONS = (1, 2)
"""Versions that can be read. A manifest is written as version 1, or as 2 if it uses a field that 1 does not have."""
MANIFEST_NAME = "manifest.json"
# Shards that are turned into JSON at a time.
_SHARDS_AT_ONCE = 1000


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
        DataError: there is no manifest, or this version cannot read it.
    """
    store = location if isinstance(location, Store) else open_store(location)
    if not store.exists(MANIFEST_NAME):
        raise DataError(
            f"there are no shards at {store.location}: it has no {MANIFEST_NAME}. "
            "Build them with `aweigh shards build`, and give LOCATION/SPLIT."
        )
    return parse_manifest(store.read_bytes(MANIFEST_NAME), f"{store.location}/{MANIFEST_NAME}")


def parse_manifest(text: bytes, where: str) -> Manifest:
    """Read a manifest from its JSON.

    Args:
        text: the bytes of `manifest.json`.
        where: its location, for error messages.

    Raises:
        DataError: the text is not a manifest, or is one of another version.
    """
    try:
        # Turn each shard into an object as it is read: 100,000 dictionaries at once take more memory than all else.
        document = json.loads(text, object_hook=_shard_or_dictionary)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise DataError(f"{where} is not a manifest of shards; give the folder that `aweigh shards build` made.")
        if document["version"] not in VERSIONS:
            raise DataError(
                f"{where} has version {document['version']}, but this aweigh reads versions up to {VERSIONS[-1]}: "
                "install a newer aweigh, or build the shards again."
            )
        return Manifest(
            split=document["split"],
            classes=tuple(CocoClass(**_tuples(item)) for item in document["classes"]),
            shards=_all_shards(document["shards"]),
            source=Source(**_tuples(document["source"])),
            labels=tuple(document.get("labels", ())),
            ignored=tuple(IgnoredCategory(**item) for item in document.get("ignored", ())),
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{where} is damaged ({error}): build the shards again.") from error


def sample_key(image_id: int) -> str:
    """Return the WebDataset key of an image: its COCO id, twelve digits wide as in COCO's own file names."""
    return f"{image_id:012d}"


def _shard_or_dictionary(item: dict[str, Any]) -> Any:
    return Shard(**item) if "index_sha256" in item else item


def _all_shards(items: list[Any]) -> "tuple[Shard, ...]":
    if other := [item for item in items if not isinstance(item, Shard)]:
        raise TypeError(f"{other[0]} is not a shard")
    return tuple(items)


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
