"""`aweigh bench object-store` reads the same epoch from a folder and from S3."""

import json
from pathlib import Path

import pytest

from data_shards.building.build import build_shards
from pipelines.bench.object_store import bench_object_store, print_object_store
from pipelines.errors import ConfigError
from tests.data_shards.samples import document, write_coco


def test_both_ways_are_measured_and_the_ratio_is_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, images = write_coco(tmp_path, document(130))
    location = build_shards(annotations, images, str(tmp_path / "out"), split="train", shard_bytes=60_000).location
    print_object_store(location, rounds=1, threads=1, latency_milliseconds=10, megabytes_per_second=80, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 130
    folder, store = found["folder"][0], found["object_store"][0]
    assert found["ratio"] == pytest.approx(store["images_per_second"] / folder["images_per_second"])
    assert min(*folder.values(), *store.values()) > 0
    # Its manifest, an index and a shard come one after the other before the first batch does.
    assert store["first_batch_seconds"] > 0.02


@pytest.mark.parametrize(
    ("location", "options", "message"),
    [
        ("s3://bucket/train", {}, "s3://bucket/train is not a folder"),
        ("small", {}, "has 12 images; the benchmark needs 128 or more"),
        ("small", {"rounds": 0}, "--rounds is 0"),
        ("small", {"megabytes_per_second": 0.0}, "--bandwidth is 0"),
    ],
)
def test_wrong_arguments_are_refused(small_shards: Path, location: str, options: dict[str, int], message: str) -> None:
    place = str(small_shards / "train") if location == "small" else location
    with pytest.raises(ConfigError, match=message):
        bench_object_store(place, **options)
