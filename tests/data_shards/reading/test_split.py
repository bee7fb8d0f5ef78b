import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from data_shards.building.build import BuildReport
from data_shards.errors import DataError
from data_shards.reading.samples import ShardSamples
from data_shards.reading.split import open_split
from data_shards.settings import ReadSettings
from pipelines.stand_ins.object_server import Fault, ObjectServer


def test_a_split_is_opened_once_and_read_in_another_process(
    built: BuildReport, served: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    split = open_split(served, cache_folder=tmp_path / "cache", cache_bytes=10**9)
    assert (split.location, split.manifest) == (served, built.manifest)
    # As a loader process receives it.
    shards = pickle.loads(pickle.dumps(split)).shards()
    assert shards.cache.folder == tmp_path / "cache"
    assert shards.cache.budget == 10**9
    assert shards.read_image(0, 0) == open_split(built.location).shards().read_image(0, 0)
    shards.close()
    assert len(object_server.gets("manifest.json")) == 1


def test_the_manifest_is_read_within_the_time_that_the_settings_give(served: str, object_server: ObjectServer) -> None:
    object_server.order("bucket/train/manifest.json", Fault("silence", 100), always=True)
    began = time.monotonic()
    with pytest.raises(DataError, match=r"cannot read s3://bucket/train/manifest\.json .* does not answer"):
        open_split(served, ReadSettings(timeout_seconds=0.2, deadline_seconds=1.0))
    assert time.monotonic() - began < 10  # the defaults wait for 30 and 300 seconds


def test_samples_are_numbered_over_all_shards(built: BuildReport) -> None:
    samples = ShardSamples(open_split(built.location).shards())
    assert len(samples) == 14
    assert samples.classes == built.manifest.classes
    number = 0
    for shard, record in enumerate(built.manifest.shards):
        index = samples.shards.index(shard)
        for row in range(record.samples):
            assert samples.locate(number) == (shard, row)
            known = samples.labels(number)
            assert known.image_id == index.image_ids[row]
            assert samples.size(number) == (index.heights[row], index.widths[row])
            own = slice(index.row_splits[row], index.row_splits[row + 1])
            assert np.array_equal(known.boxes, index.boxes[own])
            assert np.array_equal(known.labels, index.labels[own])
            image = samples.image(number)
            assert image is not None
            assert image.shape[:2] == samples.size(number)
            number += 1
    assert number == 14
