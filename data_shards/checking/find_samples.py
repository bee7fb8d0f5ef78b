"""Finding samples by the names that people know them by."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from data_shards.errors import DataError
from data_shards.reading.shards import Shards


def find_samples(shards: Shards, names: Sequence[str]) -> Int64[NDArray[np.int64], " names"]:
    """Find samples by key (`000000000139`, or just `139`) or by file name (`IMG_2274.jpg`).

    Args:
        shards: the data set.
        names: keys, which are image ids, or file names as in the annotation file.

    Returns:
        Sample ids, which count the samples of all shards from 0, in the order of `names`. A name that is repeated is
        returned once.

    Raises:
        DataError: there is no sample with such a name.
    """
    wanted: dict[int | str, str] = {int(name) if name.isdecimal() else name: name for name in names}
    found: dict[int | str, int] = {}
    for identity, sample_id in _identities(shards, with_file_names=any(isinstance(name, str) for name in wanted)):
        if identity in wanted:
            found.setdefault(identity, sample_id)
            if len(found) == len(wanted):
                break
    if missing := [name for identity, name in wanted.items() if identity not in found]:
        raise DataError(
            f"{shards.store.location} has no sample {missing[0]}. Give a file name, or a key as "
            "`aweigh shards examine` prints it."
        )
    return np.array([found[identity] for identity in wanted], dtype=np.int64)


def _identities(shards: Shards, *, with_file_names: bool) -> Iterator[tuple[int | str, int]]:
    """Yield image ids and, if asked for, file names, each with its sample id."""
    first = 0
    for shard, record in enumerate(shards.manifest.shards):
        for row, image_id in enumerate(shards.index(shard).image_ids.tolist()):
            yield image_id, first + row
            # File names are only in the samples' JSON, which takes a read for each sample.
            if with_file_names:
                yield shards.read_json(shard, row)["file_name"], first + row
        first += record.samples
