"""The ledger: what was seen, an interruption included, against what the plan says."""

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.order.plan import Plan
from pipelines.training.sample_ledger import Ledger, departures, next_life, read_ledger

PLAN = Plan(shard_samples=(16,), seed=1, global_batch_size=4, streams=1, window_shards=1)  # 4 steps an epoch


def _train(folder: Path, life: int, start: int, stop: int, world_size: int = 2) -> None:
    share = 4 // world_size
    for rank in range(world_size):
        with Ledger(folder, life, rank, start=start, world_size=world_size, attempt=life) as ledger:
            for step in range(start + 1, stop + 1):
                epoch, index = divmod(step - 1, PLAN.steps_per_epoch)
                ids = PLAN.batch(epoch, index)[rank * share : (rank + 1) * share]
                ledger.add(step, ids.tolist())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8), st.sampled_from([1, 2, 4])), max_size=4))
def test_any_interruption_leaves_every_sample_seen_once(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[int, int, int]]
) -> None:
    folder, reached, trained = tmp_path_factory.mktemp("run"), 0, 0
    for life, (back, forth, world_size) in enumerate(attempts, start=1):
        start = max(0, reached - back)
        reached = min(8, start + forth)
        trained += reached - start
        _train(folder, life, start, reached, world_size)
    _train(folder, 99, reached, 8)
    seen = read_ledger(folder)
    assert departures(seen, PLAN, 8) == []
    assert seen.repeated_steps == trained + 8 - reached - 8


def test_departures_are_named(tmp_path: Path) -> None:
    _train(tmp_path, 1, 0, 7)
    assert departures(read_ledger(tmp_path), PLAN, 8) == ["step 8 was never trained"]
    _train(tmp_path, 2, 7, 8)
    file = tmp_path / "ledger" / "1-rank-1.jsonl"
    lines = file.read_text().splitlines()
    first = PLAN.batch(0, 0).tolist()
    lines[1] = f"[1, [{first[0]}, {first[3]}]]"  # a sample of rank 0 again
    file.write_text("\n".join(lines) + "\n[9, [1")
    found = departures(read_ledger(tmp_path), PLAN, 8)
    assert found == [
        f"step 1, place 2: sample {first[0]}, but the plan has {first[2]}",
        "epoch 0: 1 sample seen more than once",
    ]


def test_a_clock_that_is_set_back_does_not_change_the_order_of_attempts(tmp_path: Path) -> None:
    for life, attempt, start, end in ((900, 1, 0, 5), (100, 2, 3, 8)):
        with Ledger(tmp_path, life, 0, start=start, world_size=1, attempt=attempt) as ledger:
            for step in range(start + 1, end + 1):
                epoch, index = divmod(step - 1, PLAN.steps_per_epoch)
                ledger.add(step, PLAN.batch(epoch, index).tolist())
    seen = read_ledger(tmp_path)
    assert departures(seen, PLAN, 8) == []
    assert (seen.last_start, seen.repeated_steps) == (3, 2)


def test_starts_have_growing_numbers_whatever_the_clock_says(tmp_path: Path) -> None:
    assert next_life(tmp_path, 500) == 500
    Ledger(tmp_path, 900, 0, start=0, world_size=1, attempt=1)
    assert next_life(tmp_path, 500) == 901
    assert next_life(tmp_path, 1000) == 1000


def test_a_full_disk_is_one_warning_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "5-rank-0.jsonl").symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING), Ledger(tmp_path, 5, 0, start=0, world_size=1, attempt=1) as ledger:
        ledger.add(1, [3, 4])
        ledger.add(2, [5, 6])
    assert [record.getMessage() for record in caplog.records] == [
        f"ledger: steps are missing in {tmp_path}/ledger/5-rank-0.jsonl (No space left on device)"
    ]
