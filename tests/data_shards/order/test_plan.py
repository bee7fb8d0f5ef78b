import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_shards.errors import DataError
from data_shards.format.manifest import Manifest, Shard, Source
from data_shards.order.keyed_random import key, keys
from data_shards.order.plan import Plan, Portraits, World, make_plan, permute


def plan_of(
    shard_samples: list[int],
    global_batch_size: int,
    seed: int = 0,
    portraits: Portraits | None = None,
    **options: int,
) -> Plan:
    shards = tuple(Shard(f"{number}.tar", count, 0, "", "", "") for number, count in enumerate(shard_samples))
    manifest = Manifest("train", (), shards, Source("", 0, "drop", 0, 0))
    return make_plan(manifest, seed=seed, global_batch_size=global_batch_size, portraits=portraits, **options)


def some_portraits(shard_samples: list[int], share: float, seed: int = 0) -> Portraits:
    """Portraits at random places of the shards."""
    rng = np.random.default_rng(seed)
    of_shards = [rng.random(count) < share for count in shard_samples]
    return lambda shard: of_shards[shard]


def are_portraits(plan: Plan, samples: np.ndarray) -> np.ndarray:
    assert plan.portraits is not None
    return np.concatenate([plan.portraits(shard) for shard in range(len(plan.shard_samples))])[samples]


def mixed(portrait: np.ndarray) -> np.ndarray:
    """Which rows hold portraits and other images."""
    return portrait.any(axis=-1) & ~portrait.all(axis=-1)


def epoch_of(plan: Plan, epoch: int) -> np.ndarray:
    return plan.rank_batches(epoch, 0, plan.steps_per_epoch, World(1, 0)).ravel()


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    shard_samples = draw(st.lists(st.integers(0, 25), min_size=1, max_size=20).filter(sum))
    return plan_of(
        shard_samples,
        draw(st.integers(1, min(64, sum(shard_samples)))),
        seed=draw(st.integers(0, 2**40)),
        streams=draw(st.integers(1, 60)),
        window_shards=draw(st.integers(1, 6)),
        portraits=draw(st.sampled_from([None, some_portraits(shard_samples, draw(st.sampled_from([0, 0.3, 1])))])),
    )


@settings(max_examples=40, deadline=None)
@given(plan=plans(), epoch=st.integers(0, 300))
def test_an_epoch_holds_each_sample_once_but_for_the_tail(plan: Plan, epoch: int) -> None:
    samples = epoch_of(plan, epoch)
    assert len(np.unique(samples)) == len(samples) == plan.num_samples - plan.samples_dropped_per_epoch
    assert samples.min() >= 0
    assert samples.max() < plan.num_samples
    assert samples.dtype == np.int64
    assert plan.samples_dropped_per_epoch == plan.num_samples % plan.global_batch_size


