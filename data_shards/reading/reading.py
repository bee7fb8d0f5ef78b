"""The reading of a split: all settings of how its samples are read."""

from dataclasses import dataclass, field

from data_shards.errors import DataError
from data_shards.reading.decoded_cache import DecodedImages
from data_shards.reading.samples import ShardSamples, Undecodable
from data_shards.reading.split import DataSplit
from data_shards.settings import BoxRules, Resizing


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A split, and everything that says how its samples are read. Loaders take it and pass it to their process."""

    split: DataSplit
    max_objects: int | None = 128
    """Annotations of an image beyond this many, in the order of the file, are left out; None keeps all of them, in
    evaluation only."""
    boxes: BoxRules = field(default_factory=BoxRules)
    """Boxes that count, and the pixel they end on."""
    resizing: Resizing = "plain"
    """The library whose sizes and pixels whole images get, where they are resized by their shorter side."""
    undecodable: Undecodable = "refuse"
    """Treatment of images that no decoder reads; see `ShardSamples`."""
    decoded_cache_bytes: int = 0
    """Most bytes of decoded images in the cache folder; 0 keeps none. See `DecodedImages`."""
    threads: int = 2
    """Decoding threads of a loader."""
    prefetch: int = 2
    """Batches that a loader prepares ahead of the one in use."""

    def __post_init__(self) -> None:
        if self.max_objects is not None and self.max_objects < 1:
            raise DataError(f"max_objects is {self.max_objects}; set it to 1 or more.")

    def open(self) -> ShardSamples:
        """Return the samples, for this process."""
        shards = self.split.shards()
        decoded = None
        if self.decoded_cache_bytes:
            decoded = DecodedImages(shards, shards.cache.folder / "decoded", self.decoded_cache_bytes)
        return ShardSamples(shards, undecodable=self.undecodable, decoded=decoded)
