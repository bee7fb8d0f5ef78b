"""A split that is opened once and passed along: its store, its manifest and the cache on this machine."""

import os
from dataclasses import dataclass

from data_shards.format.manifest import Manifest, load_manifest
from data_shards.reading.shards import Shards
from data_shards.settings import ReadSettings
from data_shards.storage.open import open_store
from data_shards.storage.store import Store


@dataclass(frozen=True)
class DataSplit:
    """One split of a data set. It can be pickled: another process that receives it reads no manifest again."""

    store: Store
    manifest: Manifest
    cache_folder: str | None = None
    """Folder for shards that come from S3; None takes `default_cache_folder()`."""
    cache_bytes: int = 0
    """Most bytes of shards in that folder; 0 for no limit."""

    @property
    def location(self) -> str:
        """`LOCATION/SPLIT`, as a user writes it."""
        return self.store.location

    def shards(self) -> Shards:
        """Return a reader of the split's shards; the caller closes it."""
        return Shards(self.store, self.manifest, self.cache_folder, cache_bytes=self.cache_bytes)


def open_split(
    location: str | os.PathLike[str] | Store,
    read_settings: ReadSettings | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    cache_bytes: int = 0,
) -> DataSplit:
    """Open a location and read its manifest.

    Args:
        location: `LOCATION/SPLIT`, a folder or an `s3://` prefix with a manifest.
        read_settings: how long to wait for S3, for the manifest as for the shards; None takes the defaults.
        cache_folder: folder for shards that come from S3; None takes `default_cache_folder()`.
        cache_bytes: most bytes of shards in that folder; 0 for no limit.

    Raises:
        DataError: there are no shards at the location, or it cannot be read.
    """
    store = location if isinstance(location, Store) else open_store(location, read_settings)
    folder = None if cache_folder is None else os.fspath(cache_folder)
    return DataSplit(store, load_manifest(store), folder, cache_bytes)