@settings(max_examples=40, deadline=None)
@given(plan=plans(), epoch=st.integers(0, 300), data=st.data())
def test_the_world_only_cuts_the_global_batch(plan: Plan, epoch: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, plan.steps_per_epoch - 1))
    divisors = [ranks for ranks in range(1, 65) if plan.global_batch_size % ranks == 0]
    ranks = data.draw(st.sampled_from(divisors))
    slices = [plan.rank_batch(epoch, step, World(ranks, rank)) for rank in range(ranks)]
    assert {len(part) for part in slices} == {plan.global_batch_size // ranks}
    assert np.array_equal(np.concatenate(slices), plan.batch(epoch, step))


def test_worlds_of_one_to_sixty_four_ranks_share_every_sample_out() -> None:
    # Shards of one to five samples, so that most worlds have more ranks than a shard has samples.
    shard_samples = [1 + number % 5 for number in range(43)]
    for ranks in (*range(1, 17), 24, 31, 48, 63, 64):
        plan = plan_of(shard_samples, ranks, seed=ranks)
        steps = plan.steps_per_epoch
        of_ranks = [plan.rank_batches(1, 0, steps, World(ranks, rank)) for rank in range(ranks)]
        assert np.array_equal(np.concatenate(of_ranks, axis=1).ravel(), epoch_of(plan, 1))
        assert len(np.unique(of_ranks)) == steps * ranks == plan.num_samples - plan.samples_dropped_per_epoch


@settings(max_examples=10, deadline=None)
@given(plan=plans(), data=st.data())
def test_stopped_at_every_step_and_gone_on_with_in_any_world_the_stream_is_the_same(
    plan: Plan, data: st.DataObject
) -> None:
    divisors = [ranks for ranks in range(1, 65) if plan.global_batch_size % ranks == 0]
    steps = plan.steps_per_epoch
    uninterrupted = np.concatenate([plan.rank_batches(epoch, 0, steps, World(1, 0)) for epoch in (0, 1)])
    for step, expected in enumerate(uninterrupted[:60]):
        # What a checkpoint gives back is the plan's arguments and the step.
        resumed = plan.with_portraits(plan.portraits)
        ranks = data.draw(st.sampled_from(divisors))
        slices = [resumed.rank_batch(*divmod(step, steps), World(ranks, rank)) for rank in range(ranks)]
        assert np.array_equal(np.concatenate(slices), expected)


@settings(max_examples=20, deadline=None)
@given(plan=plans())
def test_epochs_of_any_plan_differ(plan: Plan) -> None:
    assume(plan.num_samples >= 24 and plan.steps_per_epoch >= 2)
    assert len({epoch_of(plan, epoch).tobytes() for epoch in range(6)}) > 1
    # And no epoch's order is the manifest's.
    assert not np.array_equal(epoch_of(plan, 0), np.arange(len(epoch_of(plan, 0))))


@settings(max_examples=20, deadline=None)
@given(plan=plans(), epochs=st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_no_batch_depends_on_what_was_asked_before(plan: Plan, epochs: list[int]) -> None:
    for epoch in epochs:
        step = epoch % plan.steps_per_epoch
        fresh = Plan(
            plan.shard_samples,
            plan.seed,
            plan.global_batch_size,
            plan.streams,
            plan.window_shards,
            grouped=plan.grouped,
            portraits=plan.portraits,
        )
        assert np.array_equal(plan.batch(epoch, step), fresh.batch(epoch, step))


def test_every_sample_comes_once_when_the_batch_divides_the_set() -> None:
    plan = plan_of([50, 70, 60, 60], 24)
    assert plan.samples_dropped_per_epoch == 0
    for epoch in range(3):
        assert np.array_equal(np.sort(epoch_of(plan, epoch)), np.arange(240))


def test_epochs_and_seeds_differ_and_other_samples_are_dropped() -> None:
    plan = plan_of([40] * 6, 23)
    orders = [epoch_of(plan, epoch) for epoch in range(4)] + [epoch_of(plan_of([40] * 6, 23, seed=1), 0)]
    for number, order in enumerate(orders):
        for other in orders[:number]:
            # Two random orders of 230 agree in one place on average.
            assert (order == other).sum() < 10
    dropped = [frozenset(set(range(240)) - set(order.tolist())) for order in orders]
    assert len(set(dropped)) == 5


@pytest.mark.parametrize("shard_samples", [[1], [7], [1, 1, 1], [0, 3, 0]])
def test_the_smallest_sets_work(shard_samples: list[int]) -> None:
    plan = plan_of(shard_samples, 1)
    for epoch in range(3):
        assert sorted(epoch_of(plan, epoch)) == list(range(sum(shard_samples)))


def test_one_shard_is_shuffled_as_a_whole() -> None:
    plan = plan_of([400], 16)
    assert plan.streams == 1
    first = Counter(int(plan.batch(epoch, 0)[0]) // 100 for epoch in range(400))
    # Each quarter of the shard comes first about 100 times; 5 standard deviations are 43.
    assert all(abs(first[quarter] - 100) < 43 for quarter in range(4))


def test_a_batch_is_spread_over_the_shards_at_least_as_well_as_a_plain_shuffle() -> None:
    # COCO's shape at a tenth: 236 shards; pairs of one shard in a batch against uniformly drawn ones.
    plan = plan_of([50] * 236, 96)
    assert plan.streams == 48
    pairs = []
    for step in range(plan.steps_per_epoch):
        shards = np.bincount(plan.locate(plan.batch(0, step))[0], minlength=236)
        pairs.append((shards * (shards - 1)).sum() / 2)
    uniform = 96 * 95 / 2 * 49 / (236 * 50 - 1)
    # Two samples of a stream meet; its window holds five or six pieces: 48 / 5.5 pairs a batch, of 18.9.
    assert 0.4 < np.mean(pairs) / uniform < 1.0


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 6, 8, 12, 16])
def test_nodes_read_hardly_more_than_their_share_of_the_shards(nodes: int) -> None:
    plan = plan_of([47 + number % 7 for number in range(236)], 480)
    fetched = []
    for node in range(nodes):
        parts = [
            plan.locate(plan.rank_batch(epoch, step, World(nodes, node, nodes, node)))[0]
            for epoch in (0, 1)
            for step in range(plan.steps_per_epoch)
        ]
        # The placement is the same every epoch, so a second epoch fetches nothing new.
        fetched.append(len(np.unique(np.concatenate(parts))))
    assert max(fetched) <= 1.1 * 236 / nodes


def test_ids_are_located_in_the_manifest_order() -> None:
    plan = plan_of([3, 0, 2, 4], 1)
    shards, rows = plan.locate(np.arange(9))
    assert shards.tolist() == [0, 0, 0, 2, 2, 3, 3, 3, 3]
    assert rows.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]


