"""Choosing the store of a location: the only module that knows all kinds of stores."""

import os

from data_shards.errors import DataError
from data_shards.settings import ReadSettings
from data_shards.storage.folder import FolderStore
from data_shards.storage.s3 import S3Store
from data_shards.storage.store import Store


def open_store(location: str | os.PathLike[str], read_settings: ReadSettings | None = None) -> Store:
    """Return the store at a location. Nothing is contacted yet.

    Args:
        location: a folder, or `s3://bucket/prefix`.
        read_settings: how long to wait for S3; None takes the defaults.

    Raises:
        DataError: the location is of another kind, or names no bucket.
    """
    location = os.fspath(location)
    scheme, separator, rest = location.partition("://")
    if not separator:
        return FolderStore(location)
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise DataError(f"cannot open {location!r}: give a folder, or s3://BUCKET/PREFIX.")
    return S3Store(bucket, prefix.strip("/"), read_settings or ReadSettings())
