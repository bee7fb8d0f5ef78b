"""The manifest: one small JSON file that says what a set of shards is, byte for byte.

Layout of a location, a folder or an S3 prefix. A recipe names `LOCATION/SPLIT`, the folder with the manifest:

    LOCATION/SPLIT/manifest.json
    LOCATION/SPLIT/SPLIT-000000.tar          {key}.jpg (original bytes) and {key}.json for every sample
    LOCATION/SPLIT/SPLIT-000000.index.npz    where each sample lies, its boxes as arrays

The manifest is written last, so a folder without one holds no data set, only the remains of a build.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data_shards.errors import DataError
from data_shards.store import Store, open_store

FORMAT = "aweigh-shards"
VERSION = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class CocoClass:
    """A class as COCO files know it; a label is the index of its class in the manifest."""

    id: int
    name: str


@dataclass(frozen=True)
class Shard:
    """One tar file and its index."""

    name: str
    samples: int
    bytes: int
    sha256: str
    index: str
    index_sha256: str


@dataclass(frozen=True)
class Source:
    """What the shards were built from; a second build into the same place has to agree with it."""

    annotations_sha256: str
    shard_bytes: int
    degenerate_boxes: str
    boxes: int
    dropped_boxes: int


@dataclass(frozen=True)
class Manifest:
    """A data set: its classes in the order of their COCO ids, and its shards in the order of sample ids."""

    split: str
    classes: tuple[CocoClass, ...]
    shards: tuple[Shard, ...]
    source: Source

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
        """The version of the data set: sha256, in hexadecimal, of the manifest as canonical JSON."""
        canonical = json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label."""
        return tuple(item.name for item in self.classes)

    def as_json(self) -> dict[str, Any]:
        """What `manifest.json` holds, as plain dictionaries and lists."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "split": self.split,
            "classes": [vars(item) for item in self.classes],
            "shards": [vars(shard) for shard in self.shards],
            "source": vars(self.source),
        }


def load_manifest(location: str | Store, split: str | None = None) -> Manifest:
    """Read the manifest of `LOCATION/SPLIT`, or of a location and a split given apart.

    Raises:
        DataError: there is none, or it is not one that this version reads.
    """
    store = location if isinstance(location, Store) else open_store(location)
    name = f"{split}/{MANIFEST_NAME}" if split else MANIFEST_NAME
    where = f"{store.location}/{name}"
    if not store.exists(name):
        raise DataError(
            f"there are no shards at {store.location}{f'/{split}' if split else ''}: it has no {MANIFEST_NAME}. "
            "Build them with `aweigh shards build`, and give LOCATION/SPLIT."
        )
    return parse_manifest(store.read_bytes(name), where)


def parse_manifest(text: bytes, where: str) -> Manifest:
    """A manifest from its JSON; `where` is what an error calls it.

    Raises:
        DataError: the text is no manifest, or one of another version.
    """
    try:
        document = json.loads(text)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise DataError(f"{where} is no manifest of shards; give the folder that `aweigh shards build` made.")
        if document["version"] != VERSION:
            raise DataError(
                f"{where} is of version {document['version']}, this aweigh reads version {VERSION}: "
                "build the shards again."
            )
        return Manifest(
            split=document["split"],
            classes=tuple(CocoClass(**item) for item in document["classes"]),
            shards=tuple(Shard(**item) for item in document["shards"]),
            source=Source(**document["source"]),
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{where} is damaged ({error}): build the shards again.") from error