def test_golden_order() -> None:
    # Made by printing the same expressions. A change here changes the data of every run that is resumed.
    plan = plan_of([5, 9, 6, 4, 8], 8, seed=12)
    assert plan.streams == 4
    assert [plan.batch(0, step).tolist() for step in range(2)] == GOLDEN_FIRST
    assert plan.batch(7, 3).tolist() == GOLDEN_LATER


GOLDEN_FIRST = [[3, 20, 15, 5, 7, 12, 25, 24], [2, 1, 19, 14, 9, 6, 28, 26]]
GOLDEN_LATER = [1, 2, 19, 15, 12, 7, 25, 30]


@settings(max_examples=40, deadline=None)
@given(plan=plans(), epoch=st.integers(0, 300))
def test_grouping_moves_samples_only_inside_their_window(plan: Plan, epoch: int) -> None:
    assume(plan.grouped)
    places = np.arange(plan.num_samples)
    apart = replace(plan, grouped=False)
    order = plan._epoch_order(epoch)
    window = np.searchsorted(order.window_starts, places, side="right") - 1
    grouped, shuffled = plan._samples_at(epoch, places), apart._samples_at(epoch, places)
    for number in range(len(order.window_starts) - 1):
        here = window == number
        # In each group, samples stay in the order in which they were shuffled.
        for group in (True, False):
            theirs = [samples[here][are_portraits(plan, samples[here]) == group] for samples in (grouped, shuffled)]
            assert np.array_equal(*theirs)
    # So every shard is needed when it is without grouping, and nothing that is computed from that differs.
    uses = [one.shard_uses(epoch, 0, plan.global_batch_size) for one in (plan, apart)]
    assert all(np.array_equal(*pair) for pair in zip(*uses, strict=True))


@settings(max_examples=40, deadline=None)
@given(plan=plans(), epoch=st.integers(0, 300))
def test_a_stream_mixes_groups_where_its_windows_meet_and_once_in_each(plan: Plan, epoch: int) -> None:
    assume(plan.grouped)
    portrait = are_portraits(plan, plan.rank_batches(epoch, 0, plan.steps_per_epoch, World(1, 0)))
    of_streams = mixed(portrait.reshape(plan.steps_per_epoch, plan.streams, -1))
    assert of_streams.sum() <= 2 * (len(plan._epoch_order(epoch).window_starts) - 1)


