from contextlib import closing

import numpy as np
import pytest

from data_shards.building.build import BuildReport
from data_shards.checking.find_samples import find_samples
from data_shards.errors import DataError
from data_shards.reading.shards import Shards


def test_samples_are_found_by_key_and_by_file_name(built: BuildReport) -> None:
    with closing(Shards(built.location, built.manifest)) as shards:
        stored = [
            image_id
            for shard in range(len(built.manifest.shards))
            for image_id in shards.index(shard).image_ids.tolist()
        ]
        names = ["191.jpg", "000000000107", "114", "100.jpg", "107"]  # 107 is repeated
        found = find_samples(shards, names)
        assert found.dtype == np.int64
        assert [stored[sample_id] for sample_id in found] == [191, 107, 114, 100]


@pytest.mark.parametrize("name", ["nothing.jpg", "7", "000000000191.jpg"])
def test_a_sample_that_does_not_exist_is_refused(built: BuildReport, name: str) -> None:
    with (
        closing(Shards(built.location, built.manifest)) as shards,
        pytest.raises(DataError, match=rf"has no sample {name}\. Give a file name, or a key"),
    ):
        find_samples(shards, ["100.jpg", name])
