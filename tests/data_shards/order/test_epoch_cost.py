import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import DataError
from data_shards.format.manifest import CocoClass, Manifest, Shard, Source
from data_shards.order.epoch_cost import footprint

ROOT = Path(__file__).resolve().parents[3]


def manifest(samples: list[int], shard_bytes: int = 1_000_000) -> Manifest:
    shards = tuple(
        Shard(f"{number}.tar", count, shard_bytes + number, f"{number:064x}", f"{number}.npz", f"{number:064x}")
        for number, count in enumerate(samples)
    )
    return Manifest("train", (CocoClass(1, "person"),), shards, Source("0" * 64, 1, "drop", 1, 0))


@settings(max_examples=20, deadline=None)
@given(
    samples=st.lists(st.integers(1, 12), min_size=1, max_size=24),
    per_node=st.integers(1, 6),
    nodes=st.integers(1, 5),
    seed=st.integers(0, 3),
)
def test_a_node_reads_the_shards_it_is_said_to_read_and_no_others(
    samples: list[int], per_node: int, nodes: int, seed: int
) -> None:
    batch = per_node * nodes
    if batch > sum(samples):
        samples = [*samples, batch]
    found = footprint(manifest(samples), global_batch_size=batch, nodes=nodes, seed=seed)
    plan = found.plan
    read: list[set[int]] = [set() for _ in range(nodes)]
    for epoch in range(2):
        for step in range(plan.steps_per_epoch):
            shards = plan.locate(plan.batch(epoch, step))[0].reshape(nodes, per_node)
            for node in range(nodes):
                read[node] |= set(shards[node].tolist())
    for node in range(nodes):
        said = set(plan.shards_of_slots(node * per_node, per_node).tolist())
        assert read[node] <= said
        assert found.shards_per_node[node] == len(said)
        assert found.bytes_per_node[node] == sum(1_000_000 + shard for shard in said)
    # Every shard is read by some node; only the dropped tail may leave one out by chance.
    assert set().union(*(plan.shards_of_slots(n * per_node, per_node).tolist() for n in range(nodes))) == set(
        range(len(samples))
    )


def test_the_table_says_the_arithmetic() -> None:
    found = footprint(manifest([100] * 10), global_batch_size=48, nodes=1, workers=4, cache_bytes=20_000_000)
    # 1000 = 20 × 48 + 40; 10 shards of 1 MB and 0 to 9 bytes; 8 streams divide 48, 9 and 10 do not
    assert found.describe().splitlines() == [
        f"data      train, 1,000 images in 10 shards, 10.0 MB, manifest {found.manifest.digest[:6]}",
        "batch     48 = 12 per worker × 4 workers on 1 node",
        "epoch     20 steps = 960 samples; 40 dropped at the end, different ones every epoch",
        "order     8 streams, 6 of each batch from each; windows of 4 shards",
        "fetch     10 shards, 10.0 MB by each node in its first epoch; 1.00 × the data set over all nodes",
        "cache     20.0 MB holds the 10.0 MB a node reads: later epochs fetch nothing",
    ]
    assert found.as_json()["cache_fits"] is True
    small = footprint(manifest([100] * 10), global_batch_size=50, cache_bytes=4_000_000)
    assert "none dropped" in small.describe()
    assert (
        "4.0 MB is less than the 10.0 MB of shards that a node needs at the same time (it reads 10.0 MB): use more "
        "nodes or a larger disk" in small.describe()
    )
    assert small.later_bytes is None


def test_the_table_says_what_a_cache_for_some_of_the_shards_costs() -> None:
    arguments = {"global_batch_size": 12, "streams": 3, "window_shards": 2}
    data = manifest([100] * 60)
    assert (
        footprint(data, **arguments)
        .describe()
        .endswith("60.0 MB on a node keeps all it reads: later epochs fetch nothing; it works with 12.0 MB or more")
    )
    # Three streams of 20 shards, windows of 2, two windows of each stream at the same time.
    found = footprint(data, cache_bytes=40_000_000, **arguments)
    assert found.cache_least == pytest.approx(12_000_000, rel=1e-4)
    assert found.later_bytes is not None
    # 20 MB do not fit; the order of an epoch is another one, so somewhat more has to come again.
    assert 20_000_000 <= found.later_bytes <= 30_000_000
    assert found.describe().splitlines()[-1] == (
        f"cache     40.0 MB of the 60.0 MB a node reads (it works with 12.0 MB or more): later epochs fetch about "
        f"{found.later_bytes / 1e6:.1f} MB each, no shard twice"
    )
    assert found.as_json()["later_epochs_fetch_bytes"] == found.later_bytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nodes": 0}, "nodes is 0"),
        ({"nodes": 3, "workers": 4}, "4 workers cannot be divided equally among 3 nodes; give a multiple of 3"),
        ({"workers": 5}, "a global batch of 8 cannot be divided equally among 5 workers. Set it to 5 or 10"),
        ({"cache_bytes": -1}, "the cache is -1 bytes"),
    ],
)
def test_a_world_that_cannot_be_is_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        footprint(manifest([10] * 4), global_batch_size=8, **arguments)


BILLION = """
from data_shards.order.epoch_cost import footprint
from tests.data_shards.order.test_epoch_cost import manifest
found = footprint(manifest([10_000] * 100_000, 96_000_000), global_batch_size=3_072, nodes=16, workers=128)
print(found.plan.steps_per_epoch, found.plan.samples_dropped_per_epoch)
print(*found.shards_per_node)
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_billion_samples_take_megabytes() -> None:
    # Of a process of its own; hypothesis is loaded with the test module.
    printed = subprocess.run([sys.executable, "-c", BILLION], capture_output=True, text=True, check=True, cwd=ROOT)
    steps, shards, peak_kilobytes = (list(map(int, line.split())) for line in printed.stdout.splitlines())
    assert steps == [325_520, 2_560]  # 1e9 = 325,520 × 3,072 + 2,560
    # 48 streams, 3 to a node; a stream begins and ends inside a shard, so at most 48 are read twice.
    assert 100_000 <= sum(shards) <= 100_048
    assert max(shards) - min(shards) <= 8
    assert peak_kilobytes[0] < 250_000  # 200 MB, and the test's own modules