@settings(max_examples=20, deadline=None)
@given(plan=plans(), epoch=st.integers(0, 300), share=st.sampled_from([0, 1]))
def test_images_of_one_shape_come_in_the_order_without_grouping(plan: Plan, epoch: int, share: int) -> None:
    grouped = replace(plan, grouped=True, portraits=some_portraits(list(plan.shard_samples), share))
    assert np.array_equal(epoch_of(grouped, epoch), epoch_of(replace(plan, grouped=False), epoch))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
def test_hardly_a_step_of_a_large_set_mixes_portraits_with_other_images(ranks: int) -> None:
    # COCO's shape at half its size: each of 16 streams has windows of about 3,600 samples.
    shards = [620] * 95
    plan = plan_of(shards, 16, portraits=some_portraits(shards, 0.27))
    assert plan.streams == 16
    of_ranks = [plan.rank_batches(0, 0, plan.steps_per_epoch, World(ranks, rank)) for rank in range(ranks)]
    portrait = are_portraits(plan, np.stack(of_ranks, axis=1))
    # Random batches of 2, 4, 8 and 16 are mixed in 39, 71, 92 and 99 of 100 cases.
    assert mixed(portrait).mean() < 0.06


def test_portraits_are_spread_over_the_epoch_and_come_at_other_steps_in_the_next() -> None:
    shards = [400] * 16
    plan = plan_of(shards, 16, portraits=some_portraits(shards, 0.3))
    steps = [
        are_portraits(plan, plan.rank_batches(epoch, 0, plan.steps_per_epoch, World(1, 0))).mean(axis=1) > 0.5
        for epoch in range(2)
    ]
    # Of 100 steps, 30 have portraits, with a standard deviation of 4.6.
    for quarter in np.split(steps[0], 4):
        assert 9 < quarter.sum() < 51
    # Independent draws agree on 0.3² + 0.7² of the steps.
    assert 0.45 < (steps[0] == steps[1]).mean() < 0.71


def test_a_rank_asks_only_for_portraits_of_the_windows_it_serves_from() -> None:
    shards = [20 + number % 5 for number in range(64)]
    known = some_portraits(shards, 0.3)
    asked: set[int] = set()

    def portraits(shard: int) -> np.ndarray:
        asked.add(shard)
        return known(shard)

    plan = plan_of(shards, 8, portraits=portraits)
    assert not asked
    for step in range(plan.steps_per_epoch):
        asked.clear()
        plan.with_portraits(portraits).rank_batch(0, step, World(4, 1))
        uses = plan.shard_uses(0, 2, 2)
        assert asked <= set(uses.shards[(uses.first_steps <= step) & (step <= uses.last_steps)].tolist())


def test_a_grouped_plan_travels_without_its_portraits() -> None:
    plan = plan_of([40] * 6, 8, portraits=some_portraits([40] * 6, 0.3))
    expected = plan.batch(2, 3)
    arrived = pickle.loads(pickle.dumps(plan.with_portraits(None)))
    assert arrived.grouped
    with pytest.raises(ValueError, match=r"has to know which images are portraits: use `with_portraits` first"):
        arrived.batch(2, 3)
    assert np.array_equal(arrived.with_portraits(plan.portraits).batch(2, 3), expected)


def test_golden_grouped_order() -> None:
    # Made by printing the same expressions, as above.
    shards = [5, 9, 6, 4, 8]
    plan = plan_of(shards, 8, seed=12, portraits=lambda shard: np.arange(shards[shard]) % 3 == 0)
    assert [plan.batch(0, step).tolist() for step in range(2)] == GROUPED_FIRST
    assert plan.batch(7, 3).tolist() == GROUPED_LATER


GROUPED_FIRST = [[2, 1, 15, 19, 7, 12, 25, 28], [3, 22, 5, 14, 9, 6, 24, 26]]
GROUPED_LATER = [1, 2, 19, 15, 12, 7, 29, 25]


def test_the_permutation_is_keyed_and_reaches_every_arrangement() -> None:
    trials = 6000
    chosen = keys(key(3, 4), np.arange(trials))
    indices = np.tile(np.arange(4), trials)
    images = permute(indices, np.full(4 * trials, 4), np.repeat(chosen, 4)).reshape(trials, 4)
    assert np.array_equal(np.sort(images, axis=1), np.tile(np.arange(4), (trials, 1)))
    counts = np.array(list(Counter(map(tuple, images.tolist())).values()))
    # 24 arrangements, 250 each: chi-square has 23 degrees of freedom, 49.7 is passed once in a thousand.
    assert len(counts) == 24
    assert ((counts - 250) ** 2 / 250).sum() < 60


def test_a_permutation_of_a_billion_is_reached_at_any_place() -> None:
    size = 10**9 + 7
    indices = np.array([0, 1, 2, size // 2, size - 1])
    images = permute(indices, np.full(5, size), np.full(5, key(1)))
    assert len(set(images.tolist())) == 5
    assert images.min() >= 0
    assert images.max() < size


def test_a_billion_samples_are_planned_without_listing_them() -> None:
    plan = plan_of([100_000] * 10_000, 256)
    late = plan.batch(3, plan.steps_per_epoch - 1)
    assert plan.num_samples == 10**9
    assert len(np.unique(late)) == 256
    # The pieces of 10,000 shards in 32 streams and the windows of an epoch: nothing as long as the set.
    held = sum(array.nbytes for array in [*plan._pieces, *plan._epoch_order(3)])
    assert held < 1_000_000


def test_the_plan_describes_itself_and_its_tail() -> None:
    assert plan_of([1000, 1000, 345], 128, seed=5).describe() == (
        "2,345 samples = 18 steps of 128 an epoch, 41 dropped at the end (drop_last), "
        "different ones every epoch\n3 shards in 2 streams, shuffled in windows of 4 shards, seed 5"
    )
    assert "none dropped\n1 shard in 1 stream" in plan_of([32], 16).describe()


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(
        DataError,
        match=r"one global batch of 128 needs more than the 100 samples of split 'train': an epoch would have no "
        r"step\. Set the global batch size to 100 or less\.",
    ):
        plan_of([60, 40], 128)


@pytest.mark.parametrize("setting", ["global_batch_size", "streams", "window_shards"])
def test_settings_below_one_are_refused(setting: str) -> None:
    options = {"global_batch_size": 1} | {setting: 0}
    with pytest.raises(DataError, match=f"{setting} is 0; set it to 1 or more"):
        plan_of([10], **options)


def test_a_batch_that_the_ranks_do_not_divide_is_refused() -> None:
    plan = plan_of([100], 16)
    with pytest.raises(
        DataError, match=r"a global batch of 16 cannot be divided equally among 3 ranks\. Set it to 15 or 18\."
    ):
        plan.rank_batch(0, 0, World(3, 0))
    with pytest.raises(DataError, match=r"among 32 ranks\. Set it to 32\."):
        plan.rank_batch(0, 0, World(32, 0))


@pytest.mark.parametrize("place", [(2, 2, 1, 0), (2, -1, 1, 0), (2, 0, 1, 1)])
def test_a_place_outside_the_world_is_refused(place: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"rank is .* and node is .*, but the world has 2 ranks on 1 node"):
        World(*place)


@pytest.mark.parametrize(("epoch", "step"), [(-1, 0), (0, 6), (0, -1)])
def test_a_step_outside_the_epoch_is_refused(epoch: int, step: int) -> None:
    with pytest.raises(IndexError, match="epochs have steps 0 to 5"):
        plan_of([100], 16).batch(epoch, step)
